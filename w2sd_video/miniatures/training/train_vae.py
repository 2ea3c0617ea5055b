"""Training of the two autoencoders: pixels to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX
from einops import rearrange, reduce
from torch.nn import functional

from w2sd_video.miniatures.training.data import random_clips
from w2sd_video.miniatures.training.fit import Budget, fit, log
from w2sd_video.miniatures.training.models import image_vae, video_vae

KL_WEIGHT = 1e-5
"""Of the divergence, summed over a latent: just enough to keep latents near to a Gaussian."""
V = TypeVar("V", AutoencoderKL, AutoencoderKLCogVideoX)
_BY_FRAME = "clips frames rgb height width -> (clips frames) rgb height width"
_AS_VIDEO = "clips frames rgb height width -> clips rgb frames height width"
"""The layouts that the VAE of images and that of videos take."""


def train_image_vae(out: Path, budget: Budget, seed: int = 1) -> AutoencoderKL:
    """Train the AnimateDiff track's autoencoder on single frames; saved to `out/image_vae`."""
    torch.manual_seed(seed)
    rng, vae = np.random.default_rng(seed), image_vae()

    def loss() -> torch.Tensor:
        frames = rearrange(random_clips(rng, 8, 8)[0][:, ::2], _BY_FRAME)
        return _vae_loss(vae, frames)

    fit("image_vae", vae, loss, out, budget, lr=2e-3, decay=0.995)
    frames = rearrange(random_clips(np.random.default_rng(seed + 1000), min(32, budget.pool), 8)[0], _BY_FRAME)
    return _finish(vae, frames, out / "image_vae")


def train_video_vae(out: Path, budget: Budget, seed: int = 2) -> AutoencoderKLCogVideoX:
    """Train the CogVideoX track's autoencoder on clips of nine frames; saved to `out/video_vae`."""
    torch.manual_seed(seed)
    rng, vae = np.random.default_rng(seed), video_vae()

    def loss() -> torch.Tensor:
        return _vae_loss(vae, rearrange(random_clips(rng, 4, 9)[0], _AS_VIDEO))

    fit("video_vae", vae, loss, out, budget, lr=2e-3, decay=0.995)
    videos = rearrange(random_clips(np.random.default_rng(seed + 1000), min(32, budget.pool), 9)[0], _AS_VIDEO)
    return _finish(vae, videos, out / "video_vae")


def train_video_decoder(out: Path, budget: Budget, seed: int = 10) -> AutoencoderKLCogVideoX:
    """Train the video decoder on, on slightly wrong latents such as a denoiser makes; `out/video_vae` is written anew.

    The encoder is kept, so that latents stay what they are: this may run beside the denoiser's training.
    """
    torch.manual_seed(seed)
    rng, vae = np.random.default_rng(seed), AutoencoderKLCogVideoX.from_pretrained(out / "video_vae")
    vae.encoder.requires_grad_(False)

    def loss() -> torch.Tensor:
        x = rearrange(random_clips(rng, 4, 9)[0], _AS_VIDEO)
        latents = vae.encode(x).latent_dist.mean
        return _picture_loss(vae.decode(latents + 0.1 * latents.std() * torch.randn_like(latents)).sample, x)

    fit("video_decoder", vae, loss, out, budget, decay=0.99)
    vae.save_pretrained(out / "video_vae")
    return vae


def _vae_loss(vae: AutoencoderKL | AutoencoderKLCogVideoX, x: torch.Tensor) -> torch.Tensor:
    posterior = vae.encode(x).latent_dist
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    return _picture_loss(vae.decode(posterior.sample()).sample, x) + KL_WEIGHT * kl.flatten(1).sum(1).mean()


def _picture_loss(reconstruction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error, the sprite and its edge counting for more than the background."""
    light = reduce(x, "samples ... height width -> samples 1 height width", "max")
    # The background is at -0.89; what is lit above -0.7, and two pixels around it, counts twice.
    near = functional.max_pool2d((light > -0.7).float(), 5, stride=1, padding=2)
    error = (reconstruction - x) * (1 + (near[:, None] if x.ndim == 5 else near))
    return error.square().mean() + 0.3 * error.abs().mean()


@torch.no_grad()
def _finish(vae: V, x: torch.Tensor, folder: Path) -> V:
    """Set the scaling factor that gives latents unit variance, save, and log the error of a round trip."""
    latents = vae.encode(x).latent_dist.mean
    error = (vae.decode(latents).sample.clamp(-1, 1) - x).square().mean()
    log.info(
        "%s: PSNR %.1f dB, latent mean %.3f, std %.3f",
        folder.name,
        10 * torch.log10(4 / error),
        latents.mean(),
        latents.std(),
    )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(folder)
    return vae.requires_grad_(False).eval()
