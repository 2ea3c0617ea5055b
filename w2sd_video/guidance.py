"""Classifier-free guidance: two predictions of one network, with the prompt and without, made into one."""

from __future__ import annotations

import torch

from w2sd_video.argument_checks import check_latents, real_number


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Return ``uncond + scale * (cond - uncond)``, computed in the precision of what is given.

    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598, equation 6), where the scale is ``1 + w``.

    Args:
        cond: prediction with the prompt, of any shape.
        uncond: prediction without it, or with the negative prompt, of the same shape.
        scale: any real number; 1 gives `cond`, 0 gives `uncond`, both up to rounding.

    Returns:
        A prediction of the same shape and dtype.

    Raises:
        TypeError: no floating-point tensors, or a scale that is no number.
        ValueError: predictions of two shapes, or a scale that is not finite.
    """
    check_latents(cond, "cond")
    check_latents(uncond, "uncond")
    if cond.shape != uncond.shape:
        raise ValueError(f"cond and uncond must have one shape, got {tuple(cond.shape)} and {tuple(uncond.shape)}")
    scale = real_number("scale", scale)
    return uncond + scale * (cond - uncond)
