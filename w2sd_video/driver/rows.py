"""The rows of an evaluation, among all arguments of a denoiser: samples, and what goes with each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch.utils._pytree import tree_leaves

Arguments = dict[str, Any]
Rows = torch.Tensor | Sequence[torch.Tensor]

_NOT_BATCHED = ("image_rotary_emb", "rotary_emb", "freqs_cis", "img_ids", "txt_ids", "ip_adapter_masks")
"""Positions, and masks of IP-Adapters, which all rows share, and whose length may by chance be the number of rows."""
_LAYERS_FIRST = ("encoder_hidden_states_llama3",)
"""HiDream's text of each layer, in which the rows come second."""


def rows_of(value: Any) -> list[torch.Tensor]:
    """Return the rows of a network's input or output: a batch, or a list of samples (Z-Image)."""
    return list(value)


def take_rows(value: Any, name: str, rows: Sequence[int], total: int, frames: int = 1, in_lists: bool = False) -> Any:
    """Return some rows of what is batched in an argument; the rest stays as it is.

    Args:
        value: the argument.
        name: its name.
        rows: which, in order.
        total: how many rows there are.
        frames: of each row: frame-wise models are given text and residuals of side networks once a frame.
        in_lists: whether the network is given a list of samples: then a list of so many tensors has one for each. Of
            one that is given a batch it has several batches (of IP-Adapters, of residuals).
    """
    if name in _NOT_BATCHED:
        return value
    if isinstance(value, Mapping):
        return {key: take_rows(item, str(key), rows, total, frames, in_lists) for key, item in value.items()}
    if isinstance(value, list) and len(value) == total and (in_lists or not _holds_tensors(value)):
        return [value[row] for row in rows]
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(item, name, rows, total, frames, in_lists) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    if name in _LAYERS_FIRST:
        return value[:, list(rows)]
    if len(value) == total:
        return value[list(rows)]
    if len(value) == total * frames or ("residual" in name and len(value) % total == 0):
        each = rearrange(value, "(rows frames) ... -> rows frames ...", rows=total)
        return rearrange(each[list(rows)], "rows frames ... -> (rows frames) ...")
    return value


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


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


def output_like(rows: Sequence[torch.Tensor], samples: Any, arguments: Arguments) -> Any:
    """Return rows in the form that a denoiser has for them: of a batch or a list, a tuple or an output of diffusers."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    sample: Any = torch.stack(list(rows)) if isinstance(samples, torch.Tensor) else list(rows)
    return (sample,) if arguments.get("return_dict") is False else Transformer2DModelOutput(sample=sample)


def output_shapes(network: Any, samples: Rows) -> list[torch.Size]:
    """Return the shape of each row that a network gives back for some samples, by its config.

    Packed tokens give as many numbers as a patch has; a learned variance stands behind the channels; the axis of
    channels is the third of CogVideoX and Stable Video Diffusion, and the last of Kandinsky 5.
    """
    if not isinstance(samples, torch.Tensor):
        return [sample.shape for sample in samples]
    config, kind = getattr(network, "config", {}), type(network).__name__
    taken, given = config.get("in_channels") or 0, config.get("out_channels")
    if config.get("learn_sigma"):
        given = 2 * (given or taken)
    given = given or taken or 0
    shape = list(samples.shape[1:])
    if samples.ndim == 3:
        axis = 1
        if config.get("out_channels") and isinstance(config.get("patch_size"), int):
            given = config["out_channels"] * config["patch_size"] ** 2
    elif "Kandinsky5" in kind:
        axis = samples.ndim - 2
    else:
        axis = 1 if samples.ndim == 5 and ("CogVideoX" in kind or "SpatioTemporal" in kind) else 0
    if given:
        shape[axis] = given
    return [torch.Size(shape)] * len(samples)
