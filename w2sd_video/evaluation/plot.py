"""The plot of an evaluation: quality over cost."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from w2sd_video.evaluation.comparison import Result
from w2sd_video.metrics import Metric


def drawn(results: Sequence[Result], metrics: Sequence[Metric], on_front: Sequence[bool]) -> str:
    """Return the quality of every arm over its NFE, with intervals and the Pareto front of the first metric, as SVG."""
    picture = Figure(figsize=(4.8 * len(metrics) + 1.5, 4.2), layout="constrained")
    for axis, metric in zip(picture.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number, arm in enumerate(dict.fromkeys(one.candidate.arm for one in results)):
            own = sorted((one for one in results if one.candidate.arm == arm), key=lambda one: one.candidate.nfe)
            nfe = [one.candidate.nfe for one in own]
            value, low, high = np.array([one.figures[metric.name].numbers for one in own]).T
            style = "o-" if arm.startswith("W2SD") else "s--"
            colour = colormaps["tab20"](number)
            axis.errorbar(
                nfe, value, [value - low, high - value], fmt=style, color=colour, capsize=2, lw=1, ms=4, label=arm
            )
        if metric is metrics[0] and any(on_front):
            front = sorted(
                (one.candidate.nfe, one.figures[metric.name].value)
                for one, first in zip(results, on_front, strict=True)
                if first
            )
            axis.step(*np.array(front).T, where="post", color="black", lw=3, alpha=0.2, label="Pareto front")
        if all(one.figures[metric.name].low > 0 for one in results):
            axis.set_yscale("log")
        axis.set_xlabel("network evaluations a clip (NFE)")
        better = "higher" if metric.higher_is_better else "lower"
        axis.set_ylabel(f"{metric.name.replace('_', ' ')} ({better} is better)")
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right upper", fontsize=7)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "w2sd"}):
        picture.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
