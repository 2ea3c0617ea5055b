"""Training of the classifier on true clips, so made that "direction" can only mean motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from .classifier import HEADS, Classifier, labels_of
from .data import TABLE, random_clips
from .fit import Budget, fit, log

LABELS = torch.tensor([labels_of(attributes) for attributes in TABLE])
OPPOSITE = torch.tensor([1, 0, 3, 2])  # of left, right, up, down
FRAMES = 8


def train_classifier(out: Path, budget: Budget, seed: int = 8) -> None:
    """Train on clips of which half run backwards, labelled by their true motion; saved to `out/classifier`."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), Classifier()

    def loss() -> torch.Tensor:
        videos, labels = _batch(rng, 32)
        videos = videos + 0.1 * torch.rand(len(videos), 1, 1, 1, 1) * torch.randn_like(videos)
        logits = model(videos).values()
        return torch.stack([functional.cross_entropy(one, labels[:, i]) for i, one in enumerate(logits)]).sum()

    fit("classifier", model, loss, out, budget, lr=2e-3, decay=0.99)
    measured = measure(model.eval(), np.random.default_rng(seed + 1000), min(2000, budget.pool))
    log.info("classifier: %s", measured)
    model.save_pretrained(out / "classifier", **measured)


def _batch(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and labels (count, 3); the first half of the clips run backwards."""
    videos, index = random_clips(rng, count, FRAMES)
    labels, half = LABELS[index].clone(), count // 2
    videos[:half] = videos[:half].flip(1)
    labels[:half, 2] = OPPOSITE[labels[:half, 2]]
    return videos, labels


@torch.no_grad()
def measure(model: Classifier, rng: np.random.Generator, count: int) -> dict[str, float]:
    """Accuracy on fresh clips of the world: of every head, joint, and of the direction when clips run backwards."""
    videos, index = random_clips(rng, count, FRAMES)
    right = torch.stack([logits.argmax(1) == LABELS[index, i] for i, logits in enumerate(model(videos).values())], 1)
    back = model(videos.flip(1))["direction"].argmax(1) == OPPOSITE[LABELS[index, 2]]
    shares = dict(zip(HEADS, right.float().mean(0).tolist(), strict=True))
    measured = {**shares, "joint": right.all(1).float().mean().item(), "backwards": back.float().mean().item()}
    return {key: round(value, 4) for key, value in measured.items()}
