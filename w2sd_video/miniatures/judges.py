"""Classifiers of the world's clips and pictures, and what they measure: prompt adherence and features for distances.

Clips are judged by their motion, pictures by the trail behind the sprite; which of the two is at hand is told by shape.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from w2sd_video.miniatures import WEIGHTS
from w2sd_video.miniatures.world import COLOURS, DIRECTIONS, SHAPES, Attributes, parse

Samples = np.ndarray | torch.Tensor | Sequence

HEADS = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "direction": tuple(DIRECTIONS)}
"""What the classifiers tell, and the labels of each; a size or a speed they do not tell."""
FRAMES = 8
"""Frames of a clip that are looked at; of longer clips the first ones."""
_TIME = {1: [(1, 1, 0)] * 4, FRAMES: [(2, 1, 0), (3, 2, 1), (3, 2, 1), (2, 1, 0)]}
"""Kernel, stride and padding along time, by the number of frames; all of them end in one frame."""


class Classifier(nn.Module):
    """Three-dimensional convolutions over a clip, three linear heads over their pooled features."""

    def __init__(self, frames: int = FRAMES, width: int = 16) -> None:
        """`frames` is 8, or 1 for pictures; `width` is of the first layer; there are `16 * width` features."""
        super().__init__()
        self.frames, self.width = frames, width
        wide, wider, features = 2 * width, 4 * width, 8 * width
        first, second, third, last = _TIME[frames]
        self.body = nn.Sequential(
            _convolution(3, width, first, 4, 2),  # 7 × 16 × 16, or 1 × 16 × 16 of a picture
            nn.GroupNorm(4, width),
            nn.SiLU(),
            _convolution(width, wide, second, 4, 2),  # 4 × 8 × 8
            nn.GroupNorm(4, wide),
            nn.SiLU(),
            _convolution(wide, wider, third, 3, 1),  # 2 × 8 × 8
            nn.GroupNorm(4, wider),
            nn.SiLU(),
            _convolution(wider, features, last, 3, 2),  # 1 × 4 × 4
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(2 * features, len(labels)) for name, labels in HEADS.items()})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (n, >= frames, 3, 32, 32) in [-1, 1] to features (n, 16 * width)."""
        videos = rearrange(x[:, : self.frames], "clips frames rgb ... -> clips rgb frames ...")
        grid = rearrange(self.body(videos), "clips features ... -> clips features (...)")
        return torch.cat([grid.mean(-1), grid.amax(-1)], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of every head."""
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}

    def save_pretrained(self, folder: Path, **measured: float) -> None:
        """Write weights in half precision, and `config.json` with the accuracies `measured`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half() for key, value in self.state_dict().items()}, folder / "model.safetensors")
        config = {"frames": self.frames, "width": self.width, "measured": measured}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _convolution(inside: int, outside: int, time: tuple[int, int, int], kernel: int, stride: int) -> nn.Conv3d:
    length, step, edge = time
    return nn.Conv3d(inside, outside, (length, kernel, kernel), stride=(step, stride, stride), padding=(edge, 1, 1))


def labels_of(attributes: Attributes) -> list[int]:
    """The right answer of every head."""
    return [labels.index(getattr(attributes, name)) for name, labels in HEADS.items()]


@cache
def load_classifier(name: str = "classifier", weights: Path = WEIGHTS) -> Classifier:
    """The trained "classifier" of clips or "image_classifier" of pictures, in float32 on the CPU."""
    config = json.loads((weights / name / "config.json").read_text())
    model = Classifier(config["frames"], config["width"])
    model.load_state_dict(load_file(weights / name / "model.safetensors"))
    return model.float().eval().requires_grad_(False)


def as_tensor(samples: Samples) -> torch.Tensor:
    """Samples as the classifiers want them, (n, frames, 3, 32, 32) in [-1, 1]; pictures have one frame.

    Takes what pipelines give: uint8 or float in [0, 1], clips (n, frames, 32, 32, 3) or pictures (n, 32, 32, 3), which
    may be clips of one frame; also as lists of (lists of) PIL images.

    Raises:
        ValueError: another shape, clips of fewer than eight frames, or numbers beyond uint8 or [0, 1].
    """
    array = samples.numpy(force=True) if isinstance(samples, torch.Tensor) else np.stack([_array(s) for s in samples])
    if array.ndim == 4:
        array = array[:, None]
    is_of_frames = array.ndim == 5 and array.shape[-1] == 3 and array.size > 0
    if not is_of_frames or not (array.shape[1] == 1 or array.shape[1] >= FRAMES):
        wanted = f"clips of shape (n, frames >= {FRAMES}, height, width, 3) or pictures (n, height, width, 3)"
        raise ValueError(f"want {wanted}, got {array.shape}")
    if array.dtype != np.uint8 and not (array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"want uint8, or numbers in [0, 1], got {array.dtype} from {array.min()} to {array.max()}")
    scale = 127.5 if array.dtype == np.uint8 else 0.5
    frames = torch.from_numpy(np.ascontiguousarray(array))
    return rearrange(frames, "clips frames height width rgb -> clips frames rgb height width").float() / scale - 1


def _array(sample: np.ndarray | torch.Tensor | Sequence) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in sample]) if isinstance(sample, list) else np.asarray(sample)


def _judge(samples: torch.Tensor) -> Classifier:
    """Return the classifier of clips or pictures, on an accelerator where this process has one."""
    name = "classifier" if samples.shape[1] > 1 else "image_classifier"
    return _on_device(name, "cuda" if torch.cuda.is_available() else "cpu")


@cache
def _on_device(name: str, device: str) -> Classifier:
    return copy.deepcopy(load_classifier(name)).to(device)


def _judged(
    samples: Samples, of: Callable[[Classifier, torch.Tensor], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return what a function finds with the classifier, 256 samples at a time, on the CPU."""
    x = as_tensor(samples)
    judge = _judge(x)
    device = next(judge.parameters()).device
    parts = [of(judge, part.to(device)) for part in x.split(256)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def classify(samples: Samples) -> list[Attributes]:
    """What is seen in each of the `samples`, clips or pictures, given as to `as_tensor`."""
    seen = {name: head_logits.argmax(1).tolist() for name, head_logits in logits(samples).items()}
    return [Attributes(*(HEADS[name][seen[name][i]] for name in HEADS)) for i in range(len(seen["shape"]))]


@torch.no_grad()
def logits(samples: Samples) -> dict[str, torch.Tensor]:
    """The logits (n, labels) of every head for `samples`, clips or pictures, given as to `as_tensor`."""
    return _judged(samples, lambda judge, part: judge(part))


def adherence(samples: Samples, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of the `samples` with the shape, colour and direction of their prompts, and with all three: "joint"."""
    wanted, seen = [parse(prompt) for prompt in prompts], classify(samples)
    right = np.array([[getattr(w, h) == getattr(s, h) for h in HEADS] for w, s in zip(wanted, seen, strict=True)])
    return {**dict(zip(HEADS, right.mean(0).tolist(), strict=True)), "joint": float(right.all(1).mean())}


@torch.no_grad()
def features(samples: Samples) -> np.ndarray:
    """Penultimate features (n, d) of `samples`, clips or pictures, given as to `as_tensor`."""
    return _judged(samples, lambda judge, part: {"features": judge.features(part)})["features"].numpy()


def comets(videos: Samples) -> np.ndarray:
    """Which of the `videos`, given as to `as_tensor`, have the long, bright trail `world.COMET`: (n,) of bool.

    Told without a network: in some frame, the box around all that shines more than half as brightly as the brightest
    pixel is 1.45 times as long as it is wide. Of 216 clips with either trail, none is mistaken for the other kind.
    """
    light = as_tensor(videos).amax(2) + 1  # n, frames, 32, 32
    bright = light > 0.5 * light.amax((1, 2, 3), keepdim=True)
    width, height = bright.any(2).sum(2), bright.any(3).sum(2)
    longer, shorter = torch.maximum(width, height), torch.minimum(width, height)
    return (longer > 1.45 * shorter).any(1).numpy()
