"""The worker of a job: it samples groups, decodes them, and writes each sample whole or not at all.

What was sampled is kept until it is decoded and written, so that an interruption or a full memory costs no sampling.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.jobs.folder import HIDDEN, JobFolder, key_of
from w2sd_video.messages import OUT_OF_MEMORY, first_line, is_disk_full, is_out_of_memory
from w2sd_video.rendering.call_arguments import check_call
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.job_samples import Sample
from w2sd_video.rendering.kept_latents import ENDING, LatentsDiffer, config_to_decode, decoding, keeping, read_kept
from w2sd_video.rendering.load import load
from w2sd_video.rendering.outputs import write_sample
from w2sd_video.rendering.sample import reflected, sample_clips, threads_for
from w2sd_video.settings.evaluations import evaluations, is_exact
from w2sd_video.settings.panels import panels
from w2sd_video.settings.schema import RenderConfig

LATENTS = "latents"
"""Name of a folder in the hidden folder of a job."""
Group = tuple[Sample, ...]
"""Samples that are made in one call of the pipeline."""
Nfe = dict[str, dict[str, int]]
"""Network evaluations of a sample by label of the clip and by role."""
Call = Callable[..., tuple[np.ndarray, dict[str, int]]]
"""Samples a group as a configuration says: clips, and evaluations by role."""
Sampled = tuple[np.ndarray, dict[str, int], float]
"""Clips, evaluations by role, and seconds that an earlier run spent on them."""


def latents_file(folder: Path, group: Group, panel: int) -> Path:
    """Return the file in the folder of a job in which a group keeps the latents of one of its panels."""
    return folder / HIDDEN / LATENTS / f"{key_of([[sample.name, sample.task] for sample in group])}-{panel}{ENDING}"


class RenderWorker:
    """Makes groups of samples with a pipeline that is loaded once; see `RenderJob`.

    Args:
        config: what all samples have in common.
        folder: of the job.
        nfe: the network evaluations of a sample that was made before, if there is one.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """

    def __init__(self, config: RenderConfig, folder: JobFolder, nfe: Nfe | None) -> None:
        self._config, self._folder, self._nfe = config, folder, dict(nfe or {})
        with threads_for(config.model.pretrained):
            self._pipe = load(config)
        check_call(type(self._pipe), config)
        shown = panels(config)
        self._panels = len(shown)
        for panel in shown.values():
            with reflected(self._pipe, panel):
                pass

    def __call__(self, group: Group) -> dict[str, str | None]:
        """Make what is missing of a group: return, by name, None for what was made, or why it was not."""
        with threads_for(self._config.model.pretrained):
            return self._make(group)

    def _make(self, group: Group) -> dict[str, str | None]:
        missing = [sample for sample in group if self._folder.record(sample.name) is None]
        if not missing:
            return {}
        started = time.perf_counter()
        try:
            clips, nfe, seconds_before = self._clips(group)
            seconds = round((time.perf_counter() - started + seconds_before) / len(group), 2)
            for place, sample in enumerate(group):
                if sample in missing:
                    self._write(sample, {label: clip[place] for label, clip in clips.items()}, nfe, seconds)
        except Exception as error:  # whatever a foreign pipeline raises is the failure of these samples alone
            if is_disk_full(error):
                raise
            is_decoding = isinstance(error, OutOfMemoryAtDecodingError)
            reason = str(error) if is_decoding else first_line(error)
            error.__traceback__ = None  # which holds the tensors that memory was lacking for
            self._free_memory()
            if len(group) > 1 and not is_decoding:
                self._forget_latents(group)
                alone = [self._make((sample,)) for sample in missing]
                return {name: why for made in alone for name, why in made.items()}
            return {sample.name: self._failed(sample, reason) for sample in missing}
        self._forget_latents(group)
        return dict.fromkeys([sample.name for sample in missing])

    def _clips(self, group: Group) -> tuple[dict[str, np.ndarray], Nfe, float]:
        """Sample a group: clips (samples, frames, height, width, 3) by label, evaluations, and earlier seconds."""
        config, inputs = group[0].config, read_inputs(group[0].config)
        prompts, seeds = [sample.config.prompts[0] for sample in group], [sample.config.seed for sample in group]
        call = partial(sample_clips, self._pipe, prompts=prompts, seeds=seeds, inputs=inputs)
        clips, nfe, seconds_before = {}, {}, 0.0
        shown = panels(config)
        for number, (label, panel) in enumerate(shown.items()):
            self._pipe.set_progress_bar_config(desc=f"{label}: " if len(shown) > 1 else None, leave=False)
            file = latents_file(self._folder.path, group, number)
            try:
                decoded = self._decoded(label, panel, file, call)
                clips[label], nfe[label], seconds = decoded or self._sampled(group, panel, file, call)
            except Exception as error:
                if is_out_of_memory(error) and file.exists():
                    raise OutOfMemoryAtDecodingError from error
                raise
            seconds_before += seconds
        self._nfe.update(nfe)
        return clips, nfe, seconds_before

    def _decoded(self, label: str, panel: RenderConfig, file: Path, call: Call) -> Sampled | None:
        """Decode latents that are kept; None if there are none, or none of use."""
        kept = read_kept(file) if label in self._nfe or is_exact(panel) else None
        if kept is None:
            return None
        try:
            with decoding(self._pipe, kept):
                clips, _ = call(config=config_to_decode(panel))
        except LatentsDiffer:
            return None
        return clips, self._nfe.get(label) or evaluations(panel), kept.about["seconds"]

    def _sampled(self, group: Group, panel: RenderConfig, file: Path, call: Call) -> Sampled:
        """Sample a panel of a group, and keep its latents until they are decoded and written."""
        file.unlink(missing_ok=True)
        started = time.perf_counter()

        def about() -> dict[str, Any]:
            return {"samples": [sample.name for sample in group], "seconds": time.perf_counter() - started}

        with keeping(self._pipe, file, about):
            clips, nfe = call(config=panel)
        return clips, nfe, 0.0

    def _write(self, sample: Sample, clips: dict[str, np.ndarray], nfe: Nfe, seconds: float) -> None:
        """Write a sample's file, and then its record."""
        record = write_sample(self._folder.path / sample.name, sample.config, clips, nfe, seconds)
        self._folder.write_record(sample.name, record | {"sample": sample.task, "about": sample.about})

    def _failed(self, sample: Sample, reason: str) -> str:
        self._folder.write_failure(sample.name, reason, sample.task)
        return reason

    def _forget_latents(self, group: Group) -> None:
        for number in range(self._panels):
            latents_file(self._folder.path, group, number).unlink(missing_ok=True)

    def _free_memory(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class OutOfMemoryAtDecodingError(Exception):
    """Memory was lacking when latents were decoded that are kept."""

    def __init__(self) -> None:
        super().__init__(f"{OUT_OF_MEMORY} (at decoding: the latents are kept, and the next start goes on from them)")
