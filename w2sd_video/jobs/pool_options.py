"""The options of the command lines that say who does the work."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from w2sd_video.jobs.tasks import Pool
from w2sd_video.messages import ConfigError

MOST_WORKERS = 4096
"""Beyond what is of use, so that a slip is refused."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Every `count`-th task, beginning with number `index`, counted from 0 as Slurm, Kubernetes and torchrun do."""

    index: int = 0
    count: int = 1

    def of(self, tasks: Iterable[T]) -> Iterator[T]:
        """Return this shard's part of all tasks of a job, done or not, always given in the same order."""
        return islice(tasks, self.index, None, self.count)


def add_pool_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``, ``--ray``, ``--gpus-per-worker``, ``--cpus-per-worker`` and ``--shard``."""
    add = parser.add_argument
    add("--workers", metavar="N", help="processes that work at a time, each with its own model; more than 1 need Ray")
    add("--ray", metavar="ADDRESS", help="a running Ray cluster, auto for this machine's; --workers: as many as fit it")
    add("--gpus-per-worker", metavar="X", help="GPUs a worker holds, or a fraction; 1 where there are any")
    add("--cpus-per-worker", metavar="X", help="cores a worker holds; an equal share of this machine, 1 of a cluster")
    add("--shard", metavar="I/N", help="do every N-th task, the I-th first, from 0: for processes that share a folder")


def pool_of(
    workers: str | int | None = None,
    ray: str | None = None,
    gpus_per_worker: str | float | None = None,
    cpus_per_worker: str | float | None = None,
    device: str = "auto",
) -> Pool:
    """Return the pool that options name.

    Args:
        workers: how many; None means 1, and with a cluster as many as it has room for.
        ray: address of a cluster.
        gpus_per_worker: 0 to 64.
        cpus_per_worker: above 0, to 1024.
        device: of the models: with "cpu" a worker holds no GPU.

    Raises:
        ConfigError: a number out of range, or options that contradict each other.
    """
    count = number_of("workers", workers, 1, MOST_WORKERS, whole=True)
    gpus = number_of("gpus-per-worker", gpus_per_worker, 0, 64)
    cpus = number_of("cpus-per-worker", cpus_per_worker, 1e-4, 1024)
    if gpus and gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"--gpus-per-worker {gpus:g}: must be a fraction of 1 or a whole number")
    if device == "cpu":
        if gpus:
            raise ConfigError(f"--gpus-per-worker {gpus:g}: is for a GPU, but the device is the CPU; leave one out")
        gpus = 0.0
    if ray is not None and not ray.strip():
        raise ConfigError("--ray '': must be the address of a cluster, host:port or auto")
    pool = Pool(int(count) if count else (0 if ray else 1), ray, gpus, cpus)
    if ":" in device and not pool.is_this_process:
        kind = device.split(":")[0]
        raise ConfigError(f"device {device}: each worker sees GPUs of its own; set --device {kind}")
    return pool


def pool_asked_for(options: argparse.Namespace, device: str) -> Pool:
    """Return the pool that a command line asks for; see `pool_of`."""
    return pool_of(options.workers, options.ray, options.gpus_per_worker, options.cpus_per_worker, device)


def shard_of(text: str | None) -> Shard:
    """Return the shard that ``I/N`` names; all tasks unless given.

    Raises:
        ConfigError: another form, or I that is not from 0 to N - 1.
    """
    if text is None:
        return Shard()
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if not match:
        raise ConfigError(f"--shard {text}: must be like 0/4, the first of four")
    index, count = int(match[1]), int(match[2])
    if not index < count:
        raise ConfigError(f"--shard {text}: shards are counted from 0, so the first number must be below the second")
    return Shard(index, count)


def number_of(name: str, value: str | float | None, least: float, most: float, whole: bool = False) -> float | None:
    """Return a number within a range; None stays None."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"--{name} {value}: must be {kind} from {least:g} to {most:g}")
    return number
