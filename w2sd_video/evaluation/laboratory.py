"""The worker of an evaluation: it samples a batch, measures it and keeps what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from w2sd_video.evaluation.sample_files import Batch, SampleFiles
from w2sd_video.evaluation.samples import Samples, failed, joined, samples_of
from w2sd_video.evaluation.splits import SEEDS
from w2sd_video.messages import first_line, is_disk_full
from w2sd_video.metrics import Distance, Metric, Score
from w2sd_video.rendering.outputs import write_clips
from w2sd_video.rendering.sample import sample_clips, threads_for

SHOWN = ("report", "vote")
"""Names of the splits of which clips are kept to look at."""


class Laboratory:
    """Samples a batch, measures it and keeps what was measured: the worker of an evaluation.

    Args:
        files: where it is kept.
        pipe: the pipeline.
        metrics: what is measured.
        inputs: further arguments of the pipeline's call.
        shown: of how many prompts of the report a clip is kept.
    """

    def __init__(
        self, files: SampleFiles, pipe: Any, metrics: Sequence[Metric], inputs: Mapping[str, Any], shown: int
    ) -> None:
        self._files, self._pipe, self._metrics, self._inputs, self._shown = files, pipe, metrics, inputs, shown

    def __call__(self, batch: Batch) -> None:
        """Make a batch anew, and keep it, also where samples of it failed."""
        with threads_for(batch.config.model.pretrained):
            self._files.write(batch, self._measured(batch, batch.places_and_seeds))

    def _measured(self, batch: Batch, places_and_seeds: list[tuple[int, int]]) -> Samples:
        """Sample together; if that fails sample by sample, and record those that fail alone.

        Raises:
            OSError: a full disk.
        """
        config, split, started = batch.config, batch.split, time.perf_counter()
        prompts, seeds = [split.prompts[place] for place, _ in places_and_seeds], [seed for _, seed in places_and_seeds]
        try:
            clips, _ = sample_clips(self._pipe, config, prompts, seeds, self._inputs)
        except Exception as error:  # whatever a foreign pipeline raises is written down with its sample
            if is_disk_full(error):
                raise
            if len(places_and_seeds) == 1:
                return failed(places_and_seeds, first_line(error), time.perf_counter() - started)
            error.__traceback__ = None  # which holds the tensors that memory may have been lacking for
            return joined([self._measured(batch, [place_and_seed]) for place_and_seed in places_and_seeds])
        seconds = (time.perf_counter() - started) / len(places_and_seeds)
        for (place, seed), clip in zip(places_and_seeds, clips, strict=True):
            if split.name in SHOWN and place < self._shown and seed < SEEDS:  # of the first seed of each prompt
                write_clips(self._files.clip_file(config, split.first + place), {"": clip}, config.fps)
        scores = {metric.name: metric.of(clips, prompts) for metric in self._metrics if isinstance(metric, Score)}
        features = {space: features_of(clips) for space, features_of in spaces_of(self._metrics).items()}
        return samples_of(places_and_seeds, seconds, "", scores, features)


def spaces_of(metrics: Sequence[Metric]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what finds the features that metrics compare, by the name of their space: once for all of a space."""
    return {metric.space: metric.features for metric in reversed(metrics) if isinstance(metric, Distance)}
