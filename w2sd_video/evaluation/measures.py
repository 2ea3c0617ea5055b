"""The metrics that an evaluation can have, and the real clips that they compare with."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.evaluation.comparison import RealAgainstReal
from w2sd_video.evaluation.kept_features import KeptFeatures, features_of
from w2sd_video.evaluation.laboratory import Laboratory
from w2sd_video.evaluation.plan import Measurement
from w2sd_video.evaluation.sample_files import SampleFiles
from w2sd_video.evaluation.splits import SEEDS, Split
from w2sd_video.evaluation.statistics import Real, distance_of_set
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import OF_FEW_FEATURES, Distance, Metric, MetricUnavailableError, load_metric
from w2sd_video.metrics.frechet import principal_features
from w2sd_video.rendering.call_arguments import check_call
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import LoadError, check_device, load
from w2sd_video.rendering.sample import reflected
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import MINIATURE

REAL_CLIPS = 8
"""Clips a prompt of the miniatures' world that samples are compared with; their seeds are no sample's."""


_FRAMES_AT_ONCE = 2**16
"""More than a batch of a miniature has."""
_FIRST_SEED = 100 * SEEDS
"""Of the real clips that samples are compared with; those that are measured as an arm have twice that."""


@dataclass(frozen=True)
class MakeLaboratory:
    """Makes the worker of an evaluation: loads its model and metrics, and tries every setting on before any is sampled.

    Attributes:
        config: of the model.
        files: where samples are kept.
        sources: of the metrics, by name; see ``Measurement``.
        settings: that will be sampled, by what they are called.
        shown: see ``Laboratory``.
        metrics: those that are loaded already, for a worker in this process.
    """

    config: RenderConfig
    files: SampleFiles
    sources: Mapping[str, str]
    settings: Mapping[str, RenderConfig]
    shown: int
    metrics: Sequence[Metric] | None = None

    def __call__(self) -> Laboratory:
        """Make the worker.

        Raises:
            ConfigError: a setting that this pipeline cannot be given.
            LoadError: a model or a metric that cannot be loaded.
        """
        device, inputs = str(check_device(self.config.device)), read_inputs(self.config)
        pipe = load(self.config)
        pipe.set_progress_bar_config(disable=True)
        check_call(type(pipe), self.config)
        if self.config.model.pretrained.startswith(MINIATURE):
            inputs = {**inputs, **_decoding_together(pipe)}
        for name, setting in self.settings.items():
            try:
                with reflected(pipe, setting):
                    pass
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}; leave it out, or change the configuration") from error
        metrics = self.metrics
        if metrics is None:
            try:
                metrics = [
                    load_metric(name, device=device, **_options(source)) for name, source in self.sources.items()
                ]
            except MetricUnavailableError as error:
                raise LoadError(f"metrics: {error}") from error
        return Laboratory(self.files, pipe, metrics, inputs, self.shown)


def _decoding_together(pipe: Any) -> dict[str, int]:
    """Have frames as small as the miniatures' decoded all at once, and return what the call is to be told for it."""
    pipe.vae.disable_slicing()
    is_in_chunks = "decode_chunk_size" in inspect.signature(type(pipe).__call__).parameters
    return {"decode_chunk_size": _FRAMES_AT_ONCE} if is_in_chunks else {}


def load_metrics(plan: Measurement, device: str, command: str = "evaluate") -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics that can be had, their networks on a device, and why the others cannot.

    Args:
        plan: names them.
        device: of their networks.
        command: that says on stderr which are left out.

    Raises:
        ConfigError: a source for a metric that takes none.
        LoadError: the metric by which settings are chosen cannot be had.
    """
    metrics, missing = [], {}
    for name, source in plan.sources.items():
        try:
            metrics.append(load_metric(name, device=device, **_options(source), **_number_of_features(name, plan)))
        except MetricUnavailableError as error:
            if name == plan.select:
                raise LoadError(f"select {name}: {error}") from error
            missing[name] = str(error)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for name, reason in missing.items():
        print(f"w2sd_video.{command}: the metric {name} is left out: {reason}", file=sys.stderr)
    return metrics, missing


def real_of_splits(
    metrics: Sequence[Metric],
    config: RenderConfig,
    plan: Measurement,
    chosen_by: Collection[str],
    kept: KeptFeatures | None = None,
) -> dict[str, dict[str, Real]]:
    """Return the features of real clips by their space, for each of the two splits.

    Args:
        metrics: those that can be had.
        config: W2SD as it is configured.
        plan: names the clips.
        chosen_by: names of the metrics by which settings are chosen: no others are found where that is done.
        kept: features that are known from before.

    Raises:
        ConfigError: as `real_features`.
        VideoError: a real clip that cannot be read.
    """
    for split in (plan.tuning, plan.report):
        _check_samples(metrics, split)
    of_report = real_features(metrics, config, plan.report, plan, kept)
    if plan.real is not None:  # the same clips, whatever the prompts
        return {plan.tuning.name: of_report, plan.report.name: of_report}
    choosing = [metric for metric in metrics if metric.name in chosen_by]
    return {plan.tuning.name: real_features(choosing, config, plan.tuning, plan, kept), plan.report.name: of_report}


def kept_features(folder: Path, config: RenderConfig, plan: Measurement) -> KeptFeatures:
    """Return the features of real clips that are known in the folder of an evaluation."""
    about = {"sources": dict(plan.sources), "frames": config.frames, "lora": sorted(config.model.lora)}
    return KeptFeatures(folder, {**about, "model": config.model.pretrained})


def real_features(
    metrics: Sequence[Metric], config: RenderConfig, split: Split, plan: Measurement, kept: KeptFeatures | None = None
) -> dict[str, Real]:
    """Return the features of real clips by their space: of those given, or of clips of the miniatures' world.

    Raises:
        ConfigError: a distance of a single sample, or one that compares with real clips where nobody can make them.
        VideoError: a real clip that cannot be read.
    """
    _check_samples(metrics, split)
    distances = _distances(metrics)
    if not distances:
        return {}
    if plan.real is None and not config.model.pretrained.startswith(MINIATURE):
        raise ConfigError(f"metrics {distances[0].name}: compares with real clips; name a folder of them with --real")
    clips = plan.real or real_clips(config, list(split.prompts) * REAL_CLIPS, _FIRST_SEED)
    prompt = None if plan.real else np.arange(len(clips)) % len(split.prompts)
    features = (kept.of if kept else features_of)(clips, distances, f"real clips, {split.name}")
    return {space: Real(rows, prompt) for space, rows in features.items()}


def real_against_real(
    metrics: Sequence[Metric],
    config: RenderConfig,
    plan: Measurement,
    real: Mapping[str, Real],
    kept: KeptFeatures | None = None,
) -> RealAgainstReal | None:
    """Measure real clips as an arm of the report is: what a distance is when nothing is wrong, of as many samples.

    In the miniatures' world they are new clips of the same prompts; of a folder, some of its clips against the others,
    as many as there are samples or half of them.

    Returns:
        What was measured; None where no metric compares with real clips, or there are too few of them.

    Raises:
        VideoError: a real clip that cannot be read.
    """
    distances, split = _distances(metrics), plan.report
    if not distances:
        return None
    if plan.real is None:
        prompt, prompts = np.arange(split.samples) % len(split.prompts), len(split.prompts)
        clips = real_clips(config, list(split.prompts) * split.seeds, 2 * _FIRST_SEED)
        features, others = (kept.of if kept else features_of)(clips, distances, "real clips, as an arm"), dict(real)
    else:
        count = len(plan.real)
        order, taken = np.random.default_rng(0).permutation(count), min(split.samples, count // 2)
        prompt, prompts = np.arange(taken), taken  # each clip by itself, for of prompts nothing is known
        features = {space: rows.features[order[:taken]] for space, rows in real.items()}
        others = {space: Real(rows.features[order[taken:]]) for space, rows in real.items()}
    if prompts < 2:
        return None
    figures = {
        metric.name: distance_of_set(metric, features[metric.space], prompt, others[metric.space], prompts)
        for metric in distances
    }
    return RealAgainstReal(figures, len(prompt), len(next(iter(others.values())).features))


def _check_samples(metrics: Sequence[Metric], split: Split) -> None:
    of_sets = [metric.name for metric in metrics if isinstance(metric, Distance)]
    if of_sets and split.samples < 2:
        raise ConfigError(f"{split.name}: 1 sample, but {of_sets[0]} is of a set; take more prompts or seeds")


def _distances(metrics: Sequence[Metric]) -> list[Distance]:
    return [metric for metric in metrics if isinstance(metric, Distance) and metric.needs_real]


def _options(source: str) -> dict[str, str]:
    return {"source": source} if source else {}


def _number_of_features(name: str, plan: Measurement) -> dict[str, int]:
    """Return on how many principal features a distance is taken, so that the samples of the report bear it."""
    return {"number": principal_features(plan.report.samples)} if name in OF_FEW_FEATURES else {}
