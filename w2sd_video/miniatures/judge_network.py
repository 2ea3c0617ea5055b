"""The network that judges clips and pictures: of sprites by one set of heads, of scenes by another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

N = TypeVar("N", bound="JudgeNetwork")
FRAMES = 8
"""Frames of a clip that are looked at."""
_TIME = {1: [(1, 1, 0)] * 4, FRAMES: [(2, 1, 0), (3, 2, 1), (3, 2, 1), (2, 1, 0)]}
"""Kernel, stride and padding along time, by the number of frames; all of them end in one frame."""


class JudgeNetwork(nn.Module):
    """Three-dimensional convolutions over a clip, and linear heads over their pooled features.

    Attributes:
        HEADS: what is told, and the labels of each.
    """

    HEADS: Mapping[str, Sequence[str]]

    def __init__(self, frames: int = FRAMES, width: int = 16) -> None:
        """`frames` is 8, or 1 for pictures; `width` is of the first layer; there are `16 * width` features."""
        super().__init__()
        self.frames, self.width = frames, width
        first, second, third, last = _TIME[frames]
        self.body = nn.Sequential(
            _convolution(3, width, first, 4, 2),  # 7 x 16 x 16 of a clip of 32 pixels, or 1 x 16 x 16 of a picture
            nn.GroupNorm(4, width),
            nn.SiLU(),
            _convolution(width, 2 * width, second, 4, 2),  # 4 x 8 x 8
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            _convolution(2 * width, 4 * width, third, 3, 1),  # 2 x 8 x 8
            nn.GroupNorm(4, 4 * width),
            nn.SiLU(),
            _convolution(4 * width, 8 * width, last, 3, 2),  # 1 x 4 x 4
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(16 * width, len(labels)) for name, labels in self.HEADS.items()})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (n, >= frames, 3, height, width) in [-1, 1] to features (n, 16 * width)."""
        videos = rearrange(x[:, : self.frames], "clips frames rgb ... -> clips rgb frames ...")
        grid = rearrange(self.body(videos), "clips features ... -> clips features (...)")
        return torch.cat([grid.mean(-1), grid.amax(-1)], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of every head."""
        return self.logits_of(self.features(x))

    def logits_of(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of every head by features (n, 16 * width)."""
        return {name: head(features) for name, head in self.heads.items()}

    def save_pretrained(self, folder: Path, **measured: float) -> None:
        """Write weights in half precision, and `config.json` with the accuracies `measured`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half() for key, value in self.state_dict().items()}, folder / "model.safetensors")
        config = {"frames": self.frames, "width": self.width, "measured": measured}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[N], folder: Path) -> N:
        """Read what `save_pretrained` wrote, in float32 on the CPU."""
        config = json.loads((folder / "config.json").read_text())
        model = cls(config["frames"], config["width"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.float().eval().requires_grad_(False)


def _convolution(inside: int, outside: int, time: tuple[int, int, int], kernel: int, stride: int) -> nn.Conv3d:
    length, step, edge = time
    return nn.Conv3d(inside, outside, (length, kernel, kernel), stride=(step, stride, stride), padding=(edge, 1, 1))
