"""Several metrics ask one network about the same clips, one after the other; it looks at them once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)
Clips = TypeVar("Clips", np.ndarray, torch.Tensor)
Look = Callable[[N, Clips], torch.Tensor]


def asked_once(look: Look[N, Clips]) -> Look[N, Clips]:
    """Keep what a network says of clips until it is asked about others; what is returned is the caller's own.

    Args:
        look: from a network, whose weights do not change, and clips on the CPU to what it says.
    """
    last: tuple[nn.Module, bytes, torch.Tensor] | None = None

    @functools.wraps(look)
    def remembered(network: N, clips: Clips) -> torch.Tensor:
        nonlocal last
        known, key = last, _key(np.ascontiguousarray(clips))
        if known is None or known[0] is not network or known[1] != key:
            last = known = (network, key, look(network, clips))
        return known[2].clone()

    return remembered


def _key(array: np.ndarray) -> bytes:
    """Return what two arrays have in common only if they are the same in kind, shape and every number."""
    return hashlib.blake2b(f"{array.dtype}{array.shape}".encode() + array.data).digest()
