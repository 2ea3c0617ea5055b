"""Checks of what a user gives: numbers of any kind, and tensors; the one line of an error names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch


def real_number(name: str, value: Any) -> int | float:
    """Return a finite number as Python's own; numpy's scalars are numbers, truth values and tensors are not.

    Raises:
        TypeError: no number.
        ValueError: NaN or infinity.
    """
    _check_is_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return int(value) if isinstance(value, Integral) else float(value)


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a whole number as Python's own.

    Raises:
        TypeError: no number.
        ValueError: a fraction, or a number below the least that is allowed.
    """
    _check_is_number(name, value)
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Return whether something is a whole number, of Python's or numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_latents(latents: Any, name: str = "latents") -> None:
    """Refuse latents, or a prediction for them, that are not a floating-point tensor (TypeError)."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")


def check_prediction(name: str, prediction: Any, latents: Any) -> None:
    """Refuse latents and a prediction that are no floating-point tensors (TypeError) of one shape (ValueError)."""
    check_latents(latents)
    check_latents(prediction, name)
    if prediction.shape != latents.shape:
        raise ValueError(
            f"{name} must have the shape of the latents, {tuple(latents.shape)}, got {tuple(prediction.shape)}"
        )


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that holds NaN or infinity (ValueError); waits on its device."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite, but hold NaN or infinity")


def check_were_finite(are_finite: list[tuple[str, torch.Tensor]]) -> None:
    """Name the first of some predictions that was not finite (ValueError); waits on the device once."""
    for (name, _), is_finite in zip(are_finite, torch.stack([flag for _, flag in are_finite]).tolist(), strict=True):
        if not is_finite:
            raise ValueError(f"{name} returned non-finite values (NaN or infinity)")


def version_of(value: Any) -> int:
    """Return how often a tensor was written into, where that is counted (not in inference mode)."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def check_callable(name: str, function: Any) -> None:
    """Refuse what cannot be called (TypeError)."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def check_like(name: str, result: Any, latents: torch.Tensor) -> None:
    """Refuse what a user's function returned if it is no tensor like the latents (ValueError)."""
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"{name} must return a tensor, got {type(result).__name__}")
    for what in ("shape", "dtype", "device"):
        before, after = getattr(latents, what), getattr(result, what)
        if before != after:
            raise ValueError(f"{name} changed the {what} of the latents from {before} to {after}; it must keep it")


def check_frames(name: str, frames: Any, axes: Sequence[str]) -> None:
    """Refuse what is no array of frames, uint8 with red, green and blue along its last axis.

    Args:
        name: of the argument.
        frames: the array.
        axes: names of its axes before the last.

    Raises:
        TypeError: no array of numpy, or one of another dtype.
        ValueError: another shape, or an axis without entries.
    """
    shape = f"({', '.join(axes)}, 3)"
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        kind = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
        hint = "; from [0, 1] it is np.uint8(np.round(255 * frames))" if "float" in str(kind) else ""
        raise TypeError(f"{name} must be a numpy array of uint8, {shape}, got {kind}{hint}")
    if frames.ndim != len(axes) + 1 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{name} must be {shape}, each at least 1, got {frames.shape}")


def _check_is_number(name: str, value: Any) -> None:
    if isinstance(value, Real) and not isinstance(value, bool):
        return
    has_item = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    raise TypeError(f"{name} must be a number, got {value!r}{'; pass its .item()' if has_item else ''}")
