"""What a pool of workers is given: tasks, and how many workers there are to do them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2sd_video.messages import first_line, is_disk_full

Worker = Callable[[Any], Any]
"""Does the work of one task: writes its files, and returns something small."""
MakeWorker = Callable[[], Worker]
"""Makes a worker in the process that it is to work in (loads the model); picklable, for other processes."""


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        name: unique among the tasks of a job, and fit for a file's name.
        work: what the worker is called with; picklable.
    """

    name: str
    work: Any


@dataclass(frozen=True)
class Pool:
    """Who does the tasks.

    Attributes:
        workers: processes that work at a time, each with a worker of its own; 0 means as many as a cluster has room
            for. With 1 and no cluster all is done in this process, without Ray.
        ray: address of a running Ray cluster, "auto" for the one that this machine belongs to; None for this machine.
        gpus_per_worker: GPUs that a worker holds, a fraction to share one; None means 1 where there are GPUs, else 0.
        cpus_per_worker: cores that a worker holds; None means an equal share of this machine, and 1 on a cluster.
        retries: how often a task is done again if its worker is killed in the middle.
    """

    workers: int = 1
    ray: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    retries: int = 3

    @property
    def is_this_process(self) -> bool:
        """Whether no other process is needed."""
        return self.workers == 1 and self.ray is None


class TaskFailed(Exception):  # noqa: N818
    """Raised by a worker that could not do one task; the message is one line that says why. The others go on."""


class PoolError(Exception):
    """Workers that cannot be had, or that die before they are ready; the message is one line."""


def attempt(worker: Worker, work: Any) -> tuple[Any, str | None]:
    """Return what a worker makes of a task, or else the line that says why it failed.

    Raises:
        OSError: a full disk.
    """
    try:
        return worker(work), None
    except Exception as error:  # whatever a foreign model raises is the failure of this task alone
        if is_disk_full(error):  # at which the other tasks would fail too
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        return None, first_line(error)
