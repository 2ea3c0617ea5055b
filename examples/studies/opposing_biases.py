"""A pair whose gap points the right way for some prompts and the wrong way for others: what helps there?

The strong model is the PixArt miniature after it was trained on pictures among which three of four that are said to
be blue are green; the weak one is the miniature's weak checkpoint, which is blurred, but knows blue. The pair is
calibrated on all prompts and on each group, and each group is sampled by W2SD with one strength, with the calibrated
strength of each noise level, and with strengths and roles of its own.

Run: python examples/studies/opposing_biases.py (ten minutes of one core; it goes on where it stopped)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy
from calibration_arms import Arm, Reference, jackknife, plus_minus, sampled, shuffled_prompts, trained, written
from calibration_predicts import ONE, WEAK, alone, changes, compared, configured
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video.calibration.gap import Calibration, calibrate
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.calibration.resampling import Estimate
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.miniatures import world
from w2sd_video.rendering.load import load
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import RenderConfig

STRONG = replace(ONE, weights="strong")
GROUPS = ("other colours", "blue")
ALONE, ONE_STRENGTH = "strong alone", "W2SD, strength 1"
ALL_BALANCED, OWN_BALANCED = "balanced strength of all prompts", "balanced strength of the group"


def group_of(prompt: str) -> str:
    """Return which group a prompt belongs to."""
    return GROUPS[world.parse(prompt).colour == "blue"]


def biased(pipe: Any, folder: Path, steps: int) -> str:
    """Return the folder of the strong checkpoint, trained if need be."""
    true_captions = [(attributes.prompt, attributes.prompt) for attributes in world.all_attributes()]
    false_captions = [
        (attributes.prompt, replace(attributes, colour="green").prompt)
        for attributes in world.all_attributes()
        if attributes.colour == "blue"
    ]
    captions_and_pictures = [pair for pair in true_captions if group_of(pair[0]) != "blue"] * 4
    captions_and_pictures += [pair for pair in true_captions if group_of(pair[0]) == "blue"] + 3 * false_captions
    order = np.random.default_rng(0).permutation(len(captions_and_pictures))
    return trained(
        pipe,
        "miniature:pixart/transformer",
        [captions_and_pictures[k] for k in order],
        folder,
        f"biased-{steps}",
        steps,
    )


def of_clips(moments: Moments, chosen: np.ndarray) -> Moments:
    """Return the moments of some clips."""
    arrays = {name: getattr(moments, name)[:, :, chosen] for name in ("error", "gap", "product")}
    return replace(moments, **arrays)


def in_words(calibration: Calibration, overall: Estimate, balanced: Estimate) -> str:
    """Say what calibration found, as a row of a table."""
    helps, harms = (
        sum(level.verdict == verdict for level in calibration.levels) for verdict in ("helps", "points the wrong way")
    )
    strength = np.mean([level.strength for level in calibration.levels])
    return (
        f"{helps} / {harms} | {strength:+.2f} | {reversed_levels(calibration)} | {calibration.gain_at_one[0]:+.0%} "
        f"| {overall.value:+.3f} ({overall.low:+.3f} to {overall.high:+.3f}) "
        f"| {balanced.value:+.2f} ({balanced.low:+.2f} to {balanced.high:+.2f})"
    )


def reversed_levels(calibration: Calibration) -> int:
    """Return at how many levels weak is the better denoiser, which is to say that γ* is below -1/2."""
    return sum(level.high < -0.5 for level in calibration.levels)


def arms_of(config: RenderConfig, schedule: str, balanced: dict[str, Estimate], group: str) -> dict[str, RenderConfig]:
    """Return what a group is sampled with."""
    swapped, longer = configured(config, (WEAK, WEAK, STRONG)), 3 * config.steps - 2
    return {
        ALONE: alone(config),
        "strong alone, as many evaluations": replace(alone(config), steps=longer),
        "weak alone, as many evaluations": replace(alone(swapped), steps=longer),
        ONE_STRENGTH: config,
        "a strength for each level": replace(config, strength=schedule),
        ALL_BALANCED: replace(config, strength=round(balanced["all"].value, 2)),
        OWN_BALANCED: replace(config, strength=round(balanced[group].value, 2)),
        "strength -0.5": replace(config, strength=-0.5),
        "strength -1": replace(config, strength=-1.0),
        "roles swapped, strength 1": swapped,
    }


def main(
    out: Path = Path("opposing_biases.png"),
    folder: Path = Path("runs/opposing-biases"),
    clips: PositiveInt = 128,
    draws: PositiveInt = 3,
    prompts: PositiveInt = 86,
    seeds: PositiveInt = 3,
    steps: PositiveInt = 300,
) -> dict[str, dict[str, Arm]]:
    """Calibrate the pair, and sample each group by each arm.

    Args:
        out: the figure.
        folder: keeps what is measured.
        clips: real ones for calibration.
        draws: of noise for each.
        prompts: of each group.
        seeds: of each prompt.
        steps: that the strong checkpoint is trained for.

    Returns:
        The arms by group.
    """
    toy.check_figure(out)
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    plain = parse(["--config", "miniature-pixart"]).config
    checkpoint = biased(load(plain), folder, steps)
    config = replace(plain, model=replace(plain.model, weights=plain.model.weights | {"strong": checkpoint}))
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    config = configured(config, (STRONG, STRONG, WEAK))
    shuffled = shuffled_prompts(config)
    groups = np.array([group_of(prompt) for prompt in shuffled[:clips]])
    real_ones = real_clips(config, shuffled[:clips], 3 * 10**6)
    moments = compared(pipe, config, real_ones, draws, folder)
    moments += (compared(pipe, config, real_ones, draws, folder, strength=1.0)[1],)
    print("| prompts | levels that help / harm | mean γ* | levels where weak is better | gain at 1 | tilt ", end="")
    print("| balanced strength |\n|---|---|---|---|---|---|---|")
    balanced = {}
    for name in ("all", *GROUPS):
        real, unreflected, reflected = (
            of_clips(source_moments, (groups == name) | (name == "all")) for source_moments in moments
        )
        balanced[name] = balance(real, unreflected, reflected)[0]
        print(f"| {name} | {in_words(calibrate(real), tilt(real, unreflected)[0], balanced[name])} |", flush=True)
    schedule = written(calibrate(moments[0]).schedule, folder)
    arms_by_group: dict[str, dict[str, Arm]] = {}
    falls: dict[str, dict[str, tuple[float, float]]] = {}
    for group in GROUPS:
        report_prompts = [prompt for prompt in shuffled if group_of(prompt) == group][:prompts]
        reference = Reference(config, report_prompts)
        settings = arms_of(config, schedule, balanced, group)
        arms = {name: sampled(pipe, arm, report_prompts, seeds, folder) for name, arm in settings.items()}
        before = arms[ALONE]
        print(f"\n{group}: {before['adherence'].size} samples an arm; changes to strong alone, paired ", end="")
        print("(95 %: jackknife of prompts)\n")
        print("| arm | NFE | Fréchet distance | log of it, fall | likelihood | rise | adherence | rise |")
        print("|---|---|---|---|---|---|---|---|")
        falls[group] = {}
        for name, arm in arms.items():
            values, halves = jackknife(partial(changes, before, arm, reference=reference), len(report_prompts))
            cells = [f"{reference.distance(arm['features']):.0f}", plus_minus(values[0], halves[0])]
            for score, value, half in zip(("likelihood", "adherence"), values[1:], halves[1:], strict=True):
                cells += [f"{arm[score].mean():.2f}", plus_minus(value, half)]
            print(f"| {name} | {arm['nfe']} | {' | '.join(cells)} |", flush=True)
            falls[group][name] = values[0], halves[0]
        arms_by_group[group] = arms
    draw_figure(falls, out)
    for choice in (ONE_STRENGTH, ALL_BALANCED, OWN_BALANCED):
        falls_in_words = "; ".join(f"{group} {plus_minus(*falls[group][choice])}" for group in GROUPS)
        print(f"{choice}: the log distance falls by {falls_in_words}.")
    return arms_by_group


def draw_figure(falls: dict[str, dict[str, tuple[float, float]]], out: Path) -> None:
    """Draw by how much the logarithm of the Fréchet distance falls, with half its interval, by arm and group."""
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for shift, (group, by_arm) in zip((-0.2, 0.2), falls.items(), strict=True):
        values, errors = np.array(list(by_arm.values())).T
        axis.barh(np.arange(len(values)) + shift, values, 0.38, xerr=errors, label=group, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(by_arm)), list(by_arm), fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("fall of the log Fréchet distance against strong alone")
    axis.legend(fontsize=8)
    toy.write_figure(figure, out)


if __name__ == "__main__":
    CLI(main, as_positional=False)
