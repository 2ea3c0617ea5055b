"""Calls of DiffSynth's pipelines, reflected.

For the length of a call ``model_fn``, which evaluates the network, and the scheduler's ``step`` are stood in for. At a
step that is reflected the pipeline's own evaluations are answered without a network, which shows what the network is
given and how it is guided; the algorithm is run on that, and the scheduler's own step is taken from where it leads. All
other steps are the pipeline's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from w2sd_video.algorithm import Step, StepRequest, asked_by_call, reflected_steps, w2sd
from w2sd_video.argument_checks import version_of
from w2sd_video.backends import second_denoiser
from w2sd_video.backends.diffsynth import (
    Arguments,
    Network,
    check_branch,
    denoisers_of,
    pinned,
    stages_of,
    trajectory_of,
)
from w2sd_video.branch import STAGES, Branch, steps_of_switches, steps_without_gap
from w2sd_video.driver.call import ReflectedPipeline, Run
from w2sd_video.driver.networks import in_use
from w2sd_video.driver.rehearsal import RehearsalOver
from w2sd_video.driver.rows import are_equal
from w2sd_video.driver.signatures import with_signature
from w2sd_video.gaps import swapped
from w2sd_video.guidance import guided
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.reuse import Changes
from w2sd_video.sampler import Predict
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment

_NOT_OF_TEXT = ("latents", "timestep", "progress_id", "progress_bar_cmd")
"""What differs from evaluation to evaluation whatever the text."""


@contextmanager
def reflecting(
    pipe: Any, branches: Mapping[Role, Branch], settings: Reflection, solver: str | None = None
) -> Iterator[Run]:
    """Reflect every call of a pipeline of DiffSynth inside the block; `reflection` comes here.

    Of a branch these can be had: ``guidance_scale`` (a pair for the two stages of Wan 2.2), ``weights`` (another dit),
    ``prompt``, ``negative_prompt``, ``experts`` "high" and "low", ``skip_layers`` where a block gives one tensor,
    ``lora`` of adapters that peft put into the dit, and ``windows``. DiffSynth's own LoRAs are added to the weights:
    load one into a copy of the dit, and give that as ``weights``.

    Args:
        pipe: the pipeline.
        branches: the setting of every role.
        settings: where and how to reflect.
        solver: there is none of DiffSynth; anything but None is refused.

    Yields:
        A ``Run``, filled in by each call.

    Raises:
        ValueError: a setting or a branch that cannot be had with this pipeline; inside the block, before a network
            is run, a call that cannot be reflected (a cache, merged guidance, several latents side by side,
            inpainting).
    """
    if solver is not None or settings.grid != 1.0:
        raise ValueError(
            f"{type(pipe).__name__} is a pipeline of DiffSynth, which steps and spaces its timesteps by a scheduler of "
            "its own; leave solver and grid out"
        )
    if isinstance(pipe, ReflectedPipeline):
        raise ValueError("the pipeline is being reflected already; end that block before beginning another")
    for role, branch in branches.items():
        check_branch(pipe, role, branch)
    run = Run(nfe=dict.fromkeys(branches, 0))
    original: Any = type(pipe)

    def call_reflected(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Call(self, branches, settings, run, original).run(args, kwargs)

    def reduce_as_stock(self: Any, protocol: Any) -> Any:
        function, parts, *rest = original.__reduce_ex__(self, protocol)
        return function, tuple(original if part is type(self) else part for part in parts), *rest

    shown = {
        "__reduce_ex__": reduce_as_stock,
        "__call__": with_signature(call_reflected, inspect.signature(original.__call__)),
        "__module__": original.__module__,
        "__doc__": original.__doc__,
    }
    pipe.__class__ = type(original.__name__, (original, ReflectedPipeline), shown)
    try:
        yield run
    finally:
        pipe.__class__ = original


def predictions(
    pipe: Any, branches: Mapping[Role, Branch], call: Mapping[str, Any]
) -> tuple[Predict, torch.Tensor, Trajectory, Changes, frozenset[int]]:
    """Return ``predict(latents, sigma, role)`` of a pipeline of DiffSynth; `predictor` comes here.

    The pipeline is called up to its first step, and no network that denoises is run for it: texts and images are
    encoded here, once for each text of a branch.

    Args:
        pipe: the pipeline.
        branches: the setting of every role.
        call: the arguments of the pipeline's call.

    Returns:
        The function, the latents that the pipeline begins with, the levels that it goes through, of which
        ``sample(predict, latents, trajectory)`` makes what the pipeline would, the steps from which on a role is
        predicted otherwise, and those at which windows leave no gap. A sigma is one of those levels.

    Raises:
        ValueError: as of `reflecting`; when called, a sigma that is none of the levels.
    """
    for role, branch in branches.items():
        check_branch(pipe, role, branch)
    network = Network(pipe, branches, type(pipe), call)
    calls, latents = _first_step(network, None)
    _learn_texts(network, branches.values())
    trajectory, scale = trajectory_of(pipe.scheduler), network.scale_of(calls)
    timesteps = pipe.scheduler.timesteps.clone()
    sigmas = torch.stack(list(trajectory.timesteps)).double()

    @torch.no_grad()
    def predict(latents: torch.Tensor, sigma: torch.Tensor, role: Role) -> torch.Tensor:
        apart = (sigmas - float(sigma)).abs()
        step = int(apart.argmin())
        if apart[step] > 1e-6:
            raise ValueError(
                f"sigma={float(sigma):g} is none of the levels that the pipeline was called with: "
                f"{', '.join(f'{float(level):g}' for level in sigmas)}"
            )
        branch = branches[role].at(Moment(step, len(sigmas), trajectory.level(step)))
        network.forget()
        return network.predicted(role, branch, calls, latents, timesteps, step, scale)

    moments = dict(enumerate(_moments_of(trajectory)))
    idle = steps_without_gap(branches["strong"], branches["weak"], moments)
    return predict, latents, trajectory, _changes(network, branches, timesteps, moments), idle


def _moments_of(trajectory: Trajectory) -> list[Moment]:
    return [Moment(step, len(trajectory), trajectory.level(step)) for step in range(len(trajectory))]


def _changes(
    network: Network, branches: Mapping[Role, Branch], timesteps: torch.Tensor, moments: Mapping[int, Moment]
) -> Changes:
    """Return the steps from which on a role is predicted otherwise: by the second of two networks, or in a window."""
    has_two = len(stages_of(network.pipe, "dit")) == len(STAGES)
    later = [i for i, timestep in enumerate(timesteps) if network.stage_at(timestep)] if has_two else []
    return {role: steps_of_switches(branch, moments).union(later[:1]) for role, branch in branches.items()}


def _first_step(network: Network, text: tuple[Any, Any] | None) -> tuple[list[Arguments], torch.Tensor]:
    """Return what the pipeline gives its network in the first step, for its own text or another, and the latents.

    The call ends there, and no network has been run; torch's generators are where they were.
    """
    pipe, call, arguments = network.pipe, network.original.__call__, dict(network.arguments)
    parameters = inspect.signature(call).parameters
    for name, words in zip(("prompt", "negative_prompt"), text or (None, None), strict=True):
        if words is not None:
            if name not in parameters:
                raise ValueError(f"a branch has a {name}, but {network.name} takes none")
            arguments[name] = words
    if "progress_bar_cmd" in parameters:
        arguments["progress_bar_cmd"] = lambda iterable, *_, **__: iterable
    given: list[Arguments] = []
    begins: list[torch.Tensor] = []

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(network.named(args, kwargs))
        return torch.zeros_like(given[-1]["latents"])

    def end(prediction: Any, timestep: Any, sample: torch.Tensor, *_: Any, **__: Any) -> Any:
        begins.append(sample)
        raise RehearsalOver

    with torch.random.fork_rng(), swapped([(pipe, {"model_fn": note}), (pipe.scheduler, {"step": end})]):
        try:
            call(pipe, **arguments)
        except RehearsalOver:
            return given, begins[0]
    raise RuntimeError(f"{network.name} never called scheduler.step, so nothing can be reflected")


def _learn_texts(network: Network, branches: Iterable[Branch]) -> None:
    """Have the pipeline encode the texts of branches, each once.

    Raises:
        ValueError: a negative prompt in a call without guidance.
    """
    texts = {branch.text for branch in branches if branch.text is not None}
    own_calls, _ = _first_step(network, None) if texts else ([], None)
    for text in texts:
        if text[1] is not None and len(own_calls) < 2:
            raise ValueError(
                f"a branch has a negative_prompt, but this call of {network.name} evaluates no unconditional prompt; "
                "call it with a cfg_scale other than 1"
            )
        calls, _ = _first_step(network, text)
        network.texts[text] = [
            {
                name: given.get(name)
                for name in {**own, **given}
                if name not in _NOT_OF_TEXT and not are_equal(own.get(name), given.get(name))
            }
            for own, given in zip(own_calls, calls, strict=True)
        ]


class _Call:
    """One call of a pipeline, reflected."""

    def __init__(
        self, pipe: Any, branches: Mapping[Role, Branch], settings: Reflection, run: Run, original: Any
    ) -> None:
        self._pipe = pipe
        self._branches = branches
        self._settings = settings
        self._run = run
        self._original = original
        self._step_of_scheduler: Callable[..., Any] = pipe.scheduler.step
        self._at = 0
        self._given: list[Arguments] = []
        self._answers: list[torch.Tensor] = []
        self._led: frozenset[int] = frozenset()
        self._reflected: frozenset[int] = frozenset()
        self._algorithm: Generator[Any, torch.Tensor, torch.Tensor] | None = None
        self._trajectory: Trajectory | None = None
        self._handed_back: tuple[torch.Tensor, int] | None = None

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline."""
        pipe, settings, original = self._pipe, self._settings, self._original
        arguments = dict(inspect.signature(original.__call__).bind(pipe, *args, **kwargs).arguments)
        arguments = {name: value for name, value in arguments.items() if value is not pipe}
        network = self._network = Network(pipe, self._branches, original, arguments)
        self._draw = _drawing(arguments)
        used = [branch for role, branch in self._branches.items() if role in settings.roles]
        seconds = [second_denoiser(pipe, branch.weights) for branch in used if branch.weights is not None]
        networks = [second for pair in seconds for second in (pair if isinstance(pair, tuple) else (pair,))]
        with in_use([*denoisers_of(pipe), *networks]):
            _learn_texts(network, used)
            stand_ins = [(pipe, {"model_fn": self._evaluated}), (pipe.scheduler, {"step": self._stepped})]
            with swapped(stand_ins):
                try:
                    result = original.__call__(pipe, *args, **kwargs)
                finally:
                    self._run.nfe = {role: network.nfe[role] for role in ("base", "strong", "weak")}
                    self._run.steps = self._at
                    self._run.reflected_steps = len([i for i in self._reflected if i < self._at])
        if settings.is_on and self._at == 0:
            raise RuntimeError(f"{network.name} never called scheduler.step, so nothing was reflected")
        return result

    def _plan(self) -> None:
        """Lay out which steps are led, when the loop begins."""
        settings, network = self._settings, self._network
        self._trajectory = trajectory_of(self._pipe.scheduler)
        self._timesteps = self._pipe.scheduler.timesteps.clone()
        moments = _moments_of(self._trajectory)
        changes = _changes(network, self._branches, self._timesteps, dict(enumerate(moments)))
        idle = steps_without_gap(self._branches["strong"], self._branches["weak"], dict(enumerate(moments)))
        asking = w2sd(self._trajectory, torch.zeros(0), settings, changes=changes, idle=idle)
        asked_of_step = asked_by_call(asking)
        self._reflected = reflected_steps(self._trajectory, settings, idle=idle)
        self._led = self._reflected | {
            i
            for i, moment in enumerate(moments)
            if len(asked_of_step[i]) > 1 or self._branches["base"].at(moment) != Branch()
        }
        self._moments, self._changes, self._idle = moments, changes, idle

    @property
    def _is_on(self) -> bool:
        return self._settings.is_on or self._branches["base"] != Branch()

    def _evaluated(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for ``model_fn``: evaluate at a step that is the pipeline's, else answer without a network."""
        network = self._network
        if self._is_on and self._trajectory is None:
            self._plan()
        if self._at not in self._led:
            network.nfe["base"] += 1
            return network.model_fn(*args, **kwargs)
        arguments = network.named(args, kwargs)
        self._given.append(arguments)
        generator = torch.Generator().manual_seed(len(self._given))
        latents = arguments["latents"]
        self._answers.append(torch.randn(latents.shape, generator=generator).to(latents))
        return self._answers[-1].clone()

    def _stepped(self, prediction: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the scheduler's step: run the algorithm up to it, then take it."""
        if self._is_on:
            self._check_loop(timestep, sample)
            is_led = self._at in self._led
            scale = self._scale(prediction, sample) if is_led else 1.0
            step = self._begun(sample)
            while not isinstance(step, Step):
                step = self._algorithm.send(self._answer(step, scale) if is_led else prediction)  # type: ignore[union-attr]
            if is_led:
                prediction, sample = step.prediction, pinned(step.latents, self._given[0]) if self._given else sample
                prediction = prediction.to(self._answers[0].dtype)
        self._given, self._answers = [], []
        self._at += 1
        after = self._step_of_scheduler(prediction, timestep, sample, *args, **kwargs)
        self._handed_back = (after, version_of(after))
        return after

    def _begun(self, sample: torch.Tensor) -> Any:
        """Tell the algorithm the latents that a step begins with, and return what it asks for."""
        if self._algorithm is None:
            assert self._trajectory is not None
            steps = 0, self._changes, self._idle
            self._algorithm = w2sd(self._trajectory, sample, self._settings, self._draw, *steps)
            return next(self._algorithm)
        return self._algorithm.send(sample)

    def _answer(self, asked: Request | StepRequest, scale: float) -> torch.Tensor:
        """Return the prediction that is asked for."""
        if not asked.shares_latents:
            self._network.forget()
        step, input_scale = (asked.step, asked.input_scale) if isinstance(asked, Request) else (asked.call, 1.0)
        branch = self._branches[asked.role].at(self._moments[self._at])
        return self._network.predicted(
            asked.role, branch, self._given, asked.latents / input_scale, self._timesteps, step, scale
        )

    def _scale(self, prediction: Any, sample: torch.Tensor) -> float:
        """Return the pipeline's guidance scale, and refuse a step that is made otherwise than by it.

        Raises:
            ValueError: what arrives at the scheduler is not what guidance makes of the answers.
        """
        name = self._network.name
        if not self._answers:
            raise ValueError(
                f"{name} takes a step without evaluating its network by model_fn, so it cannot be reflected"
            )
        scale = self._network.scale_of(self._given)
        expected = self._answers[0] if len(self._answers) == 1 else guided(self._answers[0], self._answers[1], scale)
        for given in self._given:
            seen = given["latents"]
            if seen.shape != sample.shape or not (seen is sample or torch.equal(seen, sample.to(seen.dtype))):
                raise ValueError(
                    f"{name} evaluates its network at other latents than it steps from, so it cannot be reflected"
                )
        tolerance = 16 * torch.finfo(expected.dtype).eps * max(1.0, abs(scale))
        if not torch.allclose(prediction.to(expected.dtype), expected, rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"a step of {name} is not made of uncond + cfg_scale * (cond - uncond) alone (an inpaint_mask or a "
                "rescaled guidance makes it so), so it cannot be reflected; reflect no step (reflection_steps=0)"
            )
        return scale

    def _check_loop(self, timestep: Any, sample: Any) -> None:
        """Refuse a loop that does not go through the timesteps one by one, or changes its latents between steps."""
        name = self._network.name
        if (
            self._trajectory is None
            or self._at >= len(self._timesteps)
            or not bool(torch.as_tensor(timestep).cpu() == self._timesteps[self._at].cpu())
        ):
            raise ValueError(f"{name} does not step through scheduler.timesteps one by one, so it cannot be reflected")
        if not isinstance(sample, torch.Tensor):
            raise ValueError(f"{name} steps from {type(sample).__name__}, not from a tensor, so it cannot be reflected")
        if self._handed_back is None or not self._given:
            return
        after, version = self._handed_back
        same = sample is after and version_of(after) == version
        if not same and not torch.equal(pinned(after, self._given[0]), sample.to(after.dtype)):
            raise ValueError(f"{name} changes its latents between steps, so it cannot be reflected")


def _drawing(arguments: Mapping[str, Any]) -> Draw:
    """Return a function that draws noise after the initial one, from the same seed."""
    seed = arguments.get("seed")
    if seed is None:
        return torch.randn_like
    generator = torch.Generator(arguments.get("rand_device", "cpu")).manual_seed(seed)
    has_drawn = False

    def draw(like: torch.Tensor) -> torch.Tensor:
        nonlocal has_drawn
        if not has_drawn:
            torch.randn(like.shape, generator=generator, device=generator.device)  # the pipeline's initial noise
            has_drawn = True
        return torch.randn(like.shape, generator=generator, device=generator.device).to(like)

    return draw
