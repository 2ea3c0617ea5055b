"""Doing many tasks: one after the other in this process, or by a pool of Ray actors, of one machine or of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from w2sd_video.jobs.tasks import MakeWorker, Pool, PoolError, Task, TaskFailed, Worker, attempt

__all__ = ["MakeWorker", "Pool", "PoolError", "Task", "TaskFailed", "Worker", "run_tasks", "started"]

OnDone = Callable[[Task, Any], None]
"""Called in this process with a task and what its worker returned, in the order in which tasks are done."""
OnFailed = Callable[[Task, str], None]
"""Called in this process with a task and the line that says why there is nothing of it."""


class RunTasks(Protocol):
    """Does tasks, and returns when all are done or have failed."""

    def __call__(self, tasks: Iterable[Task], on_done: OnDone, on_failed: OnFailed) -> None: ...


def run_tasks(make_worker: MakeWorker, tasks: Iterable[Task], pool: Pool, on_done: OnDone, on_failed: OnFailed) -> None:
    """Do all tasks with the workers of a pool; see `started`."""
    with started(make_worker, pool) as run:
        run(tasks, on_done, on_failed)


@contextmanager
def started(make_worker: MakeWorker, pool: Pool) -> Iterator[RunTasks]:
    """Give a function that does tasks with the workers of a pool, which stay for its next call.

    Workers are made when there is a first task. Tasks are taken from their iterable when a worker is free. A task whose
    worker is killed is done again by another, a few times; so what a worker writes has to appear whole or not at all.

    Args:
        make_worker: makes a worker; in a pool of Ray it is called in the process of each.
        pool: who does the tasks.

    Raises:
        ConfigError: a pool that cannot be: without Ray, or of more GPUs than there are.
        PoolError: workers that die before they are ready.
        OSError: a full disk.
        Exception: whatever making a worker raises.
    """
    if pool.is_this_process:
        yield _InThisProcess(make_worker)
        return
    from w2sd_video.jobs.actors import ActorPool

    actors = ActorPool(make_worker, pool)
    try:
        yield actors.run
    finally:
        actors.close()


class _InThisProcess:
    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def __call__(self, tasks: Iterable[Task], on_done: OnDone, on_failed: OnFailed) -> None:
        for task in tasks:
            if self._worker is None:
                self._worker = self._make_worker()
            value, why = attempt(self._worker, task.work)
            if why is None:
                on_done(task, value)
            else:
                on_failed(task, why)
