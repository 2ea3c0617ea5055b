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
        for number, arm in enumerate(dict.fromkeys(result.candidate.arm for result in results)):
            results_of_arm = sorted(
                (result for result in results if result.candidate.arm == arm), key=lambda result: result.candidate.nfe
            )
            nfe = [result.candidate.nfe for result in results_of_arm]
            value, low, high = np.array([result.figures[metric.name].numbers for result in results_of_arm]).T
            # What this package does is drawn in full lines, what it is compared with in broken ones.
            style = "o-" if arm.startswith("W2SD") else "s--"
            colour = colormaps["tab20"](number)
            axis.errorbar(
                nfe, value, [value - low, high - value], fmt=style, color=colour, capsize=2, lw=1, ms=4, label=arm
            )
        if metric is metrics[0] and any(on_front):
            front = sorted(
                (result.candidate.nfe, result.figures[metric.name].value)
                for result, is_on_front in zip(results, on_front, strict=True)
                if is_on_front
            )
            axis.step(*np.array(front).T, where="post", color="black", lw=3, alpha=0.2, label="Pareto front")
        if all(result.figures[metric.name].low > 0 for result in results):
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
