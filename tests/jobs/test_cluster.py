"""Ray is started and ended, or a cluster is joined, by the pool itself."""

import os

import pytest
from workers import MakeWriter

from w2sd_video.jobs.pool import Pool, PoolError, Task, run_tasks

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")


def test_ray_is_started_for_a_first_task_and_ended_when_all_are_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)
    done = []
    run_tasks(MakeWriter(str(tmp_path)), [], Pool(2), None, None)
    assert not ray.is_initialized()
    tasks = (Task(str(number), number) for number in range(3))
    run_tasks(MakeWriter(str(tmp_path)), tasks, Pool(2), lambda task, _: done.append(ray.is_initialized()), None)
    assert done == [True] * 3 and not ray.is_initialized()


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1", "no such host:6379", "nonsense"])
def test_a_cluster_that_is_not_there_is_one_line(address, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a machine may have a cluster, or what is left of one
    with pytest.raises(PoolError, match=f"^Ray cannot be joined --ray {address}: .*$"):
        run_tasks(MakeWriter(str(tmp_path)), [Task("0", 0)], Pool(0, ray=address), None, None)
