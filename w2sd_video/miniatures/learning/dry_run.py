"""What each stage will take, from ten measured steps of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from w2sd_video.miniatures.learning.bench import Bench
from w2sd_video.miniatures.learning.running import run_stage
from w2sd_video.miniatures.learning.stage_list import STAGES
from w2sd_video.miniatures.learning.stage_loop import read_state

MEASURED = 10
"""Steps that are timed."""
_BEFORE = {"cpu": 2, "cuda": 50}
"""Steps that are not: the first are slow, and on a GPU both precisions are tried."""


def measure(bench: Bench, stages: Sequence[str]) -> list[str]:
    """Return a line for each stage: its steps that are left, the seconds of one, and the minutes of all.

    Each runs alone, in a folder of its own that is removed, on top of stages that were as short: what they are
    filled with does not change what a step takes. Pools are small, so encoding them is not in the figures.
    """
    lines = [f"{'stage':24}{'steps left':>12}{'s a step':>10}{'minutes':>9}"]
    total = 0.0
    before = _BEFORE[bench.device.type]
    with tempfile.TemporaryDirectory(prefix="w2sd-dry-run-") as folder:
        trial = replace(bench, out=Path(folder), pool=2048 if bench.device.type == "cuda" else 64, _pools={})
        for stage in stages:
            known = read_state(bench.path(stage))
            left = 0 if known and known.finished else STAGES[stage].steps - (known.step if known else 0)
            steps = before + MEASURED
            first = run_stage(stage, trial, float("inf"), steps=steps, until=before)
            second = run_stage(stage, trial, float("inf"), steps=steps)
            seconds = (second.seconds - first.seconds) / MEASURED
            total += seconds * left
            lines.append(f"{stage:24}{left:12}{seconds:10.3f}{seconds * left / 60:9.1f}")
    lines.append(f"{'together, one by one':46}{total / 60:9.1f}")
    return lines
