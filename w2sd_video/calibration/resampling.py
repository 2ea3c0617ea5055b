"""Means over clips, and their intervals by a bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
"""Bootstrap samples of the clips."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval.

    Attributes:
        value: the number.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def weightings(clips: int, resamples: int, seed: int) -> np.ndarray:
    """Return the equal weights of the clips, and below them those of a bootstrap, (1 + resamples, clips)."""
    even = np.full(clips, 1 / clips)
    return np.vstack([even, np.random.default_rng(seed).multinomial(clips, even, size=resamples) / clips])


def with_ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first of some values, (1 + resamples, ...), and the ends of the 95 % interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5], axis=0)
    return values[0], low, high


def with_interval(values: np.ndarray) -> Estimate:
    """Return the first of some values, with the 95 % interval of the others."""
    return Estimate(*map(float, with_ends(values)))
