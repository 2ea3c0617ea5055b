"""Tasks done in this process and by Ray's actors come to the same."""

import os
import subprocess
import sys

import pytest
from workers import MakeWriter

from w2sd_video.jobs.pool import Pool, PoolError, Task, run_tasks, started
from w2sd_video.messages import ConfigError

MISFORTUNES = ((1, "fails"), (2, "raises"))


@pytest.fixture
def pool(request):
    """Two workers of Ray, or this process."""
    if request.param == "ray":
        request.getfixturevalue("ray_is_up")
    return Pool(2) if request.param == "ray" else Pool()


both = pytest.mark.parametrize("pool", ["here", "ray"], indirect=True)


def tasks(count):
    return (Task(f"task-{number}", number) for number in range(count))


def outcome(make_worker, pool, count):
    done, failed = {}, {}
    run_tasks(
        make_worker, tasks(count), pool, lambda t, v: done.update({t.name: v}), lambda t, w: failed.update({t.name: w})
    )
    return done, failed


def files(folder, start=""):
    return {path.name for path in folder.glob(f"{start}*") if path.suffix == ".txt" or start}


@both
def test_every_task_is_done_and_each_failure_says_why(pool, tmp_path):
    done, failed = outcome(MakeWriter(str(tmp_path), misfortunes=MISFORTUNES), pool, 8)
    assert failed == {"task-1": "the task says why", "task-2": "a foreign line"}
    assert done.keys() == {f"task-{number}" for number in (0, 3, 4, 5, 6, 7)}
    assert files(tmp_path) == {f"{number}.txt" for number in (0, 3, 4, 5, 6, 7)}
    assert set(done.values()) == ({os.getpid()} if pool.is_this_process else set(done.values()) - {os.getpid()})
    assert 1 <= len(files(tmp_path, "made-")) <= pool.workers


@both
def test_workers_stay_for_the_next_tasks_and_are_made_for_a_first_one(pool, tmp_path):
    seen = []
    with started(MakeWriter(str(tmp_path)), pool) as run:
        run([], None, None)
        assert not files(tmp_path, "made-")
        for _ in range(2):
            run(tasks(3), lambda task, process: seen.append(process), None)
    assert len(seen) == 6 and {f"made-{process}" for process in seen} <= files(tmp_path, "made-")
    assert len(files(tmp_path, "made-")) <= pool.workers


@both
def test_a_worker_that_cannot_be_made_and_a_full_disk_end_the_job(pool, tmp_path):
    with pytest.raises(ConfigError, match=r"^no such branch$"):
        outcome(MakeWriter(str(tmp_path), refused="no such branch"), pool, 3)
    with pytest.raises(OSError, match="No space left on device"):
        outcome(MakeWriter(str(tmp_path), misfortunes=((1, "full"),)), pool, 3)


def test_what_a_killed_worker_had_in_hand_is_done_by_another_but_not_for_ever(ray_is_up, tmp_path):
    misfortunes = ((0, "dies once"), (3, "always dies"), (5, "dies once"))
    done, failed = outcome(MakeWriter(str(tmp_path), misfortunes=misfortunes), Pool(2, retries=1), 8)
    assert done.keys() == {f"task-{number}" for number in range(8) if number != 3}
    assert failed.keys() == {"task-3"} and failed["task-3"].startswith("its worker died 2 times in it: it was killed")
    assert files(tmp_path) == {f"{number}.txt" for number in range(8) if number != 3}


def test_workers_that_die_before_they_are_ready_end_the_job(ray_is_up, tmp_path):
    with pytest.raises(PoolError, match="workers died before they were ready"):
        outcome(MakeWriter(str(tmp_path), refused="dies"), Pool(2, retries=1), 3)


def test_a_slow_task_keeps_nothing_but_its_own_worker(ray_is_up, tmp_path):
    order = []
    make_worker = MakeWriter(str(tmp_path), misfortunes=((0, "slow"),))
    run_tasks(make_worker, tasks(12), Pool(2), lambda task, _: order.append(task.work), None)
    assert order[-1] == 0 and sorted(order) == list(range(12))


@pytest.mark.parametrize(
    ("many", "said"),
    [
        (Pool(2, gpus_per_worker=64), "workers 2: with 64 GPU"),
        (Pool(2, cpus_per_worker=10**4), "--cpus-per-worker 10000: this machine has"),
    ],
)
def test_a_pool_of_more_than_there_is_is_refused(many, said, ray_is_up, tmp_path):
    with pytest.raises(ConfigError, match=said):
        outcome(MakeWriter(str(tmp_path)), many, 3)


def test_one_process_imports_no_ray_and_more_say_what_to_install():
    code = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from w2sd_video.jobs.pool import Pool, Task, run_tasks
from w2sd_video.messages import ConfigError
run_tasks(lambda: abs, [Task("a", -1)], Pool(), lambda task, value: print(value), None)
try:
    run_tasks(lambda: abs, [Task("a", -1)], Pool(2), None, None)
except ConfigError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[0] == "1" and "pip install 'w2sd-video[ray]'" in told.splitlines()[1]
