"""Stages side by side: how a run's time is shared out, and the processes that train."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

import torch
from torch import multiprocessing

from w2sd_video.messages import first_line
from w2sd_video.miniatures.learning.bench import Bench
from w2sd_video.miniatures.learning.running import prepare, run_stage
from w2sd_video.miniatures.learning.stage_list import STAGES
from w2sd_video.miniatures.learning.stage_loop import State, TrainingError, read_state

log = logging.getLogger(__name__)

GRACE = 20.0
"""Seconds that a process may take beyond its time, to write its last checkpoint."""
_LOOKED_EVERY = 0.2
_READY = "ready"


@dataclass(frozen=True)
class Plan:
    """Who trains what, and until when.

    Attributes:
        phases: for each phase the stages of each lane, in order; a phase begins when all of the one before is over.
        seconds: of each phase; infinite without a cap.
    """

    phases: Sequence[Sequence[Sequence[str]]]
    seconds: Sequence[float]


def plan_of(stages: Sequence[str], states: Mapping[str, State | None], seconds: float, jobs: int) -> Plan:
    """Share out the time of a run.

    What others build on comes first. Each lane fills its phase; in it every stage has the part of the time that its
    share is of those of its lane, less what is done of it.

    Args:
        stages: to be trained.
        states: where they are.
        seconds: of the run; infinite without a cap.
        jobs: lanes, at most.
    """
    left = {stage: _left(stage, states.get(stage)) for stage in stages}
    left = {stage: share for stage, share in left.items() if share > 0}
    phases, loads = [], []
    for is_first in (True, False):
        chains: dict[str, list[str]] = {}
        for stage in left:
            if (not STAGES[stage].needs) == is_first:
                chains.setdefault(STAGES[stage].chain, []).append(stage)
        lanes: list[list[str]] = [[] for _ in range(min(jobs, len(chains)))]
        for chain in sorted(chains.values(), key=lambda chain: -_sum(chain, left)):
            min(lanes, key=lambda lane: _sum(lane, left)).extend(chain)
        if lanes:
            phases.append(lanes)
            loads.append(max(_sum(lane, left) for lane in lanes))
    return Plan(phases, [seconds * load / sum(loads) for load in loads])


def _sum(stages: Sequence[str], left: Mapping[str, float]) -> float:
    return sum(left[stage] for stage in stages)


def _left(stage: str, state: State | None) -> float:
    """Return what is left of a stage's share: nothing of what is finished, and never quite nothing of what is not."""
    if state is None:
        return STAGES[stage].share
    done = state.step / STAGES[stage].steps
    return 0.0 if state.finished else STAGES[stage].share * max(0.02, 1 - done)


@dataclass(frozen=True)
class Work:
    """What a lane is told, and sent to another process.

    Attributes:
        bench: the settings that a `Bench` is made of.
        lanes: its stages, for each phase.
        all_stages: those of each phase of all lanes, which a later phase waits for.
        ends: when each phase is over, by `time.time`; infinite without a cap.
        last_run: see `run_stage`.
        compiled: see `run_stage`.
        threads: of the CPU.
    """

    bench: Mapping[str, Any]
    lanes: Sequence[Sequence[str]]
    all_stages: Sequence[Sequence[str]]
    ends: Sequence[float]
    last_run: bool
    compiled: bool
    threads: int


def train_side_by_side(
    bench: Bench,
    stages: Sequence[str],
    end: float = math.inf,
    jobs: int = 1,
    last_run: bool = False,
    compiled: bool = False,
    every_minute: Callable[[], object] | None = None,
) -> dict[str, str]:
    """Train stages, each process a lane of them; what is done is in the bench's folder, also after an interruption.

    Args:
        bench: where.
        stages: in an order in which each comes after what it needs.
        end: when to be over, by `time.time`.
        jobs: processes at most; one lane is trained in this process.
        last_run: see `run_stage`.
        compiled: see `run_stage`.
        every_minute: called once a minute, for packing what there is.

    Returns:
        Why stages failed, by their names.
    """
    states = {stage: read_state(bench.path(stage)) for stage in stages}
    lanes = [len(phase) for phase in plan_of(stages, states, 1.0, jobs).phases]
    count = max(lanes, default=0)
    settings = {
        "out": bench.out,
        "device": bench.device,
        "fashion_mnist": bench.fashion_mnist,
        "pool": bench.pool,
        "features": bench.features,
    }
    threads = max(1, torch.get_num_threads() // max(1, count))

    def works() -> list[Work]:
        """Share out the time that is left, once all processes are there: their beginning takes long on a cold disk."""
        now = time.time()
        plan = plan_of(stages, states, max(0.0, end - now), jobs)
        ends = [now + sum(plan.seconds[: i + 1]) for i in range(len(plan.seconds))]
        all_stages = [[stage for lane in phase for stage in lane] for phase in plan.phases]
        return [
            Work(
                settings,
                [phase[i] if i < len(phase) else [] for phase in plan.phases],
                all_stages,
                ends,
                last_run,
                compiled,
                threads,
            )
            for i in range(count)
        ]

    if count <= 1:
        return run_lane(works()[0]) if count else {}
    return _in_processes(count, works, end, every_minute)


def _in_processes(
    count: int, works: Callable[[], list[Work]], end: float, every_minute: Callable[[], object] | None
) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")  # CUDA bears no fork
    messages = context.Queue()
    orders = [context.Queue() for _ in range(count)]
    processes = [
        context.Process(target=_lane_process, args=(order, messages), name=f"lane {i}")
        for i, order in enumerate(orders)
    ]
    for process in processes:
        process.start()
    failed: dict[str, str] = {}
    packed = time.monotonic()
    try:
        ready = 0
        while ready < count and all(process.is_alive() for process in processes) and time.time() < end:
            time.sleep(_LOOKED_EVERY)
            while not messages.empty():
                ready += messages.get() == _READY
        log.info("%d of %d processes are there", ready, count)
        for order, work in zip(orders, works(), strict=True):
            order.put(work)
        while any(process.is_alive() for process in processes) and time.time() < end + GRACE:
            time.sleep(_LOOKED_EVERY)
            while not messages.empty():
                failed |= messages.get()
            if every_minute is not None and time.monotonic() - packed > 60:
                packed = time.monotonic()
                every_minute()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join(GRACE)
            if process.is_alive():
                process.kill()
                process.join()
    while not messages.empty():
        failed |= messages.get()
    for process in processes:
        if process.exitcode:
            failed[process.name] = f"its process ended with {process.exitcode}; its last checkpoints are kept"
    return failed


def _lane_process(orders: Any, messages: Any) -> None:
    """Be a lane in a process of its own: say that it is there, be told what to do, and say what failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # the context of a GPU takes seconds
    messages.put(_READY)
    if failed := run_lane(orders.get()):
        messages.put(failed)


def _end_with_parent() -> None:
    """End this process when the one that began it is gone, killed perhaps; no checkpoint is half-written by that."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def run_lane(work: Work) -> dict[str, str]:
    """Train the stages of a lane, phase by phase; one that fails does not stop those that do not need it.

    Returns:
        Why stages failed, by their names.
    """
    bench = Bench(**work.bench)
    prepare(bench.device)
    torch.set_num_threads(work.threads)
    failed: dict[str, str] = {}
    for i, (stages, end) in enumerate(zip(work.lanes, work.ends, strict=True)):
        if i and stages:
            _wait_for(bench, work.all_stages[i - 1], work.ends[i - 1])
        for k, stage in enumerate(stages):
            shares = [_left(name, read_state(bench.path(name))) for name in stages[k:]]
            seconds = (end - time.time()) * shares[0] / sum(shares) if sum(shares) else 0.0
            try:
                run_stage(stage, bench, seconds, work.last_run, compiled=work.compiled)
            except TrainingError as error:
                failed[stage] = str(error)
            except Exception as error:  # whatever a library raises: the other stages of the lane go on
                failed[stage] = f"{type(error).__name__}: {first_line(error)}"
                log.exception("%s failed", stage)
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    return failed


def _wait_for(bench: Bench, stages: Sequence[str], end: float) -> None:
    """Wait until other lanes have finished the phase before, or its time is over."""

    def is_finished(stage: str) -> bool:
        state = read_state(bench.path(stage))
        return state is not None and state.finished

    while not all(map(is_finished, stages)) and time.time() < end + GRACE:
        time.sleep(_LOOKED_EVERY)


def device_of(name: str) -> torch.device:
    """Return the device that a name means; "auto" is a GPU if there is one.

    Raises:
        TrainingError: one that is not there.
    """
    try:
        device = torch.device(
            "cuda" if name == "auto" and torch.cuda.is_available() else name if name != "auto" else "cpu"
        )
    except RuntimeError as error:
        raise TrainingError(f"device {name}: there is none of that name; use cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name}: use cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device {name}: torch finds no GPU here; use cpu")
    return device
