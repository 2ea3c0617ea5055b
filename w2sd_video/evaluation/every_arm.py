"""Every arm at every budget, each at the setting that did best on other prompts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from w2sd_video.evaluation.arms import Candidate, candidates
from w2sd_video.evaluation.comparison import Outcome, Result, choose_in_rounds, compare, reported, tuning_samples
from w2sd_video.evaluation.measures import (
    MakeLaboratory,
    kept_features,
    load_metrics,
    real_against_real,
    real_of_splits,
)
from w2sd_video.evaluation.plan import Plan
from w2sd_video.evaluation.report import write_report
from w2sd_video.evaluation.sample_files import key_of_setting
from w2sd_video.evaluation.samples import results_table
from w2sd_video.evaluation.splits import rounds_of
from w2sd_video.evaluation.statistics import Real
from w2sd_video.evaluation.work import Work, open_folder
from w2sd_video.jobs.folder import JobFolder
from w2sd_video.jobs.pool import Pool, started
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.metrics import Metric
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import check_device
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.rendering.sample import threads_for
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import write_whole

Arms = Sequence[tuple[str, int, list[Candidate]]]
"""Name, budget and settings of each arm at each budget."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation, or one shard of it, came to.

    Attributes:
        table: of the arms, in Markdown; None for a shard, which measures and tells nothing.
        failed: why there are no samples, and how many of which arms.
        unfinished: batches that other shards have to make before this one can go on.
    """

    table: str | None
    failed: list[str]
    unfinished: int = 0

    def in_words(self) -> str:
        """Say what the table says, or how far a shard came, and what failed."""
        lines = [] if self.table is None else [self.table]
        if self.unfinished:
            lines.append(
                f"left     {self.unfinished} batches of other shards, by which settings are chosen; start this shard "
                "again when they are made"
            )
        elif self.table is None:
            lines.append("left     nothing of this shard; without --shard the same command writes the report")
        return "\n".join([*lines, *(f"failed   {line}" for line in self.failed)])


def evaluate_into(
    folder: Path, config: RenderConfig, plan: Plan, pool: Pool | None = None, shard: Shard | None = None
) -> Evaluation:
    """Evaluate a configuration, and write everything into a folder.

    What was sampled into the folder before is not sampled again, but for what failed.

    Args:
        folder: of the evaluation.
        config: W2SD as it is configured.
        plan: what is compared.
        pool: who samples; this process unless given.
        shard: which part of the work is done now; all unless given.

    Raises:
        ConfigError: a plan that cannot be carried out, or the folder of something else.
        LoadError: a model, or the metric by which settings are chosen, that cannot be loaded.
        PoolError: workers that cannot be had.
        VideoError: a picture or a video that cannot be read.
        OSError: a full disk.
    """
    pool, shard = pool or Pool(), shard or Shard()
    device = "auto" if pool.ray else config.device  # where a cluster is joined may be no such device
    check_before_loading(replace(config, device=device))
    read_inputs(config)
    JobFolder(folder, {}).check_foreign()
    metrics, missing = load_metrics(plan, str(check_device(device)))
    if plan.warning:
        print(f"w2sd_video.evaluate: {plan.warning}", file=sys.stderr)
    kept = kept_features(folder, config, plan)
    real = real_of_splits(metrics, config, plan, [plan.select], kept)
    arms = arms_of(config, plan)
    with open_folder(folder, plan, metrics, config, shard) as files, threads_for(config.model.pretrained):
        kept.write()
        make_worker = MakeLaboratory(
            config,
            files,
            {metric.name: plan.sources[metric.name] for metric in metrics},
            {f"arm {one.arm}, {one.setting}": one.config for _, _, settings in arms for one in settings},
            plan.shown,
            metrics if pool.is_this_process else None,
        )
        with (
            started(make_worker, pool) as run,
            tqdm(total=samples_to_come(arms, plan) // shard.count, desc="samples", unit="clip", smoothing=0.02) as bar,
        ):
            work = Work(files, run, shard, plan.batch, bar.update)
            outcome = evaluate(arms, plan, work, metrics, real)
        table = None
        if outcome is not None and shard.count == 1:
            outcome = replace(outcome, real=real_against_real(metrics, config, plan, real["report"], kept))
            kept.write()
            table = write_report(folder, config, plan, metrics, missing, outcome, files.clip_file)
            write_whole(folder / "results.csv", results_table(work.measured(), files.scores))
        return Evaluation(table, work.failures(), work.unfinished)


def arms_of(config: RenderConfig, plan: Plan) -> Arms:
    """Return all settings of a plan."""
    return [(arm, budget, candidates(arm, config, budget)) for budget in plan.budgets for arm in plan.arms]


def samples_to_come(arms: Arms, plan: Plan) -> int:
    """Return how many samples all settings take on the tuning prompts, and the chosen ones on those of the report."""
    counts = [len(settings) for _, _, settings in arms if settings]
    rounds = rounds_of(plan.tuning, plan.rounds)
    return sum(tuning_samples(count, rounds) for count in counts) + len(counts) * plan.report.samples


def work_to_come(arms: Arms, plan: Plan) -> list[tuple[int, int, float]]:
    """Return how many settings are tuned and reported, the samples of all of them, and the evaluations of all samples.

    Settings that arms have in common count once; which of them are given up is not known, so that they count alike.
    """
    asked = [settings for _, _, settings in arms if settings]
    several = [settings for settings in asked if len(settings) > 1]
    tuned = {key_of_setting(one.config): one.nfe for settings in several for one in settings}
    rounds, count = rounds_of(plan.tuning, plan.rounds), sum(map(len, several))
    looked_at = sum(tuning_samples(len(settings), rounds) for settings in several) / count if count else 0
    reported = [max(one.nfe for one in settings) for settings in asked]
    samples = round(len(tuned) * looked_at)
    return [
        (len(tuned), samples, sum(tuned.values()) * looked_at),
        (len(reported), len(reported) * plan.report.samples, sum(reported) * plan.report.samples),
    ]


def evaluate(
    arms: Arms, plan: Plan, work: Work, metrics: Sequence[Metric], real: Mapping[str, dict[str, Real]]
) -> Outcome | None:
    """Measure what is not measured yet: every arm at every budget, at the setting that did best on other prompts.

    Args:
        arms: all settings.
        plan: what is compared.
        work: measures, and reads what was measured.
        metrics: those that can be had.
        real: features of real clips by their space, for each of the two splits.

    Returns:
        What was found; None where other shards have still work to do.
    """
    select = next(metric for metric in metrics if metric.name == plan.select)
    asked = [(arm, budget, settings) for arm, budget, settings in arms if settings]
    found = choose_in_rounds(
        [settings for _, _, settings in asked],
        select,
        work.make_all,
        work.read,
        rounds_of(plan.tuning, plan.rounds),
        real["tuning"],
    )
    if found is None:
        return None
    chosen, tuned = found
    work.make([(one, plan.report) for one in chosen])
    if work.shard.count > 1:
        return None
    results: list[Result] = []
    for (_, _, settings), best in zip(asked, chosen, strict=True):
        results.append(reported(best, len(settings), work.read, plan.report, metrics, real["report"]))
    results = compare(results, plan.against, metrics, len(plan.report.prompts))
    return Outcome(results, tuned, [f"{arm} at {budget} NFE" for arm, budget, settings in arms if not settings])
