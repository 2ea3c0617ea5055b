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
    if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1] or min(len(a), len(b)) < 2:
        shapes = f"{np.shape(a)} and {np.shape(b)}"
        raise ValueError(f"features must be (n, d) and (m, d) with n and m of at least 2, got {shapes}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite, but hold NaN or infinity")
    difference = a.mean(0, np.float64) - b.mean(0, np.float64)
    r, s = _root(a), _root(b)
    product = r @ s.T
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(product @ product.T), 0, None)).sum()
    return float(difference @ difference + (r**2).sum() + (s**2).sum() - 2 * overlap)


def _root(features: np.ndarray) -> np.ndarray:
    """Return R with RᵀR the covariance of features: those themselves, centred, where they are few."""
    centred = (features - features.mean(0, np.float64)) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return (vectors * np.sqrt(np.clip(values, 0, None))).T
