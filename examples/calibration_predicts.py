"""Does calibration predict what a reflection does? Pairs on miniature-cogvideox, each calibrated and each sampled.

For every pair the strong branch alone is sampled, and reflected at strength 1 (inversion `current`), from the same
noise and without further guidance. Calibration has real clips of the same kind of prompts. Besides its gain a second
prediction is made, the tilt: how much more weak's denoising error exceeds strong's on real clips than on strong's own
samples. That is the slope at γ = 0 of the real clips' log-likelihood, as the samples' density is tilted by
(strong / weak)^γ.

Run: python examples/calibration_predicts.py (six minutes of one core; it goes on where it stopped)
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from scipy.stats import spearmanr

from w2sd_video.calibrate import compare_clips
from w2sd_video.calibration import calibrate, tilt
from w2sd_video.clips import Clip, clips_of_world
from w2sd_video.config import parse
from w2sd_video.evaluate import REFERENCE_SEEDS, known_prompts, measure, real_features
from w2sd_video.render import load, quiet, sample_clips
from w2sd_video.settings import BranchConfig, RenderConfig
from w2sd_video.video import write_whole

ONE = BranchConfig(guidance_scale=1.0)
WEAK = replace(ONE, weights="weak")
PAIRS: dict[str, tuple[BranchConfig, BranchConfig]] = {
    "weights": (ONE, WEAK),
    "weights, swapped": (WEAK, ONE),
    "guidance 1 / 0": (ONE, replace(ONE, guidance_scale=0.0)),
    "guidance 3 / 1": (replace(ONE, guidance_scale=3.0), ONE),
    "guidance 1 / 3": (ONE, replace(ONE, guidance_scale=3.0)),
    "block 2 skipped": (ONE, replace(ONE, skip_layers=[2])),
    "block 4 skipped": (ONE, replace(ONE, skip_layers=[4])),
    "block 2 skipped, swapped": (replace(ONE, skip_layers=[2]), ONE),
    "block 2 perturbed": (ONE, replace(ONE, perturbed_layers=[2])),
    "one wrong prompt": (ONE, replace(ONE, prompt="a green triangle moving down")),
    "cumulative": (ONE, replace(WEAK, guidance_scale=0.0)),
}
"""Strong and weak of each pair."""
Gaussian = tuple[np.ndarray, np.ndarray]
"""Mean and covariance of features."""
BOOTSTRAP = 200
"""Samples of the prompts."""
WEAKER = 0.25
"""Strength at which a pair is sampled again if strength 1 was too much for it."""


def configured(strong: BranchConfig, weak: BranchConfig) -> RenderConfig:
    """Return W2SD with a pair whose strong branch takes the steps that count."""
    config = parse(["--config", "miniature-cogvideox"]).config
    return replace(config, base=strong, strong=strong, weak=weak, inversion="current")


def predict(pipe, config: RenderConfig, n_clips: int, draws: int) -> dict[str, float]:
    """Return what real clips, and strong's own samples of the same captions, say of a pair."""
    real = clips_of_world(config, n_clips, seed=0)
    captions = [clip.caption for clip in real]
    alone = replace(config, reflection_steps=0)
    own, _ = sample_clips(pipe, alone, captions, [5 * 10**5 + k for k in range(n_clips)])
    samples = [Clip("sample", text, partial(own.__getitem__, k)) for k, text in enumerate(captions)]
    on_real, on_own = (compare_clips(pipe, config, clips, draws, 32) for clips in (real, samples))
    found = calibrate(on_real)
    return {
        "strength": float(np.mean([level.strength for level in found.levels])),
        "gain": found.gain_at_one[0],
        "tilt": tilt(on_real, on_own)[0].value,
    }


def sampled(pipe, config: RenderConfig, prompts: list[str], file: Path):
    """Measure an arm, or read what was measured of it."""
    if not file.exists():
        scores = measure(pipe, config, prompts, seed=0, batch=32)
        with file.with_suffix(".part").open("wb") as stream:
            np.savez(stream, right=scores.right, features=scores.features, nfe=scores.nfe)
        file.with_suffix(".part").rename(file)
    with np.load(file) as kept:
        return dict(kept)


def main(
    folder: Path = Path("runs/calibration-predicts"),
    clips: PositiveInt = 32,
    draws: PositiveInt = 1,
    prompts: PositiveInt = 64,
    pairs: PositiveInt = 11,
    schedule: Path | None = None,
) -> None:
    """Print the table of pairs and the rank correlation of each prediction with each outcome.

    Args:
        folder: keeps what is measured.
        clips: real ones for each calibration.
        draws: of noise for each.
        prompts: sampled in each arm.
        pairs: how many of them, in the order of ``PAIRS``.
        schedule: what ``w2sd_video.calibrate`` wrote of miniature-cogvideox; adds a table of arms with as many network
            evaluations as it takes.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    first = configured(*PAIRS["weights"])
    with quiet():
        pipe = load(first)
    pipe.set_progress_bar_config(disable=True)
    asked = [known_prompts(first)[k] for k in np.random.default_rng(0).permutation(432)[:prompts]]
    real = real_features(first, asked * REFERENCE_SEEDS, 10**6)
    reference = real.mean(0), np.cov(real, rowvar=False)
    rows = []
    print("| pair | mean γ* | gain at 1 | tilt | Fréchet distance, strong alone | reflected | adherence | reflected |")
    print("|---|---|---|---|---|---|---|---|")
    for name, pair in list(PAIRS.items())[:pairs]:
        config, slug = configured(*pair), slug_of(name)
        kept = folder / f"{slug}.json"
        if not kept.exists():
            write_whole(kept, json.dumps(predict(pipe, config, clips, draws)))
        told = json.loads(kept.read_text())
        alone = f"alone-{name_of(pair[0])}.npz"
        before = sampled(pipe, replace(config, reflection_steps=0), asked, folder / alone)
        after = sampled(pipe, config, asked, folder / f"{slug}.npz")
        rows.append((told, before, after))
        distances = [distance_to(reference, arm["features"]) for arm in (before, after)]
        print(
            f"| {name} | {told['strength']:.2f} | {told['gain']:+.1%} | {told['tilt']:+.3f} | {distances[0]:.0f} "
            f"| {distances[1]:.0f} | {before['right'].mean():.2f} | {after['right'].mean():.2f} |",
            flush=True,
        )
    predictions = {
        "γ*": [told["strength"] for told, _, _ in rows],
        "gain at 1": [told["gain"] for told, _, _ in rows],
        "tilt": [told["tilt"] for told, _, _ in rows],
        "tilt by size of gain at 1": [told["tilt"] / abs(told["gain"]) for told, _, _ in rows],
    }
    rng = np.random.default_rng(0)
    drawn = [np.arange(prompts), *(rng.integers(prompts, size=prompts) for _ in range(BOOTSTRAP))]
    outcomes = [[changes(before, after, chosen, reference) for _, before, after in rows] for chosen in drawn]
    print(f"\nRank correlation over {len(rows)} pairs (95 % interval: bootstrap of the prompts)\n")
    print("| prediction | with the fall of log distance | with the rise of adherence |\n|---|---|---|")
    for name, predicted in predictions.items():
        cells = []
        for k in range(2):
            value, *spread = (spearmanr(predicted, [row[k] for row in outcome]).statistic for outcome in outcomes)
            cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(value, *np.percentile(spread, [2.5, 97.5])))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| pair with a positive tilt | strength | Fréchet distance | adherence |\n|---|---|---|---|")
    for (name, pair), (told, before, after) in zip(PAIRS.items(), rows, strict=False):
        if told["tilt"] > 0 and changes(before, after, np.arange(prompts), reference)[0] < 0:
            arm = sampled(
                pipe, replace(configured(*pair), strength=WEAKER), asked, folder / f"{slug_of(name)}-weaker.npz"
            )
            distance = distance_to(reference, arm["features"])
            print(f"| {name} | {WEAKER} | {distance:.0f} | {arm['right'].mean():.2f} |", flush=True)
    if schedule is not None:
        print("\n| arm | NFE | Fréchet distance | adherence |\n|---|---|---|---|")
        for name, config in scheduled(first, schedule).items():
            arm = sampled(pipe, config, asked, folder / f"{slug_of(name)}.npz")
            distance = distance_to(reference, arm["features"])
            print(f"| {name} | {arm['nfe']} | {distance:.0f} | {arm['right'].mean():.2f} |", flush=True)


def scheduled(config: RenderConfig, schedule: Path) -> dict[str, RenderConfig]:
    """Return arms of equal cost: reflected by the schedule, at strength 1 in the same steps, and more plain steps."""
    told = json.loads(schedule.read_text())
    steps = [level["step"] for level, strength in zip(told["levels"], told["strength"], strict=True) if strength > 0]
    window = (steps[0] / told["total"], (steps[-1] + 1) / told["total"])
    return {
        "strong, more steps": replace(config, reflection_steps=0, steps=config.steps + 2 * len(steps)),
        "schedule": replace(config, reflection_steps=config.steps, strength=str(schedule)),
        "strength 1, same steps": replace(config, reflection_steps=window),
    }


def slug_of(name: str) -> str:
    """Return what a file of a pair or an arm is called."""
    return name.replace(" ", "-").replace(",", "").replace("/", "")


def name_of(branch: BranchConfig) -> str:
    """Return a name for a branch."""
    return "-".join(f"{key}={value}" for key, value in vars(branch).items() if value is not None)


def distance_to(reference: Gaussian, features: np.ndarray) -> float:
    """Return `frechet_distance`, from a matrix as small as there are samples: the bootstrap asks for thousands."""
    mean, covariance = reference
    spread = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(spread @ covariance @ spread.T), 0, None))
    return float(((features.mean(0) - mean) ** 2).sum() + (spread**2).sum() + covariance.trace() - 2 * roots.sum())


def changes(before, after, chosen: np.ndarray, reference: Gaussian) -> tuple[float, float]:
    """Return by how much the logarithm of the Fréchet distance falls, and the share of right clips rises."""
    one, other = (distance_to(reference, arm["features"][chosen]) for arm in (before, after))
    return float(np.log(one / other)), float(after["right"][chosen].mean() - before["right"][chosen].mean())


if __name__ == "__main__":
    CLI(main, as_positional=False)
