"""What the studies of calibration share: arms that are sampled once and kept, trained weights, distances, intervals.

An arm is what one configuration samples of some prompts: arrays with one row a seed and one column a prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel

from w2sd_video.calibration.latents import encode
from w2sd_video.calibration.real_clips import known_prompts, real_clips
from w2sd_video.metrics import load_metric
from w2sd_video.miniatures import world
from w2sd_video.miniatures.training.data import PROMPTS
from w2sd_video.miniatures.training.diffusion import Noising, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.train_pixart import masked_embeddings
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import locate
from w2sd_video.strength import StrengthSchedule
from w2sd_video.writing import write_whole

Arm = dict[str, np.ndarray]
SCORES = ("adherence", "likelihood")
REAL = 8
"""Real clips a prompt that distances are measured to."""
GROUPS = 24
"""Of prompts that a jackknife leaves out in turn."""
POOL = 6000
"""Pictures that a checkpoint is trained on, at most."""


def shuffled_prompts(config: RenderConfig) -> list[str]:
    """Return all prompts of a miniature's world in an order of their own, the same each time."""
    known = known_prompts(config)
    return [known[k] for k in np.random.default_rng(0).permutation(len(known))]


def kept(folder: Path, asked: Any, make: Callable[[], Arm]) -> Arm:
    """Return the answer to a question from the folder, or find it now and keep it there.

    Args:
        folder: of one study.
        asked: all that the answer depends on, with a `repr` that says it.
        make: finds the answer.
    """
    file = folder / f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:20]}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arm = make()
        with file.with_suffix(".part").open("wb") as stream:
            np.savez(stream, **arm)
        file.with_suffix(".part").rename(file)
    with np.load(file) as stored:
        return dict(stored)


def sampled(pipe: Any, config: RenderConfig, prompts: list[str], seeds: int, folder: Path, first: int = 0) -> Arm:
    """Sample every prompt with every seed, and score the samples.

    Args:
        pipe: as `render.load` returns it.
        config: how to sample.
        prompts: the columns.
        seeds: the rows; the noise follows from the row and the column.
        folder: see `kept`.
        first: number of the first row.

    Returns:
        "adherence" and "likelihood" (seeds, prompts), "features" (seeds, prompts, d), "nfe" a sample.
    """

    def make() -> Arm:
        rows, nfe = [], {}
        for row in range(first, first + seeds):
            parts = []
            for start in range(0, len(prompts), 64):
                part = prompts[start : start + 64]
                clips, nfe = sample_clips(pipe, config, part, [10**4 * row + start + k for k in range(len(part))])
                parts.append(clips)
            rows.append(scored(np.concatenate(parts), prompts))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"nfe": np.array(sum(nfe.values()))}

    return kept(folder, (config, prompts, seeds, first), make)


def scored(clips: np.ndarray, prompts: Sequence[str]) -> Arm:
    """Return the scores and the features of clips, one a prompt."""
    scores = {name: load_metric(name).of(clips, prompts) for name in SCORES}
    return scores | {"features": load_metric("frechet_distance").features(clips)}


class Reference:
    """Real clips of some prompts, as the Gaussian of their features."""

    def __init__(self, config: RenderConfig, prompts: list[str], first_seed: int = 10**6) -> None:
        clips = np.stack([clip.read() for clip in real_clips(config, prompts * REAL, first_seed)])
        features = load_metric("frechet_distance").features(clips).astype(np.float64)
        self.mean, self.covariance = features.mean(0), np.cov(features, rowvar=False)
        values, vectors = np.linalg.eigh(self.covariance)
        self.root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def distance(self, features: np.ndarray) -> float:
        """Return the Fréchet distance to features (..., d); by the covariance's root, for the bootstrap asks often."""
        features = features.reshape(-1, len(self.mean))
        covariance = np.cov(features, rowvar=False)
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(self.root @ covariance @ self.root), 0, None))
        distance_of_means = ((features.mean(0) - self.mean) ** 2).sum()
        return float(distance_of_means + covariance.trace() + self.covariance.trace() - 2 * roots.sum())


def written(schedule: StrengthSchedule, folder: Path) -> str:
    """Return the file of a schedule, whose name follows from what it holds, so that `kept` tells schedules apart."""
    text = json.dumps(schedule.plain())
    file = folder / f"schedule-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write_whole(file, text)
    return str(file)


def redrawn(prompts: int, resamples: int, seed: int = 0) -> list[np.ndarray]:
    """Return all prompts, and then `resamples` bootstrap samples of them."""
    rng = np.random.default_rng(seed)
    return [np.arange(prompts), *(rng.integers(prompts, size=prompts) for _ in range(resamples))]


def with_interval(values: Sequence[float], form: str = "+.2f") -> str:
    """Write the first of some values with the 95 % interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{form}} ({low:{form}} to {high:{form}})"


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return statistics of all prompts, and half the width of their 95 % intervals.

    Prompts are left out in turn, in groups, and none is drawn twice: a bootstrap's repetitions would make every
    Fréchet distance larger, and their ratios nearer to 1.

    Args:
        statistic: of the prompts at some places, one or more numbers.
        prompts: how many there are.
    """
    groups = min(GROUPS, prompts)
    of_group = np.arange(prompts) % groups
    without = np.array([statistic(np.flatnonzero(of_group != k)) for k in range(groups)])
    return statistic(np.arange(prompts)), 1.96 * without.std(0) * np.sqrt(groups - 1)


def plus_minus(value: float, half: float, form: str = "+.2f") -> str:
    """Write a value with its interval."""
    return f"{value:{form}} ({value - half:{form}} to {value + half:{form}})"


def trained(
    pipe: Any,
    start: str,
    pictures: Sequence[tuple[str, str]],
    folder: Path,
    name: str,
    steps: int,
    lr: float = 5e-4,
    seed: int = 0,
) -> str:
    """Train a checkpoint of the PixArt miniature on; return the folder that it lies in.

    Args:
        pipe: the miniature's pipeline, for its autoencoder and its text encoder.
        start: where the checkpoint lies.
        pictures: what is said and what is shown, in turn.
        folder: that the new one goes into.
        name: of the new one; what was trained under it is taken as it is.
        steps: of 64 pictures each.
        lr: the learning rate.
        seed: of the pictures and of the training.
    """
    path = folder / name
    if path.exists():
        return str(path)
    count = min(POOL, 64 * steps)
    captions, shown_prompts = zip(*(pictures[k % len(pictures)] for k in range(count)), strict=True)
    clips = world.clips(shown_prompts, range(5 * 10**6 + seed * POOL, 5 * 10**6 + seed * POOL + count), frames=1)
    latents = torch.cat([encode(pipe, clips[k : k + 64]) for k in range(0, count, 64)])
    noising = Noising(
        latents.half(), torch.tensor([PROMPTS.index(caption) for caption in captions]), pipe.scheduler.alphas_cumprod
    )
    embeddings, mask = masked_embeddings(pipe.text_encoder)
    denoiser = PixArtTransformer2DModel.from_pretrained(locate(start), torch_dtype=torch.float32).train()
    torch.manual_seed(seed)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(64)
        text = {"encoder_hidden_states": embeddings[label], "encoder_attention_mask": mask[label]}
        return v_loss(denoiser(noisy, timestep=t, **text).sample, v)

    # So long a plan that the learning rate hardly falls: the steps alone say what is trained.
    fit(name, denoiser, loss, folder, Budget(minutes=10**4, max_steps=steps), lr)
    denoiser.save_pretrained(path)
    return str(path)
