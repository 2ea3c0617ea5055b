"""Noise levels: the scales of signal and noise in latents, and the steps that lead through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from w2sd_video.argument_checks import is_whole, real_number

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow", "inverted_flow"]
"""What a network predicts: noise, x0, velocity, noise less x0, or x0 less noise (Mochi)."""

Kind = Literal["variance_exploding", "variance_preserving", "flow"]
"""How latents are made of sigma: ``x0 + sigma * noise``, ``sqrt(1 - sigma²) * x0 + sigma * noise``, or
``(1 - sigma) * x0 + sigma * noise``."""

InputScaling = Literal["none", "unit", "by_network"]
"""Who brings the latents to unit scale before the network sees them: nobody, whoever calls it (Euler of diffusers), or
the network, by the level that it is told (denoisers of k-diffusion)."""


class Level(NamedTuple):
    """Signal and noise scales: latents are ``alpha * x0 + sigma * noise``."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class Steps:
    """Steps of a sampling, and the calls of a network that they are made of.

    Attributes:
        timesteps: what the network is told at each call.
        calls: index into them of the call that starts each step.
        levels: where each step leads from.
        next_levels: where it leads to.
        input_scaling: who scales the input of the network.
    """

    timesteps: Sequence[torch.Tensor]
    calls: Sequence[int]
    levels: Sequence[Level]
    next_levels: Sequence[Level]
    input_scaling: InputScaling = "none"


def variance_exploding(sigma: float) -> Level:
    """Return the level of ``x0 + sigma * noise``."""
    return Level(1.0, sigma)


def variance_preserving(sigma: float) -> Level:
    """Return the level of ``sqrt(1 - sigma²) * x0 + sigma * noise``."""
    return Level(math.sqrt(1.0 - sigma**2), sigma)


def flow(sigma: float) -> Level:
    """Return the level of ``(1 - sigma) * x0 + sigma * noise``."""
    return Level(1.0 - sigma, sigma)


_LEVEL_OF: dict[str, Callable[[float], Level]] = {
    "variance_exploding": variance_exploding,
    "variance_preserving": variance_preserving,
    "flow": flow,
}


def steps_on_sigmas(sigmas: Any, kind: Kind) -> Steps:
    """Return a step for each two sigmas that follow each other; see ``Trajectory.from_sigmas``."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    values = sigma_values(sigmas)
    if kind != "variance_exploding" and values[0] > 1.0:
        hint = "; a ratio r of sigma to alpha is r / sqrt(1 + r²)" if kind == "variance_preserving" else ""
        raise ValueError(f"sigmas of kind {kind!r} must be from 0 to 1, got {values[0]:g}{hint}")
    levels = [_LEVEL_OF[kind](value) for value in values]
    told = sigmas if isinstance(sigmas, torch.Tensor) else torch.tensor(values, dtype=torch.float32)
    scaling: InputScaling = "by_network" if kind == "variance_exploding" else "none"
    return Steps(list(told[:-1]), range(len(values) - 1), levels[:-1], levels[1:], scaling)


def sigma_values(sigmas: Any) -> list[float]:
    """Return sigmas as Python's own numbers, or refuse what cannot be a falling row of noise levels."""
    listed = sigmas.tolist() if isinstance(sigmas, (torch.Tensor, np.ndarray)) else sigmas
    if isinstance(sigmas, (torch.Tensor, np.ndarray)) and sigmas.ndim != 1:
        raise ValueError(f"sigmas must have one dimension, (steps + 1,), got {tuple(sigmas.shape)}")
    if not isinstance(listed, (list, tuple)):
        raise TypeError(f"sigmas must be a tensor or a sequence of numbers, got {type(sigmas).__name__}")
    if len(listed) < 2:
        raise ValueError(f"sigmas must be at least 2, one more than the steps, got {len(listed)}")
    if all(is_whole(sigma) for sigma in listed):
        raise TypeError(f"sigmas must be floating-point noise levels, got whole numbers from {listed[0]}: timesteps?")
    values = [float(real_number("a sigma", sigma)) for sigma in listed]
    for i, (sigma, lower) in enumerate(pairwise(values)):
        if lower > sigma:
            raise ValueError(f"sigmas must fall from noise to signal, but rise from {sigma:g} to {lower:g} at step {i}")
        if sigma <= 0.0 or lower < 0.0:
            raise ValueError(f"sigmas must be above 0, but for the last one, which may be 0; got {values[: i + 2]}")
    return values
