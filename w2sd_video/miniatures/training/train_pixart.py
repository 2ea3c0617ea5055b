"""Training of the PixArt track: one transformer on pictures, whose early checkpoint is the weak model.

The text encoder is the CogVideoX track's, the autoencoder the AnimateDiff track's, both as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from einops import rearrange
from transformers import T5EncoderModel

from w2sd_video.miniatures.training.data import encoded_pool
from w2sd_video.miniatures.training.diffusion import Noising, prompt_tokens, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import ddim_scheduler, image_transformer, t5_tokenizer
from w2sd_video.miniatures.training.train_animatediff import encoder

PICTURES = 8
"""Pictures in the pool for each clip of the other tracks' pools."""


def pool(out: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoded pictures (n, 4, 8, 8) and their prompts' indices."""
    latents, labels = encoded_pool(out / "pixart_pool.pt", encoder(out), PICTURES * count, frames=1, seed=15)
    return rearrange(latents, "clips 1 ... -> clips ..."), labels


@torch.no_grad()
def masked_embeddings(text_encoder: T5EncoderModel) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline feeds its denoiser for PROMPTS: embeddings (prompts, tokens, width) and their mask."""
    tokenizer = t5_tokenizer()
    tokens = prompt_tokens(tokenizer)
    mask = (tokens != tokenizer.pad_token_id).long()
    return text_encoder(tokens, attention_mask=mask)[0], mask


def train_weak(out: Path, budget: Budget, seed: int = 16) -> None:
    """Train the transformer; saved to `out/pixart_weak`."""
    torch.manual_seed(seed)
    _train("pixart_weak", image_transformer(), out, budget)


def train_strong(out: Path, budget: Budget, seed: int = 17) -> None:
    """Train the weak transformer on; saved to `out/pixart_strong`."""
    torch.manual_seed(seed)
    _train("pixart_strong", PixArtTransformer2DModel.from_pretrained(out / "pixart_weak"), out, budget)


def _train(name: str, denoiser: PixArtTransformer2DModel, out: Path, budget: Budget) -> None:
    denoiser.train()
    embeddings, mask = masked_embeddings(T5EncoderModel.from_pretrained(out / "t5").eval())
    noising = Noising(*pool(out, budget.pool), ddim_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(64)
        text = {"encoder_hidden_states": embeddings[label], "encoder_attention_mask": mask[label]}
        return v_loss(denoiser(noisy, timestep=t, **text).sample, v)

    def save() -> None:
        denoiser.save_pretrained(out / name)

    fit(name, denoiser, loss, out, budget, watch=save)
    save()
