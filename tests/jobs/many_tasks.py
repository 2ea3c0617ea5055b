"""What a pool costs: ``python tests/jobs/many_tasks.py`` prints its throughput and the memory of its driver.

Throughput: samples of the CogVideoX miniature a second by 2 workers against 1, once all are at work. It means something
where each has a core to itself; on a busy machine look at what the pool adds: the share of the time in which a worker
waits for its next task, and the seconds of a core that a sample takes. Memory: what the driver holds at most after
1,000 tasks against 10, in a process each.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from w2sd_video.jobs.pool import Pool, Task, run_tasks

SAMPLES = 60


@dataclass(frozen=True)
class Sampled:
    """What became of a task.

    Attributes:
        mean: of the clip.
        worker: number of the process that sampled it.
        begun: when, in seconds.
        ended: when.
        core: seconds of a core.
    """

    mean: float
    worker: int
    begun: float
    ended: float
    core: float


@dataclass(frozen=True)
class MakeSampler:
    """Makes a worker that samples a clip of a seed."""

    def __call__(self) -> Callable[[int], Sampled]:
        from w2sd_video.rendering.load import load
        from w2sd_video.rendering.sample import sample_clips, threads_for
        from w2sd_video.settings.command_line import parse

        config = parse(["--config", "miniature-cogvideox"]).config
        pipe = load(config)
        pipe.set_progress_bar_config(disable=True)

        def work(seed: int) -> Sampled:
            begun, core = time.monotonic(), time.thread_time()
            with threads_for(config.model.pretrained):
                clips, _ = sample_clips(pipe, config, config.prompts, [seed])
            return Sampled(float(clips.mean()), os.getpid(), begun, time.monotonic(), time.thread_time() - core)

        return work


@dataclass(frozen=True)
class MakeNothing:
    """Makes a worker that does nothing, with the work of an evaluation in its hand."""

    def __call__(self) -> Callable[[Any], None]:
        return lambda work: None


def refuse(task: Task, reason: str) -> None:
    raise RuntimeError(f"{task.name}: {reason}")


def sampled(workers: int) -> dict[str, Sampled]:
    """Sample with some workers of Ray, each with one core."""
    import ray

    done: dict[str, Sampled] = {}
    tasks = (Task(f"seed-{seed}", seed) for seed in range(SAMPLES))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        pool = Pool(workers, cpus_per_worker=1)
        run_tasks(MakeSampler(), tasks, pool, lambda task, value: done.update({task.name: value}), refuse)
    finally:
        ray.shutdown()
    return done


def figures(done: dict[str, Sampled]) -> tuple[float, float, float]:
    """Return samples a second, the share of time between tasks, and seconds of a core a sample, with all at work."""
    by_worker: dict[int, list[Sampled]] = {}
    for sample in sorted(done.values(), key=lambda sample: sample.begun):
        by_worker.setdefault(sample.worker, []).append(sample)
    begin = max(samples[0].ended for samples in by_worker.values())  # the first of each is to warm up
    end = min(samples[-1].ended for samples in by_worker.values())
    inside = [[each for each in samples if begin <= each.begun and each.ended <= end] for samples in by_worker.values()]
    waits = [after.begun - before.ended for each in inside for before, after in pairwise(each)]
    spans = sum(each[-1].ended - each[0].begun for each in inside)
    speed = sum(len(each) / (each[-1].ended - each[0].begun) for each in inside)
    return speed, sum(waits) / spans, sum(sample.core for each in inside for sample in each) / sum(map(len, inside))


def driver_memory(tasks: int) -> float:
    """Return the megabytes that this process held at most, when two workers of Ray had done some tasks."""
    done: list[None] = []
    work = ["a prompt of some length"] * 200
    run_tasks(
        MakeNothing(),
        (Task(str(k), (k, work)) for k in range(tasks)),
        Pool(2),
        lambda task, _: done.append(None),
        refuse,
    )
    assert len(done) == tasks
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        return print(f"{driver_memory(int(sys.argv[1])):.1f}")
    one, two = (sampled(workers) for workers in (1, 2))
    assert {name: each.mean for name, each in one.items()} == {name: each.mean for name, each in two.items()}
    (single, waits, core), (double, waits_of_two, core_of_two) = figures(one), figures(two)
    print(f"throughput  {single:.2f} samples a second by 1 worker, {double:.2f} by 2: {double / single:.2f} times")
    print(f"waiting     {waits:.2%} of the time between the tasks of 1 worker, {waits_of_two:.2%} of those of 2")
    print(f"a core      {core:.3f} seconds a sample by 1 worker, {core_of_two:.3f} by 2")
    print(f"load        {os.getloadavg()[0]:.1f} processes in the last minute, on {os.cpu_count()} cores")
    few, many = (
        float(subprocess.run([sys.executable, __file__, tasks], capture_output=True, text=True, check=True).stdout)
        for tasks in ("10", "1000")
    )
    print(f"memory      {few:.1f} MB in the driver after 10 tasks, {many:.1f} MB after 1,000")


if __name__ == "__main__":
    main()
