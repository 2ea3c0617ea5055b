"""Attention over time in batches that CUDA kernels take.

AnimateDiff attends over the frames of every pixel by itself, so its batch is the number of latent pixels. The kernels
of xformers (heads folded into the batch) and of earlier versions of torch fail at a batch over 65,535: "invalid
configuration argument" (facebookresearch/xformers#845, pytorch/pytorch#146704).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

Kind = Literal["sdpa", "xformers"]

LARGEST_BATCH = 65_535


def _in_parts(
    process: Any, rows: int, attn: Any, hidden: torch.Tensor, context: Any, mask: Any, temb: Any
) -> torch.Tensor:
    """Call an attention processor on at most `rows` rows at a time; a smaller batch goes through as it is."""
    if len(hidden) <= rows:
        return process(attn, hidden, context, mask, temb)
    starts = range(0, len(hidden), rows)
    parts = [[None if x is None else x[i : i + rows] for x in (hidden, context, mask)] for i in starts]
    return torch.cat([process(attn, *part, temb) for part in parts])


# Classes that need no arguments: loading an IP-Adapter makes each processor again, by its class.


class SplitSDPA(AttnProcessor2_0):
    """torch's attention, in parts where the batch is over 65,535."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend: (batch, tokens, channels) to the same shape."""
        whole = super().__call__
        return _in_parts(whole, LARGEST_BATCH, attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class SplitXFormers(XFormersAttnProcessor):
    """The attention of xformers, in parts where batch × heads is over 65,535."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend: (batch, tokens, channels) to the same shape."""
        whole, rows = super().__call__, max(1, LARGEST_BATCH // attn.heads)
        return _in_parts(whole, rows, attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def check_attention(kind: str, device: torch.device) -> None:
    """Refuse an attention that does not exist or cannot run here.

    Raises:
        ValueError: an unknown name, or xformers without a CUDA device.
        ModuleNotFoundError: xformers is not installed.
    """
    if kind not in ("sdpa", "xformers"):
        raise ValueError(f"attention must be 'sdpa' or 'xformers', got {kind!r}")
    if kind == "xformers":
        if device.type != "cuda":
            raise ValueError(f"attention='xformers' needs a CUDA device, got {device}; use 'sdpa'")
        try:
            import xformers.ops  # noqa: F401
        except ImportError as error:
            raise ModuleNotFoundError(
                "attention='xformers' needs xformers: pip install 'w2sd-video[xformers]', or use 'sdpa'"
            ) from error


def set_attention(unet: Any, kind: Kind) -> None:
    """Set the attention of a motion UNet, that of its motion layers in parts."""
    if kind == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    split: type[nn.Module] | Any = SplitXFormers if kind == "xformers" else SplitSDPA
    for name, module in unet.named_modules():
        if "motion_modules" in name and isinstance(module, Attention):
            module.set_processor(split())
