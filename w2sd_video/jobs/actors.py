"""A pool of Ray actors, each with one worker. Only this module imports Ray, and only a pool of Ray imports it.

One task at a time is given to each, so that a slow one keeps nothing but its own actor. Actors are watched and made
again here and not by Ray, which would not say which task killed them.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from w2sd_video import __version__
from w2sd_video.jobs.tasks import MakeWorker, Pool, PoolError, Task, attempt
from w2sd_video.messages import ConfigError, first_line

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ConfigError("workers: several need Ray; pip install 'w2sd-video[ray]', or give each process a --shard") from (
        error
    )

_ANSWER = 10.0
"""Seconds in which a cluster has to answer."""
_OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a Ray that is started here: tasks and what is returned of them are small."""


class _Actor:
    """Runs in a process of its own, in the folder that the job was started in, so that relative paths mean the same."""

    def make(self, make_worker: MakeWorker, version: str, folder: str) -> None:
        if version != __version__:
            raise PoolError(f"{_here()} has w2sd-video {__version__}, the job is of {version}; install the same")
        if not os.path.isdir(folder):
            raise PoolError(f"{_here()} has no folder {folder}; start the job in one that all machines share")
        os.chdir(folder)
        self._worker = make_worker()

    def run(self, work: Any) -> tuple[Any, str | None]:
        return attempt(self._worker, work)


class ActorPool:
    """Actors that are made when there is a first task, and stay until the pool is closed.

    Args:
        make_worker: called in each actor.
        pool: how many, where, and what each holds.
    """

    def __init__(self, make_worker: MakeWorker, pool: Pool) -> None:
        self._make_worker, self._pool = make_worker, pool
        self._is_ours = self._is_connected = False
        self._idle: list[Any] = []
        self._making: dict[Any, Any] = {}  # actors by what tells that they are ready
        self._running: dict[Any, tuple[Any, Task]] = {}  # actors and their tasks by what tells that they are done
        self._died_unready = 0  # since the last worker that became ready

    def run(
        self, tasks: Iterable[Task], on_done: Callable[[Task, Any], None], on_failed: Callable[[Task, str], None]
    ) -> None:
        """See ``pool.started``."""
        coming, at_hand = iter(tasks), deque[Task]()
        deaths: Counter[str] = Counter()  # by the name of the task
        while True:
            at_hand.extend(islice(coming, 0 if at_hand else 1))
            if not at_hand and not self._running:
                return
            self._connect()
            at_hand.extend(islice(coming, max(0, self._workers - len(at_hand))))
            while self._idle and at_hand:
                actor, task = self._idle.pop(), at_hand.popleft()
                self._running[actor.run.remote(task.work)] = actor, task
            while at_hand and self._count < min(self._workers, len(at_hand) + len(self._running)):
                self._start_actor()
            (done,), _ = ray.wait([*self._running, *self._making], num_returns=1)
            if done in self._making:
                self._take_in(done)
                continue
            actor, task = self._running.pop(done)
            try:
                value, why = ray.get(done)
            except RayTaskError as error:
                if isinstance(error.cause, OSError):  # a full disk: see `attempt`
                    raise error.cause from error
                value, why = None, first_line(error.cause)
                self._idle.append(actor)
            except RayError as error:
                ray.kill(actor)
                deaths[task.name] += 1
                if deaths[task.name] <= self._pool.retries:
                    at_hand.appendleft(task)
                    continue
                value, why = None, f"its worker died {deaths[task.name]} times in it: {_reason(error)}"
            else:
                self._idle.append(actor)
            if why is None:
                on_done(task, value)
            else:
                on_failed(task, why)

    def close(self) -> None:
        """End the actors, whatever they are doing, and Ray too if it was started or joined here."""
        if not self._is_connected:
            return
        for actor in [*self._idle, *self._making.values(), *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)
        if self._is_ours:
            ray.shutdown()

    @property
    def _count(self) -> int:
        return len(self._idle) + len(self._making) + len(self._running)

    def _connect(self) -> None:
        """Start or join Ray, and work out how many workers there are and what each holds."""
        if self._is_connected:
            return
        if not ray.is_initialized():
            self._is_ours = True
            _init(self._pool.ray)
        self._is_connected = True
        there = ray.cluster_resources()
        gpus, cpus = there.get("GPU", 0.0), there.get("CPU", 1.0)
        pool, is_cluster = self._pool, self._pool.ray is not None
        self._gpus = pool.gpus_per_worker if pool.gpus_per_worker is not None else float(gpus > 0)
        room = gpus / self._gpus if self._gpus else cpus / (pool.cpus_per_worker or 1)
        self._workers = pool.workers or max(1, int(room))
        self._cpus = pool.cpus_per_worker or (1 if is_cluster else _share(cpus, self._workers))
        if not is_cluster and self._workers * self._gpus > gpus:
            raise ConfigError(
                f"workers {self._workers}: with {self._gpus:g} GPU(s) each, but this machine has {gpus:g}; "
                "set --gpus-per-worker to a fraction, or to 0 to work without"
            )
        if not is_cluster and self._cpus > cpus:
            raise ConfigError(f"--cpus-per-worker {self._cpus:g}: this machine has {cpus:g}")
        self._job = ray.put(self._make_worker)

    def _start_actor(self) -> None:
        holds = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(_Actor).options(**holds).remote()
        self._making[actor.make.remote(self._job, __version__, os.getcwd())] = actor

    def _take_in(self, ready: Any) -> None:
        """Take a worker that was made to the others, or say why it could not be made."""
        actor = self._making.pop(ready)
        try:
            ray.get(ready)
        except RayTaskError as error:  # of the worker: another would be made no better
            if isinstance(error.cause, RayError):  # what Ray itself failed at, such as a package that is not there
                raise PoolError(f"no worker can be made: {first_line(error.cause)}") from error
            raise error.cause from error
        except RayError as error:
            ray.kill(actor)
            self._died_unready += 1
            if self._died_unready > self._pool.retries * self._workers:
                raise PoolError(f"{self._died_unready} workers died before they were ready: {_reason(error)}") from None
        else:
            self._died_unready = 0
            self._idle.append(actor)


def _init(address: str | None) -> None:
    """Start Ray on this machine with as little beside the workers as it can do with, or join a cluster."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
        else:
            _check_answers(address)
            ray.init(address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError, ImportError) as error:
        where = f"--ray {address}" if address else "on this machine"
        raise PoolError(f"Ray cannot be {'joined' if address else 'started'} {where}: {first_line(error)}") from error


def _check_answers(address: str) -> None:
    """Refuse a cluster that does not answer: Ray itself would ask for it for many minutes.

    Raises:
        OSError: nobody listens there.
    """
    if address == "auto":  # the cluster that was last started on this machine, perhaps long gone
        address = os.environ.get("RAY_ADDRESS", "")
        noted = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
        address = address or (noted.read_text(encoding="utf-8").strip() if noted.is_file() else "")
    host, _, port = address.rpartition(":")
    if "//" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


def _share(cpus: float, workers: int) -> float:
    """Return the cores that each worker of this machine holds: whole ones, or of more workers than cores a fraction."""
    share = cpus / workers
    return math.floor(share) if share >= 1 else math.floor(share * 1e4) / 1e4  # Ray counts in 1e-4


def _here() -> str:
    return f"worker on {os.uname().nodename}"


def _reason(error: RayError) -> str:
    """Say what became of a worker, as far as Ray's many lines tell it."""
    if "low on memory" in str(error).lower():
        return "the machine ran out of memory, and Ray ended it"
    return "it was killed, or crashed; the logs of Ray tell more (/tmp/ray/session_latest/logs on its machine)"
