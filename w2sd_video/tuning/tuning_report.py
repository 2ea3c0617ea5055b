"""What a search writes: the best settings as configurations, tables and plots, and one page that holds them all."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure as Picture

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Result, front_of
from w2sd_video.evaluation.plot import as_svg, drawn
from w2sd_video.evaluation.report import ClipFile, cell_of, clip_of, columns_of, groups_of, sections_of, size_of
from w2sd_video.evaluation.splits import Split
from w2sd_video.metrics import Metric
from w2sd_video.page import Cell, Column, Group, Page, Table, embedded, write_page
from w2sd_video.rendering.outputs import machine, plain, today, versions
from w2sd_video.settings.schema import RenderConfig, stage_scales
from w2sd_video.settings.words import pair_in_words
from w2sd_video.tuning.search import NO_STEPS, Tried
from w2sd_video.tuning.tuning_plan import TuningPlan
from w2sd_video.tuning.verdict import CONFIDENCE, GUIDANCE, PLAIN, Difference, differences_of, verdict_in_words
from w2sd_video.tuning.votes import VOTE, label_of
from w2sd_video.writing import write_whole

BEST, SETTINGS = "best.yaml", "settings"
"""Names of the configuration that the search chose, and of the folder of all that are reported."""


@dataclass(frozen=True)
class Findings:
    """What a search found.

    Attributes:
        plan: what was searched.
        metrics: by which the report measures.
        searched: by which settings were chosen, the one that decides first.
        missing: why other metrics could not be had, by name.
        tried: every setting that was tried.
        importances: of each operator's settings, where enough were finished.
        results: of plain sampling, each operator at its best, and the best few; on the prompts of the report.
        best: names of the best few, the best first.
    """

    plan: TuningPlan
    metrics: Sequence[Metric]
    searched: Sequence[Metric]
    missing: Mapping[str, str]
    tried: Sequence[Tried]
    importances: Mapping[str, Mapping[str, float]]
    results: Sequence[Result]
    best: Sequence[str]

    @property
    def rivals(self) -> list[str]:
        """Names of what the best few are compared with: plain sampling, and each operator at its best."""
        operators = {each.operator for each in self.tried}
        names = [result.candidate.arm for result in self.results]
        return [name for name in names if name == PLAIN or name in operators]


def write_tuning_report(folder: Path, config: RenderConfig, findings: Findings, clip_file: ClipFile) -> str:
    """Write best.yaml, settings/, trials.csv, front.svg, search.svg, table.md and report.html; return what is printed.

    Args:
        folder: of the search.
        config: the configuration.
        findings: what was found.
        clip_file: see ``ClipFile``.
    """
    plan, metric, results = findings.plan, findings.searched[0], findings.results
    higher = {each.name: each.higher_is_better for each in findings.searched}
    differences = differences_of(results, findings.best, findings.rivals, higher)
    operators = {name: _operator_of(name, findings) for name in findings.best}
    report, tuning = plan.report, plan.tuning
    verdict = verdict_in_words(differences, operators, metric.name, len(report.prompts), GUIDANCE in findings.rivals)
    text = (
        f"{config.model.pretrained}, {pair_in_words(config)}; at most {plan.nfe} NFE a clip, searched by "
        f"{', '.join(name.replace('_', ' ') for name in higher)} on {size_of(tuning)}, "
        f"reported on {size_of(report)} others"
    )
    on_front = front_of(results, metric)
    tables = [
        _results_table(findings, on_front),
        *(_differences_table(each, differences, findings) for each in findings.searched),
        _tried_table(findings),
        *([_importance_table(findings.importances)] if findings.importances else []),
    ]
    notes = _notes(findings)
    candidates = {result.candidate.arm: result.candidate for result in results}
    texts = {name: _configuration(config, candidate, name, findings) for name, candidate in candidates.items()}
    plots = {f"{metric.name} of each on the prompts of the report, with intervals": drawn(results, metric, on_front)}
    plots["what was tried, by operator"] = search_plot(findings.tried, findings.searched)
    (folder / SETTINGS).mkdir(exist_ok=True)
    for name, configuration in texts.items():
        write_whole(folder / SETTINGS / f"{name.replace(' ', '-')}.yaml", configuration)
    write_whole(folder / BEST, texts[findings.best[0]])
    write_whole(folder / "trials.csv", _trials_csv(findings))
    for name, plot in zip(("front.svg", "search.svg"), plots.values(), strict=True):
        write_whole(folder / name, plot)
    markdown = "\n".join([text, "", verdict, "", *sections_of(tables), *(f"- {note}" for note in notes)])
    write_whole(folder / "table.md", markdown + "\n")
    page = Page(
        title="The best settings at a budget",
        text=f"{verdict} {text}.",
        groups=groups_of(report, plan.shown, list(candidates.values()), clip_file, folder),
        tables=tables,
        plots=plots,
        notes=notes,
        facts=versions() | {"machine": machine(), "date": today()},
        configurations={f"{name} ({BEST})" if name == findings.best[0] else name: text for name, text in texts.items()},
    )
    write_page(folder / "report.html", page)
    return f"{markdown}\n\nbest     {folder / BEST}\npage     {folder / 'report.html'}"


def write_ballot(folder: Path, split: Split, candidates: Sequence[Candidate], clip_file: ClipFile) -> Path:
    """Write the page on which people vote, which does not say what is what, and return its path."""
    groups = []
    for number, prompt in enumerate(split.prompts, split.first):
        files = {label_of(each): (each, clip_file(each.config, number)) for each in candidates}
        clips = [
            replace(clip_of(each, file, embedded(file)), label=label, caption="")
            for label, (each, file) in sorted(files.items())
            if file.exists()
        ]
        if clips:
            groups.append(Group(prompt, number, clips))
    page = Page(
        title="Which is better?",
        text="Press Blind vote, choose any two, vote on each pair, and save the votes. Every setting needs some.",
        groups=groups,
    )
    path = folder / f"{VOTE}.html"
    write_page(path, page)
    return path


def search_plot(tried: Sequence[Tried], metrics: Sequence[Metric]) -> str:
    """Return what was tried as SVG: a row for each operator; of two metrics one over the other, with their front."""
    finished = [each for each in tried if each.scores]
    operators = list(dict.fromkeys(each.operator for each in tried))
    names = [metric.name for metric in metrics]
    picture = Picture(figsize=(3.9, 0.28 * len(operators) + 0.8 if len(names) == 1 else 3.9), layout="constrained")
    axis = picture.subplots()
    for number, operator in enumerate(operators):
        scores = [each.scores for each in finished if each.operator == operator]
        across = [each[names[0]] for each in scores]
        up = [each[names[1]] for each in scores] if len(names) > 1 else [number] * len(scores)
        axis.plot(across, up, "o", ms=4, alpha=0.6, label=operator, mew=0)
    axis.set_xlabel(names[0].replace("_", " "), fontsize=9)
    axis.tick_params(labelsize=8)
    if len(names) == 1:
        axis.set_yticks(range(len(operators)), operators, fontsize=8)
        axis.set_ylim(len(operators) - 0.5, -0.5)
    else:
        axis.set_ylabel(names[1].replace("_", " "), fontsize=9)
        picture.legend(loc="outside upper left", fontsize=8, ncols=2, frameon=False)
    return as_svg(picture)


def _operator_of(name: str, findings: Findings) -> str:
    """Return the operator that a setting of the report is of: its name, without a number behind it."""
    return name if name in {each.operator for each in findings.tried} else name.rpartition(" ")[0]


def _results_table(findings: Findings, on_front: Sequence[bool]) -> Table:
    columns = [Column("setting"), Column("values"), Column("steps"), Column("NFE"), *columns_of(findings.metrics)]
    rows = []
    for result, is_on_front in zip(findings.results, on_front, strict=True):
        candidate, seconds = result.candidate, float(np.mean(result.samples.seconds))
        rows.append(
            [
                Cell(candidate.arm + (" *" if is_on_front else "")),
                Cell(candidate.setting),
                Cell(str(candidate.config.steps), candidate.config.steps),
                Cell(str(candidate.nfe), candidate.nfe),
                *(cell_of(result.figures[metric.name]) for metric in findings.metrics),
                Cell(f"{seconds:.3f}", seconds),
            ]
        )
    return Table("On other prompts", [*columns, Column("seconds")], rows)


def _differences_table(metric: Metric, differences: Sequence[Difference], findings: Findings) -> Table:
    by_pair = {(each.ours, each.theirs): each for each in differences if each.metric == metric.name}
    rows = []
    for mine in findings.best:
        cells = []
        for other in findings.rivals:
            difference = by_pair.get((mine, other))
            mark = {True: " better", False: " worse", None: ""}[difference.is_better] if difference else ""
            cell = cell_of(difference.figure, signed=True) if difference else Cell("", np.nan)
            cells.append(Cell(cell.text + mark, cell.value))
        rows.append([Cell(mine), *cells])
    columns = [Column("best few"), *(Column(f"less {other}") for other in findings.rivals)]
    return Table(f"{metric.name.replace('_', ' ')}: differences, corrected", columns, rows)


def _tried_table(findings: Findings) -> Table:
    metric = findings.searched[0]
    rows = []
    for operator in dict.fromkeys(each.operator for each in findings.tried):
        of_operator = [each for each in findings.tried if each.operator == operator]
        values = [each.scores[metric.name] for each in of_operator if each.scores]
        known = ("finished", "given up", NO_STEPS)
        states = Counter(each.state if each.state in known else "failed" for each in of_operator)
        best = (max(values) if metric.higher_is_better else min(values)) if values else np.nan
        counts = [states[state] for state in ("finished", "given up", "failed", NO_STEPS)]
        numbers = [sum(counts[:-1]), *counts]
        rows.append([Cell(operator), *(Cell(str(number), number) for number in numbers), Cell(f"{best:.4g}", best)])
    names = ("operator", "tried", "finished", "given up", "failed", "proposed but too dear")
    best_column = Column(f"best {metric.name.replace('_', ' ')}", "higher" if metric.higher_is_better else "lower")
    return Table("What was tried", [*map(Column, names), best_column], rows)


def _importance_table(importances: Mapping[str, Mapping[str, float]]) -> Table:
    settings = list(dict.fromkeys(name for shares in importances.values() for name in shares))
    rows = [
        [
            Cell(setting.replace("_", " ")),
            *(
                Cell(f"{shares[setting]:.2f}", shares[setting]) if setting in shares else Cell("", np.nan)
                for shares in importances.values()
            ),
        ]
        for setting in settings
    ]
    return Table("How much each setting matters", [Column("setting"), *map(Column, importances)], rows)


def _notes(findings: Findings) -> list[str]:
    plan = findings.plan
    notes = [
        f"Behind a figure: {CONFIDENCE:.0%} interval over prompts. Differences are paired, their intervals corrected "
        "for all differences of this page together, and exclude 0 exactly where Holm's test does.",
        f"{PLAIN}: the configuration without reflection. Every other row was the best of {plan.trials} settings of its "
        "operator on the prompts of the search, or has a number and was among the best few of all.",
        "*: on the front of quality over NFE. The values that a search chose by flatter its choice; those on "
        "other prompts do not.",
    ]
    if findings.importances:
        notes.append("How much a setting matters: PED-ANOVA of Optuna over the settings that were finished, in all 1.")
    notes += [f"{name} is left out: {reason}." for name, reason in plan.missing.items()]
    notes += [f"The metric {name} is left out: {reason}" for name, reason in findings.missing.items()]
    for operator in dict.fromkeys(each.operator for each in findings.tried):
        states = Counter(each.state for each in findings.tried if each.operator == operator)
        failures = {state: count for state, count in states.items() if state not in ("finished", "given up", NO_STEPS)}
        notes += [f"{operator}, {count} of {states.total()} settings: {state}" for state, count in failures.items()]
    for result in findings.results:
        if result.failed:
            notes.append(f"{result.candidate.arm}: samples failed: {'; '.join(result.failed)}")
    return notes


def _configuration(config: RenderConfig, candidate: Candidate, name: str, findings: Findings) -> str:
    """Return a setting as YAML, with how to use it at its head."""
    chosen = replace(candidate.config, prompts=config.prompts[:1], output=config.output, compare=False)
    scale = max(max(stage_scales(getattr(chosen, role).guidance_scale), default=1.0) for role in ("base", "strong"))
    call = {"num_inference_steps": chosen.steps, "guidance_scale": scale if scale > 1 else 1.0, **chosen.call}
    call |= {size: value for size in ("height", "width") if (value := getattr(chosen, size)) is not None}
    arguments = ", ".join(f"{argument}={value!r}" for argument, value in call.items())
    weights = ", ".join(f'"{name}": ...' for name in chosen.model.weights)
    file = f"FILE, weights={{{weights}}}" if weights else "FILE"
    searched = ", ".join(metric.name for metric in findings.searched)
    head = (
        f"# {name}: {candidate.setting}; {candidate.nfe} NFE a clip, found by w2sd-video tune by {searched}.\n"
        f'# w2sd-video render "a prompt" --config FILE, or in a script, with the pipeline of this model:\n'
        f"#   with reflection(pipe, **load_settings({file})):\n"
        f"#       pipe(prompt, {arguments})\n"
    )
    return head + yaml.safe_dump(plain(chosen), sort_keys=False, allow_unicode=True)


def _trials_csv(findings: Findings) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in findings.searched]
    rows.writerow(["operator", "trial", "state", "steps", "nfe", "samples", *names, "values"])
    for each in findings.tried:
        steps, nfe = (each.candidate.config.steps, each.candidate.nfe) if each.candidate else ("", "")
        scores = [f"{each.scores[name]:.6g}" if each.scores else "" for name in names]
        setting = each.candidate.setting if each.candidate else ""
        rows.writerow([each.operator, each.number, each.state, steps, nfe, each.samples, *scores, setting])
    return text.getvalue()
