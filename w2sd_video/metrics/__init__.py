"""What is measured of samples, by name; a metric is imported and loaded when it is asked for.

A ``Score`` judges each clip on its own, a ``Distance`` all clips of an arm together, by features of each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from w2sd_video.argument_checks import check_frames
from w2sd_video.messages import suggest


class MetricUnavailableError(Exception):
    """A metric whose weights or packages cannot be had; the message is one line."""


OfUnits = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Callable[[np.ndarray], float]]


@dataclass(frozen=True)
class Score:
    """A number for each clip.

    Attributes:
        name: of the metric.
        higher_is_better: whether more of it is better.
        of: ``(clips, prompts) -> (n,)``, of clips uint8 (n, frames, height, width, 3), an image being a clip of one
            frame; NaN where a clip has none. It raises TypeError for clips that are not uint8 or prompts that are no
            texts, ValueError for another shape, or another number of prompts than of clips.
        is_share: whether it says of each clip whether something is so, 0 or 1, so that its mean is a share.
    """

    name: str
    higher_is_better: bool
    of: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    is_share: bool = False

    def __post_init__(self) -> None:
        """Have what is scored looked at, whatever the metric does with it."""
        score = self.of

        @functools.wraps(score)
        def checked(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
            check_frames(f"{self.name}: clips", clips, _AXES)
            if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
                raise TypeError(f"{self.name}: prompts must be a list of texts, got {prompts!r:.100}")
            if len(prompts) != len(clips):
                raise ValueError(f"{self.name}: {len(prompts)} prompts for {len(clips)} clips; give one a clip")
            return score(clips, prompts)

        object.__setattr__(self, "of", checked)


@dataclass(frozen=True)
class Distance:
    """A number for a set of clips.

    Attributes:
        name: of the metric.
        higher_is_better: whether more of it is better.
        features: ``clips -> (n, d)``, of clips uint8 (n, frames, height, width, 3); TypeError and ValueError as of a
            score.
        between: ``(features, real features) -> number``; the real ones are None for a metric that needs none. NaN for
            no features; it raises ValueError for features that are not finite or not of clips, or without real ones.
        needs_real: whether it compares with real clips.
        space: name of the features; metrics of one space have the same, which are then found once. The metric's own
            name unless given.
        is_biased: whether on the average it depends on how many clips there are; if not it may be negative.
        of_units: ``(features, unit, real features, real unit) -> (kept -> number)``, the number as a function of which
            units are kept, bool (units,), for units that are drawn independently: prompts, with their clips numbered
            from 0. It is `between` of what is kept unless given.
        is_share: whether it is a share, 0 to 1.
    """

    name: str
    higher_is_better: bool
    features: Callable[[np.ndarray], np.ndarray]
    between: Callable[[np.ndarray, np.ndarray | None], float]
    needs_real: bool = True
    space: str = ""
    is_biased: bool = True
    of_units: OfUnits | None = None
    is_share: bool = False

    def __post_init__(self) -> None:
        """Have what is compared looked at, whatever the metric does with it."""
        features_of, distance = self.features, self.between

        @functools.wraps(features_of)
        def checked_features(clips: np.ndarray) -> np.ndarray:
            check_frames(f"{self.name}: clips", clips, _AXES)
            return features_of(clips)

        @functools.wraps(distance)
        def checked_distance(features: np.ndarray, real: np.ndarray | None = None) -> float:
            if self.needs_real and real is None:
                raise ValueError(f"{self.name}: compares with real clips; give their features")
            compared = [features] if real is None or not self.needs_real else [features, real]
            for rows in compared:
                if np.ndim(rows) != 2 or not np.isfinite(rows).all():
                    raise ValueError(f"{self.name}: features must be finite numbers, (n, d), got {np.shape(rows)}")
            return distance(features, real) if len(features) else float("nan")

        object.__setattr__(self, "features", checked_features)
        object.__setattr__(self, "between", checked_distance)
        object.__setattr__(self, "space", self.space or self.name)


_AXES = ("clips", "frames", "height", "width")
"""Of clips, before red, green and blue."""

Metric = Score | Distance

METRICS = {
    "adherence": "miniature",
    "likelihood": "miniature",
    "comets": "miniature",
    "hollow": "miniature",
    "motion_error": "miniature",
    "frechet_distance": "miniature",
    "frechet_principal": "miniature",
    "kid": "miniature",
    "precision": "miniature",
    "recall": "miniature",
    "frechet_efficientnet": "efficientnet",
    "kid_efficientnet": "efficientnet",
    "clip_score": "clip",
    "pick_score": "clip",
    "aesthetics": "clip",
    "hpsv2": "hpsv2",
    "image_reward": "image_reward",
    "motion_smoothness": "motion",
    "flicker": "motion",
    "dynamic_degree": "motion",
    "fid": "inception",
    "inception_score": "inception",
}
"""Every metric, and the module of this package that has a function of its name, which loads it."""

OF_FEW_FEATURES = ("frechet_principal", "frechet_efficientnet")
"""Distances on so many principal features as they are loaded with."""
BIASED = (*OF_FEW_FEATURES, "frechet_distance", "precision", "recall", "fid", "inception_score")
"""Numbers of a set that depend on how many clips there are."""


def check_name(name: str) -> None:
    """Refuse a metric that does not exist.

    Raises:
        ValueError: an unknown name; the message says which there are.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {suggest(name, METRICS)}")


def load_metric(name: str, **options: Any) -> Metric:
    """Load a metric.

    Args:
        name: one of ``METRICS``.
        options: ``source``, a folder or a hub id to load its weights from instead of the published ones; ``device``,
            which means nothing to a metric without a network.

    Raises:
        ValueError: an unknown name, an option that this metric does not have, or a device that is not there.
        MetricUnavailableError: weights or a package that cannot be had.
    """
    check_name(name)
    load = getattr(import_module(f"w2sd_video.metrics.{METRICS[name]}"), name)
    parameters = inspect.signature(load).parameters
    device = options.pop("device", None)
    if unknown := sorted(options.keys() - parameters.keys()):
        raise ValueError(f"metric {name!r} has no option {unknown[0]!r}; it has {', '.join(parameters) or 'none'}")
    if device is not None and "device" in parameters:
        from w2sd_video.backends.loading import check_device

        options["device"] = str(check_device(device))
    return load(**options)
