"""A configuration's pair judged by real clips, and by what it samples."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from w2sd_video.calibration.gap import calibrate
from w2sd_video.calibration.ideal_prediction import corrected_cosines, ideal_of
from w2sd_video.calibration.latents import check_encodable, encode
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import moments_of_clips
from w2sd_video.calibration.real_clips import Clip
from w2sd_video.calibration.report import Findings
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.jobs.folder import JobFolder
from w2sd_video.jobs.pool import Pool, RunTasks, Task, TaskFailed, started
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.messages import ConfigError, first_line
from w2sd_video.rendering.call_arguments import call_arguments, check_call
from w2sd_video.rendering.inputs import input_hashes, read_inputs
from w2sd_video.rendering.load import check_device, load
from w2sd_video.rendering.sample import branch_of, sample_clips, threads_for
from w2sd_video.settings.identity import identity_of
from w2sd_video.settings.schema import RenderConfig, filled
from w2sd_video.window import as_steps
from w2sd_video.writing import keys_in, read_arrays, remove_unfinished, write_arrays

Kind = Literal["real", "base", "reflected"]
"""Of clips: real ones, or those that the base setting samples, alone and reflected at strength 1."""


@dataclass(frozen=True)
class Part:
    """A batch of clips that are compared at once and kept in one file: the work of one task."""

    kind: Kind
    number: int

    @property
    def name(self) -> str:
        """Fit for a file."""
        return f"{self.kind}-{self.number:04d}"


@dataclass(frozen=True)
class Parts:
    """What strong and weak are compared on, and where the comparisons are kept until all are there.

    Attributes:
        config: of the pair.
        clips: see `check_clips`.
        draws: of noise, for each clip and level.
        batch: clips compared at once.
        bank: clips of each caption by which a miniature's ideal prediction is estimated.
        folder: of the files.
        key: of everything that they depend on.
    """

    config: RenderConfig
    clips: Sequence[Clip]
    draws: int
    batch: int
    bank: int | None
    folder: Path
    key: str

    def of(self, kind: Kind) -> list[Part]:
        """Return all parts of a kind."""
        return [Part(kind, number) for number in range(math.ceil(len(self.clips) / self.batch))]

    def file(self, part: Part) -> Path:
        """Return where a part is kept."""
        return self.folder / f"{part.name}.npz"

    def read(self, part: Part) -> Moments | None:
        """Return what was found of a part; None if it is not there, damaged, or of something else."""
        arrays = read_arrays(self.file(part))
        moments = Moments.of_arrays(arrays) if arrays and str(arrays.get("key")) == self.key else None
        shape = (self.draws, min(self.batch, len(self.clips) - part.number * self.batch))
        return moments if moments is not None and moments.error.shape[1:] == shape else None

    def write(self, part: Part, moments: Moments) -> None:
        """Keep what was found of a part, whole or not at all."""
        write_arrays(self.file(part), {**moments.arrays(), "key": np.array(self.key)})

    def joined(self, kind: Kind) -> Moments:
        """Return what was found of all clips of a kind.

        Raises:
            ConfigError: a file that was removed or damaged since it was written.
        """
        moments = [found for part in self.of(kind) if (found := self.read(part)) is not None]
        if len(moments) != len(self.of(kind)):
            raise ConfigError(f"folder {self.folder}: files in it were removed or damaged meanwhile; start again")
        return Moments.joined(moments)

    def __call__(self) -> Comparer:
        """Make a worker that compares parts.

        Raises:
            ConfigError: what this pipeline cannot be given.
            LoadError: a model that cannot be loaded.
        """
        return Comparer(self)


class Comparer:
    """Compares strong and weak on parts of the clips: the worker of a calibration."""

    def __init__(self, parts: Parts) -> None:
        self._parts, config = parts, parts.config
        check_device(config.device)
        self._inputs = read_inputs(config)
        with threads_for(config.model.pretrained):
            self._pipe = load(config)
        self._pipe.set_progress_bar_config(disable=True)
        check_call(type(self._pipe), config)
        check_encodable(self._pipe)

    def __call__(self, part: Part) -> None:
        """Compare the clips of a part, which are sampled first if they are not real, and keep what was found."""
        parts = self._parts
        config, clips, bank = parts.config, parts.clips, parts.bank
        with threads_for(config.model.pretrained):
            if part.kind != "real":
                changes = {"base": {"reflection_steps": 0}, "reflected": {"strength": 1.0}}[part.kind]
                clips, bank = _sampled(self._pipe, replace(config, **changes), clips, self._inputs), None  # type: ignore[arg-type]
            start = part.number * parts.batch
            moments = _compare_batch(self._pipe, config, clips, start, parts.batch, parts.draws, self._inputs, bank)
            parts.write(part, moments)


def calibrate_pair(
    config: RenderConfig,
    clips: Sequence[Clip],
    draws: int,
    batch: int,
    samples: bool,
    bank: int | None = None,
    folder: Path | None = None,
    pool: Pool | None = None,
    shard: Shard | None = None,
) -> Findings | None:
    """Load the model of a configuration, and judge its pair by real clips.

    Args:
        config: as of a render; its `steps` set the noise levels, its `seed` the noise, and its `reflection_steps` are
            the window that the strength is for, or None.
        clips: see `check_clips`.
        draws: of noise, for each clip and level.
        batch: clips evaluated together.
        samples: whether to sample a clip of each caption with the base setting alone and one that is reflected at
            strength 1, and find the tilt and the strength at which it vanishes.
        bank: clips of each caption by which a miniature's ideal prediction is estimated.
        folder: where what was found is kept until all is found, so that it is not looked for again; None: nowhere.
        pool: who does it; this process unless given.
        shard: which part of it is done now; all unless given.

    Returns:
        What was found; None for a shard, which finds a part.

    Raises:
        ConfigError: what this pipeline cannot be given, clips that do not suit it, a pair without a gap, or a folder of
            something else.
        LoadError: a model that cannot be loaded.
        PoolError: workers that cannot be had.
        TaskFailed: a batch of clips that could not be compared.
        OSError: a full disk.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return calibrate_pair(config, clips, draws, batch, samples, bank, Path(scratch, "parts"), pool, shard)
    pool, shard = pool or Pool(), shard or Shard()
    window = as_steps("window", config.reflection_steps)
    assert not isinstance(window, int)  # `calibrated_config` takes windows alone
    read_inputs(config)
    identity = {
        **identity_of(config),
        "inputs": input_hashes(config, {}),
        "clips": {clip.name: [clip.caption, hashlib.sha256(clip.read().tobytes()).hexdigest()[:16]] for clip in clips},
        "numbers": {"seed": config.seed, "draws": draws, "batch": batch, "ideal": bank},
    }
    job = JobFolder(folder, identity)
    parts = Parts(config, clips, draws, batch, bank, folder, job.key)
    kinds: list[Kind] = ["real", "base", "reflected"] if samples else ["real"]
    with job.opened(shard.index, shard.count, partial(keys_in, folder)), started(parts, pool) as run:
        if shard.count == 1:
            remove_unfinished(folder)
        todo = list(shard.of(part for kind in kinds for part in parts.of(kind)))
        with tqdm(total=len(todo), desc="batches of clips") as bar:
            _find(run, parts, [part for part in todo if part.kind == "real"], bar)
            if shard.count == 1:
                real = parts.joined("real")
                try:
                    findings = Findings(calibrate(real), cosines=corrected_cosines(real) if bank else [])
                    within = real.within(window)
                except ValueError as error:
                    raise ConfigError(str(error)) from error
            _find(run, parts, [part for part in todo if part.kind != "real"], bar)
        if shard.count > 1:
            return None
        if not samples:
            return findings
        base, reflected = parts.joined("base"), parts.joined("reflected")
        overall, tilts = tilt(real, base, within=within)
        balanced, strengths, tilt_at_one = balance(real, base, reflected, within=within)
        return replace(
            findings,
            tilt=overall,
            tilts=tilts,
            balanced=balanced,
            strengths=strengths,
            tilt_at_one=tilt_at_one,
            reflection_steps=window,
        )


def _find(run: RunTasks, parts: Parts, todo: Sequence[Part], bar: tqdm[Any]) -> None:
    """Compare the parts that are not there; the first that fails ends it, for without it there is no result."""

    def on_done(task: Task, _: None) -> None:
        bar.update()

    def on_failed(task: Task, reason: str) -> None:
        raise TaskFailed(f"{task.name}: {reason}")

    missing = [part for part in todo if parts.read(part) is None]
    bar.update(len(todo) - len(missing))
    run((Task(part.name, part) for part in missing), on_done, on_failed)


def _sampled(pipe: Any, config: RenderConfig, clips: Sequence[Clip], inputs: Mapping[str, Any]) -> list[Clip]:
    """Return clips of the same captions, that a configuration samples when they are read."""

    def read(caption: str, seed: int) -> np.ndarray:
        return sample_clips(pipe, config, [caption], [seed], inputs)[0][0]

    seeds = range(config.seed + 10**6, config.seed + 10**6 + len(clips))  # other noise than that of the levels
    return [
        Clip("sample", clip.caption, partial(read, clip.caption, seed)) for clip, seed in zip(clips, seeds, strict=True)
    ]


def compare_clips(
    pipe: Any,
    config: RenderConfig,
    clips: Sequence[Clip],
    draws: int,
    batch: int,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    bank: int | None = None,
) -> Moments:
    """Compare the strong and the weak branch of a configuration on clips.

    Args:
        pipe: as `rendering.load.load` returns it.
        config: names the branches; its `steps` set the noise levels, its `seed` the noise.
        clips: see `check_clips`.
        draws: of noise, for each clip and level.
        batch: clips evaluated together.
        inputs: further arguments of the pipeline's call.
        bank: clips of each caption by which a miniature's ideal prediction is estimated.

    Raises:
        ConfigError: what this pipeline cannot be given, or clips that do not suit it.
    """
    starts = range(0, len(clips), batch)
    return Moments.joined(
        [
            _compare_batch(pipe, config, clips, start, batch, draws, inputs, bank)
            for start in tqdm(starts, desc="batches of clips")
        ]
    )


def _compare_batch(
    pipe: Any,
    config: RenderConfig,
    clips: Sequence[Clip],
    start: int,
    batch: int,
    draws: int,
    inputs: Mapping[str, Any],
    bank: int | None,
) -> Moments:
    """Compare strong and weak on the clips from number `start`; see `compare_clips`."""
    strong, weak = (branch_of(filled(config, branch)) for branch in (config.strong, config.weak))
    part = clips[start : start + batch]
    latents = encode(pipe, np.stack([clip.read() for clip in part]))
    seeds = [config.seed + start + k for k in range(len(part))]
    captions = [clip.caption for clip in part]
    arguments = {**call_arguments(pipe, config, captions, seeds), **inputs}
    ideal = ideal_of(pipe, config, captions, bank) if bank else None
    try:
        return moments_of_clips(
            pipe, arguments, latents, strong=strong, weak=weak, seeds=seeds, draws=draws, ideal=ideal
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(first_line(error)) from error
