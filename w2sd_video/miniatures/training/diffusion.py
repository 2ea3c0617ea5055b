"""What the denoisers of both tracks train with: noised latents, v targets, and prompts dropped for guidance."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from w2sd_video.miniatures.training.data import PROMPTS
from w2sd_video.miniatures.training.models import TEXT_LENGTH

UNCONDITIONAL = len(PROMPTS) - 1
DROPOUT = 0.1
"""Share of samples trained without their prompt."""


class Noising:
    """Draws training samples of v prediction from a pool of latents."""

    def __init__(self, latents: torch.Tensor, labels: torch.Tensor, alphas_cumprod: torch.Tensor) -> None:
        """`latents` (n, ...) in half precision, `labels` (n,) indices into PROMPTS, `alphas_cumprod` (steps,)."""
        self.latents, self.labels, self.alphas_cumprod = latents, labels, alphas_cumprod

    def draw(self, count: int, lean: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noised latents, their timesteps, their prompts' indices, and the v to be predicted.

        Timesteps are uniform; a `lean` above 1 draws more of the little noised ones, where details are made.
        """
        pick = torch.randint(len(self.latents), (count,))
        return noised(self.latents[pick].float(), self.labels[pick], self.alphas_cumprod, lean)


def noised(
    clean: torch.Tensor, labels: torch.Tensor, alphas_cumprod: torch.Tensor, lean: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `Noising.draw` returns, of given latents (n, ...) and labels (n,)."""
    count = len(clean)
    labels = torch.where(torch.rand(count) < DROPOUT, UNCONDITIONAL, labels)
    t = (len(alphas_cumprod) * torch.rand(count) ** lean).long().clamp(max=len(alphas_cumprod) - 1)
    level = alphas_cumprod[t].float().view(-1, *[1] * (clean.ndim - 1))
    noise = torch.randn_like(clean)
    alpha, sigma = level.sqrt(), (1 - level).sqrt()
    return alpha * clean + sigma * noise, t, labels, alpha * noise - sigma * clean


def prompt_tokens(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Token ids of PROMPTS, (prompts, TEXT_LENGTH), padded as the pipelines pad."""
    kwargs = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(PROMPTS, **kwargs).input_ids


@torch.no_grad()
def prompt_embeddings(text_encoder: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """What the pipelines feed their denoiser for PROMPTS, (prompts, TEXT_LENGTH, width)."""
    return text_encoder(tokens)[0]


def v_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of v."""
    return functional.mse_loss(prediction, target)
