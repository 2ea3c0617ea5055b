"""Where the weak prediction of a reflection is made: six inversions, each a function.

``reflect_step`` is a generator that yields a ``Request`` and is sent the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from w2sd_video.levels import Level
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.reuse import HeldGap
from w2sd_video.trajectory import Trajectory, working_dtype

Draw = Callable[[torch.Tensor], torch.Tensor]
"""Noise like some latents."""


@dataclass(frozen=True)
class Request:
    """A prediction that the algorithm asks for.

    Attributes:
        latents: what to evaluate, in the scheduler's own scaling.
        step: the step whose timestep the network is to be told.
        input_scale: what the latents are divided by before the network sees them.
        role: which setting of the model is to answer.
        shares_latents: whether the request before asked for the same latents and step, in another role.
    """

    latents: torch.Tensor
    step: int
    input_scale: float
    role: Role
    shares_latents: bool = False


def reflect_step(
    trajectory: Trajectory,
    latents: torch.Tensor,
    i: int,
    settings: Reflection,
    draw: Draw = torch.randn_like,
    held: HeldGap | None = None,
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Reflect latents at step ``i``: yield requests, be sent predictions, return the displaced latents.

    The step that counts is not taken here: it belongs to the scheduler (algorithm 1 of the paper).

    Args:
        trajectory: the levels.
        latents: tensor of any shape, at ``trajectory.level(i)``.
        i: the step, counted from the noisiest.
        settings: how to reflect; at strength 0 nothing is asked for.
        draw: makes the noise of Re-Sampling, like the latents that it is given.
        held: the gap of earlier steps, where it is to be reused; None measures it here.

    Raises:
        ValueError: a step that predictions of this kind cannot invert.
    """
    settings = settings.on(trajectory)
    strength, reading = settings.strength_at(trajectory.level(i)), settings.reading_at(trajectory, i)
    if strength == 0.0:
        return latents
    for _ in range(settings.rounds):
        if settings.inversion in ("resample", "resample-advanced"):
            renoised = yield from _resample(trajectory, latents, i, settings, draw)
            latents = latents + strength * (renoised - latents)
            continue
        gap = held.at(i, reading) if held else None
        if gap is None:
            gap = yield from _measured_gap(trajectory, latents, i, settings, reading)
            if held:
                held.keep(i, reading, gap)
        latents = trajectory.displaced(latents, gap, i, strength=strength, reading=reading, span=settings.span)
    return latents


def _measured_gap(
    trajectory: Trajectory, latents: torch.Tensor, i: int, settings: Reflection, reading: str
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Return strong's prediction less weak's, each in a reading, with weak's made where the inversion says."""
    strong = yield Request(latents, i, trajectory.input_scale(trajectory.level(i)), "strong")
    if settings.inversion in ("paper", "explicit"):
        return (yield from _gap_below(trajectory, latents, strong, i, settings, reading))
    iterations = 1 if settings.inversion == "current" else settings.iterations
    return (yield from _gap_at_level(trajectory, latents, strong, i, settings.span, iterations, reading))


def _gap_below(
    trajectory: Trajectory, latents: torch.Tensor, strong: torch.Tensor, i: int, settings: Reflection, reading: str
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Return the gap with the weak prediction made at the denoised latents, told their own timestep or the paper's."""
    level, lower_level = trajectory.level(i), trajectory.level_below(i, settings.span)
    told_step = i + settings.span if settings.inversion == "explicit" else i
    lower = trajectory.denoise(latents, strong, i, settings.span)
    told_level = trajectory.level(told_step)
    weak = yield Request(lower, told_step, trajectory.input_scale(lower_level, told_level), "weak")
    strong = _read(trajectory, latents, strong, level, level, reading)
    return strong - _read(trajectory, lower, weak, lower_level, told_level, reading)


def _gap_at_level(
    trajectory: Trajectory,
    latents: torch.Tensor,
    strong: torch.Tensor,
    i: int,
    span: int,
    iterations: int,
    reading: str,
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Return the gap with the weak prediction made at step ``i``: at the latents, then at the inverted ones."""
    level, gap = trajectory.level(i), None
    strong = _read(trajectory, latents, strong, level, level, reading)
    for _ in range(iterations):
        inverted = latents if gap is None else trajectory.displaced(latents, gap, i, reading=reading, span=span)
        weak = yield Request(inverted, i, trajectory.input_scale(level), "weak", shares_latents=gap is None)
        gap = strong - _read(trajectory, inverted, weak, level, level, reading)
    assert gap is not None  # at least one iteration
    return gap


def _read(
    trajectory: Trajectory, latents: torch.Tensor, prediction: torch.Tensor, at: Level, told_level: Level, reading: str
) -> torch.Tensor:
    """Return a prediction in a reading, in float32: the difference of two would be lost in half precision."""
    precise = working_dtype(prediction)
    if reading == trajectory.prediction_type:
        return prediction.to(precise)
    return trajectory.read(latents.to(precise), prediction.to(precise), at=at, told_level=told_level, reading=reading)


def _resample(
    trajectory: Trajectory, latents: torch.Tensor, i: int, settings: Reflection, draw: Draw
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Denoise and add noise again; the advanced form's is similar to the displacement of the paper's reflection."""
    strong = yield Request(latents, i, trajectory.input_scale(trajectory.level(i)), "strong")
    lower = trajectory.denoise(latents, strong, i, settings.span)
    noise = draw(lower)
    if settings.inversion == "resample-advanced":
        reading = settings.reading_at(trajectory, i)
        gap = yield from _gap_below(trajectory, latents, strong, i, settings, reading)
        reflected = trajectory.displaced(latents, gap, i, reading=reading, span=settings.span)
        noise = mirrored_towards(reflected - latents, noise)
    return trajectory.renoise(lower, noise, i, settings.span)


def mirrored_towards(displacement: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return noise with the sign of each sample, along the first dimension, that is similar to a displacement.

    Mirroring gives the distribution that drawing until the similarity is positive gives (algorithm 3 of the paper).
    """
    similarity = (noise * displacement).unsqueeze(-1).flatten(1).sum(1)
    return noise * torch.where(similarity < 0, -1.0, 1.0).to(noise).view(-1, *[1] * (noise.ndim - 1))
