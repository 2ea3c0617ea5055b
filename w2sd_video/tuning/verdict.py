"""What can be said of the best settings on other prompts: differences, corrected for how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2sd_video.evaluation.comparison import Result
from w2sd_video.evaluation.statistics import Figure

CONFIDENCE = 0.95
GUIDANCE, PLAIN = "guidance", "plain"
"""Names of what is compared with: guidance at its best, and the configuration without reflection."""


@dataclass(frozen=True)
class Difference:
    """By how much a setting is better than another on the same prompts and noise.

    Attributes:
        metric: of which.
        ours: name of the setting.
        theirs: name of the other.
        value: ours less theirs.
        low: lower end of an interval that is corrected for all differences of the report; it excludes 0 exactly where
            Holm's test does.
        high: its upper end.
        is_better: whether ours is better for certain, is worse for certain (False), or neither (None).
    """

    metric: str
    ours: str
    theirs: str
    value: float
    low: float
    high: float
    is_better: bool | None

    @property
    def figure(self) -> Figure:
        """The same as a figure."""
        return Figure(self.value, self.low, self.high, np.empty(0), 0)


def differences_of(
    results: Sequence[Result], ours: Sequence[str], theirs: Sequence[str], higher_is_better: dict[str, bool]
) -> list[Difference]:
    """Return the differences of some settings from others in every metric, all of them corrected together.

    Args:
        results: of all settings on the prompts of the report; the arm of a candidate is its name here.
        ours: names of those that are compared.
        theirs: names of those that they are compared with; the same settings are not compared.
        higher_is_better: by metric.
    """
    by_name = {result.candidate.arm: result for result in results}
    pairs = [
        (metric, mine, other)
        for metric in higher_is_better
        for mine in ours
        for other in theirs
        if by_name[mine].candidate.config != by_name[other].candidate.config
    ]
    figures = [by_name[mine].figures[metric] - by_name[other].figures[metric] for metric, mine, other in pairs]
    differences = []
    for (metric, mine, other), figure, (low, high) in zip(pairs, figures, intervals_by_holm(figures), strict=True):
        is_above = True if low > 0 else False if high < 0 else None
        is_better = None if is_above is None else is_above == higher_is_better[metric]
        differences.append(Difference(metric, mine, other, figure.value, low, high, is_better))
    return differences


def intervals_by_holm(differences: Sequence[Figure]) -> list[tuple[float, float]]:
    """Return intervals of paired differences that exclude 0 exactly where Holm's step-down test rejects that.

    The test is that of `Figure.p_value` (S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
    Scandinavian Journal of Statistics 6, 1979). NaN where there is no difference to be had.
    """
    p_values = [difference.p_value for difference in differences]
    order = sorted((i for i, p in enumerate(p_values) if np.isfinite(p)), key=lambda i: p_values[i])
    ends = [(math.nan, math.nan)] * len(differences)
    level, rejects = 1 - CONFIDENCE, True
    for rank, i in enumerate(order):
        if rejects:
            level = (1 - CONFIDENCE) / (len(order) - rank)
            rejects = p_values[i] < level
        ends[i] = differences[i].interval(1 - level)
    return ends


def verdict_in_words(
    differences: Sequence[Difference], operators: dict[str, str], metric: str, prompts: int, guided: bool
) -> str:
    """Return the verdict in a sentence or two.

    Args:
        differences: all of the report.
        operators: the operator of each setting that was compared, by its name, the best first.
        metric: the one that decides.
        prompts: on how many it was decided.
        guided: whether guidance was searched, so that plain guidance is what there is to beat.
    """
    rival = GUIDANCE if guided else PLAIN
    rival_in_words = "plain guidance" if guided else "plain sampling"
    decisive = [one for one in differences if one.metric == metric and one.theirs == rival]
    decisive = [one for one in decisive if not guided or operators[one.ours] not in (GUIDANCE, "none", PLAIN)]
    winners = [one for one in decisive if one.is_better]
    measured = f"{metric.replace('_', ' ')}, {prompts} other prompts"
    if winners:
        first = winners[0]
        text = f"{first.ours} beats {rival_in_words} here: by {_interval(first)} ({measured})."
    else:
        text = f"Nothing beats {rival_in_words} here ({measured})"
        text += (
            f"; the best that was tried beside it, {decisive[0].ours}, differs by {_interval(decisive[0])}."
            if decisive
            else "."
        )
    best = next(iter(operators))
    against_plain = next(
        (one for one in differences if (one.metric, one.ours, one.theirs) == (metric, best, PLAIN)), None
    )
    if against_plain is not None and guided:
        said = {True: "is better than", False: "is worse than", None: "is not told apart from"}[against_plain.is_better]
        text += (
            f" The best of the search, {best}, {said} the configuration without reflection: {_interval(against_plain)}."
        )
    return text


def _interval(difference: Difference) -> str:
    value, low, high = (f"{number:+.3g}" for number in (difference.value, difference.low, difference.high))
    return f"{value} ({low} to {high})"
