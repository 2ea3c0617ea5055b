"""The ideal prediction of the noise, where a world makes as many clips of a caption as one likes.

By Bayes' rule the clean clip behind noised latents x is one of a bank of the same caption with weights in proportion to
exp(−‖x − α z‖² / 2 σ²). The ideal prediction then is E[ε | x] = (x − α E[z | x]) / σ. At little noise all the weight
falls on one clip; but whatever the bank, the distance that strong has to the ideal is at least what can be gained by
moving strong's prediction towards the estimate, so a cosine by it is an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from w2sd_video.calibration.latents import encode
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.calibration.resampling import RESAMPLES, weightings, with_ends
from w2sd_video.levels import Level
from w2sd_video.settings.schema import RenderConfig

FIRST_SEED = 6 * 10**6
"""Of the bank; no sample's and no real clip's."""

ENOUGH = 10
"""Effective clips behind an estimate that is taken as the ideal: chance is then a tenth of their variance."""


@dataclass(frozen=True)
class CorrectedCosine:
    """The cosine of weak-to-strong and strong-to-ideal at one level, without the noise's own variance.

    Attributes:
        value: at most as far from 0 as this, and no farther than that where the estimate is the ideal.
        low: lower end of its 95 % interval.
        high: upper end.
        distance: E‖p* − p_s‖², of which this is a lower bound, as a share of strong's error; the rest of the error is
            the noise's own variance.
        fit: how far towards the estimate strong is best moved: 1 if the estimate is the ideal.
        effective: how many clips of the bank carry the weight, the median over noised clips.
    """

    value: float
    low: float
    high: float
    distance: float
    fit: float
    effective: float

    @property
    def is_estimate(self) -> bool:
        """Whether the bank tells the ideal prediction here, so that the value is more than a bound."""
        return self.effective >= ENOUGH


def posterior_noise(latents: torch.Tensor, bank: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E[ε | latents] if each clip of the bank is as likely, and the effective number of clips behind it.

    Args:
        latents: noised, (n, ...).
        bank: clean latents, (m, ...).
        level: of the noise.

    Returns:
        The prediction (n, ...), and 1 / Σ w² of the weights, (n,).
    """
    x, clean = latents.flatten(1).double(), bank.flatten(1).double()
    weights = torch.softmax(-(torch.cdist(x, level.alpha * clean) ** 2) / (2 * level.sigma**2), dim=1)
    noise = (x - level.alpha * weights @ clean) / level.sigma
    return noise.view_as(latents).to(latents), 1 / (weights**2).sum(1)


def ideal_of(
    pipe: Any, config: RenderConfig, captions: Sequence[str], count: int
) -> Callable[[torch.Tensor, Level], tuple[torch.Tensor, torch.Tensor]]:
    """Return `posterior_noise` of clips with these captions, each from a bank of its own.

    Args:
        pipe: a miniature's, as `rendering.load.load` returns it.
        config: the miniature.
        captions: one a clip.
        count: clips in each bank.
    """

    def latents_of(caption: str) -> torch.Tensor:
        clips = real_clips(config, [caption] * count, FIRST_SEED)
        parts = [
            np.stack([clip.read() for clip in clips[k : k + 64]]) for k in range(0, count, 64)
        ]  # a bank of thousands would not fit the VAE at once
        return torch.cat([encode(pipe, part) for part in parts])

    banks = [latents_of(caption) for caption in captions]

    def ideal(latents: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        estimates = [
            posterior_noise(clip_latents[None], bank, level) for clip_latents, bank in zip(latents, banks, strict=True)
        ]
        noise, effective = zip(*estimates, strict=True)
        return torch.cat(noise), torch.cat(effective)

    return ideal


def corrected_cosines(moments: Moments, resamples: int = RESAMPLES, seed: int = 0) -> list[CorrectedCosine]:
    """Return the corrected cosine of each level.

    Args:
        moments: with those of an estimate of the ideal.
        resamples: of the bootstrap over clips.
        seed: of the bootstrap.

    Raises:
        ValueError: moments without an estimate of the ideal.
    """
    if moments.ideal is None:
        raise ValueError("the moments hold no estimate of the ideal prediction; give `moments_of_clips` one")
    weights = weightings(moments.error.shape[2], resamples, seed)
    error, gap, product, size, along = (
        weights @ moment.mean(1).T for moment in (moments.error, moments.gap, moments.product, *moments.ideal[:2])
    )  # weightings, levels
    distance = along.clip(0) ** 2 / size
    # A resample without a gap or a distance has a cosine of 0, not 0 / 0.
    cosine = np.clip(product / np.sqrt(gap * distance).clip(1e-300), -1, 1)
    effective = np.median(moments.ideal[2], axis=(1, 2))
    rows = zip(*with_ends(cosine), distance[0] / error[0], along[0] / size[0], effective, strict=True)
    return [CorrectedCosine(*map(float, row)) for row in rows]
