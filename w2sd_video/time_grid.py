"""Timesteps that lie denser at low noise, by the scheduler's own ``timesteps`` or ``sigmas``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np


def with_grid(scheduler: Any, given: Mapping[str, Any], grid: float) -> dict[str, Any]:
    """Return the arguments of ``set_timesteps`` for a grid: of i = 0 … T - 1 with an exponent on 1 - i / T.

    ``t_i = round(N (1 - i / T)^grid) - 1`` of N training timesteps, or flow matching's ``sigma_i = (1 - i / T)^grid``
    before its shift. At 1 it is the trailing spacing; above 1 the steps are shorter at low noise.

    Args:
        scheduler: a diffusers scheduler.
        given: the arguments by their names, as a pipeline gives them.
        grid: the exponent, above 0.

    Raises:
        ValueError: a scheduler that takes no timesteps of one's own, or so many steps that two would be one.
    """
    if grid == 1.0:
        return dict(given)
    taken = inspect.signature(scheduler.set_timesteps).parameters
    given_sigmas = given.get("sigmas")
    steps = given.get("num_inference_steps") if given_sigmas is None else len(given_sigmas)
    rest = {name: value for name, value in given.items() if name not in ("num_inference_steps", "timesteps", "sigmas")}
    is_flow = "flow" in str(scheduler.config.get("prediction_type", "")) or scheduler.config.get(
        "use_flow_sigmas", "FlowMatch" in type(scheduler).__name__
    )
    if is_flow and "sigmas" in taken:
        return {**rest, "sigmas": (fractions(steps) ** grid).tolist()}
    if not is_flow and "timesteps" in taken:
        total = scheduler.config.num_train_timesteps
        timesteps = np.round(total * fractions(steps) ** grid).astype(int) - 1
        if len(set(timesteps.tolist())) < len(timesteps) or timesteps[-1] < 0:
            raise ValueError(
                f"grid={grid:g} puts two of {steps} steps at one timestep; take a smaller one, or fewer steps"
            )
        return {**rest, "timesteps": timesteps.tolist()}
    raise ValueError(
        f"grid={grid:g}: {type(scheduler).__name__} takes no timesteps of one's own; use "
        "DPMSolverMultistepScheduler or EulerDiscreteScheduler, or leave the grid at 1"
    )


def fractions(steps: Any) -> np.ndarray:
    """Return 1 - i / T for i = 0 … T - 1."""
    return 1.0 - np.arange(int(steps)) / int(steps)
