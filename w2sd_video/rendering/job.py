"""A job: many samples in a folder, each written whole or not at all, in one process or by many workers.

What is there is kept, what is missing is made, what failed is tried again. Samples are made in groups, one call of the
pipeline each; a group stays the same after an interruption, so that each file is what it would have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from w2sd_video.jobs.folder import HIDDEN, JobFolder, differences
from w2sd_video.jobs.pool import MakeWorker, Pool, Task, run_tasks
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.messages import ConfigError
from w2sd_video.page import write_index
from w2sd_video.rendering.inputs import input_hashes
from w2sd_video.rendering.job_samples import Sample
from w2sd_video.rendering.job_worker import LATENTS, Group, Nfe, RenderWorker, latents_file
from w2sd_video.rendering.kept_latents import ENDING, read_kept
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.rendering.sample import threads_for
from w2sd_video.settings.identity import HASHES, Hashes, identity_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import PART


@dataclass(frozen=True)
class RenderJob:
    """What is to be made, where, and by whom.

    Attributes:
        config: what all samples have in common.
        samples: of the whole job, in their order.
        folder: where they go.
        names: template of their names.
        batch: samples in one call of the pipeline, at most.
        pool: who makes them.
        shard: which part of the job is made now.
    """

    config: RenderConfig
    samples: Sequence[Sample]
    folder: Path
    names: str
    batch: int = 1
    pool: Pool = field(default_factory=Pool)
    shard: Shard = field(default_factory=Shard)


@dataclass(frozen=True)
class Rendered:
    """What became of the samples of a job, or of its shard.

    Attributes:
        kept: how many were there already.
        made: how many were made now.
        failed: why there is none, by name.
    """

    kept: int
    made: int
    failed: dict[str, str]

    def in_words(self, folder: Path) -> str:
        """Say how many samples there are, and which are not there, a line each."""
        count = f"samples  {self.made} made, {self.kept} kept, {len(self.failed)} failed in {folder}"
        return "\n".join([count, *(f"failed   {name}: {why}" for name, why in self.failed.items())])


def render_job(job: RenderJob) -> Rendered:
    """Make what is missing in the folder of a job.

    Raises:
        ConfigError: a folder in use or of other settings, an input that is not there, or what this machine or this
            pipeline cannot be given.
        LoadError: a model that cannot be loaded.
        OSError: a full disk.
    """
    check_before_loading(job.config)
    hashes: Hashes = JobFolder(job.folder, {}).note(HASHES)
    folder = _folder(job, hashes)
    # So that an input that is not there is refused before there is a folder.
    samples = [_with_hashes(sample, hashes) for sample in job.samples]
    with folder.opened(job.shard.index, job.shard.count), threads_for(job.config.model.pretrained):
        parts = _parts_in(folder, samples, job)
        folder.write_note(HASHES, hashes)
        folder.remove_leftovers([sample.name for group in parts.all_groups for sample in group])
        _remove_latents(job, parts.groups)
        made, failed = _run(partial(RenderWorker, job.config, folder, parts.nfe), folder, parts, job.pool)
        _remove_latents(job, [group for group in parts.groups if any(sample.name in failed for sample in group)])
        failures = folder.failures()  # of all shards
        with folder.writing("index.html"):
            write_index(job.folder, [f"{name} failed: {why}" for name, why in failures.items()])
    return Rendered(parts.kept, made, failed)


@dataclass(frozen=True)
class Parts:
    """What a job, or its shard, consists of.

    Attributes:
        all_groups: what is made in one call each.
        groups: those of them of which something is missing.
        kept: how many samples are there.
        nfe: network evaluations of a sample that is there, if there is one.
    """

    all_groups: list[Group]
    groups: list[Group]
    kept: int
    nfe: Nfe | None

    @property
    def total(self) -> int:
        """How many samples there are to be in the end."""
        return sum(map(len, self.all_groups))


def parts_of(job: RenderJob) -> Parts:
    """Look at what there is of a job, without making anything.

    Raises:
        ConfigError: an input that is not there, or a file that was made otherwise.
    """
    hashes: Hashes = JobFolder(job.folder, {}).note(HASHES)
    samples = [_with_hashes(sample, hashes) for sample in job.samples]
    folder = _folder(job, hashes)
    folder.check()
    return _parts_in(folder, samples, job)


def _parts_in(folder: JobFolder, samples: Sequence[Sample], job: RenderJob) -> Parts:
    records = _records(folder, samples)
    all_groups = list(job.shard.of(_groups(samples, records, job)))
    groups = [group for group in all_groups if any(sample.name not in records for sample in group)]
    kept = sum(sample.name in records for group in all_groups for sample in group)
    return Parts(all_groups, groups, kept, next((record["nfe"] for record in records.values()), None))


def _folder(job: RenderJob, hashes: Hashes) -> JobFolder:
    return JobFolder(job.folder, {**identity_of(job.config, hashes), "names": job.names})


def _with_hashes(sample: Sample, hashes: Hashes) -> Sample:
    """Return a sample that knows the content of its inputs."""
    return replace(sample, inputs=input_hashes(sample.config, hashes))


def _records(folder: JobFolder, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Return the records of the samples that are there.

    Raises:
        ConfigError: a file that is there, but of another sample of the same name.
    """
    records = {sample.name: record for sample in samples if (record := folder.record(sample.name))}
    for sample in samples:
        if sample.name in records and records[sample.name].get("sample") != sample.task:
            changes = ", ".join(differences(records[sample.name].get("sample"), sample.task))
            raise ConfigError(
                f"{folder.path / sample.name}: is there already, of another sample ({changes}); add prompts at "
                "the end, or name another folder"
            )
    return records


def _groups(samples: Sequence[Sample], records: Mapping[str, Any], job: RenderJob) -> Iterator[Group]:
    """Yield the groups of a job, done or not: those of which latents are kept before the others.

    The groups of shards depend on nothing but the samples and the batch, so that each sample is in one shard.
    """
    left = {sample.name: sample for sample in samples}
    for group in _kept_groups(job, left) if job.shard.count == 1 else ():
        names = [sample.name for sample in group]
        if (
            len(names) <= job.batch
            and all(name in left for name in names)
            and any(name not in records for name in names)
        ):
            for name in names:
                del left[name]
            yield group
    of_call: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in left.values():
        of_call.setdefault(sample.call, []).append(sample)
    for alike in of_call.values():
        for start in range(0, len(alike), job.batch):
            yield tuple(alike[start : start + job.batch])


def _kept_groups(job: RenderJob, by_name: Mapping[str, Sample]) -> list[Group]:
    """Return the groups of samples of which latents are kept."""
    groups = {}
    for file in sorted((job.folder / HIDDEN / LATENTS).glob(f"*{ENDING}")):
        kept = read_kept(file)
        group = tuple(by_name[name] for name in (kept.about["samples"] if kept else []) if name in by_name)
        if group and latents_file(job.folder, group, 0).stem[:-1] == file.stem[:-1]:
            groups[file.stem[:-1]] = group
    return list(groups.values())


def _remove_latents(job: RenderJob, groups: Iterable[Group]) -> None:
    """Remove latents of no use and unfinished files of them; shards leave alone what may be of another shard."""
    folder = job.folder / HIDDEN / LATENTS
    needed = {latents_file(job.folder, group, 0).stem[:-1] for group in groups}
    for file in folder.iterdir() if folder.is_dir() else ():
        key = file.name.lstrip(".").partition("-")[0] + "-"
        if (key in needed and PART in file.name) or (key not in needed and job.shard.count == 1):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # if it is there and empty


def _run(make_worker: MakeWorker, folder: JobFolder, parts: Parts, pool: Pool) -> tuple[int, dict[str, str]]:
    """Have workers make groups; return how many samples were made, and why others failed, by name."""
    made, failed = 0, {}
    with tqdm(total=parts.total, initial=parts.kept, desc="samples", unit="sample", dynamic_ncols=True) as bar:

        def on_done(task: Task, reasons: dict[str, str | None]) -> None:
            nonlocal made
            for name, reason in reasons.items():
                if reason is None:
                    made += 1
                else:
                    failed[name] = reason
            bar.update(len(reasons))

        def on_failed(task: Task, reason: str) -> None:  # with its worker, which could not note it
            missing = [sample for sample in task.work if folder.record(sample.name) is None]
            for sample in missing:
                folder.write_failure(sample.name, reason, sample.task)
            on_done(task, dict.fromkeys((sample.name for sample in missing), reason))

        tasks = (Task(group[0].name, group) for group in parts.groups)
        run_tasks(make_worker, tasks, pool, on_done, on_failed)
    return made, failed
