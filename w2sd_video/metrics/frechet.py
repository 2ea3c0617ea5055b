"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of the Gaussians fitted to features (n, d) and (m, d) (Dowson and Landau, 1982).

    With R and S the triangles of the QR decompositions of the centred features, the trace of the square root of the
    product of the covariances is the sum of the singular values of R Sᵀ. That is a matrix of min(n, d) x min(m, d),
    so the distance is quick for few samples of many features.
    """
    difference = a.mean(0, np.float64) - b.mean(0, np.float64)
    r, s = _triangle(a), _triangle(b)
    product = r @ s.T
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(product @ product.T), 0, None)).sum()
    return float(difference @ difference + (r**2).sum() + (s**2).sum() - 2 * overlap)


def _triangle(features: np.ndarray) -> np.ndarray:
    """Return R with RᵀR the covariance of features."""
    centred = features - features.mean(0, np.float64)
    return np.asarray(np.linalg.qr(centred / np.sqrt(len(features) - 1), mode="r"))
