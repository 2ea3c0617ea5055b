"""Calibrated strengths against constant ones, at equal numbers of evaluations.

A pair is calibrated with real clips of some prompts, on which the best constant strength is looked for too; all arms
are then sampled of other prompts. Besides the least-squares schedule of ``w2sd_video.calibrate`` there are its balanced
strength, at which the tilt vanishes, and the same level by level.

Run: python examples/studies/calibration_schedule.py (twenty minutes of one core; it goes on where it stopped)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from calibration_arms import Arm, Reference, jackknife, plus_minus, sampled, shuffled_prompts, written
from calibration_predicts import PAIRS, alone, changes, compared, configured
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt

from w2sd_video.calibration.gap import calibrate
from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.rendering.load import load
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.strength import StrengthSchedule, log_snr
from w2sd_video.trajectory import Trajectory

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
"""Among which the constant one is looked for."""


def evaluations(config: RenderConfig, schedule: StrengthSchedule, pipe: Any) -> int:
    """Return what a sample costs by a schedule, which reflects no step where it is 0."""
    pipe.scheduler.set_timesteps(config.steps)
    trajectory = Trajectory(pipe.scheduler)
    reflected = sum(schedule.at(trajectory.level(i)) != 0 for i in range(len(trajectory) - 1))
    return config.steps + 2 * reflected


def scheduled(config: RenderConfig, schedule: StrengthSchedule, folder: Path, pipe: Any, budget: int) -> RenderConfig:
    """Return the configuration with a schedule, and as many steps as the budget allows."""
    candidates = [replace(config, steps=steps) for steps in range(config.steps, budget + 1)]
    affordable = [candidate for candidate in candidates if evaluations(candidate, schedule, pipe) <= budget]
    return replace(affordable[-1], strength=written(schedule, folder), reflection_steps=None)


def main(
    config: Literal["miniature-pixart", "miniature-cogvideox"] = "miniature-pixart",
    pair: Literal["weights", "guidance 1 / 0", "block 2 skipped"] = "weights",
    folder: Path = Path("runs/calibration-schedule"),
    clips: PositiveInt = 128,
    draws: PositiveInt = 3,
    prompts: PositiveInt = 176,
    seeds: PositiveInt = 3,
) -> None:
    """Print the strengths that calibration gives, and how each arm samples.

    Args:
        config: the miniature.
        pair: of ``calibration_predicts.PAIRS``.
        folder: keeps what is measured.
        clips: real ones, one a prompt, for calibration; the constant strength is looked for on their prompts.
        draws: of noise for each.
        prompts: others, that are reported.
        seeds: of each prompt.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    w2sd = configured(parse(["--config", config]).config, PAIRS[pair])
    pipe = load(w2sd)
    pipe.set_progress_bar_config(disable=True)
    shuffled = shuffled_prompts(w2sd)
    report_prompts, tuning_prompts = shuffled[:prompts], shuffled[prompts : prompts + clips]
    real = real_clips(w2sd, tuning_prompts, 3 * 10**6)
    on_real, on_own = compared(pipe, w2sd, real, draws, folder)
    _, on_reflected = compared(pipe, w2sd, real, draws, folder, strength=1.0)
    before = tilt(on_real, on_own)[0]
    constant, by_level, after = balance(on_real, on_own, on_reflected)
    print(f"tilt {before.value:+.3f} ({before.low:+.3f} to {before.high:+.3f}) without reflection, ", end="")
    print(f"{after.value:+.3f} ({after.low:+.3f} to {after.high:+.3f}) at strength 1, ", end="")
    print(f"none at {constant.value:.2f} ({constant.low:.2f} to {constant.high:.2f})", flush=True)
    by_tilt = StrengthSchedule(tuple(log_snr(level) for level in on_real.levels), tuple(by_level))
    by_gap = calibrate(on_real).schedule
    for name, schedule in (("γ*", by_gap), ("tilt", by_tilt)):
        print(f"strengths by {name}: {', '.join(f'{strength:.2f}' for strength in schedule.strength)}")
    tuning = Reference(w2sd, tuning_prompts)
    tuning_arms = {s: sampled(pipe, replace(w2sd, strength=s), tuning_prompts, 2, folder, first=10) for s in STRENGTHS}
    distances = {s: tuning.distance(arm["features"]) for s, arm in tuning_arms.items()}
    best = min(distances, key=lambda strength: distances[strength])
    print("tuning:", ", ".join(f"{s:g}: {distance:.1f}" for s, distance in distances.items()), flush=True)
    budget = 3 * w2sd.steps - 2
    arms = {
        "base alone, as many steps": alone(w2sd),
        "base alone, as many evaluations": replace(alone(w2sd), steps=budget),
        "strength 1": w2sd,
        f"constant {best:g}, tuned": replace(w2sd, strength=best),
        "schedule by γ*": scheduled(w2sd, by_gap, folder, pipe, budget),
        f"constant {constant.value:.2f}, balanced": replace(w2sd, strength=round(constant.value, 2)),
        "schedule by tilt": scheduled(w2sd, by_tilt, folder, pipe, budget),
    }
    report(
        Reference(w2sd, report_prompts),
        {name: sampled(pipe, arm, report_prompts, seeds, folder) for name, arm in arms.items()},
    )


def report(reference: Reference, found: dict[str, Arm]) -> None:
    """Print a table of arms, each compared with strength 1."""
    rival = found["strength 1"]
    print(
        f"\n{rival['adherence'].size} samples an arm; differences to strength 1, paired (95 %: jackknife of prompts)\n"
    )
    print("| arm | NFE | Fréchet distance | log of it, fall | likelihood | rise | adherence | rise |")
    print("|---|---|---|---|---|---|---|---|")
    for name, arm in found.items():
        values, halves = jackknife(partial(changes, rival, arm, reference=reference), rival["adherence"].shape[1])
        cells = [f"{reference.distance(arm['features']):.1f}", plus_minus(values[0], halves[0])]
        for score, value, half in zip(("likelihood", "adherence"), values[1:], halves[1:], strict=True):
            cells += [f"{arm[score].mean():.3f}", plus_minus(value, half, "+.3f")]
        print(f"| {name} | {arm['nfe']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    CLI(main, as_positional=False)
