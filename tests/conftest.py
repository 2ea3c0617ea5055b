"""Settings every test shares."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("W2SD_TRACEBACK", "1")  # an error that nobody foresaw is a failure of a test

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: more of the same cases, in minutes; run with -m thorough")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes unless it is asked for."""
    if "thorough" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: -m thorough"))
