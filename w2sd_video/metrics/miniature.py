"""Metrics of the miniatures' worlds, where what a prompt asks for is known exactly.

Which world a clip is of is told by its size, scenes being of 64 x 64 pixels; a class of clothes is told by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from w2sd_video.metrics import Distance, OfUnits, Score, manifold
from w2sd_video.metrics.distances import SetDistance, distance, kernel_distance_metric
from w2sd_video.metrics.efficientnet import fashion_log_probabilities
from w2sd_video.metrics.frechet import frechet_distance as distance_of
from w2sd_video.metrics.frechet import frechet_principal as principal_distance_of
from w2sd_video.miniatures import fashion, judges, scene_judges, scenes, world


def adherence() -> Score:
    """Whether all that the prompt says is so, 0 or 1.

    Of sprites shape, colour and direction; of scenes these, size and speed of both things; of clothes the class.
    """

    def of(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if _are_clothes(prompts):
            return (fashion_log_probabilities(clips).argmax(1) == fashion.wanted(prompts)).double().numpy()
        if _are_scenes(clips):
            return scene_judges.right(clips, prompts).flatten(1).all(1).double().numpy()
        wanted, seen = [world.parse(prompt) for prompt in prompts], judges.classify(clips)
        heads = judges.HEADS
        right = [all(getattr(w, h) == getattr(s, h) for h in heads) for w, s in zip(wanted, seen, strict=True)]
        return np.array(right, float)

    return Score("adherence", True, of, is_share=True)


def likelihood() -> Score:
    """Logarithm of the probability that the judge gives to what the prompt says, as `adherence` counts it."""

    def of(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if _are_clothes(prompts):
            return fashion_log_probabilities(clips).gather(1, fashion.wanted(prompts)[:, None])[:, 0].numpy()
        if _are_scenes(clips):
            return scene_judges.log_likelihood(clips, prompts)
        labels = torch.tensor([judges.labels_of(world.parse(prompt)) for prompt in prompts])
        logits = judges.logits(clips).values()
        chosen = [
            head_logits.double().log_softmax(1).gather(1, labels[:, i : i + 1]) for i, head_logits in enumerate(logits)
        ]
        return torch.cat(chosen, 1).sum(1).numpy()

    return Score("likelihood", True, of)


def _are_clothes(prompts: Sequence[str]) -> bool:
    return len(prompts) > 0 and prompts[0] in fashion.CLASSES


def _are_scenes(clips: np.ndarray) -> bool:
    return clips.shape[2:4] == (scenes.SIZE, scenes.SIZE)


def _features(clips: np.ndarray) -> np.ndarray:
    """Return features of clips of any model: of that size by the judge of scenes, if it is trained."""
    is_of_scenes = _are_scenes(clips) and scene_judges.is_trained(clips.shape[1] > 1)
    return scene_judges.features(clips) if is_of_scenes else judges.features(clips)


def hollow() -> Score:
    """Whether a thing of a scene is hollow, the style that a model is fine-tuned on, 0 or 1."""
    return Score("hollow", True, lambda clips, _: scenes.are_hollow(clips).astype(float), is_share=True)


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
    if _are_scenes(clips):
        return scenes.motion_errors(clips, prompts)
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
    return distance("frechet_distance", distance_of, _features, "classifier")


def frechet_principal(number: int = 16) -> Distance:
    """Fréchet distance on the first principal features of real clips, so few that their number hardly tells.

    Args:
        number: of features; an evaluation takes one for each 32 samples of its report.
    """
    return distance("frechet_principal", partial(principal_distance_of, number=number), _features, "classifier")


def kid() -> Distance:
    """Kernel distance (KID) of the classifier's features to those of real clips: unbiased, 0 for real clips."""
    return kernel_distance_metric("kid", _features, "classifier")


def precision() -> Distance:
    """Share of clips within the manifold of real ones, in the classifier's features."""
    return _share_in_manifold("precision", manifold.precision, manifold.precision_of_units)


def recall() -> Distance:
    """Share of real clips within the manifold of those that are measured, in the classifier's features."""
    return _share_in_manifold("recall", manifold.recall, manifold.recall_of_units)


def _share_in_manifold(name: str, share: SetDistance, of_units: OfUnits) -> Distance:
    return distance(name, share, _features, "classifier", True, of_units=of_units, is_share=True)
