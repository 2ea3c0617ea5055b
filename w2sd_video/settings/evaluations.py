"""How often a configuration will evaluate its networks, counted without a model."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from w2sd_video.branch import STAGES
from w2sd_video.reflection_settings import Inversion, Role, default_inversion
from w2sd_video.reuse import measuring_steps
from w2sd_video.settings.scheduler_calls import calls_by_steps, calls_of_steps, without_signal_by_steps
from w2sd_video.settings.schema import ROLES, BranchConfig, RenderConfig, filled, reflection_of, stage_scales
from w2sd_video.settings.sources import is_told_guidance, read_json, scheduler_of, stages_of
from w2sd_video.window import Window

MOST_STEPS = 1000
"""Steps that a configuration can have."""
_ROUNDING = 16
"""Steps beyond the first that do not fit, of which one may: ends of windows are rounded, so that more may cost less."""
_SHORTENING = ("strength", "start", "end", "ratio")
"""Words in the names of a pipeline's own arguments that may leave out steps, or rows of some."""


def evaluations(config: RenderConfig) -> dict[str, int]:
    """Return the network evaluations of one clip by role; a guided prediction takes two.

    Exact, or the most that there can be: see `is_exact`. A model that is not on this machine may share evaluations by
    its usual inversion, and its scheduler counts as one that takes a prediction a step.
    """
    return _most(evaluations_by_stage(config))


def _most(stages: list[dict[str, int]]) -> dict[str, int]:
    return {role: max(stage[role] for stage in stages) for role in ROLES}


def is_exact(config: RenderConfig) -> bool:
    """Return whether `evaluations` are exact, and not the most that there can be.

    They are the most for stages of a two-stage model that need different numbers, what depends on the noise level and
    is nothing at some, a gap that is reused and may be another from a level on, and arguments of the pipeline's own
    that may leave out steps (`call.strength`).
    """
    stages = evaluations_by_stage(config)
    is_shortened = any(word in name for name in config.call for word in _SHORTENING)
    has_known_gaps = config.reuse == 1 or not _unforeseen(config, ROLES)
    return stages[0] == stages[-1] and has_known_gaps and not is_shortened and not _depends_on_levels(config)


def _depends_on_levels(config: RenderConfig) -> bool:
    """Return whether something is switched by the noise level, and not by the step."""
    windows = [window for role in ROLES for window in (getattr(config, role).windows or {}).values()]
    windows += [config.autoguidance_steps, config.reflection_steps]
    strengths = [config.autoguidance, *([config.strength] if reflection_of(config).reflects else [])]
    return any(isinstance(strength, str) for strength in strengths) or any(
        isinstance(window, (str, Window)) for window in windows
    )


def reflected_steps(config: RenderConfig) -> range:
    """Return the steps that are reflected, counted from the noisiest."""
    return reflection_of(config).steps(len(calls_of_steps(config)))


def nfe_of(config: RenderConfig) -> int:
    """Return the network evaluations of a clip, in all roles."""
    return sum(evaluations(config).values())


def at_budget(config: RenderConfig, budget: int) -> RenderConfig | None:
    """Return a configuration with the most steps, at most 1000, whose evaluations stay within a budget.

    A reflection needs at least as many steps as it spans and one more, or there is none of it. None if no number fits.
    """
    files, reflects = _files_of(config), reflection_of(config).reflects

    def cost(steps: int) -> int:
        """Return the evaluations of so many steps; 0 of so few or so many that they cannot be taken."""
        variant = replace(config, steps=steps)
        try:
            is_reflected = len(reflection_of(variant).steps(len(files.calls(steps)))) > 0
            return sum(_most(_by_stage(variant, files)).values()) if is_reflected or not reflects else 0
        except ValueError:
            return 0

    fewest = config.span + 1 if reflects else 1
    numbers = range(fewest, min(budget, MOST_STEPS) + 1)
    about = bisect_right(numbers, budget, key=cost)
    fitting = (steps for steps in reversed(numbers[: about + _ROUNDING]) if 0 < cost(steps) <= budget)
    return next((replace(config, steps=steps) for steps in fitting), None)


def evaluations_by_stage(config: RenderConfig) -> list[dict[str, int]]:
    """Return the evaluations by role if all steps were of one stage: for each stage that a branch tells apart."""
    return _by_stage(config, _files_of(config))


@dataclass(frozen=True)
class _Files:
    """What the files of a model say, whatever the number of steps.

    Attributes:
        is_told_guidance: whether guidance is distilled into the network.
        inversion: as the model has it.
        calls: predictions that the scheduler takes at each step, by the number of steps.
        begins_without_signal: whether its first level is noise alone, by the number of steps.
    """

    is_told_guidance: bool
    inversion: Inversion
    calls: Callable[[int], tuple[int, ...]]
    begins_without_signal: Callable[[int], bool]


def _files_of(config: RenderConfig) -> _Files:
    return _Files(
        is_told_guidance(config.model), inversion_of(config), calls_by_steps(config), without_signal_by_steps(config)
    )


def _by_stage(config: RenderConfig, files: _Files) -> list[dict[str, int]]:
    branches = [filled(config, getattr(config, role)) for role in ROLES]
    stages_differ = any(
        len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES for branch in branches
    )
    return [_evaluations(config, files, branches, stage) for stage in range(2 if stages_differ else 1)]


def _evaluations(config: RenderConfig, files: _Files, branches: list[BranchConfig], stage: int) -> dict[str, int]:
    """Count the rows of all steps, as the algorithm asks for them: those at the same latents are evaluated once."""
    calls, settings = files.calls(config.steps), reflection_of(config)
    of_role = {role: _at_steps(branch, len(calls)) for role, branch in zip(ROLES, branches, strict=True)}
    reflected, pushed = list(settings.steps(len(calls))), settings.pushed_steps(len(calls))
    if (branches[1].windows or branches[2].windows) and not files.inversion.startswith("resample"):
        reflected = [step for step in reflected if of_role["strong"][step] != of_role["weak"][step]]
    rows = {
        id(branch): (_but_guidance(branch, stage), _halves(branch, stage, files.is_told_guidance))
        for branch in {id(branch): branch for of_steps in of_role.values() for branch in of_steps}.values()
    }
    counts = dict.fromkeys(ROLES, 0)

    def measuring(steps: list[int] | range, roles: list[Role]) -> Collection[int]:
        """Return which steps measure a gap of some roles; where that is open, as many of the dearest as may be."""
        if settings.reuse == 1:
            return steps
        switches = {i for role in roles for i in range(1, len(calls)) if of_role[role][i] != of_role[role][i - 1]}
        measured, unforeseen = measuring_steps(settings.reuse, steps, switches), _unforeseen(config, roles)
        if config.reading == "epsilon" and 0 in steps and files.begins_without_signal(len(calls)):
            measured |= set(steps[1:2])  # at step 0 it is read as the sample, which is not carried on
        if not unforeseen:
            return measured
        costs = {step: sum(len(rows[id(of_role[role][step])][1]) for role in roles) for step in steps}
        return sorted(steps, key=costs.__getitem__, reverse=True)[: len(measured) + unforeseen]

    measured = measuring(reflected, ["strong", "weak"]), measuring(pushed, [settings.autoguidance_gap, "weak"])

    def evaluate(roles: list[Role], step: int) -> None:
        """Count what some roles evaluate at the same latents, one after the other."""
        there: list[tuple[Any, set[str]]] = []
        for role in roles:
            key, halves = rows[id(of_role[role][step])]
            known = set() if files.is_told_guidance else {half for other, of in there if other == key for half in of}
            counts[role] += len(halves - known)
            there.append((key, halves))

    for step, predictions in enumerate(calls):
        for _ in range(config.rounds if step in measured[0] else 0):
            if files.inversion in ("current", "implicit"):
                evaluate(["strong", "weak"], step)
            elif files.inversion == "resample":
                evaluate(["strong"], step)
            else:
                evaluate(["strong"], step)
                evaluate(["weak"], step)
            for _ in range(config.iterations - 1 if files.inversion == "implicit" else 0):
                evaluate(["weak"], step)
        for call in range(predictions):
            # A prediction inside a step of the scheduler's is no place at which a gap is kept.
            pushes = step in pushed and (step in measured[1] or call > 0)
            gap: list[Role] = ["weak", "strong"] if settings.autoguidance_gap == "strong" else ["weak"]
            evaluate([*(gap if pushes else []), "base"], step)
    return {role: counts[role] for role in ROLES}


def _unforeseen(config: RenderConfig, roles: Iterable[Role]) -> int:
    """Return at how many steps the gap of some roles may be another that no number of the step tells."""
    of_levels = [window for role in roles for window in (filled(config, getattr(config, role)).windows or {}).values()]
    ends = sum({Window: 2, str: MOST_STEPS}.get(type(window), 0) for window in of_levels)
    of_call = [value for name, value in config.call.items() if re.fullmatch(r".*_guidance_(start|end|stop)", name)]
    ends += sum(len(value) if isinstance(value, (list, tuple)) else 1 for value in of_call)
    ends += 2 * ("skip_guidance_layers" in config.call)
    return ends + (stages_of(config.model) != 1)  # the second of two networks takes over; of one not here, who knows


def inversion_of(config: RenderConfig) -> Inversion:
    """Return the inversion, with ``auto`` as the model has it; ``auto`` itself of a model that is not here."""
    name = scheduler_of(config.model)
    if config.inversion != "auto" or not name:
        return config.inversion
    settings = read_json(config.model.pretrained, "scheduler/scheduler_config.json")
    is_flow = "FlowMatch" in name or settings.get("use_flow_sigmas") or "flow" in str(settings.get("prediction_type"))
    return default_inversion(bool(is_flow))


def _at_steps(branch: BranchConfig, steps: int) -> list[BranchConfig]:
    """Return a branch as it is at each step: what is off there is left out. Windows of levels count as on."""
    is_on = {
        name: Window(*window).steps(steps)
        for name, window in (branch.windows or {}).items()
        if isinstance(window, (tuple, list))
    }

    @functools.cache
    def without(*off: str) -> BranchConfig:
        changes: dict[str, Any] = {name: 1.0 if name == "guidance_scale" else None for name in off}
        return replace(branch, windows=None, **changes)

    return [without(*(name for name, on in is_on.items() if step not in on)) for step in range(steps)]


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
    experts = None if branch.experts in ("top", *STAGES) else branch.experts  # a mixture takes its top experts
    return replace(branch, guidance_scale=None, experts=experts), _stage_used(branch, stage)
