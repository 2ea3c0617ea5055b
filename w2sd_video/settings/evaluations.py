"""How often a configuration will evaluate its networks, counted without a model."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from typing import Any

from w2sd_video.branch import STAGES
from w2sd_video.reflection_settings import Inversion, Role, default_inversion
from w2sd_video.reuse import measuring_steps
from w2sd_video.settings.schema import ROLES, BranchConfig, RenderConfig, counted, filled, stage_scales
from w2sd_video.settings.sources import is_told_guidance, read_json, scheduler_of
from w2sd_video.window import Window

MOST_STEPS = 1000
"""Steps that a configuration can have."""
_SECOND_ORDER = ("HeunDiscreteScheduler", "DPMSolverSDEScheduler")
"""Schedulers that evaluate twice a step, but for the last: a file names the class, which alone tells it."""


def evaluations(config: RenderConfig) -> dict[str, int]:
    """Return the network evaluations of one clip by role; a guided prediction takes two.

    Exact, but for three cases in which they are the most that there can be: stages of a two-stage model that need
    different numbers, a strength for each noise level, which is 0 at some, and the inversion of a model that is not on
    this machine, which may share evaluations.
    """
    stages = evaluations_by_stage(config)
    return {role: max(stage[role] for stage in stages) for role in ROLES}


def nfe_of(config: RenderConfig) -> int:
    """Return the network evaluations of a clip, in all roles."""
    return sum(evaluations(config).values())


def most_steps(config: RenderConfig, budget: int) -> int:
    """Return how many steps, 0 to 1000, a budget of network evaluations allows a configuration without reflection."""

    def cost(steps: int) -> int:
        return nfe_of(dataclasses.replace(config, steps=steps))

    return bisect_right(range(1, MOST_STEPS + 1), budget, key=cost)


def evaluations_by_stage(config: RenderConfig) -> list[dict[str, int]]:
    """Return the evaluations by role if all steps were of one stage: for each stage that a branch tells apart."""
    branches = [filled(config, getattr(config, role)) for role in ROLES]
    stages_differ = any(
        len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES for branch in branches
    )
    return [_evaluations(config, branches, stage) for stage in range(2 if stages_differ else 1)]


def _evaluations(config: RenderConfig, branches: list[BranchConfig], stage: int) -> dict[str, int]:
    """Count the rows of all steps, as the algorithm asks for them: those at the same latents are evaluated once."""
    embedded = is_told_guidance(config.model)
    of_role, settings = dict(zip(ROLES, branches, strict=True)), counted(config)
    reflected, pushed = settings.steps(config.steps), settings.pushed_steps(config.steps)
    measured = measuring_steps(settings.reuse, reflected), measuring_steps(settings.reuse, pushed)
    calls = _calls_of_steps(config)
    counts, inversion = dict.fromkeys(ROLES, 0), inversion_of(config)

    def evaluate(roles: list[Role], step: int) -> None:
        """Count what some roles evaluate at the same latents, one after the other."""
        there: list[tuple[Any, set[str]]] = []
        for role in roles:
            branch = _in_window(of_role[role], step, config.steps)
            key, halves = _but_guidance(branch, stage), _halves(branch, stage, embedded)
            known = set() if embedded else {half for other, of in there if other == key for half in of}
            counts[role] += len(halves - known)
            there.append((key, halves))

    for step in range(config.steps):
        for _ in range(config.rounds if step in measured[0] else 0):
            if inversion in ("current", "implicit"):
                evaluate(["strong", "weak"], step)
            elif inversion == "resample":
                evaluate(["strong"], step)
            else:
                evaluate(["strong"], step)
                evaluate(["weak"], step)
            for _ in range(config.iterations - 1 if inversion == "implicit" else 0):
                evaluate(["weak"], step)
        for call in range(calls[step]):
            # A prediction inside a step of the scheduler's is no place at which a gap is kept.
            pushes = step in pushed and (step in measured[1] or call > 0)
            gap: list[Role] = ["weak", "strong"] if settings.autoguidance_gap == "strong" else ["weak"]
            evaluate([*(gap if pushes else []), "base"], step)
    return {role: counts[role] for role in ROLES}


def inversion_of(config: RenderConfig) -> Inversion:
    """Return the inversion, with ``auto`` as the model has it; ``auto`` itself of a model that is not here."""
    name = scheduler_of(config.model)
    if config.inversion != "auto" or not name:
        return config.inversion
    settings = read_json(config.model.pretrained, "scheduler/scheduler_config.json")
    is_flow = "FlowMatch" in name or settings.get("use_flow_sigmas") or "flow" in str(settings.get("prediction_type"))
    return default_inversion(bool(is_flow))


def _in_window(branch: BranchConfig, step: int, steps: int) -> BranchConfig:
    """Return a branch as it is at a step: what is off there is left out. Windows of noise levels count as on."""
    off = {
        name
        for name, window in (branch.windows or {}).items()
        if isinstance(window, (tuple, list)) and step not in Window(*window).steps(steps)
    }
    changes: dict[str, Any] = {name: 1.0 if name == "guidance_scale" else None for name in off}
    return dataclasses.replace(branch, windows=None, **changes)


def _calls_of_steps(config: RenderConfig) -> list[int]:
    """Return how many predictions the scheduler is given at each step."""
    calls, steps = _scheduler_calls(config), config.steps
    if calls == steps + 1:
        return [2 if step == min(1, steps - 1) else 1 for step in range(steps)]
    return [2 if calls > steps and step < steps - 1 else 1 for step in range(steps)]


def _scheduler_calls(config: RenderConfig) -> int:
    """Return how many predictions the scheduler is given: most take one a step, and of the others a few are known."""
    name = scheduler_of(config.model)
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
