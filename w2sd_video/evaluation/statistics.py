"""How sure a figure is: a bootstrap over prompts, the same one for all arms, so that their differences are paired.

All samples of a prompt are drawn together, and with them the real clips of that prompt, where it is known which they
are. A distance of a set is larger on a resample, which repeats clips, than on new clips; so the spread of the resamples
is taken, and put around the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2sd_video.evaluation.samples import Samples
from w2sd_video.metrics import Distance, Metric, Score

RESAMPLES = 200
"""Resamples of the prompts."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the ends of an interval."""


@dataclass(frozen=True)
class Real:
    """Features of real clips.

    Attributes:
        features: (m, d).
        prompt: place of the prompt that each is a clip of, (m,); None where they are of other prompts than the samples.
    """

    features: np.ndarray
    prompt: np.ndarray | None = None


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval.

    Attributes:
        value: the number.
        low: lower end.
        high: upper end.
        draws: the number on every resample of the prompts, (resamples,).
    """

    value: float
    low: float
    high: float
    draws: np.ndarray

    def __sub__(self, other: Figure) -> Figure:
        """Return the difference, paired."""
        return figure(self.value - other.value, self.draws - other.draws)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The number and both ends of its interval."""
        return self.value, self.low, self.high


def figure(value: float, draws: np.ndarray) -> Figure:
    """Return a number with the interval that its resamples give."""
    low, high = (
        value + np.nanpercentile(draws - np.nanmean(draws), INTERVAL) if np.isfinite(draws).any() else [np.nan] * 2
    )
    return Figure(float(value), float(low), float(high), draws)


def measured(metric: Metric, samples: Samples, real: Real | None, prompts: int) -> Figure:
    """Return a metric of an arm.

    Args:
        metric: a score, of which the mean is taken, or a distance.
        samples: of the arm; those that failed are left out.
        real: clips that a distance compares with.
        prompts: how many there are.
    """
    succeeded = samples.there
    if metric.name not in (samples.scores if isinstance(metric, Score) else samples.features):
        return figure(np.nan, np.full(RESAMPLES, np.nan))
    if isinstance(metric, Score):
        return mean(samples.scores[metric.name][succeeded], samples.prompt[succeeded], prompts)
    return _distance(metric, samples.features[metric.name][succeeded], samples.prompt[succeeded], real, prompts)


def mean(values: np.ndarray, prompt: np.ndarray, prompts: int) -> Figure:
    """Return a mean over samples, (n,), whose prompts are numbered from 0 to `prompts`."""
    is_known = np.isfinite(values)
    if not is_known.any():
        return figure(np.nan, np.full(RESAMPLES, np.nan))
    sums = np.bincount(prompt[is_known], values[is_known], prompts)
    counts = np.bincount(prompt[is_known], minlength=prompts)
    counts_by_resample = resampled(prompts)
    with np.errstate(invalid="ignore"):
        return figure(float(sums.sum() / counts.sum()), counts_by_resample @ sums / (counts_by_resample @ counts))


def win_rate(metric: Score, ours: Samples, theirs: Samples, prompts: int) -> Figure:
    """Return the share of samples, from the same prompt and noise, that are better by a score; a tie counts half."""
    better = np.sign(ours.scores[metric.name] - theirs.scores[metric.name]) * (1 if metric.higher_is_better else -1)
    return mean((better + 1) / 2, ours.prompt, prompts)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[bool]:
    """Return which points (cost, quality) have no other that is as good at no more cost, and better in one of both."""
    sign = 1 if higher_is_better else -1

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and sign * a[1] >= sign * b[1] and (a[0] < b[0] or sign * a[1] > sign * b[1])

    return [np.isfinite(point[1]) and not any(beats(other, point) for other in points) for point in points]


def resampled(prompts: int) -> np.ndarray:
    """Return how often each prompt is in each resample, (resamples, prompts): always the same."""
    return np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)


def _distance(metric: Distance, features: np.ndarray, prompt: np.ndarray, real: Real | None, prompts: int) -> Figure:
    draws = [
        metric.between(np.repeat(features, counts[prompt], axis=0), _drawn(real, counts))
        for counts in resampled(prompts)
    ]
    return figure(metric.between(features, real.features if real else None), np.array(draws))


def _drawn(real: Real | None, counts: np.ndarray) -> np.ndarray | None:
    """Return the features of the real clips of a resample."""
    if real is None or real.prompt is None:
        return real.features if real else None
    return np.repeat(real.features, counts[real.prompt], axis=0)
