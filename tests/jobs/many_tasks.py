"""What a pool costs: ``python tests/jobs/many_tasks.py`` prints its throughput and the memory of its driver.

Throughput: samples of the CogVideoX miniature a second by 2 workers against 1, each with a core to itself, from the
first task done to the last. Memory: what the driver holds at most after 1,000 tasks against 10, in a process each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2sd_video.jobs.pool import Pool, Task, run_tasks

SAMPLES = 60


@dataclass(frozen=True)
class MakeSampler:
    """Makes a worker that samples a clip of a seed."""

    def __call__(self) -> Callable[[int], float]:
        from w2sd_video.rendering.load import load, quiet
        from w2sd_video.rendering.sample import sample_clips, threads_for
        from w2sd_video.settings.command_line import parse

        config = parse(["--config", "miniature-cogvideox"]).config
        with quiet():
            pipe = load(config)
        pipe.set_progress_bar_config(disable=True)

        def work(seed: int) -> float:
            with threads_for(config.model.pretrained):
                clips, _ = sample_clips(pipe, config, config.prompts, [seed])
            return float(clips.mean())

        return work


@dataclass(frozen=True)
class MakeNothing:
    """Makes a worker that does nothing, with the work of an evaluation in its hand."""

    def __call__(self) -> Callable[[Any], None]:
        return lambda work: None


@dataclass
class Clock:
    """When tasks were done, and what they returned, by their names."""

    times: list[float] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def __call__(self, task: Task, value: Any) -> None:
        self.times.append(time.perf_counter())
        self.values[task.name] = value

    def throughput(self, warm: int) -> float:
        """Return the tasks a second, counted when `warm` were done, so that all workers are at work."""
        return (len(self.times) - 1 - warm) / (self.times[-1] - self.times[warm])


def refuse(task: Task, reason: str) -> None:
    raise RuntimeError(f"{task.name}: {reason}")


def sampled(workers: int) -> Clock:
    """Sample with some workers of Ray, each with one core."""
    clock = Clock()
    tasks = (Task(f"seed-{seed}", seed) for seed in range(SAMPLES))
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    try:
        run_tasks(MakeSampler(), tasks, Pool(workers, cpus_per_worker=1), clock, refuse)
    finally:
        ray.shutdown()
    return clock


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
    assert one.values == two.values, "the samples differ"
    single, double = one.throughput(8), two.throughput(8)
    print(f"throughput  {single:.2f} samples a second by 1 worker, {double:.2f} by 2: {double / single:.2f} times")
    few, many = (
        float(subprocess.run([sys.executable, __file__, tasks], capture_output=True, text=True, check=True).stdout)
        for tasks in ("10", "1000")
    )
    print(f"memory      {few:.1f} MB in the driver after 10 tasks, {many:.1f} MB after 1,000")


if __name__ == "__main__":
    main()
