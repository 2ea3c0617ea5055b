"""The plot of an evaluation: every arm in a row of its own, with its intervals at every budget."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from w2sd_video.evaluation.comparison import Result
from w2sd_video.metrics import Metric

_WIDTH, _LINE = 3.9, 0.16
"""Inches: the width of a phone's screen, and the height of an interval with the space around it."""


def drawn(results: Sequence[Result], metric: Metric, on_front: Sequence[bool]) -> str:
    """Return a metric of every arm with its intervals as SVG, as wide as a phone: rows of arms, a line for each budget.

    No two intervals are on one line, so that none hides another. Arms of W2SD are set in bold, and what is on the
    Pareto front is filled.

    Args:
        results: every arm at every budget.
        metric: which of their figures is drawn.
        on_front: for each result, whether it is on the Pareto front of that metric; nothing is said of it if none is.
    """
    budgets = sorted({result.candidate.budget for result in results})
    by_budget = sorted(results, key=lambda result: -result.candidate.budget)  # the largest has the most arms
    arms = list(dict.fromkeys(result.candidate.arm for result in by_budget))
    row = _LINE * len(budgets) + 0.12
    picture = Figure(figsize=(_WIDTH, row * len(arms) + 0.35 + 0.17 * len(budgets) + 0.45), layout="constrained")
    axis = picture.subplots()
    for number, budget in enumerate(budgets):
        colour = colormaps["viridis"](0.85 * number / max(1, len(budgets) - 1))
        for result, is_on_front in zip(results, on_front, strict=True):
            if result.candidate.budget != budget:
                continue
            value, low, high = result.figures[metric.name].numbers
            height = arms.index(result.candidate.arm) + (number - (len(budgets) - 1) / 2) * _LINE / row
            axis.plot([low, high], [height, height], color=colour, lw=1.4, solid_capstyle="butt")
            axis.plot(value, height, "o", color=colour, ms=5, mfc=colour if is_on_front else "white")
        axis.plot([], [], "o-", color=colour, lw=1.4, ms=5, mfc="white", label=f"at most {budget} NFE")
    if any(on_front):
        axis.plot([], [], "o", color="black", ms=5, label="on the Pareto front")
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith("W2SD") else "normal")
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    for border in range(1, len(arms)):
        axis.axhline(border - 0.5, color="0.9", lw=0.6, zorder=0)
    better = "higher" if metric.higher_is_better else "lower"
    axis.set_xlabel(f"{metric.name.replace('_', ' ')} ({better} is better)", fontsize=9)
    picture.legend(loc="outside upper left", fontsize=8, ncols=2, frameon=False)
    return as_svg(picture)


def as_svg(picture: Figure) -> str:
    """Return a picture as SVG, always the same."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "w2sd"}):
        picture.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
