"""What half as many evaluations again buy on a miniature, and the share of the full gain that they keep.

All arms take the same number of steps from the same noise. The gain is the fall of the logarithm of the Fréchet
distance from the strong model alone; the full one that of AutoGuidance at every step, which costs twice as much, and no
share of it is told where its interval holds 0. Run:
python examples/studies/fast_miniatures.py --miniature pixart
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from calibration_arms import Arm, Reference, jackknife, plus_minus, sampled, shuffled_prompts
from calibration_predicts import changes
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt

from w2sd_video.presets import PRESETS
from w2sd_video.rendering.load import load, quiet
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import RenderConfig

ALONE, FULL = "strong alone", "AutoGuidance, every step"


def arms_of(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the arms by name: the preset, its rivals at its cost, and what costs two or three times the plain one."""
    # Base and weak are guided alike, so that base is in the place of strong, and is evaluated once.
    push = PRESETS["fast"] | {"autoguidance_steps": None, "reuse": 1, "autoguidance_gap": "base"}
    late, second = {"autoguidance_steps": (0.5, 1.0)}, {"reuse": 2, "reading": "sample"}
    settings = {
        ALONE: {"reflection_steps": 0, "autoguidance": 0.0},
        "AutoGuidance, late half": push | late,
        "AutoGuidance, every second step": push | second,
        FULL: push,
        "W2SD current, all steps but the last": {"inversion": "current"},
    }
    return {name: replace(config, **changes) for name, changes in settings.items()}


def falls(found: dict[str, Arm], reference: Reference, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from prompts to the changes of an arm, and to its share of the full gain, in that order."""

    def of_prompts(prompts: np.ndarray) -> np.ndarray:
        of_arm = changes(found[ALONE], found[name], prompts, reference)
        full = changes(found[ALONE], found[FULL], prompts, reference)
        return np.array([*of_arm, of_arm[0] / full[0]])

    return of_prompts


def main(
    miniature: Literal["pixart", "dit-moe"] = "pixart",
    folder: Path = Path("runs/fast-miniatures"),
    steps: PositiveInt = 10,
    prompts: PositiveInt = 128,
    seeds: PositiveInt = 2,
) -> dict[str, Arm]:
    """Sample every arm, and print what it costs and what it brings.

    Args:
        miniature: which.
        folder: keeps what is sampled.
        steps: of every arm.
        prompts: of the miniature's world.
        seeds: of each prompt.

    Returns:
        The arms as `calibration_arms.sampled` returns them.
    """
    torch.set_num_threads(1)
    pair = replace(parse(["--config", f"miniature-{miniature}"]).config, steps=steps)
    with quiet():
        pipe = load(pair)
    pipe.set_progress_bar_config(disable=True)
    chosen = shuffled_prompts(pair)[:prompts]
    reference = Reference(pair, chosen)
    found = {name: sampled(pipe, arm, chosen, seeds, folder) for name, arm in arms_of(pair).items()}
    print(f"miniature-{miniature}, {steps} steps, {len(chosen)} prompts x {seeds} seeds (95 %: jackknife of prompts)\n")
    print("| arm | NFE | Fréchet distance | log of it, fall | adherence | rise | share of the full gain |")
    print("|---|---|---|---|---|---|---|")
    full_gain, half = (each[0] for each in jackknife(falls(found, reference, FULL), len(chosen)))
    for name, arm in found.items():
        values, halves = jackknife(falls(found, reference, name), len(chosen))
        fall, rise = plus_minus(values[0], halves[0]), plus_minus(values[2], halves[2], "+.3f")
        share = "" if name == ALONE or full_gain < half else plus_minus(values[3], halves[3], ".0%")
        distance, adherence = reference.distance(arm["features"]), arm["adherence"].mean()
        print(f"| {name} | {arm['nfe']} | {distance:.1f} | {fall} | {adherence:.3f} | {rise} | {share} |", flush=True)
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
