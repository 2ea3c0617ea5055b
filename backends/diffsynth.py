"""DiffSynth-Studio's pipelines (Wan, Qwen-Image, Flux, ...): `reflection` hands them to this module.

A pipeline of DiffSynth evaluates its network by ``pipe.model_fn``, once with the prompt and once without, and steps by
``pipe.scheduler.step``. For the length of a call both are stood in for. At a step that is reflected the pipeline's own
evaluations are answered without a network, which shows what the network is given and how it is guided; the
algorithm is run on that, and the scheduler's own step is taken from where it leads. All other steps are the pipeline's.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from w2sd_video.algorithm import Step, StepRequest, asked_by, reflected_steps, w2sd
from w2sd_video.argument_checks import check_latents, version_of
from w2sd_video.backends import second_denoiser
from w2sd_video.branch import STAGES, Branch
from w2sd_video.driver.call import ReflectedPipeline, Run
from w2sd_video.driver.networks import in_use
from w2sd_video.driver.rehearsal import RehearsalOver
from w2sd_video.driver.rows import Arguments, are_equal
from w2sd_video.driver.signatures import with_signature
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.guidance import guided
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.sampler import Predict
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment

_DENOISERS = ("dit", "unet")
"""What ``model_fn`` calls the network that denoises."""
_SIZES = (
    "in_dim out_dim input_dim patch_size has_image_input require_vae_embedding require_clip_embedding "
    "fuse_vae_embedding_in_latents seperated_timestep"
).split()
"""Attributes of DiffSynth's networks that decide what goes in and out."""
_TEXT_LAYERS = ("text_embedding.0", "context_embedder", "txt_in", "txt_norm")
"""Layers of theirs that the text goes through first."""
_REFUSED = {
    "control_scale": "DiffSynth scales a ControlNet by its inputs, which are the call's",
    "ip_adapter_scale": "DiffSynth scales an IP-Adapter by an argument of the call",
    "perturbed_layers": "the attention of DiffSynth's networks is no layer of its own",
}
"""Fields of a branch that cannot be had, and why."""
_KEPT = ("tea_cache", "positive_only_lora", "negative_only_lora", "longcat_latents")
"""What a call may give its network that acts on more than one evaluation, or on the latents from within."""
_STEPS_OF = {
    "FlowMatchScheduler": "flow",
    "AncestralFlowMatchScheduler": "flow",
    "DDIMScheduler": "variance_preserving",
}
"""DiffSynth's schedulers that are known, and how latents are made of a sigma in them."""


def trajectory_of(scheduler: Any) -> Trajectory:
    """Return the levels of a scheduler of DiffSynth whose timesteps are set; its ``timesteps`` are sigmas.

    Raises:
        TypeError: a scheduler that is not known.
        ValueError: sigmas that rise.
    """
    kind = _STEPS_OF.get(type(scheduler).__name__)
    if kind is None or not type(scheduler).__module__.startswith("diffsynth."):
        raise TypeError(
            f"{type(scheduler).__name__} is not one of the schedulers of DiffSynth that are known: "
            f"{', '.join(sorted(_STEPS_OF))}"
        )
    if kind == "flow":
        return Trajectory.from_sigmas([*map(float, scheduler.sigmas), 0.0], "flow", prediction_type="flow")
    products = [scheduler.alphas_cumprod[int(timestep)] for timestep in scheduler.timesteps]
    sigmas = [math.sqrt(1.0 - product) for product in products]
    return Trajectory.from_sigmas([*sigmas, 0.0], "variance_preserving", prediction_type=scheduler.prediction_type)


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
        _check_branch(pipe, role, branch)
    run, original = Run(nfe=dict.fromkeys(branches, 0)), type(pipe)

    def call_reflected(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Call(self, branches, settings, run, original).run(args, kwargs)

    shown = {
        "__call__": with_signature(call_reflected, inspect.signature(original.__call__)),
        "__module__": original.__module__,
        "__doc__": original.__doc__,
    }
    pipe.__class__ = type(original.__name__, (original, ReflectedPipeline), shown)
    try:
        yield run
    finally:
        pipe.__class__ = original


def predictor(
    pipe: Any, *, strong: Branch, weak: Branch, base: Branch | None = None, **call: Any
) -> tuple[Predict, torch.Tensor, Trajectory]:
    """Return ``predict(latents, sigma, role)`` of a pipeline of DiffSynth, for a loop of one's own.

    The pipeline is called up to its first step, and no network that denoises is run for it: texts and images are
    encoded here, once for each text of a branch.

    Args:
        pipe: the pipeline.
        strong: setting of the prediction that reflection goes down by.
        weak: setting of the prediction that it comes back by.
        base: setting of the step that counts; None is the pipeline's own.
        **call: the arguments of the pipeline's call.

    Returns:
        The function, the latents that the pipeline begins with, and the levels that it goes through, of which
        ``sample(predict, latents, trajectory)`` makes what the pipeline would. A sigma is one of those levels.

    Raises:
        ValueError: as of `reflecting`; when called, a sigma that is none of the levels.
    """
    branches: dict[Role, Branch] = {"base": Branch() if base is None else base, "strong": strong, "weak": weak}
    for role, branch in branches.items():
        _check_branch(pipe, role, branch)
    network = _Network(pipe, branches, type(pipe), call)
    calls, latents = network.rehearsed(None)
    for text in {branch.text for branch in branches.values() if branch.text is not None}:
        network.learn(text)
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

    return predict, latents, trajectory


class _Network:
    """The network of a pipeline, evaluated for a role on what the pipeline gives it in a step.

    Args:
        pipe: the pipeline.
        branches: the setting of each role.
        original: its class.
        arguments: those of its call that are given by name.
    """

    def __init__(self, pipe: Any, branches: Mapping[Role, Branch], original: Any, arguments: Mapping[str, Any]) -> None:
        self.model_fn: Callable[..., Any] = pipe.model_fn
        self.nfe: Counter[str] = Counter()
        self._pipe = pipe
        self._original = original
        self._branches = branches
        self._arguments = dict(arguments)
        self._texts: dict[Any, list[Arguments]] = {}
        self._own: list[Arguments] | None = None
        self._evaluated: list[tuple[Branch, dict[int, torch.Tensor]]] = []

    @property
    def name(self) -> str:
        """The name of the pipeline's class."""
        return self._original.__name__

    def rehearsed(self, text: tuple[Any, Any] | None) -> tuple[list[Arguments], torch.Tensor]:
        """Return what the pipeline gives its network in the first step, for its own text or another, and the latents.

        The call ends there, and no network has been run; generators are where they were.
        """
        pipe, arguments = self._pipe, dict(self._arguments)
        parameters = inspect.signature(self._original.__call__).parameters
        for name, words in zip(("prompt", "negative_prompt"), text or (None, None), strict=True):
            if words is not None:
                if name not in parameters:
                    raise ValueError(f"a branch has a {name}, but {self.name} takes none")
                arguments[name] = words
        if "progress_bar_cmd" in parameters:
            arguments["progress_bar_cmd"] = lambda iterable, *_, **__: iterable
        given: list[Arguments] = []
        begins: list[torch.Tensor] = []

        def note(*args: Any, **kwargs: Any) -> torch.Tensor:
            given.append(self.named(args, kwargs))
            return torch.zeros_like(given[-1]["latents"])

        def end(prediction: Any, timestep: Any, sample: torch.Tensor, *_: Any, **__: Any) -> Any:
            begins.append(sample)
            raise RehearsalOver

        with torch.random.fork_rng(), swapped([(pipe, {"model_fn": note}), (pipe.scheduler, {"step": end})]):
            try:
                self._original.__call__(pipe, **arguments)
            except RehearsalOver:
                return given, begins[0]
        raise RuntimeError(f"{self.name} never called scheduler.step, so nothing can be reflected")

    def learn(self, text: tuple[Any, Any]) -> None:
        """Have the pipeline encode the text of a branch."""
        if self._own is None:
            self._own, _ = self.rehearsed(None)
        if text[1] is not None and len(self._own) < 2:
            raise ValueError(
                f"a branch has a negative_prompt, but this call of {self.name} evaluates no unconditional prompt; call "
                "it with a cfg_scale other than 1"
            )
        others, _ = self.rehearsed(text)
        self._texts[text] = [
            {
                name: other.get(name)
                for name in {**own, **other}
                if name not in ("latents", "timestep", "progress_id", "progress_bar_cmd")
                and not are_equal(own.get(name), other.get(name))
            }
            for own, other in zip(self._own, others, strict=True)
        ]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of an evaluation, all by name, or refuse one that cannot be repeated.

        Raises:
            ValueError: naming what it is given.
        """
        if args or not isinstance(kwargs.get("latents"), torch.Tensor) or not any(n in kwargs for n in _DENOISERS):
            raise ValueError(
                f"{self.name} does not evaluate its network as model_fn(dit=..., latents=..., timestep=...), so it cannot "
                "be reflected (several latents that walk side by side, as of video and audio, cannot)"
            )
        kept = [name for name in _KEPT if kwargs.get(name) is not None]
        if kwargs.get("cfg_merge"):
            kept.append("cfg_merge")
        if kept:
            raise ValueError(
                f"the call of {self.name} has {', '.join(kept)}, which a reflection's evaluations would mix up; leave "
                "it out, or reflect no step (reflection_steps=0)"
            )
        return dict(kwargs)

    def scale_of(self, calls: Sequence[Arguments]) -> float:
        """Return the guidance scale of the pipeline's call; 1 where one evaluation makes a step."""
        if len(calls) > 2:
            raise ValueError(f"{self.name} makes {len(calls)} evaluations a step, so it cannot be reflected")
        return float(calls[0].get("cfg_scale", 1.0)) if len(calls) == 2 else 1.0

    def forget(self) -> None:
        """Drop the evaluations that are at hand: other latents come."""
        self._evaluated = []

    def predicted(
        self,
        role: Role,
        branch: Branch,
        calls: Sequence[Arguments],
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        step: int,
        scale: float,
    ) -> torch.Tensor:
        """Return a role's prediction for latents.

        Args:
            role: whose evaluations they are.
            branch: its setting at this step.
            calls: what the pipeline gives its network, with the prompt and without.
            latents: to be evaluated.
            timesteps: the scheduler's.
            step: that whose timestep the network is told.
            scale: the pipeline's own guidance scale.
        """
        given = [self._at(arguments, latents, timesteps, step, branch) for arguments in calls]
        wanted = branch.guidance_scale
        if isinstance(wanted, tuple):
            wanted = wanted[self._stage(given[0], branch)]
        if wanted is not None and self._is_told(given[0]):
            told = torch.full_like(given[0]["guidance"], wanted)
            given, wanted = [arguments | {"guidance": told} for arguments in given], None
        wanted = scale if wanted is None else wanted
        if len(given) == 1 and wanted != 1:
            raise ValueError(
                f"a branch has guidance_scale={wanted:g}, but this call of {self.name} evaluates no unconditional "
                "prompt; call it with a cfg_scale other than 1"
            )
        evaluated = next((rows for by, rows in self._evaluated if by.same_but_guidance(branch)), None)
        if evaluated is None or self._is_told(given[0]):
            evaluated = {}
            self._evaluated.append((branch, evaluated))
        for number in (0,) if wanted == 1 else (1,) if wanted == 0 else (0, 1):
            if number not in evaluated:
                evaluated[number] = self._evaluate(role, branch, given[number], number)
        if len(evaluated) == 1 or wanted in (0, 1):
            return evaluated[1 if wanted == 0 else 0].to(latents.dtype)
        return guided(evaluated[0], evaluated[1], wanted).to(latents.dtype)

    def _evaluate(self, role: Role, branch: Branch, arguments: Arguments, number: int) -> torch.Tensor:
        arguments = arguments | (self._texts[branch.text][number] if branch.text in self._texts else {})
        name = next(name for name in _DENOISERS if name in arguments)
        with swapped(swaps_of(arguments[name], replace(branch, experts=None))):
            prediction = self.model_fn(**arguments)
        self.nfe[role] += 1
        check_latents(prediction, f"what model_fn of {self.name} returns")
        if prediction.shape != arguments["latents"].shape:
            raise ValueError(
                f"model_fn of {self.name} returns {tuple(prediction.shape)} for latents of "
                f"{tuple(arguments['latents'].shape)}, so it cannot be reflected"
            )
        return prediction

    def _at(
        self, arguments: Arguments, latents: torch.Tensor, timesteps: torch.Tensor, step: int, branch: Branch
    ) -> Arguments:
        """Return the arguments of an evaluation of other latents, with the timestep of a step, by a branch's network."""
        told = arguments["timestep"]
        timestep = timesteps[step].to(dtype=told.dtype, device=told.device).expand(told.shape)
        changes: Arguments = {
            "latents": pinned(latents, arguments).to(arguments["latents"].dtype),
            "timestep": timestep,
        }
        if "progress_id" in arguments:
            changes["progress_id"] = step
        return arguments | changes | self._networks_at(arguments, timesteps[step], branch)

    def _networks_at(self, arguments: Arguments, timestep: torch.Tensor, branch: Branch) -> Arguments:
        """Return the networks that an evaluation is made with: those of the timestep's stage, or a branch's."""
        pipe, networks = self._pipe, {}
        name = next(name for name in _DENOISERS if name in arguments)
        stages = _stages(pipe, name)
        if len(stages) > 1:
            stage = self.stage_at(timestep)
            if branch.experts in STAGES:
                stage = STAGES.index(str(branch.experts))
            of_stage = pipe.in_iteration_models_2 if stage else pipe.in_iteration_models
            networks = dict(zip(pipe.in_iteration_models, [getattr(pipe, part) for part in of_stage], strict=True))
        if branch.weights is not None:
            weights = second_denoiser(pipe, branch.weights)
            if not any(arguments[name] is own for own in stages):
                raise ValueError(
                    f"{self.name} evaluates a network of its own for the unconditional prompt, so a branch cannot have "
                    "weights"
                )
            if isinstance(weights, tuple):
                weights = weights[stages.index(networks[name])]
            networks[name] = weights
        return networks

    def stage_at(self, timestep: torch.Tensor) -> int:
        """Return the stage of a two-stage model that works at a timestep: 0 at high noise, 1 at low."""
        parameters = inspect.signature(self._original.__call__).parameters
        if "switch_DiT_boundary" not in parameters:
            raise ValueError(
                f"{self.name} has two dits, and it is not known where they change, so it cannot be reflected"
            )
        boundary = self._arguments.get("switch_DiT_boundary", parameters["switch_DiT_boundary"].default)
        return int(float(timestep) < boundary * 1000)

    def _stage(self, arguments: Arguments, branch: Branch) -> int:
        if branch.experts in STAGES:
            return STAGES.index(str(branch.experts))
        pipe = self._pipe
        return self.stage_at(arguments["timestep"].flatten()[0]) if len(_stages(pipe, "dit")) > 1 else 0

    def _is_told(self, arguments: Arguments) -> bool:
        """Return whether the network is told its guidance scale (Flux), not guided."""
        network = next(arguments[name] for name in _DENOISERS if name in arguments)
        return (
            isinstance(arguments.get("guidance"), torch.Tensor)
            and getattr(network, "guidance_embedder", None) is not None
        )


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
        self._algorithm: Generator[Any, torch.Tensor, torch.Tensor] | None = None
        self._trajectory: Trajectory | None = None
        self._handed_back: tuple[torch.Tensor, int] | None = None

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline."""
        pipe, settings, original = self._pipe, self._settings, self._original
        arguments = dict(inspect.signature(original.__call__).bind(pipe, *args, **kwargs).arguments)
        arguments = {name: value for name, value in arguments.items() if value is not pipe}
        network = self._network = _Network(pipe, self._branches, original, arguments)
        self._draw = _drawing(arguments)
        used = [branch for role, branch in self._branches.items() if role in settings.roles]
        seconds = [second_denoiser(pipe, branch.weights) for branch in used if branch.weights is not None]
        networks = [second for pair in seconds for second in (pair if isinstance(pair, tuple) else (pair,))]
        with in_use([*_own_networks(pipe), *networks]):
            for text in {branch.text for branch in used if branch.text is not None}:
                network.learn(text)
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

    _reflected: frozenset[int] = frozenset()

    def _plan(self) -> None:
        """Lay out which steps are led, when the loop begins."""
        settings, network = self._settings, self._network
        self._trajectory = trajectory_of(self._pipe.scheduler)
        self._timesteps = self._pipe.scheduler.timesteps.clone()
        total, fresh = len(self._trajectory), []
        if settings.reuse > 1 and len(_stages(self._pipe, "dit")) > 1:
            fresh = [i for i in range(total) if network.stage_at(self._timesteps[i])][:1]
        asking = w2sd(self._trajectory, torch.zeros(0), settings, fresh=fresh)
        asked_of_step: list[list[Request | StepRequest]] = [[]]
        for asked in asked_by(asking):
            if isinstance(asked, Step):
                asked_of_step.append([])
            else:
                asked_of_step[-1].append(asked)
        moments = [Moment(i, total, self._trajectory.level(i)) for i in range(total)]
        self._led = frozenset(
            i
            for i, moment in enumerate(moments)
            if len(asked_of_step[i]) > 1 or self._branches["base"].at(moment) != Branch()
        )
        self._reflected = reflected_steps(self._trajectory, settings)
        self._moments, self._fresh = moments, fresh

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
            self._algorithm = w2sd(self._trajectory, sample, self._settings, self._draw, fresh=self._fresh)
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


def pinned(latents: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return latents with the first frame that the pipeline puts back after each step (Wan 2.2 from an image)."""
    first = arguments.get("first_frame_latents")
    if not isinstance(first, torch.Tensor):
        return latents
    return torch.cat([first.to(latents).expand_as(latents[:, :, :1]), latents[:, :, 1:]], dim=2)


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


def _own_networks(pipe: Any) -> list[nn.Module]:
    return [network for name in _DENOISERS for network in _stages(pipe, name)]


def _stages(pipe: Any, name: str) -> list[nn.Module]:
    """Return the networks of a pipeline that denoise: one, or two of a two-stage model."""
    networks = [getattr(pipe, name, None), getattr(pipe, f"{name}2", None)]
    return [network for network in networks if isinstance(network, nn.Module)]


def _check_branch(pipe: Any, role: Role, branch: Branch) -> None:
    """Refuse a branch that a pipeline of DiffSynth cannot be given, naming the field (ValueError)."""
    name, own = type(pipe).__name__, _own_networks(pipe)
    if not own:
        raise ValueError(f"{name} has no {' or '.join(_DENOISERS)} that is loaded, so it cannot be reflected")
    for field, reason in _REFUSED.items():
        if getattr(branch, field) is not None:
            raise ValueError(f"the {role} branch has {field}, which {name} cannot be given: {reason}; leave it out")
    is_two_stage = len(own) == len(STAGES)
    weights = None if branch.weights is None else second_denoiser(pipe, branch.weights)
    for field, value in (("guidance_scale", branch.guidance_scale), ("weights", weights)):
        if isinstance(value, tuple) and not is_two_stage:
            raise ValueError(f"the {role} branch has a pair of {field}, but {name} has one dit; give one")
    if isinstance(weights, nn.Module) and is_two_stage:
        raise ValueError(f"{name} has two dits, so the weights of the {role} branch must be a pair (high noise, low)")
    if branch.experts is not None and (branch.experts not in STAGES or not is_two_stage):
        raise ValueError(
            f"the {role} branch has experts={branch.experts!r}, but {name} has "
            + ("two dits: 'high' or 'low'" if is_two_stage else "one dit and no mixture of experts")
        )
    seconds = own if weights is None else list(weights) if isinstance(weights, tuple) else [weights]
    for first, second in zip(own, seconds, strict=True):
        _check_same_sizes(first, second)
        swaps_of(second, replace(branch, experts=None, windows=None))
    try:
        check_loaded(branch.lora or {}, seconds)
    except ValueError as error:
        raise ValueError(
            f"the {role} branch has a lora that is no adapter of peft in the dit; DiffSynth's load_lora adds one to the "
            "weights: load it into a copy of the dit, and give that as weights"
        ) from error


def _check_same_sizes(first: nn.Module, second: nn.Module) -> None:
    """Refuse a second network that cannot answer in the first one's place (ValueError)."""
    if not isinstance(second, type(first)):
        raise ValueError(
            f"the second dit is a {type(second).__name__}, the pipeline's is a {type(first).__name__}; both must be of "
            "the same class"
        )
    sizes = [_sizes(network) for network in (first, second)]
    for name, size in sizes[0].items():
        if size != sizes[1].get(name):
            raise ValueError(
                f"the second dit has {name}={sizes[1].get(name)}, the pipeline's has {name}={size}; both must take and "
                "give tensors of the same shape"
            )


def _sizes(network: nn.Module) -> dict[str, Any]:
    sizes = {name: getattr(network, name) for name in _SIZES if hasattr(network, name)}
    for name, layer in network.named_modules():
        if name in _TEXT_LAYERS and isinstance(layer, nn.Linear):
            sizes[f"{name}.in_features"] = layer.in_features
    return {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
