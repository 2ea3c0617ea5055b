"""Another scheduler for a pipeline: one that steps what its network predicts, along its own noise levels."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch

from w2sd_video.messages import suggest
from w2sd_video.trajectory import Trajectory, known_schedulers

_GIVEN_TO_STEPS = {"self", "model_output", "timestep", "sample"}
"""What the loop of every pipeline gives a scheduler's step."""


def solver_of(pipe: Any, name: str | None) -> Any:
    """Return a scheduler of a class by the configuration of a pipeline's own; that one itself where none is named.

    Raises:
        ValueError: a class that cannot step what this pipeline's network predicts, or not along its noise levels.
    """
    own = pipe.scheduler
    if name is None or name == type(own).__name__:
        return own
    if name not in known_schedulers():
        raise ValueError(f"solver {name!r}: is no scheduler that is known; {suggest(name, known_schedulers())}")
    import diffusers

    kind, config = getattr(diffusers, name), dict(own.config)
    if not _is_stepped_by(pipe, kind):
        raise ValueError(f"solver {name}: {type(pipe).__name__} does not give its step what it needs")
    taken = inspect.signature(kind).parameters
    if config.get("invert_sigmas"):
        raise ValueError(
            f"solver {name}: this pipeline's network is told inverted noise levels, which it does not have"
        )
    if config.get("timestep_type") == "continuous" and "timestep_type" not in taken:
        raise ValueError(
            f"solver {name}: this pipeline's network is told the logarithms of noise levels (timestep_type="
            "'continuous', as Stable Video Diffusion's), and this one tells it numbers of training steps"
        )
    changes: dict[str, Any] = {"clip_sample": False} if "clip_sample" in taken else {}
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if Trajectory.predicts_flow(own) and kind is diffusers.FlowMatchEulerDiscreteScheduler:
        changes |= {"shift": shift}
    elif Trajectory.predicts_flow(own):
        if "use_flow_sigmas" not in taken:
            raise ValueError(f"solver {name}: steps no flow predictions, which this pipeline's network makes")
        changes |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    elif kind is diffusers.FlowMatchEulerDiscreteScheduler:
        raise ValueError(f"solver {name}: steps flow predictions only, which this pipeline's network does not make")
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in taken:
        raise ValueError(f"solver {name}: cannot begin without any signal in the latents, as this pipeline does")
    solver = kind.from_config(own.config, **changes)
    if _has_other_levels(solver, own):  # as CogVideoX's, whose schedulers shift them by a setting that others ignore
        solver = kind.from_config(own.config, **changes, trained_betas=_betas_of(own))
    try:
        stops_in_noise = _stops_in_noise(solver)
    except AssertionError as error:
        shift = config.get("time_shift_type")
        raise ValueError(
            f"solver {name}: has no dynamic shift of type {shift!r}, which this pipeline's own has"
        ) from error
    if stops_in_noise and not _stops_in_noise(own):
        raise ValueError(f"solver {name}: ends on this pipeline's noise levels before the noise is gone")
    return solver


def _stops_in_noise(scheduler: Any) -> bool:
    """Return whether the last step of a scheduler ends at the level that it starts from (DEIS on flow)."""
    walked = copy.deepcopy(scheduler)
    walked.set_timesteps(4, **({"mu": 1.0} if walked.config.get("use_dynamic_shifting") else {}))
    sigmas = getattr(walked, "sigmas", None)
    return sigmas is not None and bool(sigmas[-1] == sigmas[-2])


def _is_stepped_by(pipe: Any, kind: Any) -> bool:
    """Return whether a pipeline gives a scheduler's step all that it needs: what all need, or it knows the class."""
    needed = {name for name, one in inspect.signature(kind.step).parameters.items() if one.default is one.empty}
    modules = (sys.modules.get(base.__module__) for base in type(pipe).__mro__)
    return needed <= _GIVEN_TO_STEPS or any(hasattr(module, kind.__name__) for module in modules)


def _has_other_levels(solver: Any, own: Any) -> bool:
    if not (hasattr(solver, "alphas_cumprod") and hasattr(own, "alphas_cumprod")):
        return False
    return not torch.allclose(solver.alphas_cumprod.double(), own.alphas_cumprod.double(), atol=1e-6)


def _betas_of(own: Any) -> list[float]:
    """Return the variances that the noise levels of a scheduler come from: beta_t = 1 - alpha_t / alpha_(t - 1)."""
    products = own.alphas_cumprod.double()
    before = torch.cat([torch.ones_like(products[:1]), products[:-1]])
    return (1 - products / before).tolist()
