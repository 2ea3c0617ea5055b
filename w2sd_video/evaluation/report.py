"""What an evaluation writes: the table in Markdown, the figures as CSV, a plot, and one page that holds them all."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Outcome, Result, judge_of
from w2sd_video.evaluation.plan import Plan
from w2sd_video.evaluation.plot import drawn
from w2sd_video.evaluation.samples import Split
from w2sd_video.evaluation.statistics import Figure, pareto_front
from w2sd_video.metrics import Metric
from w2sd_video.rendering.outputs import plain
from w2sd_video.rendering.video import write_whole
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_in_words

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ClipFile = Callable[[Candidate, int], Path]


def write_report(
    folder: Path,
    config: RenderConfig,
    plan: Plan,
    metrics: Sequence[Metric],
    missing: Mapping[str, str],
    outcome: Outcome,
    clip_file: ClipFile,
) -> str:
    """Write front.csv, front.svg, table.md and report.html, and return the table in Markdown.

    Args:
        folder: of the evaluation.
        config: W2SD as it is configured.
        plan: what was compared.
        metrics: by which.
        missing: why other metrics could not be had, by name.
        outcome: what was found.
        clip_file: returns where the clip of a setting and a prompt of the report is kept.
    """
    select = next(metric for metric in metrics if metric.name == plan.select)
    results = outcome.results
    on_front = pareto_front(
        [(float(result.candidate.nfe), result.figures[select.name].value) for result in results],
        select.higher_is_better,
    )
    judge = judge_of(metrics)
    plot = drawn(results, [select] if judge in (None, select) else [select, judge], on_front)
    text = (
        f"{config.model.pretrained}, {pair_in_words(config)}; {_size(plan.report, 'prompts')}, best settings by "
        f"{select.name.replace('_', ' ')} on {_size(plan.tuning, 'other prompts')}"
    )
    tables = {budget: _table(results, on_front, budget, metrics, plan) for budget in plan.budgets}
    notes = _notes(outcome, missing, select, plan)
    sections = [line for budget, rows in tables.items() for line in (f"**{budget} NFE**", "", *_markdown(rows), "")]
    table = "\n".join([text, "", *sections, *(f"- {note}" for note in notes)])
    shown = [(prompt, _shown_clips(results, plan.budgets[-1], k, clip_file)) for k, prompt in _shown_prompts(plan)]
    write_whole(folder / "front.csv", _front_csv(outcome, metrics, select, on_front))
    write_whole(folder / "front.svg", plot)
    write_whole(folder / "table.md", table + "\n")
    write_whole(folder / "report.html", _page(text, tables, notes, plot, shown, config))
    return table


def _size(split: Split, of: str) -> str:
    return f"{len(split.prompts)} {of} x {split.seeds} seed(s)"


def _table(
    results: Sequence[Result],
    on_front: Sequence[bool],
    budget: int,
    metrics: Sequence[Metric],
    plan: Plan,
) -> list[list[str]]:
    """Return head and rows of a budget's table."""
    names = [metric.name for metric in metrics]
    head = ["arm", "best setting", "NFE", *(name.replace("_", " ") for name in names)]
    head += [f"{plan.select.replace('_', ' ')} less that of {plan.against}", f"{plan.against} wins", "seconds"]
    rows = [head]
    for result, is_on_front in zip(results, on_front, strict=True):
        if result.candidate.budget != budget:
            continue
        difference = result.differences.get(plan.select)
        rows.append(
            [
                result.candidate.arm + (" *" if is_on_front else ""),
                f"{result.candidate.setting} ({result.tried})",
                str(result.candidate.nfe),
                *(_figure(result.figures[name]) for name in names),
                "" if difference is None else _figure(difference, signed=True),
                "" if result.wins is None else _figure(result.wins),
                f"{np.mean(result.samples.seconds):.3f}",
            ]
        )
    return rows


def _figure(figure: Figure, signed: bool = False) -> str:
    if not np.isfinite(figure.value):
        return "none"
    size = np.nanmax([abs(figure.value), abs(figure.high - figure.low)])
    # About three digits that count, of whatever is larger: the figure or its interval.
    digits = 1 if size >= 20 else 2 if size >= 2 else 3
    numbers = [round(number, digits) + 0.0 for number in figure.numbers]  # no negative zero
    value, low, high = (f"{number:{'+' if signed else ''}.{digits}f}" for number in numbers)
    return f"{value} ({low} to {high})" if np.isfinite(figure.high - figure.low) else value


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _notes(outcome: Outcome, missing: Mapping[str, str], select: Metric, plan: Plan) -> list[str]:
    notes = [
        "In brackets behind a setting: among how many it was chosen. Behind a figure: 95 % interval over prompts, "
        "Wilson's of a share and else of a bootstrap, paired for differences.",
        f"{plan.against} wins: share of samples of the same prompt and noise in which it does better by the first "
        "score, a tie counting half.",
        f"*: on the Pareto front of {select.name.replace('_', ' ')} "
        f"({'higher' if select.higher_is_better else 'lower'} is better) over NFE, of all budgets.",
    ]
    for result in outcome.results:
        if result.failed:
            count = int((~result.samples.there).sum())
            arm_and_budget = f"{result.candidate.arm} at {result.candidate.budget} NFE"
            notes.append(
                f"{arm_and_budget}: {count} of {len(result.samples.error)} samples failed: {'; '.join(result.failed)}"
            )
    notes += [f"The metric {name} is left out: {reason}" for name, reason in missing.items()]
    if outcome.too_dear:
        notes.append(f"No number of steps fits: {', '.join(outcome.too_dear)}.")
    return notes


def _front_csv(outcome: Outcome, metrics: Sequence[Metric], select: Metric, on_front: Sequence[bool]) -> str:
    """Return the figures of the report with their intervals, and what every setting was worth when it was tuned."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = [f"{metric.name}{end}" for metric in metrics for end in ("", "_low", "_high")]
    rows.writerow(
        ["split", "arm", "setting", "budget", "steps", "nfe", "seconds", "samples", "failed", "on_front", *ends]
    )
    for result, is_on_front in zip(outcome.results, on_front, strict=True):
        numbers = [f"{number:.6g}" for metric in metrics for number in result.figures[metric.name].numbers]
        succeeded, seconds = result.samples.there, f"{np.mean(result.samples.seconds):.4f}"
        rows.writerow(
            [
                "report",
                *_candidate_columns(result.candidate),
                seconds,
                succeeded.sum(),
                (~succeeded).sum(),
                int(is_on_front),
                *numbers,
            ]
        )
    for tuned in outcome.tuned:
        values = [f"{tuned.value:.6g}" if end == select.name else "" for end in ends]
        rows.writerow(["tuning", *_candidate_columns(tuned.candidate), "", "", "", "", *values])
    return text.getvalue()


def _candidate_columns(candidate: Candidate) -> list[Any]:
    return [candidate.arm, candidate.setting, candidate.budget, candidate.config.steps, candidate.nfe]


def _shown_prompts(plan: Plan) -> list[tuple[int, str]]:
    return list(enumerate(plan.report.prompts[: plan.shown]))


def _shown_clips(results: Sequence[Result], budget: int, place: int, clip_file: ClipFile) -> list[tuple[str, str]]:
    """Return the clips of a prompt at one budget, by arm, as data URIs."""
    results_at_budget = [result for result in results if result.candidate.budget == budget]
    files = [(result.candidate.arm, clip_file(result.candidate, place)) for result in results_at_budget]
    return [(arm, _embedded(file)) for arm, file in files if file.exists()]


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
