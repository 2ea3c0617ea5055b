"""Values that are compared later, whatever has been written into them meanwhile, without a wait on the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_COPIED = 2**22
"""Elements of a tensor that is copied to be compared; a larger one that is written into in place is not noticed."""


def copied(value: Any) -> Any:
    """Return what a value is compared by later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if value.numel() <= _COPIED else value
    if isinstance(value, torch.Generator):
        return state_of(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple, deque)) else value


def differences(before: Any, now: Any) -> list[tuple[bool | torch.Tensor, bool]]:
    """Return what is true where a value is no longer what was copied of it, and whether that does harm by itself.

    What is no data is not looked at.
    """
    if isinstance(now, torch.Generator):
        return [(before != state_of(now), True)]
    if isinstance(now, bytes):
        return [(before != now, True)]
    if isinstance(now, torch.Tensor):
        if before is now:
            return []
        if not isinstance(before, torch.Tensor) or before.shape != now.shape or before.dtype != now.dtype:
            return [(True, True)]
        return [(((before != now) & ~((before != before) & (now != now))).any(), True)]
    if isinstance(now, np.ndarray):
        is_same = isinstance(before, np.ndarray) and (before.shape, before.dtype) == (now.shape, now.dtype)
        return [(not is_same or before.tobytes() != now.tobytes(), True)]
    if isinstance(now, Mapping):
        if not isinstance(before, Mapping):
            return [(True, True)]
        changed = [(before.keys() != now.keys(), not before.keys() <= now.keys())]
        return changed + [flag for key in before.keys() & now.keys() for flag in differences(before[key], now[key])]
    if isinstance(now, (list, tuple, deque)):
        if not isinstance(before, list) or len(before) > len(now):
            return [(True, True)]
        changed = [(len(before) != len(now), False)]
        return changed + [flag for one, other in zip(before, now, strict=False) for flag in differences(one, other)]
    if isinstance(now, float) and isinstance(before, float) and math.isnan(now) and math.isnan(before):
        return []
    return [(bool(before != now), False)] if isinstance(now, (int, float, str, np.generic)) else []


def state_of(generator: torch.Generator) -> bytes:
    """Return the state of a generator, which lies on the host whatever it draws for."""
    return generator.get_state().numpy().tobytes()
