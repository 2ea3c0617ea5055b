"""How sure a figure is: 95 % intervals by prompts, whose samples belong together, and paired for differences.

- A mean has a percentile interval of a bootstrap over prompts, the same for all arms, a little wider than plain so that
  it holds for few prompts too (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 5.3).
- A share has Wilson's interval, with as many samples as count where those of a prompt are alike (Franco et al.,
  "Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys", 2019): near 0 and 1 a bootstrap
  knows nothing, and leaves the range of a share. A difference of two shares follows from both their intervals
  (Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
  1998).
- A distance of a set is larger on a resample, which repeats clips, than on new clips, so that percentiles would miss
  the figure itself: the spread of the resamples is taken, and put around it. With the samples of a prompt its real
  clips are drawn, where it is known which they are.

How often such intervals hold what they should is simulated in tests/evaluation/test_intervals.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from w2sd_video.evaluation.samples import Samples
from w2sd_video.metrics import Distance, Metric, Score

RESAMPLES, RESAMPLES_OF_SETS = 1000, 200
"""Resamples of the prompts for means, and for distances of sets, which take their time."""
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
        low: lower end; NaN where it cannot be told, as of a single prompt.
        high: upper end.
        draws: the number on every resample of the prompts, (resamples,).
        prompts: of how many prompts there are samples.
        is_share: whether the interval is Wilson's.
    """

    value: float
    low: float
    high: float
    draws: np.ndarray
    prompts: int
    is_share: bool = False

    def __sub__(self, other: Figure) -> Figure:
        """Return the difference, paired."""
        value, draws = self.value - other.value, self.draws - other.draws
        prompts = min(self.prompts, other.prompts)
        if self.is_share and other.is_share:
            return Figure(value, *_ends_of_difference(self, other), draws, prompts)
        return figure(value, draws, prompts)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The number and both ends of its interval."""
        return self.value, self.low, self.high


def figure(value: float, draws: np.ndarray, prompts: int, is_of_set: bool = False) -> Figure:
    """Return a number with the interval that its resamples give.

    Args:
        value: the number.
        draws: the same on every resample, (resamples,); NaN where it has none.
        prompts: of how many prompts there are samples.
        is_of_set: whether it is larger on a resample than on new clips.
    """
    if prompts < 2 or not np.isfinite(draws).any():
        return Figure(float(value), np.nan, np.nan, draws, prompts)
    tail = stats.norm.cdf(-math.sqrt(prompts / (prompts - 1)) * _quantile(prompts))
    if is_of_set:
        low, high = value + np.nanquantile(draws - np.nanmean(draws), [tail, 1 - tail])
        low = max(low, min(0.0, np.nanmin(draws)))  # what is never negative has no interval that is
    else:
        low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Figure(float(value), float(low), float(high), draws, prompts)


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
        return figure(np.nan, np.full(RESAMPLES, np.nan), 0)
    if isinstance(metric, Score):
        take = share if metric.is_share else mean
        return take(samples.scores[metric.name][succeeded], samples.prompt[succeeded], prompts)
    return _distance(metric, samples.features[metric.name][succeeded], samples.prompt[succeeded], real, prompts)


def mean(values: np.ndarray, prompt: np.ndarray, prompts: int) -> Figure:
    """Return a mean over samples, (n,), whose prompts are numbered from 0 to `prompts`; NaN is left out."""
    is_known = np.isfinite(values)
    if not is_known.any():
        return figure(np.nan, np.full(RESAMPLES, np.nan), 0)
    sums = np.bincount(prompt[is_known], values[is_known], prompts)
    counts = np.bincount(prompt[is_known], minlength=prompts)
    counts_by_resample = resampled(prompts)
    with np.errstate(invalid="ignore"):
        draws = counts_by_resample @ sums / (counts_by_resample @ counts)
    return figure(float(sums.sum() / counts.sum()), draws, int((counts > 0).sum()))


def share(values: np.ndarray, prompt: np.ndarray, prompts: int) -> Figure:
    """Return a mean, as `mean`, of numbers from 0 to 1, each of which says whether something is so."""
    of_samples = mean(values, prompt, prompts)
    if of_samples.prompts == 0:
        return of_samples
    is_known = np.isfinite(values)
    sums = np.bincount(prompt[is_known], values[is_known], prompts)
    counts = np.bincount(prompt[is_known], minlength=prompts)
    low, high = _wilson(of_samples.value, _effective_samples(sums, counts), _quantile(of_samples.prompts))
    return Figure(of_samples.value, low, high, of_samples.draws, of_samples.prompts, is_share=True)


def _quantile(prompts: int) -> float:
    """Return how many standard errors an interval is wide on either side, by Student's t; of one prompt as of two."""
    return float(stats.t.ppf(INTERVAL[1] / 100, max(prompts - 1, 1)))


def _effective_samples(sums: np.ndarray, counts: np.ndarray) -> float:
    """Return how many independent samples would tell a share as well as those of prompts whose samples are alike.

    They are no fewer than the prompts and no more than the samples.

    Args:
        sums: of the values of each prompt, (prompts,).
        counts: of its samples, (prompts,).
    """
    samples, prompts = counts.sum(), (counts > 0).sum()
    value = sums.sum() / samples
    if prompts < 2:
        return 1.0
    variance = prompts / (prompts - 1) * ((sums - value * counts) ** 2).sum() / samples**2
    if variance == 0:  # all samples are the same, and nothing tells how alike those of a prompt are
        return float(prompts)
    return float(np.clip(value * (1 - value) / variance, prompts, samples))


def _wilson(value: float, samples: float, quantile: float) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share (Journal of the American Statistical Association 22, 1927)."""
    square = quantile**2 / samples
    middle = (value + square / 2) / (1 + square)
    half = math.sqrt(square * (value * (1 - value) + square / 4)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _ends_of_difference(one: Figure, other: Figure) -> tuple[float, float]:
    """Return the ends of the interval of a difference of two shares of the same prompts (Newcombe's method 10)."""
    below, above = one.value - one.low, one.high - one.value
    other_below, other_above = other.value - other.low, other.high - other.value
    both = np.isfinite(one.draws) & np.isfinite(other.draws)
    spreads = one.draws[both].std() * other.draws[both].std() if both.any() else 0.0
    alike = float(np.cov(one.draws[both], other.draws[both], bias=True)[0, 1] / spreads) if spreads > 0 else 0.0
    value = one.value - other.value
    low = value - math.sqrt(max(below**2 - 2 * alike * below * other_above + other_above**2, 0.0))
    high = value + math.sqrt(max(above**2 - 2 * alike * above * other_below + other_below**2, 0.0))
    return max(low, -1.0), min(high, 1.0)


def win_rate(metric: Score, ours: Samples, theirs: Samples, prompts: int) -> Figure:
    """Return the share of samples, from the same prompt and noise, that are better by a score; a tie counts half."""
    better = np.sign(ours.scores[metric.name] - theirs.scores[metric.name]) * (1 if metric.higher_is_better else -1)
    return share((better + 1) / 2, ours.prompt, prompts)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[bool]:
    """Return which points (cost, quality) have no other that is as good at no more cost, and better in one of both."""
    sign = 1 if higher_is_better else -1

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and sign * a[1] >= sign * b[1] and (a[0] < b[0] or sign * a[1] > sign * b[1])

    return [np.isfinite(point[1]) and not any(beats(other, point) for other in points) for point in points]


@cache
def resampled(prompts: int) -> np.ndarray:
    """Return how often each prompt is in each resample, (resamples, prompts): always the same."""
    return np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)


def _distance(metric: Distance, features: np.ndarray, prompt: np.ndarray, real: Real | None, prompts: int) -> Figure:
    draws = [
        metric.between(np.repeat(features, counts[prompt], axis=0), _drawn(real, counts))
        for counts in resampled(prompts)[:RESAMPLES_OF_SETS]
    ]
    value = metric.between(features, real.features if real else None)
    return figure(value, np.array(draws), len(np.unique(prompt)), is_of_set=True)


def _drawn(real: Real | None, counts: np.ndarray) -> np.ndarray | None:
    """Return the features of the real clips of a resample."""
    if real is None or real.prompt is None:
        return real.features if real else None
    return np.repeat(real.features, counts[real.prompt], axis=0)
