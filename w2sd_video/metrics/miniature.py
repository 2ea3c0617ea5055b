"""Metrics of the miniatures' world, where what a prompt asks for is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from w2sd_video.metrics import Distance, OfUnits, Score, manifold
from w2sd_video.metrics.distances import SetDistance, distance, kernel_distance_metric
from w2sd_video.metrics.frechet import frechet_distance as distance_of
from w2sd_video.metrics.frechet import frechet_principal as principal_distance_of
from w2sd_video.miniatures import judges, world


def adherence() -> Score:
    """Whether shape, colour and direction are all as the prompt says, 0 or 1."""

    def of(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        wanted, seen = [world.parse(prompt) for prompt in prompts], judges.classify(clips)
        heads = judges.HEADS
        right = [all(getattr(w, h) == getattr(s, h) for h in heads) for w, s in zip(wanted, seen, strict=True)]
        return np.array(right, float)

    return Score("adherence", True, of, is_share=True)


def likelihood() -> Score:
    """Logarithm of the probability that the classifier gives to the prompt's shape, colour and direction."""

    def of(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        labels = torch.tensor([judges.labels_of(world.parse(prompt)) for prompt in prompts])
        logits = judges.logits(clips).values()
        chosen = [
            head_logits.double().log_softmax(1).gather(1, labels[:, i : i + 1]) for i, head_logits in enumerate(logits)
        ]
        return torch.cat(chosen, 1).sum(1).numpy()

    return Score("likelihood", True, of)


def comets() -> Score:
    """Whether the trail is of the style that the LoRA was trained on, 0 or 1."""
    return Score("comets", True, lambda clips, _: judges.comets(clips).astype(float), is_share=True)


def motion_error() -> Score:
    """How far, in pixels, the seen centres are from the nearest motion that the world could make of the prompt.

    The world moves a sprite uniformly, along one axis, at a speed within the range of its word. The nearest such motion
    is a least-squares fit; the error is the root mean square distance from it over the frames.
    """
    return Score("motion_error", False, _motion_errors)


def _motion_errors(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    if clips.shape[1] == 1:
        return np.full(len(clips), np.nan)
    time = np.arange(clips.shape[1]) - (clips.shape[1] - 1) / 2
    errors = []
    for centres, prompt in zip(world.centres(clips), prompts, strict=True):
        wanted = world.parse(prompt)
        slowest, fastest = world.speeds(wanted.speed)
        offsets = centres - centres.mean(0)
        along = np.array(world.DIRECTIONS[wanted.direction], float)
        speed = np.clip(time @ offsets @ along / (time @ time), slowest, fastest)
        errors.append(np.sqrt(((offsets - speed * time[:, None] * along) ** 2).sum(1).mean()))
    return np.array(errors)


def frechet_distance() -> Distance:
    """Fréchet distance of the classifier's features to those of real clips; it depends on how many there are."""
    return distance("frechet_distance", distance_of, judges.features, "classifier")


def frechet_principal(number: int = 16) -> Distance:
    """Fréchet distance on the first principal features of real clips, so few that their number hardly tells.

    Args:
        number: of features; an evaluation takes one for each 32 samples of its report.
    """
    return distance("frechet_principal", partial(principal_distance_of, number=number), judges.features, "classifier")


def kid() -> Distance:
    """Kernel distance (KID) of the classifier's features to those of real clips: unbiased, 0 for real clips."""
    return kernel_distance_metric("kid", judges.features, "classifier")


def precision() -> Distance:
    """Share of clips within the manifold of real ones, in the classifier's features."""
    return _share_in_manifold("precision", manifold.precision, manifold.precision_of_units)


def recall() -> Distance:
    """Share of real clips within the manifold of those that are measured, in the classifier's features."""
    return _share_in_manifold("recall", manifold.recall, manifold.recall_of_units)


def _share_in_manifold(name: str, share: SetDistance, of_units: OfUnits) -> Distance:
    return distance(name, share, judges.features, "classifier", True, of_units=of_units, is_share=True)
