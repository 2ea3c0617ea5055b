"""Training of the judges: of clips, so made that "direction" can only mean motion, and of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from w2sd_video.miniatures.judges import FRAMES, HEADS, Classifier, labels_of
from w2sd_video.miniatures.training.data import TABLE, random_clips
from w2sd_video.miniatures.training.fit import Budget, fit, log

LABELS = torch.tensor([labels_of(attributes) for attributes in TABLE])
OPPOSITE = torch.tensor([1, 0, 3, 2])
"""The label of the opposite direction: of left, right, up, down."""


def train_classifier(out: Path, budget: Budget, seed: int = 8) -> None:
    """Train on clips of which half run backwards, labelled by their true motion; saved to `out/classifier`."""
    _train("classifier", Classifier(FRAMES), _clips, out, budget, seed)


def train_image_classifier(out: Path, budget: Budget, seed: int = 14) -> None:
    """Train on pictures, whose trail tells the direction; saved to `out/image_classifier`."""
    _train("image_classifier", Classifier(1), _pictures, out, budget, seed)


Draw = Callable[[np.random.Generator, int], tuple[torch.Tensor, torch.Tensor]]
"""Samples (count, frames, 3, 32, 32) and their labels (count, heads)."""


def _train(name: str, model: Classifier, draw: Draw, out: Path, budget: Budget, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def loss() -> torch.Tensor:
        x, labels = draw(rng, 32)
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, 1) * torch.randn_like(x)
        logits = model(x).values()
        return torch.stack(
            [functional.cross_entropy(head_logits, labels[:, i]) for i, head_logits in enumerate(logits)]
        ).sum()

    fit(name, model, loss, out, budget, lr=2e-3, decay=0.99)
    measured = measure(model.eval(), np.random.default_rng(seed + 1000), min(2000, budget.pool))
    log.info("%s: %s", name, measured)
    model.save_pretrained(out / name, **measured)


def _clips(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips; the first half of them run backwards."""
    videos, index = random_clips(rng, count, FRAMES)
    labels, half = LABELS[index].clone(), count // 2
    videos[:half] = videos[:half].flip(1)
    labels[:half, 2] = OPPOSITE[labels[:half, 2]]
    return videos, labels


def _pictures(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, as clips of one frame."""
    pictures, index = random_clips(rng, count, 1)
    return pictures, LABELS[index]


@torch.no_grad()
def measure(model: Classifier, rng: np.random.Generator, count: int) -> dict[str, float]:
    """Accuracy on fresh samples of the world: of every head, joint, and of the direction when clips run backwards."""
    x, index = random_clips(rng, count, model.frames)
    right = torch.stack([logits.argmax(1) == LABELS[index, i] for i, logits in enumerate(model(x).values())], 1)
    shares = dict(zip(HEADS, right.float().mean(0).tolist(), strict=True))
    measured = {**shares, "joint": right.all(1).float().mean().item()}
    if model.frames > 1:
        recognised = model(x.flip(1))["direction"].argmax(1) == OPPOSITE[LABELS[index, 2]]
        measured["backwards"] = recognised.float().mean().item()
    return {key: round(value, 4) for key, value in measured.items()}
