"""Weak-to-Strong Diffusion (algorithm 1 of "Weak-to-Strong Diffusion with Reflection", arXiv 2502.00473).

No model and no scheduler is inside: the algorithm asks for predictions and for steps, and whoever drives it answers.
``sampler.sample`` does with a function of the user's own, ``plugin.reflection`` with the loop of a diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from w2sd_video.inversions import Draw, Request, reflect_step
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.reuse import Changes, HeldGap, changes_of
from w2sd_video.trajectory import Trajectory, working_dtype

Returned = TypeVar("Returned")


def w2sd(
    trajectory: Trajectory,
    latents: torch.Tensor,
    settings: Reflection,
    draw: Draw = torch.randn_like,
    begin: int = 0,
    changes: Changes = MappingProxyType({}),
    idle: Collection[int] = (),
    end: int | None = None,
) -> Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor]:
    """Sample from the noisiest step to the last: yield what is asked for, be sent it, return the last latents.

    The predictions for a step are asked for one by one, then the scheduler's own step, which is answered with the
    latents that the next step begins with.

    Args:
        trajectory: the levels.
        latents: tensor of any shape, at the level of the first step.
        settings: where and how to reflect.
        draw: makes the noise of Re-Sampling, like the latents that it is given.
        begin: index among the scheduler's timesteps of the first call; steps are counted from there.
        changes: steps from which on a role's prediction is made otherwise, so that no gap with it is carried on.
        idle: steps at which windows leave strong and weak alike, so that there is nothing to reflect.
        end: index of the first call that is left to others (SDXL's ``denoising_end``); None for none.

    Raises:
        ValueError: more reflected steps than steps, or a step that cannot be inverted.
    """
    reflected = reflected_steps(trajectory, settings, begin, idle, end)
    pushed = pushed_steps(trajectory, settings, begin, end)
    of_reflection, of_push = (
        HeldGap(settings.reuse, settings.carried, sorted(steps), changes_of(changes, *roles))
        for steps, roles in ((reflected, ("strong", "weak")), (pushed, (settings.autoguidance_gap, "weak")))
    )
    for call in range(begin, trajectory.number_of_calls if end is None else end):  # t = T … 1
        i, x = trajectory.step_of_call(call), latents  # i is None where a scheduler calls twice for one step
        if i in reflected:  # t > T - λ
            x = yield from reflect_step(trajectory, x, i, settings, draw, of_reflection)  # M_w_inv(M_s(x_t, t), t)
        prediction = yield from _prediction_of_step(trajectory, x, call, settings, of_push, pushed)
        latents = yield Step(x, call, prediction, x - latents if i in reflected else None)  # x_{t-1} = M_s(x̃_t, t)
    return latents


def _prediction_of_step(
    trajectory: Trajectory, x: torch.Tensor, call: int, settings: Reflection, held: HeldGap, pushed: frozenset[int]
) -> Generator[StepRequest, torch.Tensor, torch.Tensor]:
    """Return base's prediction for a call of the scheduler, pushed away from weak's where AutoGuidance is on.

    ``base + g * gap``, with the gap of base and weak or of strong and weak (Karras et al., arXiv 2406.02507).
    """
    i = trajectory.step_at(call)
    if i not in pushed:
        return (yield StepRequest(x, call, "base"))
    reading, is_own_step = settings.reading_at(trajectory, i), trajectory.step_of_call(call) is not None
    gap = held.at(i, reading) if is_own_step else None
    if gap is not None:
        gap = trajectory.as_prediction(gap, i, reading)
        return _pushed((yield StepRequest(x, call, "base")), gap, settings.autoguidance_at(trajectory.level(i)))
    weak = yield StepRequest(x, call, "weak")
    strong = None if settings.autoguidance_gap == "base" else (yield StepRequest(x, call, "strong", True))
    base = yield StepRequest(x, call, "base", True)
    gap = _difference(base if strong is None else strong, weak)
    if is_own_step and settings.reuse > 1:
        held.keep(i, reading, trajectory.as_reading(gap, i, reading))
    return _pushed(base, gap, settings.autoguidance_at(trajectory.level(i)))


@dataclass(frozen=True)
class StepRequest:
    """A prediction that the scheduler's own step is to be taken with, or pushed away from.

    Attributes:
        latents: what to evaluate, in the scheduler's own scaling.
        call: index among the scheduler's timesteps; the network sees latents and timestep as in a stock loop.
        role: which setting of the model is to answer.
        shares_latents: whether the request before asked for the same latents and timestep, in another role.
    """

    latents: torch.Tensor
    call: int
    role: Role
    shares_latents: bool = False


@dataclass(frozen=True)
class Step:
    """The scheduler's own step, to be taken: the step that counts.

    Attributes:
        latents: what it starts from.
        call: index among the scheduler's timesteps.
        prediction: what the scheduler calls ``model_output``.
        displacement: what a reflection has added to the latents; None where there was none.
    """

    latents: torch.Tensor
    call: int
    prediction: torch.Tensor
    displacement: torch.Tensor | None


def reflected_steps(
    trajectory: Trajectory,
    settings: Reflection,
    begin: int = 0,
    idle: Collection[int] = (),
    end: int | None = None,
) -> frozenset[int]:
    """Return the steps at which there is a reflection, of those from a call of the scheduler on, before another one.

    Steps that are idle are left out; not by Re-Sampling, which makes no weak prediction.

    Raises:
        ValueError: more reflected steps than steps, or a last step that the inversion cannot reflect.
    """
    steps = trajectory.steps_from(begin, end)
    below = 0 if end is None else len(trajectory.steps_from(end))
    reflected = [i for i in settings.steps(len(steps), below) if settings.reflects_at(trajectory.level(steps[i]))]
    if not settings.inversion.startswith("resample"):
        reflected = [i for i in reflected if steps[i] not in idle]
    settings.check_levels_below(reflected, len(steps) + below)
    return frozenset(steps[i] for i in reflected)


def pushed_steps(
    trajectory: Trajectory, settings: Reflection, begin: int = 0, end: int | None = None
) -> frozenset[int]:
    """Return the steps at which AutoGuidance acts, of those from a call of the scheduler on, before another one.

    Raises:
        ValueError: more than there are.
    """
    steps = trajectory.steps_from(begin, end)
    in_window = [steps[i] for i in settings.pushed_steps(len(steps))]
    return frozenset(step for step in in_window if settings.pushes_at(trajectory.level(step)))


def pushed_away(
    prediction: torch.Tensor, weak: torch.Tensor, weight: float, strong: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``prediction + weight * (strong - weak)`` (AutoGuidance; Karras et al., arXiv 2406.02507).

    Strong's prediction is the pushed one unless it is given.
    """
    return _pushed(prediction, _difference(prediction if strong is None else strong, weak), weight)


def _difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    precise = working_dtype(one)
    return one.to(precise) - other.to(precise)


def _pushed(prediction: torch.Tensor, gap: torch.Tensor, weight: float) -> torch.Tensor:
    return (prediction.to(gap.dtype) + weight * gap).to(prediction.dtype)


def shift_history(scheduler: Any, trajectory: Trajectory, call: int, displacement: torch.Tensor | None) -> None:
    """Shift the latents that a corrector (UniPC) starts from, so that a displacement survives the step.

    UniPC builds the latents of a step again from those of the step before, times a ratio of the two levels, and would
    throw away what a reflection added to them.

    Args:
        scheduler: whose history is shifted.
        trajectory: of the scheduler.
        call: index among the scheduler's timesteps, of the step to come.
        displacement: what a reflection has added to the latents; None where there was none.
    """
    last_sample, i = getattr(scheduler, "last_sample", None), trajectory.step_of_call(call)
    if displacement is None or last_sample is None or not i:
        return
    previous_level, level = trajectory.level(i - 1), trajectory.level(i)
    ratio = level.sigma / previous_level.sigma if scheduler.predict_x0 else level.alpha / previous_level.alpha
    scheduler.last_sample = last_sample + displacement.to(last_sample.dtype) / ratio


def drive(asking: Generator[Any, torch.Tensor, Returned], answer: Callable[[Any], torch.Tensor]) -> Returned:
    """Answer everything that a generator asks for, and return what it returns."""
    try:
        request = next(asking)
        while True:
            request = asking.send(answer(request))
    except StopIteration as end:
        return end.value


def asked_by(asking: Generator[Any, torch.Tensor, Any]) -> list[Any]:
    """Return all that a generator asks for, found by running it on latents of no size."""
    requests: list[Any] = []

    def answer(request: Any) -> torch.Tensor:
        requests.append(request)
        return request.latents

    drive(asking, answer)
    return requests


def asked_by_call(
    asking: Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor],
) -> dict[int, list[Request | StepRequest]]:
    """Return what a sampling asks for before each call of the scheduler, found by running it on latents of no size."""
    by_call: dict[int, list[Request | StepRequest]] = {}
    of_call: list[Request | StepRequest] = []
    for asked in asked_by(asking):
        if isinstance(asked, Step):
            by_call[asked.call], of_call = of_call, []
        else:
            of_call.append(asked)
    return by_call
