"""Precision and recall of a set of features, by the nearest neighbours of each (Kynkäänniemi et al., 1904.06991)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from w2sd_video.metrics.frechet import check_features

NEIGHBOURS = 3
"""k: a row's ball reaches to its k-th nearest neighbour, as in the paper."""


def precision(features: np.ndarray, real: np.ndarray) -> float:
    """Return the share of features (n, d) that lie within the manifold of real ones (m, d): how many look real.

    The manifold is the union of a ball around each row, as far as its `NEIGHBOURS`-th nearest of its own set. It is
    narrower the more rows there are, so that only sets of the same sizes compare. NaN for no more rows than that.

    Raises:
        ValueError: fewer than two rows, rows of two widths, or numbers that are not finite.
    """
    check_features(features, real)
    return float(_share_within(_squares(features, real), _squares(real, real)))


def recall(features: np.ndarray, real: np.ndarray) -> float:
    """Return the share of real features that lie within the manifold of the others: how much of what is real is made.

    Raises:
        ValueError: as of `precision`.
    """
    return precision(real, features)


def precision_of_units(
    features: np.ndarray, unit: np.ndarray, real: np.ndarray, real_unit: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Return the precision as a function of the units that are kept, (units,) of bool.

    Args:
        features: (n, d).
        unit: of each of them, (n,), numbered from 0.
        real: features (m, d).
        real_unit: of each of these, (m,).
    """
    across, within = _squares(features, real), _squares(real, real)

    def of_kept(kept: np.ndarray) -> float:
        rows, columns = kept[unit], kept[real_unit]
        return _share_within(across[np.ix_(rows, columns)], within[np.ix_(columns, columns)])

    return of_kept


def recall_of_units(
    features: np.ndarray, unit: np.ndarray, real: np.ndarray, real_unit: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Return the recall in the same way."""
    return precision_of_units(real, real_unit, features, unit)


def _share_within(across: np.ndarray, within: np.ndarray) -> float:
    """Return the share of rows within a ball, by squared distances (n, m) to the centres and (m, m) between these."""
    if len(within) <= NEIGHBOURS or not len(across):
        return float("nan")
    reach = np.partition(within, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the nearest is the row itself
    return float((across <= reach).any(1).mean())


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances between rows, (n, m); a row and itself are exactly 0 apart."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    if a.shape == b.shape and np.array_equal(a, b):
        np.fill_diagonal(squares, 0)
    return np.clip(squares, 0, None)
