"""Scales of LoRA adapters, without touching a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from w2sd_video.gaps.swaps import Swap


def lora_scales(denoiser: nn.Module, scales: Mapping[str, float]) -> list[Swap]:
    """Return the swaps that give the adapters of a denoiser their scales.

    Args:
        denoiser: a module into which diffusers (peft) loaded adapters.
        scales: scale by adapter name; an adapter that is loaded but not active is made so, one that is not named
            keeps its state.

    Raises:
        ValueError: an adapter that is fused into the weights.
    """
    return [(layer, _state(layer, scales)) for layer in _lora_layers(denoiser) if set(scales) & set(layer.scaling)]


def check_loaded(scales: Mapping[str, float], denoisers: Iterable[nn.Module]) -> None:
    """Refuse an adapter that none of a model's denoisers has (of two stages one may).

    Raises:
        ValueError: naming it and the loaded ones.
    """
    loaded = {name for denoiser in denoisers for layer in _lora_layers(denoiser) for name in layer.scaling}
    if unknown := set(scales) - loaded:
        raise ValueError(
            f"no LoRA adapter named {', '.join(sorted(unknown))} is loaded; loaded are "
            f"{', '.join(sorted(loaded)) or 'none'} (load it by pipe.load_lora_weights(..., adapter_name=...))"
        )


def active_adapters(module: nn.Module) -> dict[str, float]:
    """Return the adapters that act in a module, and the scale of each: 1 is that which it was trained with."""
    active: dict[str, float] = {}
    for layer in _lora_layers(module):
        names = [] if layer.disable_adapters else layer.active_adapters
        active |= {name: _scale(layer, name) for name in names if layer.scaling.get(name)}
    return active


def _scale(layer: Any, name: str) -> float:
    """Return what a layer's scaling is a multiple of that which alpha and rank give."""
    before, layer.scaling = layer.scaling, dict(layer.scaling)
    try:
        layer.set_scale(name, 1.0)
        return before[name] / layer.scaling[name]
    finally:
        layer.scaling = before


def _lora_layers(denoiser: nn.Module) -> list[Any]:
    return [layer for layer in denoiser.modules() if isinstance(getattr(layer, "scaling", None), dict)]


def _state(layer: Any, scales: Mapping[str, float]) -> dict[str, Any]:
    """Return the state of a LoRA layer at the given scales, and leave the layer as it is."""
    if layer.merged:
        raise ValueError("a LoRA is fused into the weights; call pipe.unfuse_lora() before reflecting")
    named = {name: scale for name, scale in scales.items() if name in layer.scaling}
    scaling_before = layer.scaling
    layer.scaling = dict(scaling_before)
    try:
        for name, scale in named.items():
            layer.set_scale(name, scale)
        scaling = layer.scaling
    finally:
        layer.scaling = scaling_before
    active = [] if layer.disable_adapters else list(layer.active_adapters)
    return {
        "scaling": scaling,
        "_active_adapter": [*active, *(name for name in named if name not in active)],
        "_disable_adapters": False,
    }
