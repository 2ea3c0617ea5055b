"""The folder of an evaluation, and the work in it: batches that are made once, and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.laboratory import spaces_of
from w2sd_video.evaluation.plan import Measurement
from w2sd_video.evaluation.sample_files import SampleFiles, batches_of
from w2sd_video.evaluation.samples import Samples, failed, joined
from w2sd_video.evaluation.splits import Split
from w2sd_video.jobs.folder import HIDDEN, JobFolder, read_record
from w2sd_video.jobs.pool import RunTasks, Task
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.metrics import Metric, Score
from w2sd_video.rendering.inputs import input_hashes
from w2sd_video.settings.identity import HASHES, Hashes, identity_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import remove_unfinished


@contextmanager
def open_folder(
    folder: Path, plan: Measurement, metrics: Sequence[Metric], config: RenderConfig, shard: Shard
) -> Iterator[SampleFiles]:
    """Make the folder of an evaluation, or see that it is one to go on with, and keep it for this run.

    Arms and budgets may differ from the last time: what was measured stays as it is.

    Args:
        folder: of the evaluation.
        plan: what is measured.
        metrics: those that can be had.
        config: W2SD as it is configured.
        shard: which part of the work is this run's.

    Raises:
        ConfigError: the folder of another evaluation or of something else, one in use, or one that cannot be written.
    """
    hashes: Hashes = read_record(folder / HIDDEN / HASHES) or {}
    splits = (plan.tuning, plan.report)
    identity = {
        **identity_of(config, hashes),
        "inputs": input_hashes(config, hashes),
        "metrics": {metric.name: plan.sources[metric.name] for metric in metrics},
        "prompts": {split.name: list(split.prompts) for split in splits},
        "seeds": {split.name: split.seeds for split in splits},
        "batch": plan.batch,
    }
    job = JobFolder(folder, identity)
    scores = tuple(metric.name for metric in metrics if isinstance(metric, Score))
    files = SampleFiles(folder, job.key, scores, tuple(spaces_of(metrics)))
    with job.opened(shard.index, shard.count, files.keys):
        job.write_note(HASHES, hashes)
        for name in ("samples", "clips"):
            (folder / name).mkdir(exist_ok=True)
        yield files


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
