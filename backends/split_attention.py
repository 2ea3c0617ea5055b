"""Attention over time in batches that CUDA kernels take.

AnimateDiff attends over the frames of every pixel by itself, so its batch is the number of latent pixels. The kernels
of xformers (heads folded into the batch) and of earlier versions of torch fail at a batch over 65,535: "invalid
configuration argument" (facebookresearch/xformers#845, pytorch/pytorch#146704).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor

LARGEST_BATCH = 65_535
"""The largest size of a CUDA grid in two of its dimensions, over one of which kernels lay out the batch."""


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
        attend = super().__call__
        return _in_parts(attend, LARGEST_BATCH, attn, hidden_states, encoder_hidden_states, attention_mask, temb)


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
        attend, rows = super().__call__, max(1, LARGEST_BATCH // attn.heads)
        return _in_parts(attend, rows, attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def split_motion_attention(unet: Any, attention: str) -> None:
    """Let the motion layers of a UNet attend in parts, by xformers or by torch."""
    for name, module in unet.named_modules():
        if "motion_modules" in name and isinstance(module, Attention):
            module.set_processor(SplitXFormers() if attention == "xformers" else SplitSDPA())
