"""One Ray for the tests of a file: to start it takes ten times as long as a test."""

import logging
import os

import pytest


@pytest.fixture(scope="module")
def ray_is_up():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), before or ""])  # for the workers of Ray
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
