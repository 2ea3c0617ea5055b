"""Training of the DiT-MoE track: one transformer of experts on pictures, told their class instead of a prompt.

Its weak model is itself, with each token sent to the experts that fit it least. The autoencoder is the AnimateDiff
track's, the pictures are those of the PixArt track.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel, MoEGate
from w2sd_video.miniatures.training.data import TABLE
from w2sd_video.miniatures.training.diffusion import Noising, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import ddim_scheduler
from w2sd_video.miniatures.training.train_pixart import pool
from w2sd_video.miniatures.world import SIZE, prompts

CLASSES = prompts(sizes_and_speeds=False)
"""Shape, colour and direction, as words; the number of a class is its place here."""
NULL = len(CLASSES)
BALANCE = 0.01
"""Weight of the loss that keeps all experts in use, as in the published training."""


def network() -> DiTMoETransformer2DModel:
    """Six blocks over 16 tokens, each with eight experts, of which a token is sent to two, and two shared ones."""
    model = DiTMoETransformer2DModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=32,
        mlp_ratio=1,
        num_classes=len(CLASSES),
    )
    for module in [model.final_layer, *model.blocks]:  # each block begins as the identity
        nn.init.zeros_(module.adaLN_modulation[-1].weight)
        nn.init.zeros_(module.adaLN_modulation[-1].bias)
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.zeros_(model.final_layer.linear.bias)
    nn.init.normal_(model.y_embedder.embedding_table.weight, std=0.02)
    return model


def train(out: Path, budget: Budget, seed: int = 18) -> None:
    """Train the transformer; saved to `out/dit_moe`."""
    torch.manual_seed(seed)
    denoiser = network().train()
    latents, labels = pool(out, budget.pool)
    noising = Noising(latents, labels, ddim_scheduler().alphas_cumprod)
    class_of = torch.tensor([CLASSES.index(f"a {a.colour} {a.shape} moving {a.direction}") for a in TABLE] + [NULL])
    imbalance = _watch_gates(denoiser)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(64)
        return v_loss(denoiser(noisy, t, class_of[label]).sample, v) + BALANCE * imbalance()

    def save() -> None:
        denoiser.save_pretrained(out / "dit_moe")

    fit("dit_moe", denoiser, loss, out, budget, watch=save)
    save()


def _watch_gates(denoiser: nn.Module) -> Callable[[], torch.Tensor]:
    """Return a function that takes the gates' imbalance in the latest forward pass, 1 a gate where none is.

    It is the sum over the experts of their share of the choices times their mean probability, times their number.
    """
    imbalances: list[torch.Tensor] = []

    def record(gate: MoEGate, inputs: tuple[torch.Tensor], outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        scores = gate.scores(inputs[0])
        chosen = functional.one_hot(outputs[0].flatten(), len(gate.weight)).float().mean(0)
        imbalances.append(len(gate.weight) * (chosen * scores.mean(0)).sum())

    for module in denoiser.modules():
        if isinstance(module, MoEGate):
            module.register_forward_hook(record)

    def take_sum() -> torch.Tensor:
        total = torch.stack(imbalances).sum()
        imbalances.clear()
        return total

    return take_sum
