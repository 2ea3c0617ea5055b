"""Comparing arms at equal cost: each at the setting that did best on other prompts than those that are reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.samples import Samples, over_rounds
from w2sd_video.evaluation.splits import Split
from w2sd_video.evaluation.statistics import Figure, Real, holm, measured, pareto_front, value_of_set, win_rate
from w2sd_video.metrics import Metric, Score

Measure = Callable[[Candidate, Split], Samples]


@dataclass(frozen=True)
class Result:
    """An arm at a budget.

    Attributes:
        candidate: the setting that was chosen.
        tried: how many settings it was chosen among.
        samples: of the report.
        figures: by metric.
        differences: by metric, from the arm that all are compared with at this budget; none of its own.
        wins: share of samples in which the arm that all are compared with does better; None of its own.
        corrected: by metric, the p-value of the difference by Holm's correction over all arms and budgets compared.
    """

    candidate: Candidate
    tried: int
    samples: Samples
    figures: dict[str, Figure]
    differences: dict[str, Figure] = field(default_factory=dict)
    wins: Figure | None = None
    corrected: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Why samples failed, each reason once."""
        return list(dict.fromkeys(self.samples.error[~self.samples.there].tolist()))


@dataclass(frozen=True)
class Tuned:
    """What a setting was found to be worth on the prompts on which settings are chosen.

    Attributes:
        candidate: the setting.
        value: by the metric by which it is chosen.
        samples: how many tell.
    """

    candidate: Candidate
    value: float
    samples: int


@dataclass(frozen=True)
class RealAgainstReal:
    """Real clips, measured as if they were an arm.

    Attributes:
        figures: by metric: of a distance its floor, of a share what can be reached.
        clips: how many were measured.
        others: with how many they were compared.
    """

    figures: dict[str, Figure]
    clips: int
    others: int


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        results: of every arm at every budget.
        tuned: what every setting was worth where it was chosen.
        too_dear: arms of which no step fits a budget.
        real: real clips measured as an arm; None where nothing compares with them.
    """

    results: Sequence[Result]
    tuned: Sequence[Tuned]
    too_dear: Sequence[str]
    real: RealAgainstReal | None = None


def choose(
    settings: Sequence[Candidate], select: Metric, measure: Measure, tuning: Split, real: Real | None
) -> tuple[Candidate, list[Tuned]]:
    """Return the setting that does best by a metric on the tuning prompts, and what each is worth there.

    Of a single setting nothing is measured. Where all fail, the first is returned.
    """
    if len(settings) == 1:
        return settings[0], []
    tuned = []
    for candidate in settings:
        samples = measure(candidate, tuning)
        value = value_of(select, samples, real, tuning.prompts_up_to_here)
        tuned.append(Tuned(candidate, value, int(samples.there.sum())))
    return ranked(tuned, select)[0].candidate, tuned


def choose_in_rounds(
    arms: Sequence[Sequence[Candidate]],
    select: Metric,
    make: Callable[[Sequence[tuple[Candidate, Split]]], bool],
    measure: Measure,
    rounds: Sequence[Split],
    real: Mapping[str, Real],
) -> tuple[list[Candidate], list[Tuned]] | None:
    """Return the setting of each arm that does best by a metric, and what each was worth when it was last looked at.

    Samples are looked at part by part. After each part but the last an arm gives up the worse half of its settings, by
    all that was seen of them (sequential halving: Karnin, Koren, Somekh, "Almost optimal exploration in multi-armed
    bandits", 2013). Of a single setting nothing is measured.

    Args:
        arms: the settings of each.
        select: by which they are chosen.
        make: has settings sampled, each on a part; False where some of that is left to others.
        measure: reads what was measured of a setting.
        rounds: the parts.
        real: features of real clips by their space.

    Returns:
        None where samples are left to others.
    """
    left = [list(settings) for settings in arms]
    known: list[dict[int, Tuned]] = [{} for _ in arms]
    for number in range(1, len(rounds) + 1):
        seen = rounds[:number]
        if not make([(one, seen[-1]) for settings in left if len(settings) > 1 for one in settings]):
            return None
        of_real = real_of(select, real, seen[-1].prompts_up_to_here)
        for place, settings in enumerate(left):
            _, values = choose(settings, select, partial(_over, measure, seen), seen[-1], of_real)
            known[place] |= {id(one.candidate): one for one in values}
            staying = 1 if number == len(rounds) else math.ceil(len(settings) / 2)
            left[place] = [one.candidate for one in ranked(values, select)[:staying]] or settings
    return [settings[0] for settings in left], [one for values in known for one in values.values()]


def tuning_samples(settings: int, rounds: Sequence[Split]) -> int:
    """Return how many samples it takes to choose among the settings of an arm; none where there is but one."""
    samples = 0
    for split in rounds:
        samples += settings * split.samples if settings > 1 else 0
        settings = math.ceil(settings / 2)
    return samples


def _over(measure: Measure, rounds: Sequence[Split], candidate: Candidate, _: Split) -> Samples:
    return over_rounds(partial(measure, candidate), rounds)


def ranked(tuned: Sequence[Tuned], select: Metric) -> list[Tuned]:
    """Return settings from the best to the worst by a metric; those of which nothing tells are the last."""
    sign = 1 if select.higher_is_better else -1
    return sorted(tuned, key=lambda one: -sign * one.value if np.isfinite(one.value) else np.inf)


def real_of(metric: Metric, real: Mapping[str, Real], prompts: int) -> Real | None:
    """Return the real clips that a metric compares with: of the first prompts alone, where it is known which."""
    found = None if isinstance(metric, Score) else real.get(metric.space)
    if found is None or found.prompt is None:
        return found
    is_known = found.prompt < prompts
    return Real(found.features[is_known], found.prompt[is_known])


def compare(results: Sequence[Result], against: str, metrics: Sequence[Metric], prompts: int) -> list[Result]:
    """Return results with their differences from one arm at the same budget, and the share of its wins.

    The p-values of the differences by a metric are corrected for their number, over all arms and budgets.
    """
    judge = judge_of(metrics)
    rivals = {result.candidate.budget: result for result in results if result.candidate.arm == against}
    compared = []
    for result in results:
        rival = rivals.get(result.candidate.budget)
        if rival is None or rival is result:
            compared.append(result)
            continue
        differences = {name: result.figures[name] - rival.figures[name] for name in result.figures}
        is_scored = judge is not None and all(
            judge.name in samples.scores for samples in (result.samples, rival.samples)
        )
        wins = win_rate(judge, rival.samples, result.samples, prompts) if is_scored and judge else None
        compared.append(replace(result, differences=differences, wins=wins))
    corrected = {metric.name: _corrected(compared, metric.name) for metric in metrics}
    return [
        replace(
            result, corrected={name: values[place] for name, values in corrected.items()} if result.differences else {}
        )
        for place, result in enumerate(compared)
    ]


def _corrected(results: Sequence[Result], metric: str) -> list[float]:
    """Return the p-value of each result's difference by a metric, corrected; NaN where there is none."""
    return holm([result.differences[metric].p_value if result.differences else np.nan for result in results])


def front_of(results: Sequence[Result], metric: Metric) -> list[bool]:
    """Return which results are on the Pareto front of a metric over network evaluations."""
    points = [(float(result.candidate.nfe), result.figures[metric.name].value) for result in results]
    return pareto_front(points, metric.higher_is_better)


def judge_of(metrics: Sequence[Metric]) -> Score | None:
    """Return the score that says which of two samples is better: the first."""
    return next((metric for metric in metrics if isinstance(metric, Score)), None)


def reported(
    candidate: Candidate,
    tried: int,
    measure: Measure,
    report: Split,
    metrics: Sequence[Metric],
    real: Mapping[str, Real],
) -> Result:
    """Measure a chosen setting on the prompts of the report."""
    samples = measure(candidate, report)
    prompts = len(report.prompts)
    figures = {
        metric.name: measured(metric, samples, None if isinstance(metric, Score) else real.get(metric.space), prompts)
        for metric in metrics
    }
    return Result(candidate, tried, samples, figures)


def value_of(metric: Metric, samples: Samples, real: Real | None, prompts: int) -> float:
    """Return what samples are worth by a metric, without an interval; NaN where nothing tells."""
    succeeded = samples.there
    if not succeeded.any():
        return float("nan")
    if isinstance(metric, Score):
        values = samples.scores[metric.name][succeeded]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return value_of_set(metric, samples.features[metric.space][succeeded], samples.prompt[succeeded], real, prompts)
