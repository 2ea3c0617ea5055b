"""How sure a figure is: 95 % intervals by prompts, whose samples belong together, and paired for differences.

- A mean has a percentile interval of a bootstrap over prompts, the same for all arms, a little wider than plain so that
  it holds for few prompts too (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 5.3).
- A share has Wilson's interval, with as many samples as count where those of a prompt are alike (Franco et al.,
  "Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys", 2019): near 0 and 1 a bootstrap
  knows nothing, and leaves the range of a share. A difference of two shares follows from both their intervals
  (Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
  1998).
- A distance of a set has the interval of a jackknife over groups of prompts, by Student's t: a bootstrap repeats clips,
  which moves such a distance and makes its interval 1.3 to 1.6 times too wide. With the samples of a prompt its real
  clips are left out, where it is known which they are; else groups of real clips by themselves. A jackknife counts
  twice what clips make in pairs, which near the floor is half of all: of biased distances, pairs of groups are left
  out too, which tells how much that is, and it is taken off (Efron and Stein, "The jackknife estimate of variance",
  1981, section 5). Kernel distances, skewed for few prompts, and shares keep it, and are too wide near the floor.
- A share of a set, precision or recall, has Wilson's interval, with as many samples as give its jackknife variance.
- A p-value is that of the interval: the figure is as many standard errors from 0 as its end on that side says. Of
  several that are looked at together each is Holm's ("A simple sequentially rejective multiple test procedure", 1979).

How often such intervals hold what they should is simulated in tests/evaluation/test_intervals.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
from scipy import stats

from w2sd_video.evaluation.samples import Samples
from w2sd_video.metrics import Distance, Metric, Score

RESAMPLES = 1000
"""Resamples of the prompts for means."""
GROUPS = 20
"""Groups of prompts that are left out for distances of sets, one and two at a time."""
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
class LeftOut:
    """A distance of a set without some groups of its prompts, or of its real clips where these are of others.

    Attributes:
        value: without none.
        single: without each group, (factors, groups).
        double: without each two groups of a factor, (factors, groups * (groups - 1) / 2), in order; None
            for a distance of which nothing is taken off.
    """

    value: float
    single: np.ndarray
    double: np.ndarray | None = None

    def __sub__(self, other: LeftOut) -> LeftOut:
        """Return the same of a difference."""
        double = None if self.double is None or other.double is None else self.double - other.double
        return LeftOut(self.value - other.value, self.single - other.single, double)

    @property
    def groups(self) -> int:
        """How many groups there are of each factor."""
        return self.single.shape[1]

    @property
    def variance(self) -> float:
        """The variance of the distance: by the jackknife, less what it counts twice, but at least half of it."""
        doubles = [None] * len(self.single) if self.double is None else self.double
        return sum(self._variance_of(*factor) for factor in zip(self.single, doubles, strict=True))

    def _variance_of(self, single: np.ndarray, double: np.ndarray | None) -> float:
        groups = self.groups
        jackknife = (groups - 1) / groups * float(((single - single.mean()) ** 2).sum())
        if double is None:
            return jackknife
        first, second = np.triu_indices(groups, 1)
        together = groups * self.value - (groups - 1) * (single[first] + single[second]) + (groups - 2) * double
        counted_twice = float(((together - together.mean()) ** 2).sum()) / groups**2
        return max(jackknife - counted_twice, jackknife / 2)


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval.

    Attributes:
        value: the number.
        low: lower end; NaN where it cannot be told, as of a single prompt.
        high: upper end.
        draws: the number on every resample of the prompts, (resamples,).
        prompts: of how many prompts there are samples; of a distance of a set, of how many groups.
        is_share: whether the interval is Wilson's.
        left_out: of a distance of a set, in place of draws; a share of a set has both.
    """

    value: float
    low: float
    high: float
    draws: np.ndarray
    prompts: int
    is_share: bool = False
    left_out: LeftOut | None = None

    def __sub__(self, other: Figure) -> Figure:
        """Return the difference, paired."""
        value, draws = self.value - other.value, self.draws - other.draws
        prompts = min(self.prompts, other.prompts)
        left_out = None if self.left_out is None or other.left_out is None else self.left_out - other.left_out
        if self.is_share and other.is_share:
            return Figure(value, *_ends_of_difference(self, other), draws, prompts, left_out=left_out)
        if left_out is not None:
            return figure_of_set(value, left_out)
        return figure(value, draws, prompts)

    @property
    def p_value(self) -> float:
        """How likely a figure as far from 0 is by chance, two-sided, were it 0 in truth; NaN without an interval.

        It is below 0.05 just where 0 is outside of the interval.
        """
        towards_0 = self.value - self.low if self.value > 0 else self.high - self.value
        if not np.isfinite(towards_0):
            return float("nan")
        if self.value == 0 or towards_0 == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / towards_0 * _quantile(self.prompts), max(self.prompts - 1, 1)))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the interval at another confidence, 0 to 1: each end as much farther off as Student's t says."""
        freedom = max(self.prompts - 1, 1)
        ratio = float(stats.t.ppf((1 + confidence) / 2, freedom)) / _quantile(self.prompts)
        return self.value - ratio * (self.value - self.low), self.value + ratio * (self.high - self.value)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The number and both ends of its interval."""
        return self.value, self.low, self.high


def figure(value: float, draws: np.ndarray, prompts: int) -> Figure:
    """Return a number with the interval that its resamples give.

    Args:
        value: the number.
        draws: the same on every resample, (resamples,); NaN where it has none.
        prompts: of how many prompts there are samples.
    """
    if prompts < 2 or not np.isfinite(draws).any():
        return Figure(float(value), np.nan, np.nan, draws, prompts)
    tail = stats.norm.cdf(-math.sqrt(prompts / (prompts - 1)) * _quantile(prompts))
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Figure(float(value), float(low), float(high), draws, prompts)


def figure_of_set(value: float, left_out: LeftOut, least: float = -math.inf) -> Figure:
    """Return a distance of a set with the interval that the same without some prompts gives.

    Args:
        value: the distance.
        left_out: the same without some prompts.
        least: what it cannot be less than.
    """
    half = _quantile(left_out.groups) * math.sqrt(left_out.variance)
    return Figure(value, max(value - half, least), value + half, np.empty(0), left_out.groups, left_out=left_out)


def measured(metric: Metric, samples: Samples, real: Real | None, prompts: int) -> Figure:
    """Return a metric of an arm.

    Args:
        metric: a score, of which the mean is taken, or a distance.
        samples: of the arm; those that failed are left out.
        real: clips that a distance compares with.
        prompts: how many there are.
    """
    succeeded = samples.there
    is_there = metric.name in samples.scores if isinstance(metric, Score) else metric.space in samples.features
    if not is_there:
        return figure(np.nan, np.full(RESAMPLES, np.nan), 0)
    if isinstance(metric, Score):
        take = share if metric.is_share else mean
        return take(samples.scores[metric.name][succeeded], samples.prompt[succeeded], prompts)
    return distance_of_set(metric, samples.features[metric.space][succeeded], samples.prompt[succeeded], real, prompts)


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


def distance_of_set(
    metric: Distance, features: np.ndarray, prompt: np.ndarray, real: Real | None, prompts: int
) -> Figure:
    """Return a distance of features, (n, d), of samples whose prompts are numbered from 0 to `prompts`.

    It has no interval where there are too few prompts to leave any out.
    """
    of_kept, units = _by_units(metric, features, prompt, real, prompts)
    everything, count = np.ones(sum(units), bool), min(GROUPS, *units)
    value = of_kept(everything)
    group_of_unit = [_groups(number, count) for number in units]
    offsets = np.cumsum([0, *units])

    def without(factor: int, *groups: int) -> float:
        kept = everything.copy()
        kept[offsets[factor] : offsets[factor + 1]] = ~np.isin(group_of_unit[factor], groups)
        return of_kept(kept)

    if count < 3 or not np.isfinite(value):
        return Figure(value, np.nan, np.nan, np.empty(0), count)
    factors, pairs = range(len(units)), list(combinations(range(count), 2))
    left_out = LeftOut(value, np.array([[without(factor, group) for group in range(count)] for factor in factors]))
    if metric.is_biased and not metric.is_share:
        left_out = replace(
            left_out, double=np.array([[without(factor, *pair) for pair in pairs] for factor in factors])
        )
    if not np.isfinite(left_out.variance):  # too few clips remain
        return Figure(value, np.nan, np.nan, np.empty(0), count)
    if not metric.is_share:
        return figure_of_set(value, left_out, 0.0 if metric.is_biased else -math.inf)
    variance = left_out.variance  # 0 where all are alike
    samples = float(np.clip(value * (1 - value) / variance, 1, len(features))) if variance else float(prompts)
    ends = _wilson(value, samples, _quantile(count))
    return Figure(value, *ends, left_out.single.ravel(), count, is_share=True, left_out=left_out)


def value_of_set(metric: Distance, features: np.ndarray, prompt: np.ndarray, real: Real | None, prompts: int) -> float:
    """Return a distance as `distance_of_set` does, without its interval."""
    of_kept, units = _by_units(metric, features, prompt, real, prompts)
    return of_kept(np.ones(sum(units), bool))


def _by_units(
    metric: Distance, features: np.ndarray, prompt: np.ndarray, real: Real | None, prompts: int
) -> tuple[Callable[[np.ndarray], float], list[int]]:
    """Return a distance as a function of the units that are kept, and how many units there are of each factor.

    A unit is a prompt with all its clips. Real clips of other prompts are units of a second factor, each by itself.
    """
    if real is None or not metric.needs_real:
        return (lambda kept: metric.between(features[kept[prompt]], None)), [prompts]
    rows, real_unit, units = real.features, real.prompt, [prompts]
    if real_unit is None:
        real_unit, units = prompts + np.arange(len(rows)), [prompts, len(rows)]
    if metric.of_units is not None:
        return metric.of_units(features, prompt, rows, real_unit), units
    return (lambda kept: metric.between(features[kept[prompt]], rows[kept[real_unit]])), units


def _groups(units: int, count: int) -> np.ndarray:
    """Return the group of each unit, (units,), drawn so that groups are of one size but for one: always the same."""
    return np.random.default_rng(0).permutation(units) % count


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values of which the smallest is as likely as all of them together allow (Holm, 1979); NaN stays."""
    known = sorted((p, place) for place, p in enumerate(p_values) if np.isfinite(p))
    corrected, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected
