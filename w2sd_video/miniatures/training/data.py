"""Training data: fresh clips of the world, and pools of clips encoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from w2sd_video.miniatures.world import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    TRAIL,
    Attributes,
    Trail,
    all_attributes,
    clips,
)

TABLE = all_attributes()
PROMPTS = [*(a.prompt for a in TABLE), ""]
"""All prompts; the last, empty one stands for "no prompt"."""
_INDEX = {attributes: i for i, attributes in enumerate(TABLE)}


def random_clips(
    rng: np.random.Generator, count: int, frames: int, trail: Trail = TRAIL
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh clips as floats in [-1, 1], (count, frames, 3, 32, 32), and the index of each one's prompt."""
    kinds = (
        SHAPES,
        list(COLOURS),
        list(DIRECTIONS),
        ("", "", *SIZES),
        ("", "", *SPEEDS),
    )  # a size, a speed: half of the time
    words = [[str(rng.choice(kind)) or None for kind in kinds] for _ in range(count)]  # half name a size, half a speed
    rows = [Attributes(*row) for row in words]  # type: ignore[arg-type]
    pixels = clips(rows, rng.integers(2**40, size=count).tolist(), frames, trail)
    return to_model(pixels), torch.tensor([_INDEX[row] for row in rows])


def to_model(pixels: np.ndarray) -> torch.Tensor:
    """Frames as a network wants them: uint8 (..., 32, 32, 3) to floats in [-1, 1], (..., 3, 32, 32)."""
    frames = torch.from_numpy(np.ascontiguousarray(pixels))
    return rearrange(frames, "... height width rgb -> ... rgb height width").float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> np.ndarray:
    """The reverse of `to_model`."""
    return ((rearrange(x, "... rgb height width -> ... height width rgb") + 1) * 127.5).round().byte().numpy()


@torch.no_grad()
def encoded_pool(
    path: Path,
    encode: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    frames: int,
    seed: int,
    trail: Trail = TRAIL,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool of `count` clips as scaled latents in half precision with their prompts' indices, kept in `path`."""
    if not path.exists():
        rng = np.random.default_rng(seed)
        latents, labels = [], []
        for start in range(0, count, 64):
            video, index = random_clips(rng, min(64, count - start), frames, trail)
            latents.append(encode(video).half())
            labels.append(index)
        torch.save((torch.cat(latents), torch.cat(labels)), path)
    return torch.load(path)
