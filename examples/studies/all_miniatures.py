"""Every arm on every miniature at several budgets, each at the setting that did best on other prompts; one page of all.

It is `w2sd_video.evaluate` for each configuration, into a folder of its own, and then a table that holds all of them,
with p-values by Holm's correction over everything in it. Started again it goes on where it stopped. New miniatures join
by their names. Run: python examples/studies/all_miniatures.py --device cuda --workers 16 --gpus_per_worker 0.06
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from w2sd_video import evaluate
from w2sd_video.evaluation.arms import ARMS
from w2sd_video.evaluation.every_arm import arms_of, work_to_come
from w2sd_video.evaluation.plan import Plan, plan_of
from w2sd_video.evaluation.plan import add_options as add_evaluation_options
from w2sd_video.evaluation.report import REAL, cell_of, sections_of
from w2sd_video.evaluation.splits import rounds_of
from w2sd_video.evaluation.statistics import Figure, holm
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import load_metric
from w2sd_video.page import Cell, Column, Page, Table, write_page
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.load import load
from w2sd_video.rendering.outputs import machine, today, versions
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.rendering.step_cost import duration, measured_cost
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.files import packaged_configs
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import world_of
from w2sd_video.writing import write_whole

METRICS = ("likelihood", "adherence", "kid")
"""The first chooses settings and is compared; distances whose intervals take minutes are left out."""
_OF_FASHION = ("likelihood", "adherence", "kid_efficientnet")
"""In their place where pictures are real ones, and the judge is not ours."""
_FLOPS = 10e12
"""Operations a second of an H100 in float32 at sizes like these, about a fifth of what it can."""
_LAUNCH, _CALL, _CLIP = 5e-6, 0.05, 5e-4
"""Seconds that it takes to start a kernel of a GPU, and of a call and of each of its clips beside the networks."""
_BATCH, _BATCH_OF_GPU, _WORKERS_OF_GPU = 64, 512, 16
_EMPTY = Cell("", np.nan)


@dataclass(frozen=True)
class Study:
    """What is evaluated of one configuration.

    Attributes:
        name: of it.
        config: W2SD as it is configured.
        plan: arms, budgets, prompts.
        words: of the command line of the evaluation.
        folder: of it.
    """

    name: str
    config: RenderConfig
    plan: Plan
    words: list[str]
    folder: Path


def main(
    configs: tuple[str, ...] = ("miniature-*",),
    budgets: tuple[PositiveInt, ...] = (6, 10, 20, 40),
    samples: PositiveInt = 1000,
    tuning_samples: PositiveInt = 500,
    rounds: PositiveInt = 4,
    arms: tuple[str, ...] = tuple(ARMS),
    against: str = "CFG",
    metrics: tuple[str, ...] | None = None,
    number_of_prompts: PositiveInt | None = None,
    number_of_tuning_prompts: PositiveInt | None = None,
    batch: PositiveInt | None = None,
    device: str = "auto",
    workers: PositiveInt | None = None,
    gpus_per_worker: float | None = None,
    folder: Path = Path("runs/all-miniatures"),
    dry_run: bool = False,
) -> int:
    """Evaluate all configurations, or say what that would take.

    Args:
        configs: names of configurations, with * for any, or files; of one model with * the first alone.
        budgets: network evaluations a clip.
        samples: of each arm in the report, at least.
        tuning_samples: of each setting where one is chosen, at least.
        rounds: parts in which settings are looked at where one is chosen, the worse half given up after each.
        arms: what is compared.
        against: what the others are compared with.
        metrics: the first chooses settings; likelihood, adherence and kid unless given.
        number_of_prompts: of the report; as many as an evaluation takes unless given.
        number_of_tuning_prompts: other ones, on which settings are chosen.
        batch: clips sampled together; 64 on a CPU and 512 on a GPU unless given.
        device: of the models.
        workers: processes that work at a time; more than 1 need Ray.
        gpus_per_worker: GPUs that a worker holds, or a fraction.
        folder: where everything is written.
        dry_run: say what it would take, here and on a GPU.

    Returns:
        1 if samples failed, else 0.
    """
    options = argparse.Namespace(**locals())
    with errors_in_one_line("evaluate"):
        studies, left_out = studies_of(options)
        if dry_run:
            print("\n".join([cost_in_words(studies, workers or 1), *(f"left out: {reason}" for reason in left_out)]))
            return 0
        codes = [evaluate.main([*study.words, "--folder", str(study.folder)]) for study in studies]
        print(write_all(folder, studies, against, left_out))
    return max(codes)


def studies_of(options: argparse.Namespace) -> tuple[list[Study], list[str]]:
    """Return what is evaluated, and why configurations that were meant too are not.

    Raises:
        ConfigError: names that no configuration has, or none of them can be evaluated.
    """
    packaged = packaged_configs()
    chosen: dict[str, bool] = {}  # whether it is named as it is, and not by a pattern
    for pattern in options.configs:
        known = [name for name in packaged if fnmatch(name, pattern)]
        if not known and not Path(pattern).is_file():
            raise ConfigError(f"configs {pattern}: no configuration has such a name; known are {', '.join(packaged)}")
        chosen |= {name: name == pattern for name in known or [pattern]}
    studies, left_out, of_models = [], [], {}
    for name, is_named in chosen.items():
        try:
            study = _study(name, options)
        except ConfigError as error:
            if is_named or name not in packaged:
                raise
            left_out.append(f"{name}: {error}")
            continue
        first = of_models.setdefault(study.config.model.pretrained, name)
        if first == name or is_named:
            studies.append(study)
        else:
            left_out.append(f"{name}: another pair of the model of {first}; name it to have it too")
    if not studies:
        raise ConfigError("; ".join(left_out))
    return studies, left_out


def _study(name: str, options: argparse.Namespace) -> Study:
    rest = ["--config", name, "--device", options.device]
    config = parse(rest, command="evaluate").config
    is_gpu = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    words = ["--against", options.against, "--budgets", *map(str, options.budgets)]
    words += ["--arms", *options.arms] if tuple(options.arms) != tuple(ARMS) else []  # of all of them some may not fit
    metrics = options.metrics or (_OF_FASHION if world_of(config.model) == "fashion" else METRICS)
    words += ["--metrics", *metrics, "--batch", str(options.batch or (_BATCH_OF_GPU if is_gpu else _BATCH))]
    words += ["--rounds", str(options.rounds)]
    for option in ("number_of_prompts", "number_of_tuning_prompts", "workers", "gpus_per_worker"):
        if (value := getattr(options, option)) is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    parser = argparse.ArgumentParser()
    add_evaluation_options(parser)
    plan = plan_of(parser.parse_args(words), config, name)
    for split, wanted, option in (
        (plan.report, options.samples, "--number-of-seeds"),
        (plan.tuning, options.tuning_samples, "--number-of-tuning-seeds"),
    ):
        words += [option, str(math.ceil(wanted / len(split.prompts)))]
    plan = plan_of(parser.parse_args(words), config, name)
    return Study(name, config, plan, [*words, *rest], options.folder / Path(name).stem)


def cost_in_words(studies: list[Study], workers: int) -> str:
    """Say what all evaluations would take: here, as it is measured; on a GPU, as operations and their number tell."""
    lines, here, of_networks, of_calls = [], 0.0, 0.0, 0.0
    for study in studies:
        plan = study.plan
        parts = work_to_come(arms_of(study.config, plan), plan)
        samples = sum(count for _, count, _ in parts)
        evaluations = sum(nfe for _, _, nfe in parts)
        flops, kernels = _work(study.config)
        of_networks += evaluations * flops / _FLOPS
        of_a_call = min(_BATCH_OF_GPU, rounds_of(plan.tuning, plan.rounds)[0].samples, plan.report.samples)
        of_calls += (evaluations * kernels * _LAUNCH + samples * _CALL) / of_a_call + samples * _CLIP
        cost = measured_cost(study.config, min(plan.batch, 64))
        assert cost is not None, "miniatures are on every machine"
        seconds = cost.seconds(samples, evaluations)
        here += seconds
        lines.append(
            f"{study.name:<28} {parts[0][0]} settings x at most {plan.tuning.samples} and {parts[1][0]} x "
            f"{plan.report.samples} samples: {evaluations / 1e6:.3g} million evaluations of {flops / 1e6:.0f} MFLOP, "
            f"{kernels:.0f} kernels; {duration(seconds)} here by one worker"
        )
    lines.append(f"{'all':<28} {duration(here / workers)} here by {workers} worker(s)")
    for count in (1, _WORKERS_OF_GPU):
        seconds = of_networks + of_calls / count
        lines.append(f"{'on one H100, by estimate':<28} {duration(seconds)} by {count} worker(s) that share it")
    lines.append(
        f"{'':<28} ({_FLOPS / 1e12:.0f} TFLOP/s, {_LAUNCH * 1e6:.0f} us to start a kernel, {_CALL} s of a call and "
        f"{_CLIP} of a clip beside the networks)"
    )
    return "\n".join(lines)


def _work(config: RenderConfig) -> tuple[float, float]:
    """Return the floating-point operations of a network evaluation of one clip, and how many kernels it starts."""
    pipe, clips = load(config), 4
    pipe.set_progress_bar_config(disable=True)
    counted = []
    with threads_for(config.model.pretrained):
        for steps in (2, 6):
            plain = replace(config, steps=steps, reflection_steps=0, autoguidance=0.0)
            with FlopCounterMode(display=False) as flops, _Operations() as operations:
                _, nfe = sample_clips(pipe, plain, config.prompts[:1] * clips, list(range(clips)))
            counted.append((flops.get_total_flops() / clips, operations.count, sum(nfe.values())))
    (flops_of_few, few, nfe_of_few), (flops_of_many, many, nfe_of_many) = counted
    between = nfe_of_many - nfe_of_few
    return (flops_of_many - flops_of_few) / between, (many - few) / between


class _Operations(TorchDispatchMode):
    """Counts the operations of tensors, but for views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def write_all(folder: Path, studies: list[Study], against: str, left_out: list[str]) -> str:
    """Write all.csv, table.md and report.html of all evaluations, and return the table in Markdown."""
    rows = [{"configuration": study.name, **row} for study in studies for row in _reported(study.folder)]
    names = list(dict.fromkeys(name for study in studies for name in study.plan.sources))
    first = names[0]
    is_higher = load_metric(first).higher_is_better
    p_values = holm([_number(row[f"{first}_difference_p"]) for row in rows])
    for row, p in zip(rows, p_values, strict=True):
        row["p_by_holm_over_all"] = f"{p:.6g}" if np.isfinite(p) else ""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    tables = [_table([row for row in rows if row["budget"] == budget], budget, names, against) for budget in budgets]
    verdicts = [
        _verdict(rows, study.name, budget, first, is_higher, against) for budget in budgets for study in studies
    ]
    notes = [
        f"Each arm is at the setting that did best by {first} on other prompts, with 95 % intervals over prompts.",
        f"p: how likely such a difference from {against} is by chance, corrected after Holm for all "
        f"{np.isfinite(p_values).sum()} comparisons of this page.",
        *(f"Left out: {reason}" for reason in left_out),
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(folder / "all.csv", text.getvalue())
    listed = [f"- {line}" for line in verdicts], [f"- {note}" for note in notes]
    markdown = "\n".join([*listed[0], "", *sections_of(tables), *listed[1]])
    write_whole(folder / "table.md", markdown + "\n")
    facts = versions() | {"machine": machine(), "date": today()}
    page = Page(title="Every arm on every miniature", text=" ".join(verdicts), tables=tables, notes=notes, facts=facts)
    write_page(folder / "report.html", page)
    return markdown


def _reported(folder: Path) -> list[dict[str, str]]:
    """Return the rows of an evaluation's report, without that of real clips."""
    with (folder / "front.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "report" and row["arm"] != REAL]


def _table(rows: list[dict[str, str]], budget: str, metrics: Sequence[str], against: str) -> Table:
    columns = [Column("miniature"), Column("arm"), Column("best setting"), Column("NFE"), Column("samples")]
    columns += [Column(name) for name in (*metrics, f"{metrics[0]} less that of {against}", "p")]
    cells = []
    for row in rows:
        p = _number(row["p_by_holm_over_all"])
        of_row = [Cell(row["configuration"]), Cell(row["arm"]), Cell(row["setting"])]
        of_row += [Cell(row[name], float(row[name])) for name in ("nfe", "samples")]
        for name in (*metrics, f"{metrics[0]}_difference"):
            of_row.append(cell_of(_figure(row, name), name.endswith("_difference")) if row.get(name) else _EMPTY)
        cells.append([*of_row, Cell("" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", p)])
    return Table(f"{budget} NFE", columns, cells)


def _verdict(rows: list[dict[str, str]], name: str, budget: str, metric: str, is_higher: bool, against: str) -> str:
    """Say which arm is best of a configuration at a budget, and whether it is told apart from the rival."""
    there = [row for row in rows if row["configuration"] == name and row["budget"] == budget and row[metric]]
    if not there:
        return f"{name}, {budget} NFE: no arm fits."
    best = max(there, key=lambda row: float(row[metric]) * (1 if is_higher else -1))
    said = f"{name}, {budget} NFE: {best['arm']} is best"
    if not best[f"{metric}_difference"]:
        return f"{said}."
    figure, p = _figure(best, f"{metric}_difference"), _number(best["p_by_holm_over_all"])
    apart = "told apart" if p < 0.05 else "not told apart"
    return f"{said}, {cell_of(figure, signed=True).text} from {against}, {apart} (p {p:.3f})."


def _figure(row: dict[str, str], name: str) -> Figure:
    return Figure(*(_number(row.get(f"{name}{end}", "")) for end in ("", "_low", "_high")), np.empty(0), 0)


def _number(text: str) -> float:
    return float(text) if text else float("nan")


if __name__ == "__main__":
    sys.exit(CLI(main, as_positional=False))
