"""Scores of frames: those of a clip that are looked at, as networks want them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from w2sd_video.metrics import Score

MAX_FRAMES = 8
"""A clip is judged by at most so many frames, the first, the last and evenly spaced ones between them."""


def chosen(clip: np.ndarray) -> np.ndarray:
    """Return the frames (at most MAX_FRAMES, height, width, 3) by which a clip (frames, height, width, 3) is judged."""
    return clip[np.linspace(0, len(clip) - 1, min(len(clip), MAX_FRAMES)).round().astype(int)]


def score_of_frames(name: str, judge: Callable[[np.ndarray, str], torch.Tensor]) -> Score:
    """Return the score of clips that is the mean of those of their frames.

    Args:
        name: of the metric; more of it is better.
        judge: ``(frames uint8 (f, height, width, 3), prompt) -> (f,)``.
    """

    def of(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        with torch.no_grad():
            scores = [judge(chosen(clip), prompt).double().mean() for clip, prompt in zip(clips, prompts, strict=True)]
        return np.array([float(score) for score in scores])

    return Score(name, True, of)


def pixels(frames: np.ndarray, size: int, whole: bool = False) -> torch.Tensor:
    """Prepare frames for a network of CLIP's family: bicubic, cropped to a square, normalised as CLIP wants it.

    Args:
        frames: uint8 (f, height, width, 3).
        size: height and width of what comes out, float32 (f, 3, size, size).
        whole: put black beside what is not square, and cut off nothing.
    """
    import transformers

    # The class that needs no torchvision; older transformers have no other under the plain name.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    images = [Image.fromarray(frame) for frame in frames]
    if whole:
        images = [ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC) for image in images]
    square = {"height": size, "width": size}
    return processor(size={"shortest_edge": size}, crop_size=square)(images, return_tensors="pt")["pixel_values"]
