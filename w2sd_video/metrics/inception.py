"""Distances of sets of frames in the features of Inception: FID and Inception Score."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from w2sd_video.metrics import Distance
from w2sd_video.metrics.frames import chosen
from w2sd_video.metrics.frechet import frechet_distance as distance_of
from w2sd_video.metrics.weights import loading

FILE = "inception-2015-12-05.pt"
INCEPTION = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
"""The graph that FID was defined on, as a TorchScript that needs no package beside torch."""

FEATURES, CLASSES = 2048, 1008
"""Numbers a picture that this graph gives; with another network a figure would not be FID."""


def fid(source: str = INCEPTION, device: str = "cpu") -> Distance:
    """Fréchet Inception distance (Heusel et al., arXiv 1706.08500) of frames to real frames.

    The frames of all clips together are the set, at most `MAX_FRAMES` of each. The distance depends on how many there
    are, and tells nothing of motion; published values are of 10,000 and more pictures.

    Args:
        source: the TorchScript, a file or the folder that it lies in.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the network cannot be had.
    """

    def between(features: np.ndarray, real: np.ndarray | None) -> float:
        assert real is not None
        rows = _rows(features, FEATURES)
        return distance_of(rows, _rows(real, FEATURES)) if len(rows) > 1 else float("nan")

    return Distance("fid", False, _features_of_clips("fid", source, device, FEATURES, return_features=True), between)


def inception_score(source: str = INCEPTION, device: str = "cpu") -> Distance:
    """Inception Score (Salimans et al., arXiv 1606.03498) of frames: how sure and how varied the classes are, from 1.

    The frames of all clips together are one set; the original is the mean over ten sets of 5,000.

    Args:
        source: the TorchScript, a file or the folder that it lies in.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the network cannot be had.
    """

    def between(features: np.ndarray, _: np.ndarray | None) -> float:
        probabilities = _rows(features, CLASSES)
        log = np.log(np.maximum(probabilities, np.finfo(float).tiny))
        mean = probabilities.mean(0)
        surprise = log - np.log(np.maximum(mean, np.finfo(float).tiny))
        return float(np.exp((probabilities * surprise).sum(1).mean()))

    of = _features_of_clips("inception_score", source, device, CLASSES, no_output_bias=True)
    return Distance("inception_score", True, of, between, needs_real=False)


def _rows(features: np.ndarray, width: int) -> np.ndarray:
    """One row a frame, of features that have one row a clip."""
    return rearrange(features, "clips (frames width) -> (clips frames) width", width=width).astype(np.float64)


def _features_of_clips(
    name: str, source: str, device: str, width: int, **flags: bool
) -> Callable[[np.ndarray], np.ndarray]:
    with loading(name, source):
        network = _network(source, device)
        shape = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device), **flags).shape
        if tuple(shape) != (1, width):
            raise ValueError(f"it gives {tuple(shape)} for a picture, and Inception gives {(1, width)}")

    @torch.no_grad()
    def features(clips: np.ndarray) -> np.ndarray:
        rows = []
        for clip in clips:
            frames = rearrange(chosen(clip), "frames height width rgb -> frames rgb height width")
            output = network(torch.from_numpy(np.ascontiguousarray(frames)).to(device), **flags)
            rows.append(rearrange(output.float().cpu().numpy(), "frames width -> (frames width)"))
        return np.stack(rows)

    return features


def _network(source: str, device: str) -> Any:
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / FILE
    elif source.startswith("https://"):
        path = _downloaded(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export reads no TorchScript, and nothing else does
        return torch.jit.load(path, map_location=device).eval()


def _downloaded(address: str) -> Path:
    """Return the file in torch's cache, downloaded if it is not there and HF_HUB_OFFLINE does not forbid it."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        if HF_HUB_OFFLINE:
            raise FileNotFoundError("HF_HUB_OFFLINE is set, and the file is not in the cache")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))
    return path
