"""The latents of clips, in the layout of a pipeline's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from w2sd_video.settings.schema import ConfigError

_FRAMES_AS_IMAGES = ("AnimateDiff", "Latte")
"""Starts of the names of the pipelines that make videos with the VAE of an image model."""

_VIDEO_VAES = ("AutoencoderKLCogVideoX", "AutoencoderKLWan")

_ENCODABLE = "Stable Diffusion, PixArt, DiT, DiT-MoE, AnimateDiff, Latte, CogVideoX and Wan"


def check_encodable(pipe: Any) -> None:
    """Refuse a pipeline whose latents we cannot make of clips.

    Raises:
        ConfigError: the message lists the families that can be encoded.
    """
    kind = type(getattr(pipe, "vae", None)).__name__
    if kind not in ("AutoencoderKL", *_VIDEO_VAES) or hasattr(pipe, "_pack_latents"):
        raise ConfigError(
            f"model: the clips cannot be encoded for a {type(pipe).__name__} ({kind}); what can be are pipelines of "
            f"{_ENCODABLE}"
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
    vae, kind = pipe.vae, type(pipe).__name__
    frames = torch.from_numpy(clips).movedim(-1, 2).to(pipe._execution_device, torch.float32) / 127.5 - 1  # n f c h w
    if type(vae).__name__ in _VIDEO_VAES:
        latents = _normalised(vae, vae.encode(frames.transpose(1, 2).to(vae.dtype)).latent_dist.mode())
        latents = latents.transpose(1, 2) if type(vae).__name__ == "AutoencoderKLCogVideoX" else latents
    else:
        latents = _normalised(vae, vae.encode(frames.flatten(0, 1).to(vae.dtype)).latent_dist.mode())
        latents = latents.unflatten(0, frames.shape[:2]).transpose(1, 2)
        if not kind.startswith(_FRAMES_AS_IMAGES):
            if frames.shape[1] != 1:
                raise ConfigError(f"clips: {frames.shape[1]} frames each, but a {kind} makes images; give images")
            latents = latents[:, :, 0]
    if not latents.isfinite().all():
        raise ConfigError(f"clips: the VAE's latents are not finite in {vae.dtype}; use another --dtype")
    return latents.to("cpu", torch.float32)


def _normalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scale latents for the denoiser, as the VAE's config says."""
    config = vae.config
    if config.get("latents_mean") is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, std = (torch.tensor(config[name]).view(shape).to(latents) for name in ("latents_mean", "latents_std"))
        latents = (latents - mean) / std
    scale = config.get("scaling_factor") or 1.0
    scale = 1 / scale if config.get("invert_scale_latents") else scale
    return (latents - (config.get("shift_factor") or 0.0)) * scale
