"""Does calibration predict what a reflection does? Pairs on a miniature, each calibrated and each sampled.

For every pair the base branch alone is sampled, and reflected at strength 1 (inversion `current`), from the same noise.
The pairs are good ones, null ones, swapped ones and adversarial ones: of the PixArt miniature also a weak model that
was trained with the colour words permuted, and a copy of the strong one trained on a little, whose gap is noise.

Run: python examples/studies/calibration_predicts.py (half an hour of one core; it goes on where it stopped)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from calibration_arms import Arm, Reference, kept, redrawn, sampled, shuffled_prompts, trained, with_interval
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from scipy.stats import rankdata

from w2sd_video.calibration.gap import calibrate
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.pair import compare_clips
from w2sd_video.calibration.real_clips import Clip, clips_of_world
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.miniatures import world
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import BranchConfig, RenderConfig
from w2sd_video.trajectory import Level

Pair = tuple[BranchConfig, BranchConfig, BranchConfig]
ONE, THREE, ZERO = (BranchConfig(guidance_scale=scale) for scale in (1.0, 3.0, 0.0))
WEAK = replace(ONE, weights="weak")
SKIPPED = replace(ONE, skip_layers=[2])
PERMUTED, ON = replace(ONE, weights="permuted"), replace(ONE, weights="trained_on")
PAIRS: dict[str, Pair] = {
    "weights": (ONE, ONE, WEAK),
    "weights, swapped": (WEAK, WEAK, ONE),
    "weights, base guided by 3": (THREE, ONE, WEAK),
    "guidance 1 / 0": (ONE, ONE, ZERO),
    "guidance 3 / 1": (THREE, THREE, ONE),
    "guidance 1 / 3": (ONE, ONE, THREE),
    "block 2 skipped": (ONE, ONE, SKIPPED),
    "block 4 skipped": (ONE, ONE, replace(ONE, skip_layers=[4])),
    "weak of permuted colours": (ONE, ONE, PERMUTED),
    "strong trained on a little": (ONE, ONE, ON),
    "weights, strong of permuted colours": (PERMUTED, PERMUTED, WEAK),
    "block 2 perturbed": (ONE, ONE, replace(ONE, perturbed_layers=[2])),
    "weak of permuted colours, swapped": (PERMUTED, PERMUTED, ONE),
    "one wrong prompt": (ONE, ONE, replace(ONE, prompt="a green triangle moving down")),
    "block 2 skipped, swapped": (SKIPPED, SKIPPED, ONE),
    "cumulative": (ONE, ONE, replace(WEAK, guidance_scale=0.0)),
}
"""Base, strong and weak of each pair."""
TRAINED = ("permuted", "trained_on")
"""Weights that the study trains, of the PixArt miniature only."""
OUTCOMES = ("fall of log distance", "rise of likelihood", "rise of adherence")
RESAMPLES = 200
"""Of the prompts."""
PERMUTATIONS = 2000
"""Of the pairs, and as many bootstrap samples of them."""


def configured(config: RenderConfig, pair: Pair) -> RenderConfig:
    """Return W2SD with a pair."""
    base, strong, weak = pair
    return replace(config, base=base, strong=strong, weak=weak, inversion="current")


def with_checkpoints(config: RenderConfig, folder: Path, steps: int) -> RenderConfig:
    """Return the configuration of the PixArt miniature with the weights `TRAINED`, trained if need be."""
    pipe = load(config)
    weak, strong = "miniature:pixart/transformer_weak", "miniature:pixart/transformer"
    colours = list(world.COLOURS)
    colour_after = dict(zip(colours, [*colours[1:], colours[0]], strict=True))
    true_captions = [(attributes.prompt, attributes.prompt) for attributes in world.all_attributes()]
    wrong_captions = [
        (replace(attributes, colour=colour_after[attributes.colour]).prompt, attributes.prompt)
        for attributes in world.all_attributes()
    ]
    few_steps = max(1, steps // 4)
    weights = {
        "permuted": trained(pipe, weak, wrong_captions, folder, f"permuted-{steps}", steps),
        "trained_on": trained(pipe, strong, true_captions, folder, f"trained_on-{few_steps}", few_steps),
    }
    return replace(config, model=replace(config.model, weights=config.model.weights | weights))


def alone(config: RenderConfig) -> RenderConfig:
    """Return the base branch without reflection, the same for every pair that has it."""
    return replace(config, strong=config.base, weak=config.base, reflection_steps=0)


def compared(
    pipe: Any, config: RenderConfig, real: list[Clip], draws: int, folder: Path, strength: float = 0.0
) -> tuple[Moments, Moments]:
    """Return what a pair predicts of real clips, and of samples of the same captions.

    Args:
        pipe: as `render.load` returns it.
        config: names the pair.
        real: with captions.
        draws: of noise for each clip and level.
        folder: see `kept`.
        strength: that the samples are reflected with; 0 for those of the base branch alone.
    """
    captions = [clip.caption for clip in real]
    sampler = replace(config, strength=strength) if strength else alone(config)
    name = f"sample at strength {strength}" if strength else "sample"

    def draw() -> Arm:
        seeds = [5 * 10**5 + k for k in range(len(real))]
        starts = range(0, len(real), 64)
        parts = [sample_clips(pipe, sampler, captions[k : k + 64], seeds[k : k + 64])[0] for k in starts]
        return {"clips": np.concatenate(parts)}

    pixels = kept(folder, ("own", sampler, captions), draw)["clips"]
    samples = [Clip(name, text, partial(pixels.__getitem__, k)) for k, text in enumerate(captions)]

    def moments_of(clips: list[Clip]) -> Moments:
        def make() -> Arm:
            moments = compare_clips(pipe, config, clips, draws, 64)
            levels = np.array([(level.alpha, level.sigma) for level in moments.levels])
            arrays = {name: getattr(moments, name) for name in ("steps", "total", "error", "gap", "product")}
            return arrays | {"levels": levels}

        arrays = kept(folder, ("moments", clips[0].name, config, captions, draws), make)
        levels = tuple(Level(*row) for row in arrays.pop("levels").tolist())
        return Moments(levels, tuple(arrays.pop("steps").tolist()), int(arrays.pop("total")), **arrays)

    return moments_of(real), moments_of(samples)


def predictions(real: Moments, own: Moments, reflected: Moments) -> dict[str, float]:
    """Return what calibration says of a pair; the last two ask samples at strength 1 too, but no judge of them."""
    calibration, (overall, _), (strength, _, tilt_at_one) = (
        calibrate(real),
        tilt(real, own),
        balance(real, own, reflected),
    )
    gain = calibration.gain_at_one[0]
    return {
        "γ*": float(np.mean([level.strength for level in calibration.levels])),
        "gain at 1": gain,
        "tilt": overall.value,
        "tilt by size of gain at 1": overall.value / abs(gain),
        "balanced strength": strength.value,
        "fall of the tilt's size": abs(overall.value) - abs(tilt_at_one.value),
    }


def changes(before: Arm, after: Arm, chosen: np.ndarray, reference: Reference) -> np.ndarray:
    """Return by how much an arm is better than another, in the order of `OUTCOMES`, over chosen prompts."""
    distance_before, distance_after = (reference.distance(arm["features"][:, chosen]) for arm in (before, after))
    rises = [float((after[name] - before[name])[:, chosen].mean()) for name in ("likelihood", "adherence")]
    return np.array([np.log(distance_before / distance_after), *rises])


def main(
    config: Literal["miniature-pixart", "miniature-cogvideox"] = "miniature-pixart",
    folder: Path = Path("runs/calibration-predicts"),
    clips: PositiveInt = 128,
    draws: PositiveInt = 3,
    prompts: PositiveInt = 256,
    seeds: PositiveInt = 3,
    pairs: PositiveInt = 16,
    steps: PositiveInt = 800,
) -> None:
    """Print the table of pairs, and the rank correlation of each prediction with each outcome.

    Args:
        config: the miniature; its own pair is not looked at.
        folder: keeps what is measured.
        clips: real ones for each calibration, and samples.
        draws: of noise for each.
        prompts: sampled in each arm.
        seeds: of each prompt.
        pairs: how many of them, in the order of ``PAIRS``.
        steps: that the checkpoints are trained for.
    """
    torch.set_num_threads(1)
    miniature, chosen = parse(["--config", config]).config, PAIRS
    if config == "miniature-pixart":
        miniature = with_checkpoints(miniature, folder, steps)
    else:
        chosen = {name: pair for name, pair in PAIRS.items() if not {branch.weights for branch in pair} & set(TRAINED)}
    pipe = load(miniature)
    pipe.set_progress_bar_config(disable=True)
    report_prompts = shuffled_prompts(miniature)[:prompts]
    reference = Reference(miniature, report_prompts)
    rows = []
    print("| pair | mean γ* | gain at 1 | tilt | balanced strength | Fréchet distance, base alone | reflected ", end="")
    print("| likelihood | reflected | adherence | reflected |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name, pair in list(chosen.items())[:pairs]:
        pair_config = configured(miniature, pair)
        real = clips_of_world(pair_config, clips, seed=0)
        on_real, on_own = compared(pipe, pair_config, real, draws, folder)
        predicted = predictions(on_real, on_own, compared(pipe, pair_config, real, draws, folder, strength=1.0)[1])
        before, after = (
            sampled(pipe, arm_config, report_prompts, seeds, folder) for arm_config in (alone(pair_config), pair_config)
        )
        rows.append((predicted, before, after))
        cells = [f"{predicted['γ*']:.2f}", f"{predicted['gain at 1']:+.1%}", f"{predicted['tilt']:+.3f}"]
        cells += [f"{predicted['balanced strength']:.2f}"]
        cells += [f"{reference.distance(arm['features']):.1f}" for arm in (before, after)]
        cells += [f"{arm[score].mean():.3f}" for score in ("likelihood", "adherence") for arm in (before, after)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    correlations(rows, reference)
    print("\nPairs with a positive tilt at their balanced strength, one seed\n")
    print("| pair | strength | Fréchet distance, base alone | reflected | likelihood | reflected |")
    print("|---|---|---|---|---|---|")
    for (name, pair), (predicted, before, _) in zip(chosen.items(), rows, strict=False):
        if predicted["tilt"] > 0:
            strength = round(predicted["balanced strength"], 2)
            after = sampled(pipe, replace(configured(miniature, pair), strength=strength), report_prompts, 1, folder)
            before = {score: values[:1] for score, values in before.items() if score != "nfe"}
            cells = [f"{reference.distance(arm['features']):.1f}" for arm in (before, after)]
            cells += [f"{arm['likelihood'].mean():.3f}" for arm in (before, after)]
            print(f"| {name} | {strength} | {' | '.join(cells)} |", flush=True)


def correlations(rows: Sequence[tuple[dict[str, float], Arm, Arm]], reference: Reference) -> None:
    """Print how each prediction ranks each outcome."""
    resamples = redrawn(rows[0][1]["adherence"].shape[1], RESAMPLES)
    measured = np.array(
        [[changes(before, after, chosen, reference) for _, before, after in rows] for chosen in resamples]
    )
    rng = np.random.default_rng(1)
    print(f"\nRank correlation over {len(rows)} pairs (95 %: bootstrap of prompts; of pairs), p of a permutation\n")
    print(f"| prediction | {' | '.join(OUTCOMES)} |\n|---|---|---|---|")
    for name in rows[0][0]:
        predicted = np.array([pair_predictions[name] for pair_predictions, _, _ in rows])
        cells = []
        for k in range(len(OUTCOMES)):
            by_prompts = [rank_correlation(predicted, outcome[:, k]) for outcome in measured]
            outcome = measured[0, :, k]
            picks = [rng.integers(len(rows), size=len(rows)) for _ in range(PERMUTATIONS)]
            by_pairs = [by_prompts[0], *(rank_correlation(predicted[pick], outcome[pick]) for pick in picks)]
            shuffled = np.array([rank_correlation(rng.permutation(predicted), outcome) for _ in range(PERMUTATIONS)])
            chance = (1 + (abs(shuffled) >= abs(by_prompts[0])).sum()) / (PERMUTATIONS + 1)
            low, high = np.nanpercentile(by_pairs[1:], [2.5, 97.5])
            cells.append(f"{with_interval(by_prompts)}; {low:+.2f} to {high:+.2f}; p {chance:.3f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's; a constant has none (NaN)."""
    ranks = rankdata(one), rankdata(other)
    return float(np.corrcoef(*ranks)[0, 1]) if all(rank.std() > 0 for rank in ranks) else np.nan


if __name__ == "__main__":
    CLI(main, as_positional=False)
