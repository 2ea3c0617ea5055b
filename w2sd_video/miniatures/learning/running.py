"""Running one stage on a bench."""

from __future__ import annotations

import time
import zlib

import torch

from w2sd_video.miniatures.learning.bench import Bench
from w2sd_video.miniatures.learning.stage_list import STAGES
from w2sd_video.miniatures.learning.stage_loop import EARLY, Limit, State, TrainingError, learn, read_state


def prepare(device: torch.device) -> None:
    """Set torch up for many small networks: on a GPU products in TF32, and the convolutions that measure fastest."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def run_stage(
    name: str,
    bench: Bench,
    seconds: float,
    last_run: bool = False,
    until: int | None = None,
    steps: int | None = None,
    bfloat16: bool | None = None,
    compiled: bool = False,
) -> State:
    """Train a stage until its steps or the seconds are over.

    Args:
        name: of the stage.
        bench: where.
        seconds: that it may take, the making of its pool included.
        last_run: whether this is the last run, at the end of which the stage is to be finished.
        until: see `Limit`.
        steps: instead of those that are planned.
        bfloat16: see `learn`.
        compiled: whether the network is compiled.

    Returns:
        Where it is then.

    Raises:
        TrainingError: a stage that it needs is not finished, or its loss is not finite.
    """
    stage, planned = STAGES[name], steps or STAGES[name].steps
    state = read_state(bench.path(name))
    if state is not None and state.finished:
        return state
    for need in stage.needs:
        if (needed := read_state(bench.path(need))) is None or not needed.finished:
            raise TrainingError(f"{name} needs {need}, which is not finished; give the run more minutes")
    started = time.monotonic()
    torch.manual_seed(zlib.crc32(name.encode()))
    task = stage.task(bench, stage.batch)
    if compiled:
        task.network.compile()
    left = max(0.0, seconds - (time.monotonic() - started))
    early = stage.share / EARLY if bench.device.type == "cuda" else float("inf")  # a CPU's seconds are not as full
    limit = Limit(planned, left, stage.finishes or last_run, early, until)
    return learn(name, task, bench.path(name), limit, bench.device, bfloat16)
