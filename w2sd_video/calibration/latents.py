"""The latents of clips, in the layout of a pipeline's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange

from w2sd_video.messages import ConfigError

_FRAMES_AS_IMAGES = ("AnimateDiff", "Latte")
"""Starts of the names of the pipelines that make videos with the VAE of an image model."""

_VIDEO_VAES = ("AutoencoderKLCogVideoX", "AutoencoderKLWan")
"""VAEs that encode a video as a whole, tested against their pipelines' decoding; others may scale in another way."""

_ENCODABLE = "Stable Diffusion, PixArt, DiT, DiT-MoE, AnimateDiff, Latte, CogVideoX and Wan"
"""The pipelines that have one of these VAEs, for the message."""


def check_encodable(pipe: Any) -> None:
    """Refuse a pipeline whose latents we cannot make of clips.

    Raises:
        ConfigError: the message lists the families that can be encoded.
    """
    vae_class = type(getattr(pipe, "vae", None)).__name__
    # Pipelines that pack latents into tokens (Flux and its kin) have a layout of their own, which we cannot make.
    if vae_class not in ("AutoencoderKL", *_VIDEO_VAES) or hasattr(pipe, "_pack_latents"):
        raise ConfigError(
            f"model: the clips cannot be encoded for a {type(pipe).__name__} ({vae_class}); what can be are pipelines "
            f"of {_ENCODABLE}"
        )


@torch.no_grad()
def encode(pipe: Any, clips: np.ndarray) -> torch.Tensor:
    """Encode clips with a pipeline's VAE, as the means of its distribution.

    Args:
        pipe: one that `check_encodable` accepts.
        clips: uint8 (clips, frames, height, width, 3).

    Returns:
        Latents scaled and laid out as the pipeline's own, float32 on the CPU: (n, channels, height, width) of images,
        (n, channels, frames, height, width) of videos, and (n, frames, channels, height, width) for CogVideoX.

    Raises:
        ConfigError: videos for a model of images, or latents that are not finite.
    """
    vae, pipeline_class = pipe.vae, type(pipe).__name__
    pixels = torch.from_numpy(clips).to(pipe._execution_device, torch.float32) / 127.5 - 1
    if type(vae).__name__ in _VIDEO_VAES:
        latents = _encoded(vae, rearrange(pixels, "n frames height width rgb -> n rgb frames height width"))
        if type(vae).__name__ == "AutoencoderKLCogVideoX":
            latents = rearrange(latents, "n channels frames height width -> n frames channels height width")
    else:
        images = _encoded(vae, rearrange(pixels, "n frames height width rgb -> (n frames) rgb height width"))
        latents = rearrange(images, "(n frames) channels ... -> n channels frames ...", n=len(clips))
        if not pipeline_class.startswith(_FRAMES_AS_IMAGES):
            if clips.shape[1] != 1:
                raise ConfigError(
                    f"clips: {clips.shape[1]} frames each, but a {pipeline_class} makes images; give images"
                )
            latents = latents[:, :, 0]
    if not latents.isfinite().all():
        raise ConfigError(f"clips: the VAE's latents are not finite in {vae.dtype}; use another --dtype")
    return latents.to("cpu", torch.float32)


def _encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the latents of pixels from -1 to 1, scaled for the denoiser as the VAE's config says."""
    config, latents = vae.config, vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
    if config.get("latents_mean") is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, std = (torch.tensor(config[name]).view(shape).to(latents) for name in ("latents_mean", "latents_std"))
        latents = (latents - mean) / std
    scale = config.get("scaling_factor") or 1.0
    scale = 1 / scale if config.get("invert_scale_latents") else scale
    return (latents - (config.get("shift_factor") or 0.0)) * scale
