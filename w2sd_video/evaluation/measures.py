"""The metrics that an evaluation can have, and the real clips that they compare with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.evaluation.plan import Plan
from w2sd_video.evaluation.samples import SEEDS, Split
from w2sd_video.evaluation.statistics import Real
from w2sd_video.messages import first_line
from w2sd_video.metrics import Distance, Metric, MetricUnavailableError, load_metric
from w2sd_video.rendering.load import LoadError
from w2sd_video.settings.schema import ConfigError, RenderConfig
from w2sd_video.settings.sources import MINIATURE

REAL_CLIPS = 8
"""Clips a prompt of the miniatures' world that samples are compared with; their seeds are no sample's."""


def load_metrics(plan: Plan, device: str) -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics that can be had, their networks on a device, and why the others cannot.

    Raises:
        ConfigError: a source for a metric that takes none.
        LoadError: the metric by which settings are chosen cannot be had.
    """
    metrics, missing = [], {}
    for name, source in plan.sources.items():
        try:
            metrics.append(load_metric(name, device=device, **({"source": source} if source else {})))
        except MetricUnavailableError as error:
            if name == plan.select:
                raise LoadError(f"select {name}: {error}") from error
            missing[name] = str(error)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for name, reason in missing.items():
        print(f"w2sd_video.evaluate: the metric {name} is left out: {reason}", file=sys.stderr)
    return metrics, missing


def real_features(metrics: Sequence[Metric], config: RenderConfig, split: Split, plan: Plan) -> dict[str, Real]:
    """Return the features of real clips by metric: of those given, or of clips of the miniatures' world.

    Raises:
        ConfigError: a distance of a single sample, or one that compares with real clips where nobody can make them.
        VideoError: a real clip that cannot be read.
    """
    if of_sets := [metric.name for metric in metrics if isinstance(metric, Distance)]:
        if len(split.prompts) * split.seeds < 2:
            raise ConfigError(f"{split.name}: 1 sample, but {of_sets[0]} is of a set; take more prompts or seeds")
    distances = [metric for metric in metrics if isinstance(metric, Distance) and metric.needs_real]
    if not distances:
        return {}
    if plan.real is None and not config.model.pretrained.startswith(MINIATURE):
        raise ConfigError(f"metrics {distances[0].name}: compares with real clips; name a folder of them with --real")
    clips = plan.real or real_clips(config, list(split.prompts) * REAL_CLIPS, 100 * SEEDS)
    features: dict[str, list[np.ndarray]] = {metric.name: [] for metric in distances}
    for clip in tqdm(clips, desc=f"real clips, {split.name}", leave=False):
        frames = clip.read()[None]
        for metric in distances:
            try:
                features[metric.name].append(metric.features(frames))
            except ValueError as error:
                raise ConfigError(f"real clips: {clip.name}: {first_line(error)}") from error
    prompt = None if plan.real else np.arange(len(clips)) % len(split.prompts)
    return {name: Real(np.concatenate(parts), prompt) for name, parts in features.items()}
