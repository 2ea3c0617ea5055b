"""Classifier-free guidance: two predictions of one network, with the prompt and without, made into one."""

from __future__ import annotations

import torch


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Return ``uncond + scale * (cond - uncond)``, computed in the precision of what is given.

    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598, equation 6), where the scale is ``1 + w``.

    Args:
        cond: prediction with the prompt, of any shape.
        uncond: prediction without it, or with the negative prompt, of the same shape.
        scale: any real number; 1 gives `cond`, 0 gives `uncond`, both up to rounding.

    Returns:
        A prediction of the same shape and dtype.
    """
    return uncond + scale * (cond - uncond)
