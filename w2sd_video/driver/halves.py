"""The two halves of a doubled batch, among all arguments of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange

Arguments = dict[str, Any]

_NOT_BATCHED = ("image_rotary_emb", "rotary_emb", "freqs_cis", "img_ids", "txt_ids")
_LAYERS_FIRST = ("encoder_hidden_states_llama3",)


def split_halves(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the second half of a batch."""
    first, second = rearrange(batch, "(halves samples) ... -> halves samples ...", halves=2)
    return first, second


def is_doubled(samples: torch.Tensor, config: Mapping[str, Any]) -> bool:
    """Return whether a denoiser's samples come twice, as pipelines repeat them for guidance in one batch.

    Only as many channels are compared as the network gives back: images that it is conditioned on stand behind them,
    and may differ (zeros in the unconditional half).
    """
    if len(samples) % 2:
        return False
    taken, given = config.get("in_channels"), config.get("out_channels")
    axes = [axis for axis in range(1, samples.ndim) if samples.shape[axis] == taken]
    if axes and given is not None:
        samples = samples.narrow(axes[0], 0, min(taken, given))
    first, second = split_halves(samples)
    return torch.equal(first, second)


def take_half(value: Any, name: str, samples: torch.Tensor, second: bool) -> Any:
    """Return one half of what is batched in an argument that goes with doubled samples; the rest stays as it is.

    Frame-wise models are given text and residuals of side networks once a frame, and HiDream text once a layer.
    """
    if name in _NOT_BATCHED:
        return value
    if isinstance(value, Mapping):
        return {key: take_half(item, key, samples, second) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_half(item, name, samples, second) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    size = len(samples)
    if name in _LAYERS_FIRST:
        return value[:, size // 2 :] if second else value[:, : size // 2]
    frames = samples.shape[2] if samples.ndim == 5 else 1
    if len(value) in (size, size * frames) or ("residual" in name and len(value) % size == 0):
        return split_halves(value)[second]
    return value


def are_equal(one: Any, other: Any) -> bool:
    """Compare arguments of a denoiser, tensors by value."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(are_equal, one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return one is other or bool(one == other)
