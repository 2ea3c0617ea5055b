"""Distances of sets of clips from functions of two sets of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from w2sd_video.metrics import Distance
from w2sd_video.metrics.kernel import kernel_distance, kernel_distance_of_units

SetDistance = Callable[[np.ndarray, np.ndarray], float]
Features = Callable[[np.ndarray], np.ndarray]


def distance(
    name: str, of_sets: SetDistance, features: Features, space: str, higher_is_better: bool = False, **settings: Any
) -> Distance:
    """Return a metric that compares clips with real ones; NaN for fewer than two clips.

    Args:
        name: of the metric.
        of_sets: the number of two sets of features, those of real clips last.
        features: of clips.
        space: their name.
        higher_is_better: whether more of it is better.
        settings: others of a ``Distance``.
    """

    def between(rows: np.ndarray, real: np.ndarray | None) -> float:
        assert real is not None
        return of_sets(rows, real) if min(len(rows), len(real)) > 1 else float("nan")

    return Distance(name, higher_is_better, features, between, space=space, **settings)


def kernel_distance_metric(name: str, features: Features, space: str) -> Distance:
    """Return the kernel distance (KID) of clips from real ones."""
    return distance(name, kernel_distance, features, space, is_biased=False, of_units=kernel_distance_of_units)
