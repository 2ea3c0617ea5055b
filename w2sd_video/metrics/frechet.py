"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of the Gaussians fitted to features (n, d) and (m, d) (Dowson and Landau, 1982).

    With RᵀR and SᵀS the covariances, the trace of the square root of their product is the sum of the singular values
    of R Sᵀ. That is a matrix of min(n, d) x min(m, d), so the distance is quick for few samples of many features.

    Raises:
        ValueError: fewer than two rows, rows of two widths, or numbers that are not finite.
    """
    check_features(a, b)
    difference = a.mean(0, np.float64) - b.mean(0, np.float64)
    r, s = _root(a), _root(b)
    product = r @ s.T
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(product @ product.T), 0, None)).sum()
    return float(difference @ difference + (r**2).sum() + (s**2).sum() - 2 * overlap)


def frechet_principal(features: np.ndarray, real: np.ndarray, number: int) -> float:
    """Return the Fréchet distance on the first principal axes of real features (m, d), those of the largest variance.

    On few axes little of the distance is due to the number of clips: of one Gaussian of k features it is about
    ``(1/n + 1/m) (k + (k² + k) / 4)`` variances on the average, which grows with k² and falls with n alone.

    Args:
        features: (n, d).
        real: (m, d); the axes are theirs alone.
        number: k, of axes; all where there are fewer.

    Raises:
        ValueError: as of `frechet_distance`.
    """
    check_features(features, real)
    centre = real.mean(0, np.float64)
    _, _, axes = np.linalg.svd(real - centre, full_matrices=False)
    axes = axes[:number].T
    return frechet_distance((features - centre) @ axes, (real - centre) @ axes)


def principal_features(samples: int) -> int:
    """Return on how many principal features so many samples tell a distance: one for each 32 of them, from 1 to 64.

    At that the part that is due to their number is about a percent of the variance.
    """
    return min(max(samples // 32, 1), 64)


def check_features(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse what are no two sets of features (n, d) and (m, d).

    Raises:
        ValueError: fewer than two rows, rows of two widths, or numbers that are not finite.
    """
    if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1] or min(len(a), len(b)) < 2:
        shapes = f"{np.shape(a)} and {np.shape(b)}"
        raise ValueError(f"features must be (n, d) and (m, d) with n and m of at least 2, got {shapes}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite, but hold NaN or infinity")


def _root(features: np.ndarray) -> np.ndarray:
    """Return R with RᵀR the covariance of features: those themselves, centred, where they are few."""
    centred = (features - features.mean(0, np.float64)) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return (vectors * np.sqrt(np.clip(values, 0, None))).T
