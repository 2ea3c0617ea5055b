"""The algorithm without a model inside: it asks for predictions, and whoever drives it answers.

``reflect_step`` is a generator that yields a ``Request`` and is sent the prediction; ``sample`` drives it with a
function of the user's own, ``plugin.reflection`` with a diffusers pipeline.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from diffusers.utils.torch_utils import randn_tensor

from w2sd_video.strength import Strength, StrengthSchedule, as_strength
from w2sd_video.trajectory import Level, Trajectory

Role = Literal["base", "strong", "weak"]
WeakInversion = Literal["paper", "explicit", "current", "implicit"]
Inversion = Literal[WeakInversion, "resample", "resample-advanced"]
Draw = Callable[[torch.Tensor], torch.Tensor]
"""Noise like some latents."""
Predict = Callable[[torch.Tensor, torch.Tensor, Role], torch.Tensor]
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Reflection:
    """How and where to reflect.

    Attributes:
        reflection_steps: λ, the number of reflected steps counted from the noisiest; or a window (start, stop) of
            fractions of the steps; or None for all steps but the last, as in the paper.
        strength: scale of the displacement; 1 is the paper's. A ``StrengthSchedule`` has one for each noise level, and
            where it is 0 there is no reflection.
        rounds: reflections that follow each other at each reflected step, at least 1.
        inversion: where the weak prediction is made. ``paper``: at x_{t-1} and timestep t; ``explicit``: at x_{t-1}
            and timestep t-1; ``current``: at x_t and t; ``implicit``: at the inverted latents and t, a fixed point.
            ``resample`` makes none and adds noise instead (Re-Sampling, section 3.1 of the paper);
            ``resample-advanced`` mirrors that noise where it is not similar to W2SD's displacement (algorithm 3).
        iterations: fixed-point iterations of ``implicit``, at least 1.
        span: how many steps a reflection goes down and back, in one move; 1 is the paper's.
        autoguidance: weight g of AutoGuidance on the steps that count, reflected or not: their prediction becomes
            ``base + g * (base - weak)``. W2SD equals it to first order; 0 leaves it out.

    Raises:
        ValueError: a value out of range; the message names it and what is allowed.
    """

    reflection_steps: int | tuple[float, float] | None = None
    strength: Strength = 1.0
    rounds: int = 1
    inversion: Inversion = "paper"
    iterations: int = 2
    autoguidance: float = 0.0
    span: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.inversion not in get_args(Inversion):
            raise ValueError(f"inversion must be one of {', '.join(get_args(Inversion))}; got {self.inversion!r}")
        for name in ("rounds", "iterations", "span"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("strength", "autoguidance"):
            number = getattr(self, name)
            if not isinstance(number, StrengthSchedule) and not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number}")
        steps = self.reflection_steps
        if isinstance(steps, (tuple, list)):
            if len(steps) != 2 or not 0.0 <= steps[0] <= steps[1] <= 1.0:
                raise ValueError(
                    f"a window of reflection_steps must be (start, stop) with 0 <= start <= stop <= 1, got {steps}"
                )
        elif steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise ValueError(f"reflection_steps must be a whole number from 0 or a window (start, stop), got {steps!r}")

    @property
    def roles(self) -> set[Role]:
        """The roles that are evaluated."""
        roles: set[Role] = {"base"}
        if self.reflection_steps != 0:
            roles |= {"strong", "weak"}
        if self.autoguidance:
            roles.add("weak")
        return roles

    @property
    def is_on(self) -> bool:
        """Whether there is anything but the steps of the stock loop."""
        return self.roles != {"base"}

    def strength_at(self, level: Level) -> float:
        """Return the strength of a reflection at a noise level."""
        return self.strength.at(level) if isinstance(self.strength, StrengthSchedule) else self.strength

    def reflects_at(self, level: Level) -> bool:
        """Return whether there is a reflection at the level of a step that is among the reflected ones."""
        return not isinstance(self.strength, StrengthSchedule) or self.strength.at(level) != 0.0

    def steps(self, total: int) -> range:
        """Return the reflected steps among ``total``, counted from the noisiest.

        Raises:
            ValueError: more reflected steps than steps, or a last step that this inversion cannot reflect.
        """
        if self.reflection_steps is None:
            reflected = range(max(total - 1, 0))
        elif isinstance(self.reflection_steps, int):
            if self.reflection_steps > total:
                raise ValueError(
                    f"reflection_steps must be from 0 to {total}, the number of steps; got {self.reflection_steps}"
                )
            reflected = range(self.reflection_steps)
        else:
            start, stop = self.reflection_steps
            reflected = range(round(start * total), round(stop * total))
        most = total - self.span
        if self.inversion == "explicit" and len(reflected) and reflected[-1] >= most:
            raise ValueError(
                f"inversion 'explicit' asks for a prediction at the level below, which the last of {total} steps does "
                f"not have; reflect at most {max(most, 0)} steps"
            )
        return reflected


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
    here, below = trajectory.level(i), trajectory.level_below(i, span)
    told, reading = i + span if settings.inversion == "explicit" else i, trajectory.score_reading(i)
    lower = trajectory.denoise(latents, strong, i, span)
    weak = yield Request(lower, told, trajectory.input_scale(below), "weak")
    strong = trajectory.read(latents, strong, at=here, told=here, reading=reading)
    weak = trajectory.read(lower, weak, at=below, told=trajectory.level(told), reading=reading)
    return trajectory.reflect(latents, strong, weak, i, strength=strength, reading=reading, span=span)


def _reflect_at_level(
    trajectory: Trajectory, latents: torch.Tensor, strong: torch.Tensor, i: int, span: int, iterations: int
) -> Generator[Request, torch.Tensor, torch.Tensor]:
    """Reflect with the weak prediction made at step ``i``: at the latents, then at what they were inverted to."""
    level, inverted = trajectory.level(i), latents
    # Samples are read as noise, which no step forgets.
    reading = trajectory.score_reading(i) if trajectory.prediction_type == "sample" else None
    if reading:
        strong = trajectory.read(latents, strong, at=level, told=level, reading=reading)
    for iteration in range(iterations):
        weak = yield Request(inverted, i, trajectory.input_scale(level), "weak", shares_latents=iteration == 0)
        if reading:
            weak = trajectory.read(inverted, weak, at=level, told=level, reading=reading)
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
    reflection_steps: int | tuple[float, float] | None = None,
    strength: float | str | Path | StrengthSchedule = 1.0,
    rounds: int = 1,
    inversion: Inversion = "paper",
    iterations: int = 2,
    autoguidance: float = 0.0,
    span: int = 1,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> Sampled:
    """Sample by W2SD with a prediction function of one's own (algorithm 1 of the paper).

    Args:
        predict: ``(latents, timestep, role) -> prediction``. The latents are scaled as the network wants them
            (``scale_model_input``), the timestep is a 0-dimensional tensor of the scheduler's, the role is one of
            "base", "strong", "weak". The prediction is what the scheduler calls ``model_output``.
        latents: initial noise, already multiplied by ``scheduler.init_noise_sigma``; any shape.
        scheduler: a diffusers scheduler of a known kind; it is copied, and left as it is.
        num_inference_steps: T; None uses the timesteps that ``set_timesteps`` has put into the scheduler.
        reflection_steps: see ``Reflection``, as of all settings down to ``span``.
        strength: a number, or a ``StrengthSchedule`` or the name of its file.
        generator: for schedulers whose own step draws noise, and for Re-Sampling; a list has one a sample.
        callback: ``(step, latents)``, called after each step.

    Returns:
        The final latents, and the number of calls of ``predict`` by role.

    Raises:
        TypeError: an unknown scheduler.
        ValueError: a setting out of range, a file that holds no strengths, or timesteps that were never set.
    """
    settings = Reflection(reflection_steps, as_strength(strength), rounds, inversion, iterations, autoguidance, span)
    scheduler = copy.deepcopy(scheduler)
    if num_inference_steps is not None:
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
    trajectory = Trajectory(scheduler)
    reflected = [i for i in settings.steps(len(trajectory)) if settings.reflects_at(trajectory.level(i))]
    step_of_call = {call: step for step, call in enumerate(trajectory.calls)}
    scheduler_step = _step_function(scheduler, generator)
    scales_input = hasattr(scheduler, "scale_model_input")
    nfe: Counter[str] = Counter(base=0, strong=0, weak=0)

    draw = drawing_from(generator)

    def answer(request: Request) -> torch.Tensor:
        nfe[request.role] += 1
        return predict(request.latents / request.input_scale, trajectory.timesteps[request.step], request.role)

    for call, timestep in enumerate(scheduler.timesteps):
        step = step_of_call.get(call)
        if step is not None and step in reflected:
            unreflected = latents
            latents = drive(reflect_step(trajectory, latents, step, settings, draw), answer)
            shift_history(scheduler, trajectory, step, latents - unreflected)
        scaled = scheduler.scale_model_input(latents, timestep) if scales_input else latents
        nfe["base"] += 1
        prediction = predict(scaled, timestep, "base")
        if settings.autoguidance:
            nfe["weak"] += 1
            prediction = pushed_away(prediction, predict(scaled, timestep, "weak"), settings.autoguidance)
        latents = scheduler_step(prediction, call, latents)
        if callback is not None and step is not None:
            callback(step, latents)
    return Sampled(latents, dict(nfe))


def drawing_from(generator: torch.Generator | list[torch.Generator] | None) -> Draw:
    """Return a function that draws noise from one generator, or from one a sample."""
    return lambda like: randn_tensor(like.shape, generator, like.device, like.dtype)


def pushed_away(prediction: torch.Tensor, weak: torch.Tensor, weight: float) -> torch.Tensor:
    """Return ``prediction + weight * (prediction - weak)`` (AutoGuidance; Karras et al., arXiv 2406.02507)."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    strong = prediction.to(dtype)
    return (strong + weight * (strong - weak.to(dtype))).to(prediction.dtype)


def drive(walk: Generator[Request, torch.Tensor, Returned], answer: Callable[[Request], torch.Tensor]) -> Returned:
    """Answer every request of a generator, and return what it returns."""
    try:
        request = next(walk)
        while True:
            request = walk.send(answer(request))
    except StopIteration as end:
        return end.value


def requests_of(walk: Generator[Request, torch.Tensor, Any]) -> list[Request]:
    """Return the requests that a generator makes, found by running it on latents of no size."""
    requests: list[Request] = []

    def answer(request: Request) -> torch.Tensor:
        requests.append(request)
        return request.latents

    drive(walk, answer)
    return requests


def shift_history(scheduler: Any, trajectory: Trajectory, i: int, displacement: torch.Tensor) -> None:
    """Shift the latents that a corrector (UniPC) starts from, so that a displacement at step ``i`` survives it.

    UniPC builds the latents at ``level(i)`` again from those of the step before, times a ratio of the two levels, and
    would throw away what a reflection added to them.
    """
    before = getattr(scheduler, "last_sample", None)
    if before is None or i == 0:
        return
    last, here = trajectory.level(i - 1), trajectory.level(i)
    ratio = here.sigma / last.sigma if scheduler.predict_x0 else here.alpha / last.alpha
    scheduler.last_sample = before + displacement.to(before.dtype) / ratio


def _step_function(
    scheduler: Any, generator: torch.Generator | list[torch.Generator] | None
) -> Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]:
    """Return ``(prediction, call, latents) -> latents`` by the scheduler's own step, whatever its signature."""
    parameters = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in parameters else {}
    if "timestep_back" not in parameters:
        return lambda prediction, call, latents: scheduler.step(
            prediction, scheduler.timesteps[call], latents, return_dict=False, **extra
        )[0]

    old_sample: torch.Tensor | None = None

    def step(prediction: torch.Tensor, call: int, latents: torch.Tensor) -> torch.Tensor:
        nonlocal old_sample
        timesteps = scheduler.timesteps
        back = timesteps[call - 1] if call > 0 else None
        latents, old_sample = scheduler.step(
            prediction, old_sample, timesteps[call], back, latents, return_dict=False, **extra
        )
        return latents

    return step
