"""A classifier of the world's clips, and what is measured with it: prompt adherence and Fréchet distance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .world import COLOURS, DIRECTIONS, SHAPES, Attributes, parse

WEIGHTS = Path(__file__).parent / "weights" / "classifier"
HEADS = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "direction": tuple(DIRECTIONS)}
FRAMES = 8
"""Frames it looks at; of longer clips the first ones."""


class Classifier(nn.Module):
    """Three-dimensional convolutions over a clip, three linear heads over their pooled features."""

    def __init__(self, width: int = 16) -> None:
        """`width` is the number of channels at full resolution; there are `8 * width` features."""
        super().__init__()
        self.width = width
        wide, wider, features = 2 * width, 4 * width, 8 * width
        self.body = nn.Sequential(
            nn.Conv3d(3, width, (2, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1)),  # 7 × 16 × 16
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv3d(width, wide, (3, 4, 4), stride=(2, 2, 2), padding=1),  # 4 × 8 × 8
            nn.GroupNorm(4, wide),
            nn.SiLU(),
            nn.Conv3d(wide, wider, 3, stride=(2, 1, 1), padding=1),  # 2 × 8 × 8
            nn.GroupNorm(4, wider),
            nn.SiLU(),
            nn.Conv3d(wider, features, (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),  # 1 × 4 × 4
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(2 * features, len(labels)) for name, labels in HEADS.items()})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (n, frames >= 8, 3, 32, 32) in [-1, 1] to features (n, 16 * width)."""
        grid = self.body(x[:, :FRAMES].transpose(1, 2)).flatten(2)
        return torch.cat([grid.mean(-1), grid.amax(-1)], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of every head."""
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}

    def save_pretrained(self, folder: Path, **measured: float) -> None:
        """Write weights in half precision, and `config.json` with the accuracies `measured`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half() for key, value in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"width": self.width, "measured": measured}, indent=2) + "\n")


def labels_of(attributes: Attributes) -> list[int]:
    """The right answer of every head."""
    return [labels.index(getattr(attributes, name)) for name, labels in HEADS.items()]


@cache
def load_classifier(folder: Path = WEIGHTS) -> Classifier:
    """The trained classifier, in float32 on the CPU."""
    model = Classifier(json.loads((folder / "config.json").read_text())["width"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval().requires_grad_(False)


def as_tensor(videos: np.ndarray | torch.Tensor | Sequence) -> torch.Tensor:
    """Videos as the classifier wants them, (n, frames, 3, 32, 32) in [-1, 1].

    Takes what pipelines give: uint8 or float in [0, 1], (n, frames, 32, 32, 3), also as lists of lists of PIL images.

    Raises:
        ValueError: another shape, or fewer than eight frames.
    """
    array = videos.numpy(force=True) if isinstance(videos, torch.Tensor) else np.stack([_stack(v) for v in videos])
    if array.ndim != 5 or array.shape[-1] != 3 or array.shape[1] < FRAMES:
        raise ValueError(f"want videos of shape (n, frames >= {FRAMES}, height, width, 3), got {array.shape}")
    scale = 127.5 if array.dtype == np.uint8 else 0.5
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, -3).float() / scale - 1


def _stack(video: np.ndarray | torch.Tensor | Sequence) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in video])


@torch.no_grad()
def classify(videos: np.ndarray | torch.Tensor | Sequence) -> list[Attributes]:
    """What the classifier sees in each of the `videos`, given as to `as_tensor`."""
    logits = [load_classifier()(part) for part in as_tensor(videos).split(256)]
    seen = {name: torch.cat([part[name] for part in logits]).argmax(1).tolist() for name in HEADS}
    return [Attributes(*(HEADS[name][seen[name][i]] for name in HEADS)) for i in range(len(seen["shape"]))]


def adherence(videos: np.ndarray | torch.Tensor | Sequence, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of the `videos` with the shape, colour and direction of their prompts, and with all three: "joint"."""
    wanted, seen = [parse(prompt) for prompt in prompts], classify(videos)
    right = np.array([[getattr(w, h) == getattr(s, h) for h in HEADS] for w, s in zip(wanted, seen, strict=True)])
    return {**dict(zip(HEADS, right.mean(0).tolist(), strict=True)), "joint": float(right.all(1).mean())}


@torch.no_grad()
def features(videos: np.ndarray | torch.Tensor | Sequence) -> np.ndarray:
    """Penultimate features (n, d) of `videos`, given as to `as_tensor`."""
    return torch.cat([load_classifier().features(part) for part in as_tensor(videos).split(256)]).numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (n, d) and (m, d)."""
    difference = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of a product of two covariances is that of its eigenvalues' roots.
    roots = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None))
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())
