"""What an evaluation writes: the table in Markdown, the figures as CSV, plots, and one page that holds them all."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2sd_video._moved import names_of
from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Outcome, RealAgainstReal, front_of, judge_of
from w2sd_video.evaluation.plan import Plan
from w2sd_video.evaluation.plot import drawn
from w2sd_video.evaluation.splits import Split
from w2sd_video.evaluation.statistics import Figure
from w2sd_video.markdown import markdown_table
from w2sd_video.metrics import Distance, Metric
from w2sd_video.page import Cell, Clip, Column, Group, Page, Table, embedded, write_page
from w2sd_video.rendering.outputs import machine, plain, today, versions
from w2sd_video.rendering.video import read_video
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_in_words
from w2sd_video.writing import write_whole

__getattr__ = names_of(__name__)

_EMBEDDED_AT_MOST = 32 * 2**20
"""Bytes of clips that the page holds itself; more of them it names, and they must be moved with it."""
REAL = "real clips"
"""Name of the row of real clips that are measured as if they were an arm."""
ClipFile = Callable[[RenderConfig, int], Path]
"""Where the clip of a setting and a prompt is kept, by the prompt's number among all."""


def write_report(
    folder: Path,
    config: RenderConfig,
    plan: Plan,
    metrics: Sequence[Metric],
    missing: Mapping[str, str],
    outcome: Outcome,
    clip_file: ClipFile,
) -> str:
    """Write front.csv, front.svg, table.md, report.html and a plot of a second metric; return the table in Markdown.

    That is front-score.svg, or front-distance.svg where settings are chosen by the first score.

    Args:
        folder: of the evaluation.
        config: W2SD as it is configured.
        plan: what was compared.
        metrics: by which.
        missing: why other metrics could not be had, by name.
        outcome: what was found.
        clip_file: see ``ClipFile``.
    """
    select = next(metric for metric in metrics if metric.name == plan.select)
    results = outcome.results
    on_front = front_of(results, select)
    second: Metric | None = judge_of(metrics)
    if second is select:
        second = next((metric for metric in metrics if isinstance(metric, Distance)), None)
    plots = {
        f"{metric.name.replace('_', ' ')} of every arm at every budget": drawn(
            results, metric, on_front if metric is select else [False] * len(results)
        )
        for metric in ([select] if second in (None, select) else [select, second])
    }
    text = (
        f"{config.model.pretrained}, {pair_in_words(config)}; {size_of(plan.report)}, best settings by "
        f"{select.name.replace('_', ' ')} on {size_of(plan.tuning, 'other prompts')}"
    )
    tables = [_table(outcome, on_front, budget, metrics, plan) for budget in plan.budgets]
    notes = _notes(outcome, missing, select, plan)
    markdown = "\n".join([text, "", *sections_of(tables), *(f"- {note}" for note in notes)])
    at_largest_budget = [result.candidate for result in results if result.candidate.budget == plan.budgets[-1]]
    page = Page(
        title="W2SD at equal cost",
        text=f"{text}.",
        groups=groups_of(plan.report, plan.shown, at_largest_budget, clip_file, folder, _EMBEDDED_AT_MOST),
        tables=tables,
        plots=plots,
        notes=notes,
        facts=versions() | {"machine": machine(), "date": today()},
        configurations={"Configuration": yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)},
    )
    write_whole(folder / "front.csv", _front_csv(outcome, metrics, select, on_front))
    name_of_second = "front-distance.svg" if isinstance(second, Distance) else "front-score.svg"
    for name, plot in zip(("front.svg", name_of_second), plots.values(), strict=False):
        write_whole(folder / name, plot)
    write_whole(folder / "table.md", markdown + "\n")
    write_page(folder / "report.html", page)
    return markdown


def size_of(split: Split, of: str = "prompts") -> str:
    """Say how many samples of a setting a split has."""
    return f"{len(split.prompts)} {of} x {split.seeds} seed(s)"


def _table(
    outcome: Outcome,
    on_front: Sequence[bool],
    budget: int,
    metrics: Sequence[Metric],
    plan: Plan,
) -> Table:
    """Return the table of a budget."""
    columns = [Column("arm"), Column("best setting"), Column("NFE"), *columns_of(metrics)]
    columns += [
        Column(f"{plan.select.replace('_', ' ')} less that of {plan.against}"),
        Column("p by Holm"),
        Column(f"{plan.against} wins"),
        Column("seconds"),
    ]
    rows = [] if outcome.real is None else [_row_of_real(outcome.real, metrics, len(columns))]
    for result, is_on_front in zip(outcome.results, on_front, strict=True):
        if result.candidate.budget != budget:
            continue
        difference = result.differences.get(plan.select)
        rows.append(
            [
                Cell(result.candidate.arm + (" *" if is_on_front else "")),
                Cell(f"{result.candidate.setting} ({result.tried})"),
                Cell(str(result.candidate.nfe), result.candidate.nfe),
                *(cell_of(result.figures[metric.name]) for metric in metrics),
                Cell("", np.nan) if difference is None else cell_of(difference, signed=True),
                _cell_of_p(result.corrected.get(plan.select, np.nan)),
                Cell("", np.nan) if result.wins is None else cell_of(result.wins),
                Cell(f"{np.mean(result.samples.seconds):.3f}", float(np.mean(result.samples.seconds))),
            ]
        )
    return Table(f"{budget} NFE", columns, rows)


def _row_of_real(real: RealAgainstReal, metrics: Sequence[Metric], columns: int) -> list[Cell]:
    """Return the row of real clips, which is marked as the best of nothing."""
    cells = [Cell(REAL), Cell(f"{real.clips} against {real.others}"), Cell("", np.nan)]
    figures = [real.figures.get(metric.name) for metric in metrics]
    cells += [Cell("", np.nan) if figure is None else Cell(cell_of(figure).text, np.nan) for figure in figures]
    return cells + [Cell("", np.nan)] * (columns - len(cells))


def _cell_of_p(p: float) -> Cell:
    return Cell("", np.nan) if not np.isfinite(p) else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def cell_of(figure: Figure, signed: bool = False) -> Cell:
    """Return a number with its interval as a table shows it."""
    if not np.isfinite(figure.value):
        return Cell("none", np.nan)
    size = np.nanmax([abs(figure.value), abs(figure.high - figure.low)])
    # About three digits that count, of whatever is larger: the figure or its interval.
    digits = 1 if size >= 20 else 2 if size >= 2 else 3
    numbers = [round(number, digits) + 0.0 for number in figure.numbers]  # no negative zero
    value, low, high = (f"{number:{'+' if signed else ''}.{digits}f}" for number in numbers)
    shown = f"{value} ({low} to {high})" if np.isfinite(figure.high - figure.low) else value
    return Cell(shown, figure.value)


def columns_of(metrics: Sequence[Metric]) -> list[Column]:
    """Return a column for each metric, which knows what is better."""
    return [
        Column(metric.name.replace("_", " "), "higher" if metric.higher_is_better else "lower") for metric in metrics
    ]


def sections_of(tables: Sequence[Table]) -> list[str]:
    """Return the lines of tables in Markdown, each below its title."""
    lines: list[str] = []
    for table in tables:
        names, texts = [column.name for column in table.columns], [[cell.text for cell in row] for row in table.rows]
        lines += [f"**{table.title}**", "", *markdown_table(names, texts), ""]
    return lines


def _notes(outcome: Outcome, missing: Mapping[str, str], select: Metric, plan: Plan) -> list[str]:
    compared, counts = (
        sum(bool(result.differences) for result in outcome.results),
        [result.tried for result in outcome.results if result.tried > 1],
    )
    notes = [
        "In brackets behind a setting: among how many it was chosen. Behind a figure: 95 % interval over prompts, "
        "Wilson's of a share, of a mean by a bootstrap, of a distance by a jackknife; paired for differences. Each "
        "holds by itself.",
        f"p by Holm: how likely such a difference is by chance, corrected for {compared} comparisons in all.",
        f"{plan.against} wins: share of samples of the same prompt and noise in which it does better by the first "
        "score, a tie counting half.",
        f"*: on the Pareto front of {select.name.replace('_', ' ')} "
        f"({'higher' if select.higher_is_better else 'lower'} is better) over NFE, of all budgets.",
    ]
    if outcome.real is not None:
        notes.append(
            f"{REAL}: {outcome.real.clips} real clips measured as an arm is, against {outcome.real.others} others: the "
            "floor of a distance, and what a share can reach."
            + (
                ""
                if outcome.real.clips == plan.report.samples
                else f" An arm has {plan.report.samples} samples, so that its own floor is lower."
            )
        )
    if counts:
        spread = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        notes.append(
            f"Arms that have several settings have {spread} that fit; each is tried on {plan.tuning.samples} samples."
        )
    if plan.warning:
        notes.append(f"{plan.warning[0].upper()}{plan.warning[1:]}.")
    for result in outcome.results:
        if result.failed:
            count = int((~result.samples.there).sum())
            arm_and_budget = f"{result.candidate.arm} at {result.candidate.budget} NFE"
            notes.append(
                f"{arm_and_budget}: {count} of {len(result.samples.error)} samples failed: {'; '.join(result.failed)}"
            )
    notes += [f"The metric {name} is left out: {reason}" for name, reason in missing.items()]
    if outcome.too_dear:
        notes.append(f"No setting fits: {', '.join(outcome.too_dear)}.")
    return notes


def _front_csv(outcome: Outcome, metrics: Sequence[Metric], select: Metric, on_front: Sequence[bool]) -> str:
    """Return the figures of the report with their intervals, and what every setting was worth when it was tuned."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = [f"{metric.name}{end}" for metric in metrics for end in ("", "_low", "_high")]
    of_difference = [f"{select.name}_difference{end}" for end in ("", "_low", "_high", "_p", "_p_by_holm")]
    columns = ["split", "arm", "setting", "budget", "steps", "nfe", "seconds", "samples", "failed", "on_front"]
    rows.writerow([*columns, *ends, *of_difference])
    if (real := outcome.real) is not None:
        figures = [real.figures.get(metric.name) for metric in metrics]
        numbers = [f"{n:.6g}" if figure else "" for figure in figures for n in (figure.numbers if figure else [0] * 3)]
        setting = f"against {real.others}"
        rows.writerow(["report", REAL, setting, *[""] * 4, real.clips, 0, "", *numbers, *[""] * len(of_difference)])
    for result, is_on_front in zip(outcome.results, on_front, strict=True):
        numbers = [f"{number:.6g}" for metric in metrics for number in result.figures[metric.name].numbers]
        difference = result.differences.get(select.name)
        compared = [*difference.numbers, difference.p_value, result.corrected[select.name]] if difference else []
        numbers += [f"{number:.6g}" for number in compared] or [""] * len(of_difference)
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
        rows.writerow(
            [
                "tuning",
                *_candidate_columns(tuned.candidate),
                "",
                tuned.samples,
                "",
                "",
                *values,
                *[""] * len(of_difference),
            ]
        )
    return text.getvalue()


def _candidate_columns(candidate: Candidate) -> list[Any]:
    return [candidate.arm, candidate.setting, candidate.budget, candidate.config.steps, candidate.nfe]


def groups_of(
    split: Split,
    shown: int,
    candidates: Sequence[Candidate],
    clip_file: ClipFile,
    folder: Path,
    embedded_at_most: float = math.inf,
) -> list[Group]:
    """Return the clips of settings that are shown: of the first prompts and their first seed.

    Args:
        split: the prompts.
        shown: of how many of them.
        candidates: the settings.
        clip_file: see ``ClipFile``; of one that is not there nothing is shown.
        folder: of the page.
        embedded_at_most: bytes that the page holds itself; it names the files of more, beside it.
    """
    files = [
        (number, candidate, clip_file(candidate.config, number))
        for number in range(split.first, split.first + min(shown, len(split.prompts)))
        for candidate in candidates
    ]
    files = [(number, candidate, file) for number, candidate, file in files if file.exists()]
    is_embedded = sum(file.stat().st_size for _, _, file in files) <= embedded_at_most
    clips: dict[int, list[Clip]] = {}
    for number, candidate, file in files:
        address = embedded(file) if is_embedded else file.relative_to(folder).as_posix()
        clips.setdefault(number, []).append(clip_of(candidate, file, address))
    return [Group(split.prompts[number - split.first], number, clips[number]) for number in clips]


def clip_of(candidate: Candidate, file: Path, address: str) -> Clip:
    """Return a clip of a setting as a page shows it: a file, by the address that the page has for it."""
    caption = f"{candidate.nfe} NFE, {candidate.config.steps} steps, {candidate.setting}"
    if file.suffix == ".png":
        return Clip(candidate.arm, "pictures", [address], caption=caption)
    return Clip(candidate.arm, "video", [address], len(read_video(file)), candidate.config.fps, caption=caption)
