"""Training of the CogVideoX track: one transformer, whose early checkpoint is the weak model.

The text encoder is trained up to that checkpoint and kept from there on, so that both models read the same text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from einops import rearrange
from torch import nn
from transformers import T5EncoderModel

from w2sd_video.miniatures.training.data import encoded_pool
from w2sd_video.miniatures.training.diffusion import Noising, prompt_embeddings, prompt_tokens, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import cogvideox_scheduler, t5_text_encoder, t5_tokenizer, transformer

FRAMES = 9


def pool(out: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoded clips (n, 3, 12, 8, 8) and their prompts' indices."""
    vae = AutoencoderKLCogVideoX.from_pretrained(out / "video_vae")

    def encode(videos: torch.Tensor) -> torch.Tensor:
        latents = vae.encode(rearrange(videos, "clips frames rgb ... -> clips rgb frames ...")).latent_dist.mean
        return rearrange(latents, "clips channels frames ... -> clips frames channels ...") * vae.config.scaling_factor

    return encoded_pool(out / "cogvideox_pool.pt", encode, count, FRAMES, seed=12)


def train_weak(out: Path, budget: Budget, seed: int = 6) -> None:
    """Train transformer and text encoder; saved to `out/transformer_weak` and `out/t5`."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    denoiser, text_encoder = transformer(), t5_text_encoder(tokenizer)
    tokens, noising = prompt_tokens(tokenizer), Noising(*pool(out, budget.pool), cogvideox_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(32)
        return v_loss(denoiser(noisy, text_encoder(tokens[label])[0], t).sample, v)

    def save() -> None:
        denoiser.save_pretrained(out / "transformer_weak")
        text_encoder.save_pretrained(out / "t5")

    fit("transformer_weak", nn.ModuleList([denoiser, text_encoder]), loss, out, budget, watch=save)
    save()


def train_strong(out: Path, budget: Budget, seed: int = 7) -> None:
    """Train the weak transformer on, its text encoder kept; saved to `out/transformer_strong`."""
    _train_on("transformer_weak", "transformer_strong", out, budget, seed)


def train_details(out: Path, budget: Budget, seed: int = 13) -> None:
    """Train the strong transformer on, leaning to little noise, to tell circles from squares; saved in its place.

    CogVideoX's schedule spends most timesteps on noise in which such details can't be seen.
    """
    _train_on("transformer_strong", "transformer_details", out, budget, seed, lr=6e-4, lean=1.7)


def _train_on(start: str, name: str, out: Path, budget: Budget, seed: int, lr: float = 1e-3, lean: float = 1.0) -> None:
    torch.manual_seed(seed)
    denoiser = CogVideoXTransformer3DModel.from_pretrained(out / start)
    denoiser.train()
    text_encoder = T5EncoderModel.from_pretrained(out / "t5").eval()
    embeddings = prompt_embeddings(text_encoder, prompt_tokens(t5_tokenizer()))
    noising = Noising(*pool(out, budget.pool), cogvideox_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(32, lean)
        return v_loss(denoiser(noisy, embeddings[label], t).sample, v)

    fit(name, denoiser, loss, out, budget, lr=lr)
    denoiser.save_pretrained(out / "transformer_strong")
