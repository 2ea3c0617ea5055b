"""The steps from which on a gap is another one, so that one of before cannot be reused."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from w2sd_video.branch import STAGES, Branch, steps_of_switches
from w2sd_video.driver.parts import denoisers_of
from w2sd_video.reflection_settings import Role
from w2sd_video.reuse import Changes
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment


def gap_changes(
    pipe: Any,
    branches: Mapping[Role, Branch],
    arguments: Mapping[str, Any],
    guiders: Iterable[Any],
    trajectory: Trajectory,
    moments: Mapping[int, Moment],
) -> Changes:
    """Return for each role the steps from which on its prediction is made of something else than at the step before.

    There the second of two denoisers begins to work, or a window begins or ends: of its branch, of the call's own, or
    of a guider's.

    Args:
        pipe: whose networks they are.
        branches: the setting of each role.
        arguments: of the pipeline's call.
        guiders: those of a modular pipeline.
        trajectory: its levels.
        moments: of the steps that the call goes through, by their numbers.
    """
    of_all = stage_changes(pipe, trajectory) | _switches(arguments, copy.deepcopy(list(guiders)), trajectory, moments)
    return {role: of_all | steps_of_switches(branch, moments) for role, branch in branches.items()}


def stage_changes(pipe: Any, trajectory: Trajectory) -> frozenset[int]:
    """Return the step from which on the second of a pipeline's two denoisers works, if it has two (Wan 2.2).

    Raises:
        ValueError: two denoisers, and nothing that tells when they change.
    """
    if len(denoisers_of(pipe)) < len(STAGES):
        return frozenset()
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None:
        raise ValueError(
            f"{type(pipe).__name__} has two denoisers and no boundary_ratio in its configuration, so it is not known "
            "where a gap becomes another; measure it at every step (reuse=1)"
        )
    boundary = ratio * pipe.scheduler.config.num_train_timesteps
    later = [step for step, timestep in enumerate(trajectory.timesteps) if float(timestep) < boundary]
    return frozenset(later[:1])


def _switches(
    arguments: Mapping[str, Any], guiders: Sequence[Any], trajectory: Trajectory, moments: Mapping[int, Moment]
) -> frozenset[int]:
    """Return the steps from which on a window of the call or a guider has something on, or off, that was not before."""
    steps, ends = sorted(moments), [*trajectory.calls, trajectory.number_of_calls]
    first, end = ends[steps[0]], ends[steps[-1] + 1]
    on = {
        step: (_on_at(arguments, ends[step] - first, end - first), _asked_at(guiders, ends[step] - first, end - first))
        for step in steps
    }
    return frozenset(step for before, step in pairwise(steps) if on[before] != on[step])


def _on_at(arguments: Mapping[str, Any], i: int, total: int) -> list[bool]:
    """Return whether each ControlNet, and the guidance by skipped layers, are on, as pipelines of diffusers reckon."""
    starts, ends = (
        _listed(arguments.get(f"control_guidance_{end}"), whole) for end, whole in (("start", 0.0), ("end", 1.0))
    )
    most = max(len(starts), len(ends))
    controls = zip(*(part * most if len(part) == 1 else part for part in (starts, ends)), strict=False)
    on = [start <= i / total and (i + 1) / total <= end for start, end in controls]
    if arguments.get("skip_guidance_layers") is not None:
        first, last = (total * arguments.get(f"skip_layer_guidance_{end}", 0.0) for end in ("start", "stop"))
        on.append(first < i < last)
    return on


def _asked_at(guiders: Sequence[Any], i: int, total: int) -> list[int]:
    """Return how many predictions each guider asks for."""
    for guider in guiders:
        guider.set_state(step=i, num_inference_steps=total, timestep=None)
    return [guider.num_conditions for guider in guiders]


def _listed(value: Any, otherwise: float) -> list[Any]:
    return [otherwise] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
