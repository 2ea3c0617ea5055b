"""What an evaluation writes: the table in Markdown, the figures as CSV, a plot, and one page that holds them all."""

from __future__ import annotations

import argparse
import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2sd_video.describe import pair_in_words
from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Result, Tuned
from w2sd_video.evaluation.samples import Split
from w2sd_video.evaluation.statistics import Figure, pareto_front
from w2sd_video.metrics import Metric, Score
from w2sd_video.outputs import plain
from w2sd_video.settings import RenderConfig
from w2sd_video.video import write_whole

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ClipFile = Callable[[Candidate, int], Path]


def write_report(
    folder: Path,
    config: RenderConfig,
    options: argparse.Namespace,
    metrics: Sequence[Metric],
    results: Sequence[Result],
    tuned: Sequence[Tuned],
    missing: Mapping[str, str],
    too_dear: Sequence[str],
    clip_file: ClipFile,
) -> str:
    """Write front.csv, front.svg, table.md and report.html, and return the table."""
    select = next(metric for metric in metrics if metric.name == options.select)
    on_front = _on_front(results, select)
    write_whole(folder / "front.csv", _front_csv(results, tuned, metrics, select, on_front))
    plot = _plot(results, [select, *_judges(metrics, select)], on_front)
    write_whole(folder / "front.svg", plot)
    text = _heading(config, options)
    tables = {budget: _table(results, on_front, budget, metrics, options) for budget in sorted(set(options.budgets))}
    notes = _notes(results, missing, too_dear, select, options)
    sections = [line for budget, rows in tables.items() for line in (f"**{budget} NFE**", "", *_markdown(rows), "")]
    table = "\n".join([text, "", *sections, *(f"- {note}" for note in notes)])
    write_whole(folder / "table.md", table + "\n")
    shown = _shown(results, max(options.budgets), options.splits[1], options.shown, clip_file)
    write_whole(folder / "report.html", _page(text, tables, notes, plot, shown, config))
    return table


def _on_front(results: Sequence[Result], select: Metric) -> list[bool]:
    points = [(float(one.candidate.nfe), one.figures[select.name].value) for one in results]
    return pareto_front(points, select.higher_is_better)


def _judges(metrics: Sequence[Metric], select: Metric) -> Sequence[Metric]:
    """Return the first score besides the metric that selects, for the second plot."""
    return [metric for metric in metrics if isinstance(metric, Score) and metric is not select][:1]


def _heading(config: RenderConfig, options: argparse.Namespace) -> str:
    tuning, report = options.splits
    return (
        f"{config.model.pretrained}, {pair_in_words(config)}; reported on {_size(report)}, best settings by "
        f"{options.select} on {_size(tuning)} that are others"
    )


def _size(split: Split) -> str:
    return f"{len(split.prompts)} prompts x {split.seeds} seed(s)"


def _table(
    results: Sequence[Result],
    on_front: Sequence[bool],
    budget: int,
    metrics: Sequence[Metric],
    options: argparse.Namespace,
) -> list[list[str]]:
    """Return head and rows of a budget's table."""
    names = [metric.name for metric in metrics]
    against = options.against
    head = ["arm", "best setting", "NFE", *(name.replace("_", " ") for name in names)]
    head += [f"{options.select.replace('_', ' ')} less that of {against}", f"{against} wins", "seconds"]
    rows = [head]
    for one, first in zip(results, on_front, strict=True):
        if one.candidate.budget != budget:
            continue
        difference = one.differences.get(options.select)
        rows.append(
            [
                one.candidate.arm + (" *" if first else ""),
                f"{one.candidate.setting} ({one.tried})",
                str(one.candidate.nfe),
                *(_figure(one.figures[name]) for name in names),
                "" if difference is None else _figure(difference, signed=True),
                "" if one.wins is None else _figure(one.wins),
                f"{np.mean(one.samples.seconds):.3f}",
            ]
        )
    return rows


def _figure(figure: Figure, signed: bool = False) -> str:
    if not np.isfinite(figure.value):
        return "none"
    size = max(abs(figure.value), abs(figure.high - figure.low))
    digits = 1 if size >= 20 else 2 if size >= 2 else 3
    numbers = [f"{number:{'+' if signed else ''}.{digits}f}" for number in (figure.value, figure.low, figure.high)]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]})"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _notes(
    results: Sequence[Result],
    missing: Mapping[str, str],
    too_dear: Sequence[str],
    select: Metric,
    options: argparse.Namespace,
) -> list[str]:
    notes = [
        "In brackets behind a setting: among how many it was chosen. Behind a figure: 95 % interval, a bootstrap over "
        "prompts, paired for differences.",
        f"{options.against} wins: share of samples of the same prompt and noise in which it does better by the first "
        "score, a tie counting half.",
        f"*: on the Pareto front of {select.name.replace('_', ' ')} "
        f"({'higher' if select.higher_is_better else 'lower'} is better) over NFE, of all budgets.",
    ]
    for one in results:
        if one.failed:
            count = int((~one.samples.there).sum())
            named = f"{one.candidate.arm} at {one.candidate.budget} NFE"
            notes.append(f"{named}: {count} of {len(one.samples.error)} samples failed: {'; '.join(one.failed)}")
    notes += [f"The metric {name} is left out: {why}" for name, why in missing.items()]
    if too_dear:
        notes.append(f"No number of steps fits: {', '.join(too_dear)}.")
    return notes


def _front_csv(
    results: Sequence[Result],
    tuned: Sequence[Tuned],
    metrics: Sequence[Metric],
    select: Metric,
    on_front: Sequence[bool],
) -> str:
    """Return the figures of the report with their intervals, and what every setting was worth when it was tuned."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = [f"{metric.name}{end}" for metric in metrics for end in ("", "_low", "_high")]
    rows.writerow(
        ["split", "arm", "setting", "budget", "steps", "nfe", "seconds", "samples", "failed", "on_front", *ends]
    )
    for one, first in zip(results, on_front, strict=True):
        numbers = [f"{n:.6g}" for metric in metrics for n in _numbers(one.figures[metric.name])]
        there, seconds = one.samples.there, f"{np.mean(one.samples.seconds):.4f}"
        rows.writerow(["report", *_named(one.candidate), seconds, there.sum(), (~there).sum(), int(first), *numbers])
    for worth in tuned:
        values = [f"{worth.value:.6g}" if end == select.name else "" for end in ends]
        rows.writerow(["tuning", *_named(worth.candidate), "", "", "", "", *values])
    return text.getvalue()


def _named(candidate: Candidate) -> list[Any]:
    return [candidate.arm, candidate.setting, candidate.budget, candidate.config.steps, candidate.nfe]


def _numbers(figure: Figure) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high


def _plot(results: Sequence[Result], metrics: Sequence[Metric], on_front: Sequence[bool]) -> str:
    """Return the quality of every arm over its NFE, with intervals and the Pareto front of the first metric, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    for axis, metric in zip(picture.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number, arm in enumerate(dict.fromkeys(one.candidate.arm for one in results)):
            own = sorted((one for one in results if one.candidate.arm == arm), key=lambda one: one.candidate.nfe)
            nfe = [one.candidate.nfe for one in own]
            value, low, high = np.array([_numbers(one.figures[metric.name]) for one in own]).T
            style = "o-" if arm.startswith("W2SD") else "s--"
            colour = f"C{number % 10}"
            axis.errorbar(
                nfe, value, [value - low, high - value], fmt=style, color=colour, capsize=2, lw=1, ms=4, label=arm
            )
        if metric is metrics[0]:
            front = sorted(
                (one.candidate.nfe, one.figures[metric.name].value)
                for one, first in zip(results, on_front, strict=True)
                if first
            )
            axis.step(*np.array(front).T, where="post", color="black", lw=3, alpha=0.2, label="Pareto front")
        axis.set_xlabel("network evaluations a clip (NFE)")
        better = "higher" if metric.higher_is_better else "lower"
        axis.set_ylabel(f"{metric.name.replace('_', ' ')} ({better} is better)")
    picture.axes[0].legend(fontsize=7)
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "w2sd"}):
        picture.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _shown(
    results: Sequence[Result], budget: int, report: Split, count: int, clip_file: ClipFile
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each prompt that is shown its clips by arm, as data URIs, at one budget."""
    own = [one for one in results if one.candidate.budget == budget]
    rows = []
    for place, prompt in enumerate(report.prompts[:count]):
        files = [(one.candidate.arm, clip_file(one.candidate, place)) for one in own]
        rows.append((prompt, [(arm, _embedded(file)) for arm, file in files if file.exists()]))
    return rows


def _embedded(file: Path) -> str:
    kind = "image/png" if file.suffix == ".png" else "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _page(
    text: str,
    tables: Mapping[int, Sequence[Sequence[str]]],
    notes: Sequence[str],
    plot: str,
    shown: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    config: RenderConfig,
) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    return template.render(
        text=text,
        tables=tables,
        notes=notes,
        plot=plot[plot.index("<svg") :],
        shown=shown,
        configuration=yaml.safe_dump(plain(config), sort_keys=False),
    )
