"""DiT-MoE in miniature, and the loss that keeps all of its experts in use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel, MoEGate

BALANCE = 0.01
"""Weight of the loss that keeps all experts in use, as in the published training."""


def dit_moe(size: int, classes: int) -> DiTMoETransformer2DModel:
    """Six blocks, each with eight experts, of which a token is sent to two, and two shared ones.

    Args:
        size: height and width of the latents.
        classes: how many there are.
    """
    model = DiTMoETransformer2DModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=32,
        mlp_ratio=1,
        num_classes=classes,
    )
    for module in [model.final_layer, *model.blocks]:  # each block begins as the identity
        nn.init.zeros_(module.adaLN_modulation[-1].weight)
        nn.init.zeros_(module.adaLN_modulation[-1].bias)
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.zeros_(model.final_layer.linear.bias)
    nn.init.normal_(model.y_embedder.embedding_table.weight, std=0.02)
    return model


def watched_imbalance(denoiser: nn.Module) -> Callable[[], torch.Tensor]:
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
