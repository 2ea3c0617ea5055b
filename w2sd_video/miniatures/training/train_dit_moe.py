"""Training of the DiT-MoE track: one transformer of experts on pictures, told their class instead of a prompt.

Its weak model is itself, with each token sent to the experts that fit it least. The autoencoder is the AnimateDiff
track's, the pictures are those of the PixArt track.
"""

from __future__ import annotations

from pathlib import Path

import torch

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.miniatures.training.data import TABLE
from w2sd_video.miniatures.training.diffusion import Noising, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.mixture_of_experts import BALANCE, dit_moe, watched_imbalance
from w2sd_video.miniatures.training.models import ddim_scheduler
from w2sd_video.miniatures.training.train_pixart import pool
from w2sd_video.miniatures.world import SIZE, prompts

CLASSES = prompts(sizes_and_speeds=False)
"""Shape, colour and direction, as words; the number of a class is its place here."""
NULL = len(CLASSES)


def network() -> DiTMoETransformer2DModel:
    """The transformer of the sprites: 16 tokens."""
    return dit_moe(SIZE // 4, len(CLASSES))


def train(out: Path, budget: Budget, seed: int = 18) -> None:
    """Train the transformer; saved to `out/dit_moe`."""
    torch.manual_seed(seed)
    denoiser = network().train()
    latents, labels = pool(out, budget.pool)
    noising = Noising(latents, labels, ddim_scheduler().alphas_cumprod)
    class_of = torch.tensor([CLASSES.index(f"a {a.colour} {a.shape} moving {a.direction}") for a in TABLE] + [NULL])
    imbalance = watched_imbalance(denoiser)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(64)
        return v_loss(denoiser(noisy, t, class_of[label]).sample, v) + BALANCE * imbalance()

    def save() -> None:
        denoiser.save_pretrained(out / "dit_moe")

    fit("dit_moe", denoiser, loss, out, budget, watch=save)
    save()
