"""Where the weak prediction of a reflection is made: six inversions, each a function.

``reflect_step`` is a generator that yields a ``Request`` and is sent the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.trajectory import Trajectory

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
    trajectory: Trajectory, latents: torch.Tensor, i: int, settings: Reflection, draw: Draw = torch.randn_like
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Reflect latents at step ``i``: yield requests, be sent predictions, return the displaced latents.

    The step that counts is not taken here: it belongs to the scheduler (algorithm 1 of the paper).

    Args:
        trajectory: the levels.
        latents: tensor of any shape, at ``trajectory.level(i)``.
        i: the step, counted from the noisiest.
        settings: how to reflect.
        draw: makes the noise of Re-Sampling, like the latents that it is given.

    Raises:
        ValueError: a step that predictions of this kind cannot invert.
    """
    scale, strength = trajectory.input_scale(trajectory.level(i)), settings.strength_at(trajectory.level(i))
    for _ in range(settings.rounds):
        strong = yield Request(latents, i, scale, "strong")
        if settings.inversion in ("paper", "explicit"):
            latents = yield from _reflect_below(trajectory, latents, strong, i, settings, strength)
        elif settings.inversion in ("current", "implicit"):
            iterations = 1 if settings.inversion == "current" else settings.iterations
            inverted = yield from _reflect_at_level(trajectory, latents, strong, i, settings.span, iterations)
            latents = latents + strength * (inverted - latents)
        else:
            renoised = yield from _resample(trajectory, latents, strong, i, settings, draw)
            latents = latents + strength * (renoised - latents)
    return latents


def _reflect_below(
    trajectory: Trajectory, latents: torch.Tensor, strong: torch.Tensor, i: int, settings: Reflection, strength: float
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Reflect with the weak prediction made at the denoised latents, told their own timestep or, as in the paper, i."""
    span = settings.span
    level, lower_level = trajectory.level(i), trajectory.level_below(i, span)
    told_step, reading = i + span if settings.inversion == "explicit" else i, trajectory.score_reading(i)
    lower = trajectory.denoise(latents, strong, i, span)
    weak = yield Request(lower, told_step, trajectory.input_scale(lower_level), "weak")
    strong = trajectory.read(latents, strong, at=level, told_level=level, reading=reading)
    weak = trajectory.read(lower, weak, at=lower_level, told_level=trajectory.level(told_step), reading=reading)
    return trajectory.reflect(latents, strong, weak, i, strength=strength, reading=reading, span=span)


def _reflect_at_level(
    trajectory: Trajectory, latents: torch.Tensor, strong: torch.Tensor, i: int, span: int, iterations: int
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Reflect with the weak prediction made at step ``i``: at the latents, then at what they were inverted to."""
    level, inverted = trajectory.level(i), latents
    # Samples are read as noise, which no step forgets.
    reading = trajectory.score_reading(i) if trajectory.prediction_type == "sample" else None
    if reading:
        strong = trajectory.read(latents, strong, at=level, told_level=level, reading=reading)
    for iteration in range(iterations):
        weak = yield Request(inverted, i, trajectory.input_scale(level), "weak", shares_latents=iteration == 0)
        if reading:
            weak = trajectory.read(inverted, weak, at=level, told_level=level, reading=reading)
        inverted = trajectory.reflect(latents, strong, weak, i, reading=reading, span=span)
    return inverted


def _resample(
    trajectory: Trajectory, latents: torch.Tensor, strong: torch.Tensor, i: int, settings: Reflection, draw: Draw
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Denoise and add noise again; the advanced form's is similar to the displacement of the paper's reflection."""
    lower = trajectory.denoise(latents, strong, i, settings.span)
    noise = draw(lower)
    if settings.inversion == "resample-advanced":
        reflected = yield from _reflect_below(trajectory, latents, strong, i, settings, 1.0)
        noise = mirrored_towards(reflected - latents, noise)
    return trajectory.renoise(lower, noise, i, settings.span)


def mirrored_towards(displacement: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return noise with the sign of each sample, along the first dimension, that is similar to a displacement.

    Mirroring gives the distribution that drawing until the similarity is positive gives (algorithm 3 of the paper).
    """
    similarity = (noise * displacement).unsqueeze(-1).flatten(1).sum(1)
    return noise * torch.where(similarity < 0, -1.0, 1.0).to(noise).view(-1, *[1] * (noise.ndim - 1))
