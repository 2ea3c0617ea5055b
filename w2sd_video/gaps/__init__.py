"""The fields of a branch that change a denoiser from within.

Each comes down to a list of swaps, worked out once: objects, and what some of their attributes are to be for the length
of one evaluation. Nothing is loaded, merged or copied when a branch is switched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.gaps.experts import expert_routing
from w2sd_video.gaps.ip_adapter import ip_adapter_scales
from w2sd_video.gaps.layers import perturbed_layers, skipped_layers
from w2sd_video.gaps.lora import lora_scales
from w2sd_video.gaps.swaps import Swap, swapped

__all__ = ["Swap", "swapped", "swaps_of"]

_SWAPS: dict[str, Callable[[nn.Module, Any], list[Swap]]] = {
    "lora": lora_scales,
    "experts": expert_routing,
    "ip_adapter_scale": ip_adapter_scales,
    "skip_layers": skipped_layers,
    "perturbed_layers": perturbed_layers,
}
"""The fields that change a denoiser from within; the others change what it is called with, or which one is called."""


def swaps_of(denoiser: nn.Module, branch: Branch) -> list[Swap]:
    """Return what a branch changes in a denoiser, and leave the denoiser as it is.

    Raises:
        ValueError: a setting that this denoiser cannot be given, named with what is allowed.
    """
    settings = {name: getattr(branch, name) for name in _SWAPS}
    return [
        swap for name, setting in settings.items() if setting is not None for swap in _SWAPS[name](denoiser, setting)
    ]
