"""Timesteps that lie denser at low noise, by the scheduler's own ``timesteps`` or ``sigmas``, or in their place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_RESPACED = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that walk along whatever `timesteps` and `sigmas` they hold, where they take none."""


def set_timesteps(scheduler: Any, given: Mapping[str, Any], grid: float) -> None:
    """Set a scheduler's timesteps on a grid: those of i = 0 … T - 1 with an exponent on 1 - i / T.

    ``t_i = round(N (1 - i / T)^grid) - 1`` of N training timesteps, or flow matching's ``sigma_i = (1 - i / T)^grid``
    before its shift. At 1 the scheduler's own are left; above 1 the steps are shorter at low noise.

    Args:
        scheduler: a diffusers scheduler.
        given: the arguments of its ``set_timesteps`` by their names, as a pipeline gives them.
        grid: the exponent, above 0.

    Raises:
        ValueError: a scheduler that takes no timesteps of one's own, or so many steps that two would be one.
    """
    if grid == 1.0:
        scheduler.set_timesteps(**given)
        return
    given_sigmas = given.get("sigmas")
    steps = int(given["num_inference_steps"]) if given_sigmas is None else len(given_sigmas)
    rest = {name: value for name, value in given.items() if name not in ("num_inference_steps", "timesteps", "sigmas")}
    is_flow = "flow" in str(scheduler.config.get("prediction_type", "")) or scheduler.config.get(
        "use_flow_sigmas", "FlowMatch" in type(scheduler).__name__
    )
    if not takes_grid(type(scheduler), is_flow):
        raise ValueError(
            f"grid={grid:g}: {type(scheduler).__name__} takes no timesteps of one's own; use "
            "DPMSolverMultistepScheduler or EulerDiscreteScheduler, or leave the grid at 1"
        )
    if not _takes_its_own(type(scheduler), is_flow):
        scheduler.set_timesteps(**rest, num_inference_steps=steps)
        put_levels(scheduler, *(_flow_levels if is_flow else _noise_levels)(scheduler, steps, grid))
    elif is_flow:
        scheduler.set_timesteps(**rest, sigmas=fractions(steps) ** grid)  # of numpy: UniPC multiplies it
    else:
        scheduler.set_timesteps(**rest, timesteps=_timesteps(scheduler, steps, grid).tolist())


def takes_grid(kind: type[Any], is_flow: bool) -> bool:
    """Return whether schedulers of a class can be set on a grid.

    Args:
        kind: a class of diffusers schedulers.
        is_flow: whether the levels are those of flow matching.
    """
    return _takes_its_own(kind, is_flow) or any(base.__name__ in _RESPACED for base in kind.__mro__)


def _takes_its_own(kind: type[Any], is_flow: bool) -> bool:
    """Return whether ``set_timesteps`` of a class of schedulers has an argument for a grid."""
    return ("sigmas" if is_flow else "timesteps") in inspect.signature(kind.set_timesteps).parameters


def _timesteps(scheduler: Any, steps: int, grid: float) -> np.ndarray:
    """Return the timesteps of a grid, among those of the training."""
    timesteps = np.round(scheduler.config.num_train_timesteps * fractions(steps) ** grid).astype(int) - 1
    if len(set(timesteps.tolist())) < len(timesteps) or timesteps[-1] < 0:
        raise ValueError(f"grid={grid:g} puts two of {steps} steps at one timestep; take a smaller one, or fewer steps")
    return timesteps


def _noise_levels(scheduler: Any, steps: int, grid: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the timesteps of a grid, and the ratios of noise to signal that the training had at them."""
    timesteps = _timesteps(scheduler, steps, grid)
    products = scheduler.alphas_cumprod.double().numpy()[timesteps]
    return timesteps, np.sqrt((1 - products) / products)


def _flow_levels(scheduler: Any, steps: int, grid: float) -> tuple[np.ndarray, np.ndarray]:
    """Return timesteps and levels of flow matching, the first a little below 1: a solver takes its logarithm."""
    shift, total = scheduler.config.get("flow_shift", 1.0), scheduler.config.num_train_timesteps
    sigmas = (1 - 1 / total) * fractions(steps) ** grid
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return sigmas * total, sigmas


def put_levels(scheduler: Any, timesteps: np.ndarray, sigmas: np.ndarray) -> None:
    """Put timesteps and noise levels in the place of those that a scheduler has set; the final level stays.

    Args:
        scheduler: whose timesteps are set, to as many.
        timesteps: (T,).
        sigmas: (T,), in the scheduler's own meaning.
    """
    final = scheduler.sigmas[len(timesteps) :]
    scheduler.sigmas = torch.cat([torch.from_numpy(sigmas).to(scheduler.sigmas), final])
    scheduler.timesteps = torch.from_numpy(timesteps).to(scheduler.timesteps)


def fractions(steps: Any) -> np.ndarray:
    """Return 1 - i / T for i = 0 … T - 1."""
    return 1.0 - np.arange(int(steps)) / int(steps)
