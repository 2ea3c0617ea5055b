"""W2SD with a prediction function of one's own: ``sample(predict, noise, scheduler, ...)``."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from w2sd_video._moved import names_of
from w2sd_video.algorithm import Step, StepRequest, drive, shift_history, w2sd
from w2sd_video.argument_checks import (
    check_callable,
    check_finite,
    check_latents,
    check_like,
    check_were_finite,
    version_of,
    whole_number,
)
from w2sd_video.inversions import Draw, Request, reflect_step
from w2sd_video.reflection_settings import Inversion, Reading, Reflection, Role, WeakInversion
from w2sd_video.reuse import Carried, Changes, steps_of_changes
from w2sd_video.strength import StrengthSchedule, as_strength
from w2sd_video.time_grid import set_timesteps
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Steps

__getattr__ = names_of(__name__)

__all__ = [
    "Draw",
    "Inversion",
    "Predict",
    "Reflection",
    "Request",
    "Role",
    "Sampled",
    "WeakInversion",
    "drawing_from",
    "reflect_step",
    "sample",
]

Predict = Callable[[torch.Tensor, torch.Tensor, Role], torch.Tensor]


class Sampled(NamedTuple):
    """Final latents, and the network evaluations by role."""

    latents: torch.Tensor
    nfe: dict[str, int]


def sample(
    predict: Predict,
    latents: torch.Tensor,
    scheduler: Any,
    *,
    num_inference_steps: int | None = None,
    begin: int = 0,
    reflection_steps: Steps = None,
    strength: float | str | Path | StrengthSchedule = 1.0,
    rounds: int = 1,
    inversion: Inversion = "auto",
    iterations: int = 2,
    autoguidance: float | str | Path | StrengthSchedule = 0.0,
    span: int = 1,
    reading: Reading = "epsilon",
    reuse: int = 1,
    carried: Carried = "held",
    autoguidance_steps: Steps = None,
    autoguidance_gap: Literal["base", "strong"] = "base",
    grid: float = 1.0,
    stage_changes: Collection[int] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> Sampled:
    """Sample by W2SD with a prediction function of one's own (algorithm 1 of the paper).

    Args:
        predict: ``(latents, timestep, role) -> prediction``. The latents are scaled as the network wants them
            (``scale_model_input``), the timestep is a 0-dimensional tensor of the scheduler's, the role is one of
            "base", "strong", "weak". The prediction is what the scheduler calls ``model_output``; it has the shape, the
            dtype and the device of the latents. On sigmas the latents are as they are, the timestep is the sigma, and
            the prediction what ``prediction_type`` says.
        latents: initial noise, already multiplied by ``scheduler.init_noise_sigma``, or by the first sigma;
            floating-point, of any shape.
        scheduler: a diffusers scheduler of a known kind, which is copied, and left as it is; or
            ``Trajectory.from_sigmas(...)``, whose steps are those of Euler, computed in float32 for latents in half
            precision.
        num_inference_steps: T; None uses the timesteps that ``set_timesteps`` has put into the scheduler, or all
            sigmas.
        begin: index of the scheduler's timestep to begin at, where latents are not pure noise (image to image); the
            steps that there are to reflect are counted from there.
        reflection_steps: see ``Reflection``, as of all settings down to ``grid``.
        strength: a number, or a ``StrengthSchedule`` or the name of its file.
        stage_changes: steps from which on another network answers (the second of Wan 2.2's two), where a gap that is
            reused is measured anew; None are those that a ``Predictor`` knows of.
        generator: for schedulers whose own step draws noise, and for Re-Sampling; a list has one a sample.
        callback: ``(step, latents)``, called after each step.

    Returns:
        The final latents, and the number of calls of ``predict`` by role. Gradients are off unless ``latents`` require
        them.

    Raises:
        TypeError: an unknown scheduler or the trajectory of one, latents that are not a floating-point tensor, a
            setting that is no number, or no function or generator where one must be.
        ValueError: a setting out of range, a file that holds no strengths, timesteps that were never set, a number of
            steps that is not that of the sigmas, latents that are not finite, or a prediction of another shape, dtype
            or device, or that is not finite; the message names its role and step. Whether predictions, and the latents
            in the end, are finite is seen at the end, so that nothing before it waits on the device. Latents that
            ``predict`` changed in place.
    """
    settings = Reflection(
        reflection_steps,
        as_strength(strength),
        rounds=rounds,
        inversion=inversion,
        iterations=iterations,
        autoguidance=as_strength(autoguidance),
        span=span,
        reading=reading,
        reuse=reuse,
        carried=carried,
        autoguidance_steps=autoguidance_steps,
        autoguidance_gap=autoguidance_gap,
        grid=grid,
    )
    check_latents(latents)
    check_finite("latents", latents)
    check_callable("predict", predict)
    if callback is not None:
        check_callable("callback", callback)
    _check_generator(generator, latents)
    if settings.grid != 1.0 and (num_inference_steps is None or isinstance(scheduler, Trajectory)):
        raise ValueError(f"grid={settings.grid:g} spaces the num_inference_steps of a scheduler, which are not given")
    if isinstance(scheduler, Trajectory):
        loop = _loop_on_sigmas(scheduler, num_inference_steps, latents.device)
    else:
        loop = _loop_of_scheduler(scheduler, num_inference_steps, latents.device, generator, settings.grid)
    trajectory = loop.trajectory
    trajectory.level_below(0, settings.span)
    if whole_number("begin", begin, 0) >= trajectory.number_of_calls:
        raise ValueError(f"begin must be from 0 to {trajectory.number_of_calls - 1}, got {begin}")
    if stage_changes is None:
        changes: Changes = getattr(predict, "changes", {}) if settings.reuse > 1 else {}
    else:
        changes = dict.fromkeys(get_args(Role), steps_of_changes(stage_changes, trajectory))
    idle = getattr(predict, "idle_steps", ())
    nfe: Counter[str] = Counter(base=0, strong=0, weak=0)
    are_finite: list[tuple[str, torch.Tensor]] = []

    def predicted(seen: torch.Tensor, timestep: torch.Tensor, role: Role, step: int) -> torch.Tensor:
        nfe[role] += 1
        name, version = f"predict as {role!r} at step {step}", version_of(seen)
        prediction = predict(seen, timestep, role)
        if version_of(seen) != version:
            raise ValueError(f"{name} changed the latents that it was given in place; it must leave them as they are")
        check_like(name, prediction, seen)
        are_finite.append((name, torch.isfinite(prediction.detach()).all()))
        return prediction

    def answer(request: Request | StepRequest | Step) -> torch.Tensor:
        if isinstance(request, Step):
            next_latents, step = loop.take_step(request), trajectory.step_of_call(request.call)
            if callback is not None and step is not None:
                callback(step, next_latents)
            return next_latents
        if isinstance(request, Request):
            timestep = loop.timesteps[trajectory.calls[request.step]]
            return predicted(request.latents / request.input_scale, timestep, request.role, request.step)
        timestep, step = loop.timesteps[request.call], trajectory.step_at(request.call)
        return predicted(loop.scaled(request.latents, timestep), timestep, request.role, step)

    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        final = drive(w2sd(trajectory, latents, settings, drawing_from(generator), begin, changes, idle), answer)
    are_finite.append(("the last step", torch.isfinite(final.detach()).all()))
    check_were_finite(are_finite)
    return Sampled(final, dict(nfe))


class _Loop(NamedTuple):
    """The steps that count, whoever takes them.

    Attributes:
        trajectory: their levels.
        timesteps: what the network is told at each call.
        scaled: ``(latents, timestep)`` to latents as the network sees them.
        take_step: a step to the latents after it.
    """

    trajectory: Trajectory
    timesteps: Sequence[torch.Tensor]
    scaled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    take_step: Callable[[Step], torch.Tensor]


def _loop_on_sigmas(trajectory: Trajectory, num_inference_steps: int | None, device: torch.device) -> _Loop:
    """Return the loop of Euler, which steps along a trajectory that was made of sigmas."""
    if not trajectory.is_on_sigmas:
        raise TypeError(
            "a trajectory of a scheduler takes no steps; pass the scheduler, or Trajectory.from_sigmas(...)"
        )
    if num_inference_steps is not None and num_inference_steps != len(trajectory):
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}, but there are {len(trajectory)} steps between the sigmas; "
            "leave it out"
        )
    return _Loop(
        trajectory,
        [sigma.to(device) for sigma in trajectory.timesteps],
        lambda latents, timestep: latents,
        lambda step: trajectory.denoise(step.latents, step.prediction, step.call),
    )


def _loop_of_scheduler(
    scheduler: Any,
    num_inference_steps: int | None,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None,
    grid: float,
) -> _Loop:
    """Return the loop of a copy of a scheduler."""
    Trajectory.check(scheduler)
    scheduler = copy.deepcopy(scheduler)
    if num_inference_steps is not None:
        steps = {"num_inference_steps": whole_number("num_inference_steps", num_inference_steps, 1)}
        set_timesteps(scheduler, {**steps, "device": device}, grid)
    trajectory, call_step = Trajectory(scheduler), _step_function(scheduler, generator)

    def take_step(step: Step) -> torch.Tensor:
        shift_history(scheduler, trajectory, step.call, step.displacement)
        return call_step(step.prediction, step.call, step.latents)

    return _Loop(
        trajectory, scheduler.timesteps, lambda latents, timestep: _scaled(scheduler, latents, timestep), take_step
    )


def _check_generator(generator: Any, latents: torch.Tensor) -> None:
    generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
    for each in generators:
        if not isinstance(each, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator, or a list of one a sample, got {type(each).__name__}"
            )
    samples = latents.shape[0] if latents.ndim else 1
    if isinstance(generator, list) and len(generator) not in (1, samples):
        raise ValueError(f"generator holds {len(generator)} for {samples} samples; give one a sample, or one for all")


def drawing_from(generator: torch.Generator | list[torch.Generator] | None) -> Draw:
    """Return a function that draws noise from one generator, or from one a sample, as ``randn_tensor`` of diffusers.

    A generator draws on its own device, so that a seed gives the same noise for any device of the latents.
    """
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]

    def drawn(shape: torch.Size, like: torch.Tensor, of: torch.Generator | None) -> torch.Tensor:
        device = like.device if of is None else of.device
        return torch.randn(shape, generator=of, device=device, dtype=like.dtype).to(like.device)

    def draw(like: torch.Tensor) -> torch.Tensor:
        if not isinstance(generator, list):
            return drawn(like.shape, like, generator)
        return torch.cat([drawn(row.shape, row, generator[i]) for i, row in enumerate(like.split(1))])

    return draw


def _scaled(scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return latents as the network sees them in a stock loop; some schedulers scale nothing."""
    return scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents


def _step_function(
    scheduler: Any, generator: torch.Generator | list[torch.Generator] | None
) -> Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]:
    """Return ``(prediction, call, latents) -> latents`` by the scheduler's own step, whatever its signature."""
    parameters = inspect.signature(scheduler.step).parameters
    generator_argument = {"generator": generator} if "generator" in parameters else {}
    if "timestep_back" not in parameters:
        return lambda prediction, call, latents: scheduler.step(
            prediction, scheduler.timesteps[call], latents, return_dict=False, **generator_argument
        )[0]

    old_sample: torch.Tensor | None = None

    def step(prediction: torch.Tensor, call: int, latents: torch.Tensor) -> torch.Tensor:
        nonlocal old_sample
        timesteps = scheduler.timesteps
        previous_timestep = timesteps[call - 1] if call > 0 else None
        latents, old_sample = scheduler.step(
            prediction, old_sample, timesteps[call], previous_timestep, latents, return_dict=False, **generator_argument
        )
        return latents

    return step
