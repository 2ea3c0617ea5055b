"""What is read off a pipeline before it is reflected: where its parts are, and what of it cannot be reflected."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from w2sd_video.backends import DENOISERS, second_denoiser
from w2sd_video.branch import STAGES, Branch
from w2sd_video.driver.walk import PresentedScheduler
from w2sd_video.reflection_settings import Role
from w2sd_video.trajectory import Trajectory


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Return the networks that a pipeline denoises with: one, or two for a two-stage model."""
    found = [getattr(pipe, name, None) for name in DENOISERS]
    denoisers = [module for module in found if isinstance(module, nn.Module)]
    if not denoisers or not hasattr(pipe, "scheduler"):
        raise TypeError(
            f"{type(pipe).__name__} cannot be reflected: it needs a scheduler and a denoiser named "
            f"{', '.join(DENOISERS)}"
        )
    return denoisers


def check_loop(pipe: Any) -> None:
    """Refuse a pipeline whose source shows that it never calls ``scheduler.step``.

    Raises:
        TypeError: no such loop, or a scheduler that cannot be reflected.
        ValueError: the pipeline is being reflected already.
    """
    Trajectory.check(pipe.scheduler)
    if isinstance(pipe.scheduler, PresentedScheduler):
        raise ValueError("the pipeline is being reflected already; end that block before beginning another")
    source = source_of(pipe)
    if source and "scheduler.step(" not in source:
        raise TypeError(f"{type(pipe).__name__} cannot be reflected: it has no loop over scheduler.step")


def controlnet_of(pipe: Any, branches: Mapping[Role, Branch]) -> nn.Module | None:
    """Return the ControlNet that a pipeline evaluates in its loop, if it has one.

    Raises:
        ValueError: there is none, or it is built into the denoiser, but a branch has a scale for it.
    """
    found, source = getattr(pipe, "controlnet", None), source_of(pipe)
    if isinstance(found, nn.Module) and (not source or "self.controlnet(" in source):
        return found
    if any(branch.control_scale is not None for branch in branches.values()):
        raise ValueError(
            f"a branch has a control_scale, but {type(pipe).__name__} evaluates no ControlNet; leave it out, or use a "
            "pipeline with one"
        )
    return None


def source_of(pipe: Any) -> str:
    """Return the source of the modules in which a pipeline's call is defined, or nothing where there is none."""
    modules = dict.fromkeys(base.__module__ for base in type(pipe).__mro__ if "__call__" in vars(base))
    try:
        return "\n".join(inspect.getsource(sys.modules[name]) for name in modules)
    except (OSError, TypeError, KeyError):
        return ""


def branch_at_stage(pipe: Any, role: Role, branch: Branch, denoisers: list[nn.Module], stage: int) -> Branch:
    """Return a branch for one of a pipeline's denoisers: its second weights a module, its scale a number.

    Raises:
        ValueError: pairs for a model of one stage, a single module for two, or weights that are not loaded.
    """
    name, two_stage = type(pipe).__name__, len(denoisers) == len(STAGES)
    scale, weights, experts = branch.guidance_scale, branch.weights, branch.experts
    if weights is not None:
        weights = second_denoiser(pipe, weights)
    if not two_stage:
        for field, value in (("guidance_scale", scale), ("weights", weights)):
            if isinstance(value, (tuple, list)):
                raise ValueError(f"the {role} branch has a pair of {field}, but {name} has one denoiser; give one")
        if experts in STAGES:
            raise ValueError(
                f"the {role} branch has experts={experts!r}, one denoiser of a two-stage model, but {name} has only one"
            )
        return replace(branch, weights=weights)
    if isinstance(weights, nn.Module):
        raise ValueError(
            f"{name} has two denoisers, so the weights of the {role} branch must be a pair of modules (high noise, low)"
        )
    used = stage
    if experts in STAGES:
        used, experts = STAGES.index(str(experts)), None
    if weights is not None:
        weights = weights[used]
    elif used != stage:
        weights = denoisers[used]
    if isinstance(scale, (tuple, list)):
        scale = scale[used]
    return replace(branch, guidance_scale=scale, weights=weights, experts=experts)
