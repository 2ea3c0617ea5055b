"""The kernel distance between two sets of features (KID; Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from w2sd_video.metrics.frechet import check_features


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy of features (n, d) and (m, d), unbiased, by the kernel of KID.

    The kernel is ``(x·y / d + 1)³``. Being unbiased, it is 0 on the average for two sets of one distribution, however
    few they are, and so it may be negative.

    Raises:
        ValueError: fewer than two rows, rows of two widths, or numbers that are not finite.
    """
    check_features(a, b)
    units = np.arange(len(a) + len(b))
    return kernel_distance_of_units(a, units[: len(a)], b, units[len(a) :])(np.ones(len(units), bool))


def kernel_distance_of_units(
    a: np.ndarray, unit: np.ndarray, b: np.ndarray, other_unit: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Return the distance as a function of the units that are kept, (units,) of bool.

    No two rows of one unit are compared: samples of one prompt are alike, and so are they and the real clips of that
    prompt. For units that are drawn independently the distance is unbiased (Gretton et al., "A Kernel Two-Sample
    Test", 2012, lemma 6, where a unit is a row of each set).

    Args:
        a: features (n, d).
        unit: of each of them, (n,), numbered from 0.
        b: features (m, d).
        other_unit: of each of these, (m,); the units of the two sets may be the same or others.
    """
    rows, units = [(a, unit), (b, other_unit)], int(max(unit.max(), other_unit.max())) + 1
    counts = [np.bincount(of, minlength=units).astype(float) for _, of in rows]
    sums = {(i, j): _sums_of_units(*rows[i], *rows[j], units) for i, j in ((0, 0), (1, 1), (0, 1))}

    def distance(kept: np.ndarray) -> float:
        kept = kept[:units]  # the last ones may have no rows

        def mean(i: int, j: int) -> float:
            one, other = counts[i][kept], counts[j][kept]
            pairs = one.sum() * other.sum() - one @ other
            return float(sums[i, j][np.ix_(kept, kept)].sum() / pairs) if pairs else float("nan")

        return mean(0, 0) + mean(1, 1) - 2 * mean(0, 1)

    return distance


def _sums_of_units(a: np.ndarray, unit: np.ndarray, b: np.ndarray, other_unit: np.ndarray, units: int) -> np.ndarray:
    """Return the kernel of all pairs of rows, summed over those of each pair of units, (units, units); 0 within one."""
    kernel = (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3
    by_unit = np.zeros((units, kernel.shape[1]))
    np.add.at(by_unit, unit, kernel)
    sums = np.zeros((units, units))
    np.add.at(sums.T, other_unit, by_unit.T)
    np.fill_diagonal(sums, 0)
    return sums
