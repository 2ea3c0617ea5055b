"""How often a configuration will evaluate its networks, counted without a model."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right

from w2sd_video.branch import STAGES
from w2sd_video.settings.schema import ROLES, BranchConfig, RenderConfig, filled, reflected_steps, stage_scales
from w2sd_video.settings.sources import component, index_of

MOST_STEPS = 1000
"""Steps that a configuration can have."""
_SECOND_ORDER = ("HeunDiscreteScheduler", "DPMSolverSDEScheduler")
"""Schedulers that evaluate twice a step, but for the last: a file names the class, which alone tells it."""


def evaluations(config: RenderConfig) -> dict[str, int]:
    """Return the network evaluations of one clip by role; a guided prediction takes two.

    Exact, but for two cases in which they are the most that there can be: stages of a two-stage model that need
    different numbers, and a strength for each noise level, which is 0 at some.
    """
    stages = evaluations_by_stage(config)
    return {role: max(stage[role] for stage in stages) for role in ROLES}


def most_steps(config: RenderConfig, budget: int) -> int:
    """Return how many steps, 0 to 1000, a budget of network evaluations allows a configuration without reflection."""

    def cost(steps: int) -> int:
        return sum(evaluations(dataclasses.replace(config, steps=steps)).values())

    return bisect_right(range(1, MOST_STEPS + 1), budget, key=cost)


def evaluations_by_stage(config: RenderConfig) -> list[dict[str, int]]:
    """Return the evaluations by role if all steps were of one stage: for each stage that a branch tells apart."""
    branches = [filled(config, getattr(config, role)) for role in ROLES]
    stages_differ = any(
        len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES for branch in branches
    )
    return [_evaluations(config, branches, stage) for stage in range(2 if stages_differ else 1)]


def _evaluations(config: RenderConfig, branches: list[BranchConfig], stage: int) -> dict[str, int]:
    embedded = bool(component(config.model.pretrained, "transformer").get("guidance_embeds"))
    base, strong, weak = (_halves(branch, stage, embedded) for branch in branches)
    reflections, calls = len(reflected_steps(config)) * config.rounds, _scheduler_calls(config)
    weak_evaluations = len(weak) * {"implicit": config.iterations, "resample": 0}.get(config.inversion, 1)
    only_guidance_differs = _but_guidance(branches[1], stage) == _but_guidance(branches[2], stage) and not embedded
    if only_guidance_differs and config.inversion in ("current", "implicit"):
        weak_evaluations -= len(weak & strong)  # the first weak prediction is made where the strong one was
    return {
        "base": len(base) * calls,
        "strong": len(strong) * reflections,
        "weak": weak_evaluations * reflections + (len(weak) * calls if config.autoguidance else 0),
    }


def _scheduler_calls(config: RenderConfig) -> int:
    """Return how many predictions the scheduler is given: most take one a step, and of the others a few are known."""
    name = config.model.scheduler or (index_of(config.model).get("scheduler") or ["", ""])[1]
    if name == "PNDMScheduler":  # Stable Diffusion's first one, which takes its second step twice
        return config.steps + 1
    return 2 * config.steps - 1 if name in _SECOND_ORDER else config.steps


def _stage_used(branch: BranchConfig, stage: int) -> int:
    """Return which of two denoisers a branch has for a stage."""
    return STAGES.index(str(branch.experts)) if branch.experts in STAGES else stage


def _halves(branch: BranchConfig, stage: int, embedded: bool) -> set[str]:
    """Return the halves of guidance that a prediction evaluates; a network that is told the scale has but one."""
    scales = stage_scales(branch.guidance_scale)
    scale = scales[_stage_used(branch, stage)] if len(scales) == 2 else scales[0]
    return {"cond"} if embedded else {1.0: {"cond"}, 0.0: {"uncond"}}.get(float(scale), {"cond", "uncond"})


def _but_guidance(branch: BranchConfig, stage: int) -> tuple[BranchConfig, int]:
    """Return what two branches must have in common to share evaluations at a stage."""
    experts = None if branch.experts in STAGES else branch.experts
    return dataclasses.replace(branch, guidance_scale=None, experts=experts), _stage_used(branch, stage)
