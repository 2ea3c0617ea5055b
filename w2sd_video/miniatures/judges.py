"""Classifiers of the world's clips and pictures, and what they measure: prompt adherence and features for distances.

Clips are judged by their motion, pictures by the trail behind the sprite; which of the two is at hand is told by shape.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from w2sd_video.miniatures import WEIGHTS
from w2sd_video.miniatures.asked_once import asked_once
from w2sd_video.miniatures.judge_network import FRAMES, JudgeNetwork
from w2sd_video.miniatures.world import COLOURS, DIRECTIONS, SHAPES, Attributes, parse

Samples = np.ndarray | torch.Tensor | Sequence

HEADS = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "direction": tuple(DIRECTIONS)}
"""What the classifiers tell, and the labels of each; a size or a speed they do not tell."""


class Classifier(JudgeNetwork):
    """The network with the heads of sprites."""

    HEADS = HEADS


def labels_of(attributes: Attributes) -> list[int]:
    """The right answer of every head."""
    return [labels.index(getattr(attributes, name)) for name, labels in HEADS.items()]


@cache
def load_classifier(name: str = "classifier", weights: Path = WEIGHTS) -> Classifier:
    """The trained "classifier" of clips or "image_classifier" of pictures, in float32 on the CPU."""
    return Classifier.from_pretrained(weights / name)


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


@asked_once
@torch.no_grad()
def _features(judge: Classifier, x: torch.Tensor) -> torch.Tensor:
    """Return features (n, d), 256 samples at a time, where the classifier is."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(part.to(device)) for part in x.split(256)])


def classify(samples: Samples) -> list[Attributes]:
    """What is seen in each of the `samples`, clips or pictures, given as to `as_tensor`."""
    seen = {name: head_logits.argmax(1).tolist() for name, head_logits in logits(samples).items()}
    return [Attributes(*(HEADS[name][seen[name][i]] for name in HEADS)) for i in range(len(seen["shape"]))]


@torch.no_grad()
def logits(samples: Samples) -> dict[str, torch.Tensor]:
    """The logits (n, labels) of every head for `samples`, clips or pictures, given as to `as_tensor`."""
    x = as_tensor(samples)
    judge = _judge(x)
    return {name: head.cpu() for name, head in judge.logits_of(_features(judge, x)).items()}


def adherence(samples: Samples, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of the `samples` with the shape, colour and direction of their prompts, and with all three: "joint"."""
    wanted, seen = [parse(prompt) for prompt in prompts], classify(samples)
    right = np.array([[getattr(w, h) == getattr(s, h) for h in HEADS] for w, s in zip(wanted, seen, strict=True)])
    return {**dict(zip(HEADS, right.mean(0).tolist(), strict=True)), "joint": float(right.all(1).mean())}


def features(samples: Samples) -> np.ndarray:
    """Penultimate features (n, d) of `samples`, clips or pictures, given as to `as_tensor`."""
    x = as_tensor(samples)
    return _features(_judge(x), x).cpu().numpy()


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
