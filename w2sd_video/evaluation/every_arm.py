"""Every arm at every budget, each at the setting that did best on other prompts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from w2sd_video.evaluation.plan import Plan, open_folder
from w2sd_video.evaluation.report import write_report
from w2sd_video.evaluation.sample_files import SampleFiles, batches_of, key_of_setting
from w2sd_video.evaluation.samples import Samples, failed, joined, results_table
from w2sd_video.evaluation.splits import Split, rounds_of
from w2sd_video.evaluation.statistics import Real
from w2sd_video.jobs.folder import JobFolder
from w2sd_video.jobs.pool import Pool, RunTasks, Task, started
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.metrics import Metric
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import check_device
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.rendering.sample import threads_for
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import remove_unfinished, write_whole

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


class Work:
    """Has batches made that are not there, and reads those that are.

    Args:
        files: of the samples.
        run: has tasks done.
        shard: which of the batches are this run's to make.
        batch: samples a batch.
        on_samples: told how many samples are there, more by more.
    """

    def __init__(
        self, files: SampleFiles, run: RunTasks, shard: Shard, batch: int, on_samples: Callable[[int], object]
    ) -> None:
        self.shard, self.unfinished = shard, 0
        self._files, self._run, self._batch, self._on_samples = files, run, batch, on_samples
        self._asked: list[tuple[Candidate, Split]] = []
        if shard.count == 1:  # or else another shard may be writing
            self._remove_leftovers()

    def make(self, asked: Sequence[tuple[Candidate, Split]]) -> None:
        """Make what is missing of settings on a split, or this shard's part of it."""
        self._asked += asked
        self._run(self._tasks(asked), self._on_done, self._on_failed)

    def make_all(self, asked: Sequence[tuple[Candidate, Split]]) -> bool:
        """Make what is missing of settings on a split; return False where batches of other shards are still missing."""
        self.make(asked)
        self.unfinished = self.missing(asked) if self.shard.count > 1 else 0
        return not self.unfinished

    def missing(self, asked: Sequence[tuple[Candidate, Split]]) -> int:
        """Return how many batches of settings on a split are not there."""
        batches = (batch for one, split in asked for batch in batches_of(one.config, split, self._batch))
        return sum(self._files.read(batch) is None for batch in batches)

    def read(self, candidate: Candidate, split: Split) -> Samples:
        """Return what was measured of a setting on a split; of what is gone in the meantime that it is."""
        return joined(
            [
                self._files.read(batch) or failed(batch.places_and_seeds, "its file was removed or damaged meanwhile")
                for batch in batches_of(candidate.config, split, self._batch)
            ]
        )

    def measured(self) -> Iterator[tuple[Candidate, Split, Samples]]:
        """Yield everything that was asked for, by budget and arm."""
        for one, split in sorted(self._asked, key=lambda asked: asked[0].budget):
            yield one, split, self.read(one, split)

    def failures(self) -> list[str]:
        """Return why there are no samples, and how many of which arms, a line for each reason."""
        arms: dict[str, Counter[str]] = {}
        for one, split in self._asked:
            for batch in batches_of(one.config, split, self._batch):
                samples = self._files.read(batch)
                for error in samples.error[~samples.there].tolist() if samples else ():
                    arms.setdefault(error, Counter())[one.arm] += 1
        return [f"{counts.total()} sample(s) of {', '.join(counts)}: {error}" for error, counts in arms.items()]

    def _tasks(self, asked: Iterable[tuple[Candidate, Split]]) -> Iterator[Task]:
        """Yield a task for each batch of this shard that is not there, or of which samples failed."""
        every = [batch for one, split in asked for batch in batches_of(one.config, split, self._batch)]
        batches = {batch.name: batch for batch in every}  # arms have settings in common
        self._on_samples(sum(len(batch.places_and_seeds) for batch in every if batches[batch.name] is not batch))
        for name, batch in self.shard.of(batches.items()):
            samples = self._files.read(batch)
            if samples is not None and samples.there.all():
                self._on_samples(len(samples.there))
            else:
                yield Task(name, batch)

    def _on_done(self, task: Task, _: None) -> None:
        self._on_samples(len(task.work.places_and_seeds))

    def _on_failed(self, task: Task, reason: str) -> None:
        self._files.write(task.work, failed(task.work.places_and_seeds, reason))
        self._on_done(task, None)

    def _remove_leftovers(self) -> None:
        """Remove what a run that was killed had not finished."""
        for name in (".", "samples", "clips"):
            remove_unfinished(self._files.folder / name)
