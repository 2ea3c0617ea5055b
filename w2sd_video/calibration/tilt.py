"""Whether samples are as likely as real clips are, by strong as against weak: the tilt.

The strength of a reflection at which the tilt vanishes is the balanced one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2sd_video.calibration.gap import MOST
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.resampling import RESAMPLES, Estimate, weightings, with_interval

LEAST = -1.0
"""The smallest strength that a tilt is balanced with: beyond it the weak model would be the one to reflect."""


def tilt(
    real: Moments,
    sampled: Moments,
    resamples: int = RESAMPLES,
    seed: int = 0,
    within: np.ndarray | None = None,
) -> tuple[Estimate, list[Estimate]]:
    """Compare a pair's errors on real clips and on samples of the same captions, in the same order.

    How much more weak's denoising error exceeds strong's stands for the log-likelihood ratio of strong and weak. Its
    mean on real clips less that on samples, here as a share of strong's error, is the slope at γ = 0 of the real clips'
    log-likelihood, as the density of the samples is tilted by (strong / weak)^γ; which is what guidance along the gap
    aims at. It is positive where moving the samples along the gap brings them nearer to the real clips.

    Args:
        real: moments of real clips.
        sampled: moments of what the base setting alone samples.
        resamples: of the bootstrap over captions.
        seed: of the bootstrap.
        within: which of the levels the mean is over, (levels,); all unless given.

    Returns:
        The tilt, as mean over the levels, and that of each level.
    """
    tilts = _tilts(real, sampled)
    resampled = weightings(tilts.shape[1], resamples, seed) @ tilts.T  # weightings, levels
    overall, *levels = (with_interval(column) for column in (resampled[:, _chosen(within)].mean(1), *resampled.T))
    return overall, levels


def balance(
    real: Moments,
    alone: Moments,
    reflected: Moments,
    resamples: int = RESAMPLES,
    seed: int = 0,
    within: np.ndarray | None = None,
) -> tuple[Estimate, list[float], Estimate]:
    """Find the strength of a reflection at which samples show no tilt.

    Moving samples along the gap lessens the tilt. Where it is t without reflection and u at strength 1, a straight line
    is 0 at t / (t - u). So the ratio of strong's likelihood to weak's is, in the mean, what it is on real clips, which
    is what says that a parameter of an exponential family is the most likely one.

    Args:
        real: moments of real clips.
        alone: moments of what the base setting alone samples of the same captions.
        reflected: moments of what is sampled at strength 1.
        resamples: of the bootstrap over captions.
        seed: of the bootstrap.
        within: at which of the levels it was reflected, (levels,), over which the mean is; all unless given.

    Returns:
        That strength, from `LEAST` to `MOST`, negative where the gap points the wrong way; the same of each level, but
        0 instead of negative or outside; and the tilt at strength 1.
    """
    before, after = _tilts(real, alone), _tilts(real, reflected)
    weights, chosen = weightings(before.shape[1], resamples, seed), _chosen(within)
    left = weights @ after[chosen].mean(0)
    overall = _vanishing(weights @ before[chosen].mean(0), left)
    levels = np.zeros(len(before))
    levels[chosen] = _vanishing(before.mean(1), after.mean(1)).clip(0)[chosen]
    return with_interval(overall), levels.tolist(), with_interval(left)


def _chosen(within: np.ndarray | None) -> Any:
    return slice(None) if within is None else within


def _vanishing(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where straight lines through tilts at strength 0 and 1 are 0; an end of the range if they never are."""
    fall = before - after
    strength = np.divide(before, fall, out=np.where(before > 0, MOST, LEAST), where=fall > 0)
    return strength.clip(LEAST, MOST)


def _tilts(real: Moments, sampled: Moments) -> np.ndarray:
    """Return what each caption adds to the tilt of each level, (levels, clips)."""
    excess = [(moments.weak_error - moments.error).mean(1) for moments in (real, sampled)]
    return (excess[0] - excess[1]) / real.error.mean((1, 2))[:, None]
