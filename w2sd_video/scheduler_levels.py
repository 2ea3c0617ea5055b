"""The noise levels of a diffusers scheduler, after its ``set_timesteps``; diffusers itself is not imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from w2sd_video.levels import InputScaling, Level, PredictionType, Steps, flow, variance_exploding


def _levels_from_cumulative_alphas(scheduler: Any, calls: Sequence[int], previous: Sequence[int | None]) -> Steps:
    """Variance-preserving levels, alpha = sqrt(cumulative alpha); a previous timestep of None is the final level."""
    products = scheduler.alphas_cumprod.double()
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))

    def level(product: float) -> Level:
        return Level(math.sqrt(product), math.sqrt(1.0 - product))

    levels = [level(float(products[int(scheduler.timesteps[call])])) for call in calls]
    next_levels = [level(final if timestep is None else float(products[timestep])) for timestep in previous]
    return Steps(scheduler.timesteps, calls, levels, next_levels)


def _whole_stride(scheduler: Any, calls: Sequence[int]) -> list[int | None]:
    """Return the timestep after each step where the scheduler counts down by a whole number of training timesteps."""
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    next_timesteps = [int(scheduler.timesteps[call]) - stride for call in calls]
    return [timestep if timestep >= 0 else None for timestep in next_timesteps]


def _ddim_steps(scheduler: Any) -> Steps:
    calls = range(len(scheduler.timesteps))
    return _levels_from_cumulative_alphas(scheduler, calls, _whole_stride(scheduler, calls))


def _ddpm_steps(scheduler: Any) -> Steps:
    """Return DDPM's steps: they end at the next timestep of the list, and the last one at alpha = 1."""
    calls = range(len(scheduler.timesteps))
    next_timesteps: list[int | None] = [int(timestep) for timestep in scheduler.timesteps[1:]]
    return _levels_from_cumulative_alphas(scheduler, calls, [*next_timesteps, None])


def _pndm_steps(scheduler: Any) -> Steps:
    """Return PNDM's steps: four calls each for three Runge-Kutta steps, or two calls for the first linear one."""
    total = len(scheduler.timesteps)
    runge_kutta = len(scheduler.prk_timesteps)
    skipped = runge_kutta or min(2, total)
    calls = [*range(0, runge_kutta, 4), *([] if runge_kutta else [0]), *range(skipped, total)]
    return _levels_from_cumulative_alphas(scheduler, calls, _whole_stride(scheduler, calls))


def _sigma_steps(
    scheduler: Any, calls: Sequence[int], to_level: Callable[[float], Level], input_scaling: InputScaling = "none"
) -> Steps:
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    levels = [to_level(sigmas[call]) for call in calls]
    next_levels = [to_level(sigmas[call + 1]) for call in calls]
    return Steps(scheduler.timesteps, calls, levels, next_levels, input_scaling)


def _of_ratio(ratio: float) -> Level:
    """Return the variance-preserving level with a ratio of sigma to alpha."""
    return Level(1 / math.hypot(1.0, ratio), ratio / math.hypot(1.0, ratio))


def _inverted_flow(sigma: float) -> Level:
    return Level(sigma, 1.0 - sigma)


def _euler_steps(scheduler: Any) -> Steps:
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), variance_exploding, "unit")


def _heun_steps(scheduler: Any) -> Steps:
    """Return every second call: between two, the scheduler corrects the step from a provisional end of it."""
    return _sigma_steps(scheduler, range(0, len(scheduler.timesteps), 2), variance_exploding, "unit")


def _dpm_solver_steps(scheduler: Any) -> Steps:
    to_level = flow if getattr(scheduler.config, "use_flow_sigmas", False) else _of_ratio
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), to_level)


def _singlestep_steps(scheduler: Any) -> Steps:
    """Return the calls of order 1: the others start again from the latents that the last such call was given."""
    to_level = flow if getattr(scheduler.config, "use_flow_sigmas", False) else _of_ratio
    calls = [call for call, order in enumerate(scheduler.order_list[: len(scheduler.timesteps)]) if order == 1]
    return _sigma_steps(scheduler, calls, to_level)


def _explodes(scheduler: Any) -> bool:
    """Return whether a flow-matching scheduler's latents are ``x0 + sigma * noise``, as those of Cosmos, up to 80.

    The flow of such latents is the noise itself.
    """
    return max(float(sigma) for sigma in scheduler.sigmas) > 1.0


def _flow_match_steps(scheduler: Any) -> Steps:
    if _explodes(scheduler):
        return _sigma_steps(scheduler, range(len(scheduler.timesteps)), variance_exploding)
    to_level = _inverted_flow if getattr(scheduler.config, "invert_sigmas", False) else flow
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), to_level)


_READERS: dict[str, Callable[[Any], Steps]] = {
    "CogVideoXDDIMScheduler": _ddim_steps,
    "CogVideoXDPMScheduler": _ddim_steps,
    "DDIMParallelScheduler": _ddim_steps,
    "DDIMScheduler": _ddim_steps,
    "DDPMParallelScheduler": _ddpm_steps,
    "DDPMScheduler": _ddpm_steps,
    "DEISMultistepScheduler": _dpm_solver_steps,
    "DPMSolverMultistepScheduler": _dpm_solver_steps,
    "DPMSolverSDEScheduler": _heun_steps,
    "DPMSolverSinglestepScheduler": _singlestep_steps,
    "EulerAncestralDiscreteScheduler": _euler_steps,
    "EulerDiscreteScheduler": _euler_steps,
    "FlowMatchEulerDiscreteScheduler": _flow_match_steps,
    "HeunDiscreteScheduler": _heun_steps,
    "LMSDiscreteScheduler": _euler_steps,
    "PNDMScheduler": _pndm_steps,
    "UniPCMultistepScheduler": _dpm_solver_steps,
}
"""How levels are read, by the name of the class: there is no common way, and not every diffusers has every class."""

_CONSISTENCY = "a consistency step renoises a one-step sample, which has no inverse"
_DISCRETE = "its tokens are discrete, so there is no latent to displace"
"""Reasons that no reading of the levels would help."""

_REFUSED: dict[str, str] = {
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "FlowMatchLCMScheduler": _CONSISTENCY,
    "LCMScheduler": _CONSISTENCY,
    "SCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "AmusedScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
}
"""Schedulers that are refused with a reason of their own; a class derived from one is, too."""


def steps_of(scheduler: Any) -> Steps:
    """Return the steps of a scheduler.

    Raises:
        TypeError: a scheduler that is not known; the message lists the known ones.
        ValueError: ``set_timesteps`` was not called.
    """
    read_steps = reader_of(scheduler)
    if not (getattr(scheduler, "num_inference_steps", None) or getattr(scheduler, "custom_timesteps", False)):
        raise ValueError(f"call {type(scheduler).__name__}.set_timesteps(...) before building a Trajectory")
    return read_steps(scheduler)


def known_schedulers() -> list[str]:
    """Return the names of the schedulers whose levels are known."""
    return sorted(_READERS)


def reader_of(scheduler: Any) -> Callable[[Any], Steps]:
    """Return the function that reads a scheduler's levels, found by its class or a base class of it."""
    for base in type(scheduler).__mro__:
        if base.__name__ in _REFUSED:
            raise TypeError(f"{base.__name__} cannot be reflected: {_REFUSED[base.__name__]}")
        if base.__name__ in _READERS:
            return _READERS[base.__name__]
    raise TypeError(
        f"{type(scheduler).__name__} is not a scheduler whose noise levels are known; "
        f"use one of {', '.join(known_schedulers())}"
    )


def prediction_type_of(scheduler: Any) -> PredictionType:
    """Return what the network predicts, by the scheduler's configuration; that of flow matching does not say."""
    if any(base.__name__ == "FlowMatchEulerDiscreteScheduler" for base in type(scheduler).__mro__):
        if _explodes(scheduler):
            return "epsilon"
        return "inverted_flow" if getattr(scheduler.config, "invert_sigmas", False) else "flow"
    prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
    readings: dict[str, PredictionType] = {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "sample": "sample",
        "flow_prediction": "flow",
    }
    if prediction_type not in readings:
        raise ValueError(f"prediction_type {prediction_type!r} is not known; allowed are {', '.join(readings)}")
    return readings[prediction_type]
