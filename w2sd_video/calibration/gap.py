"""Whether the gap of a pair points towards the data, by noise level, and how strong a reflection it warrants.

The noise ε of a noised clip is an unbiased stand-in for the ideal prediction E[ε | x_t]. To first order a reflection
of strength γ moves as AutoGuidance of weight γ does, which predicts p_s + γ (p_s − p_w). The denoising error of that
is least at

    γ* = E⟨ε − p_s, p_s − p_w⟩ / E‖p_s − p_w‖²

Where γ* is positive the gap helps, where it is negative it points the wrong way. A model that was trained to the end
has no such γ*: what is left of a least-squares fit is orthogonal to all that the network could change. So a second
question is asked, of the samples and not of the fit: the tilt (``calibration.tilt``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.resampling import RESAMPLES, weightings, with_ends, with_interval
from w2sd_video.strength import StrengthSchedule, log_snr

MOST = 4.0
"""The largest strength that a schedule is given: the first order, on which γ* rests, says little of longer moves."""

FEWEST_CLIPS = 8
"""Below it a bootstrap over clips has too few of them to draw from for its interval to mean anything."""

Verdict = Literal["helps", "does nothing", "points the wrong way"]


@dataclass(frozen=True)
class LevelResult:
    """What was found at one noise level; errors and gap are means over the elements of a latent.

    Attributes:
        step: of the scheduler, counted from the noisiest.
        log_snr: of the level.
        strong_error: E‖ε − p_s‖².
        weak_error: E‖ε − p_w‖².
        gap: E‖p_s − p_w‖².
        strength: γ*; 0 where there is no gap.
        low: lower end of its 95 % interval.
        high: upper end.
        gain: share by which strong's error falls at γ*; that is also the square of `cosine`.
        gain_at_one: the same at strength 1, negative where the error rises.
        cosine: of the gap with the distance to the ideal prediction, at least as far from 0 as this: the distance to ε
            stands in for it, which the noise's own variance makes longer.
    """

    step: int
    log_snr: float
    strong_error: float
    weak_error: float
    gap: float
    strength: float
    low: float
    high: float
    gain: float
    gain_at_one: float
    cosine: float

    @property
    def verdict(self) -> Verdict:
        """What γ* and its interval say."""
        if self.low > 0:
            return "helps"
        return "points the wrong way" if self.high < 0 else "does nothing"

    @property
    def warranted(self) -> float:
        """The strength for a schedule: γ* from 0 to `MOST`, but 0 where its interval holds 0."""
        return min(self.strength, MOST) if self.verdict == "helps" else 0.0


@dataclass(frozen=True)
class Calibration:
    """The result for a pair.

    Attributes:
        levels: the results, the noisiest level first.
        total: how many steps the scheduler has, those without signal included.
        window: fractions (start, stop) of the steps at which one constant strength lowers the error most; None where
            none does.
        constant: that strength, at most `MOST`.
        gain: mean over all levels of the share by which strong's error falls at the strengths of the schedule.
        gain_at_one: the same at strength 1 everywhere, with the ends of its 95 % interval behind it.
    """

    levels: list[LevelResult]
    total: int
    window: tuple[float, float] | None
    constant: float
    gain: float
    gain_at_one: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))

    @property
    def schedule(self) -> StrengthSchedule:
        """The strength at each level."""
        return StrengthSchedule(
            tuple(level.log_snr for level in self.levels), tuple(level.warranted for level in self.levels)
        )

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; `StrengthSchedule.read` takes it too."""
        fields = asdict(self)
        fields["levels"] = [asdict(level) | {"verdict": level.verdict} for level in self.levels]
        return self.schedule.plain() | fields


def calibrate(moments: Moments, resamples: int = RESAMPLES, seed: int = 0) -> Calibration:
    """Judge a pair by what it predicts of known clips.

    The intervals are percentiles of a bootstrap over clips: the draws of one clip are no clips of their own.

    Args:
        moments: see ``moments_of_clips``.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than 8 clips, no level, no gap, or numbers that are not finite.
    """
    clips = moments.error.shape[2]
    if clips < FEWEST_CLIPS:
        raise ValueError(f"{clips} clips: at least {FEWEST_CLIPS} are needed to tell a gap from chance")
    if not moments.levels:
        raise ValueError("no noise level has any signal, so nothing can be read there; take more steps")
    error, gap, product = (moment.mean(1) for moment in (moments.error, moments.gap, moments.product))  # levels, clips
    if not np.isfinite(error + gap + product).all():
        raise ValueError("the predictions are not finite; use another precision (dtype)")
    if not gap.any():
        raise ValueError("strong and weak predict the same: the pair has no gap; let the branches differ")
    weights = weightings(clips, resamples, seed)
    best, low, high = with_ends(_strength(weights, product, gap))
    mean_error, mean_gap, mean_product = error.mean(1), gap.mean(1), product.mean(1)
    results = [
        LevelResult(
            step=moments.steps[i],
            log_snr=log_snr(moments.levels[i]),
            strong_error=float(mean_error[i]),
            weak_error=float(moments.weak_error[i].mean()),
            gap=float(mean_gap[i]),
            strength=float(best[i]),
            low=float(low[i]),
            high=float(high[i]),
            gain=float(_gain(best[i], mean_error[i], mean_gap[i], mean_product[i])),
            gain_at_one=float(_gain(1.0, mean_error[i], mean_gap[i], mean_product[i])),
            cosine=float(mean_product[i] / math.sqrt(mean_error[i] * mean_gap[i])) if mean_gap[i] else 0.0,
        )
        for i in range(len(moments.levels))
    ]
    window, constant = _window(moments, mean_gap / mean_error, mean_product / mean_error)
    scheduled = np.array([result.warranted for result in results])
    at_one = with_interval(_gain(1.0, weights @ error.T, weights @ gap.T, weights @ product.T).mean(1))
    return Calibration(
        results,
        moments.total,
        window,
        constant,
        float(_gain(scheduled, mean_error, mean_gap, mean_product).mean()),
        (at_one.value, at_one.low, at_one.high),
    )


def _strength(weights: np.ndarray, product: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Return γ* for each weighting of the clips (weightings, clips) and level; 0 where there is no gap."""
    mean_gap = weights @ gap.T
    return np.divide(weights @ product.T, mean_gap, out=np.zeros_like(mean_gap), where=mean_gap > 0)


def _gain(strength: Any, error: Any, gap: Any, product: Any) -> Any:
    """Return the share by which ‖ε − p_s‖² falls when p_s moves by `strength` times the gap."""
    return (2 * strength * product - strength**2 * gap) / error


def _window(moments: Moments, gap: np.ndarray, product: np.ndarray) -> tuple[tuple[float, float] | None, float]:
    """Return the window of fractions and the one strength in it whose gain, summed over its levels, is largest.

    Args:
        moments: tell the steps.
        gap: relative to strong's error, (levels,).
        product: the same.
    """
    best_gain, window, constant = 0.0, None, 0.0
    for start in range(len(gap)):
        for stop in range(start + 1, len(gap) + 1):
            gap_sum, product_sum = gap[start:stop].sum(), product[start:stop].sum()
            strength = min(product_sum / gap_sum, MOST) if gap_sum else 0.0
            gain = 2 * strength * product_sum - strength**2 * gap_sum
            if strength > 0 and gain > best_gain:
                first, last = moments.steps[start], moments.steps[stop - 1] + 1
                best_gain, window, constant = gain, (first / moments.total, last / moments.total), float(strength)
    return window, constant
