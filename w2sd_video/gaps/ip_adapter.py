"""Scales of IP-Adapters: images that a denoiser attends to beside the text."""

from __future__ import annotations

from typing import Any

from torch import nn

from w2sd_video.gaps.swaps import Swap, scale_like


def ip_adapter_scales(denoiser: nn.Module, scale: float) -> list[Swap]:
    """Return the swaps that give every IP-Adapter of a denoiser one scale; at 0 its attention is not evaluated.

    Raises:
        ValueError: a denoiser without an IP-Adapter.
    """
    adapters = _adapters(denoiser)
    if not adapters:
        raise ValueError(
            f"a branch has ip_adapter_scale={scale:g}, but no IP-Adapter is loaded into this "
            f"{type(denoiser).__name__}; load one by pipe.load_ip_adapter(...)"
        )
    return [(adapter, {"scale": scale_like(adapter.scale, scale)}) for adapter in adapters]


def has_ip_adapter(denoiser: nn.Module) -> bool:
    """Return whether an IP-Adapter is loaded into a denoiser."""
    return bool(_adapters(denoiser))


def _adapters(denoiser: nn.Module) -> list[Any]:
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    # diffusers has no base class of these processors, but all of them have it in their name.
    return [processor for processor in processors if "IPAdapter" in type(processor).__name__]
