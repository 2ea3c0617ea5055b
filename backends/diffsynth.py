"""DiffSynth-Studio's pipelines (Wan, Qwen-Image, Flux, ...): their levels, and their network evaluated for a role.

A pipeline of DiffSynth evaluates its network by ``pipe.model_fn``, once with the prompt and once without, and steps by
``pipe.scheduler.step``. `reflection` and `predictor` take such pipelines; DiffSynth is not imported here.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from w2sd_video.argument_checks import check_latents
from w2sd_video.backends import second_denoiser
from w2sd_video.branch import STAGES, Branch
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.guidance import guided
from w2sd_video.reflection_settings import Role
from w2sd_video.trajectory import Trajectory

Arguments = dict[str, Any]
"""What ``model_fn`` is given, by name."""

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


class Network:
    """The network of a pipeline, evaluated for a role on what the pipeline gives it in a step.

    Args:
        pipe: the pipeline.
        branches: the setting of each role.
        original: its class.
        arguments: those of its call, by name.

    Attributes:
        texts: what a branch's text changes in the evaluations of a step, by that text.
        nfe: evaluations so far by role.
    """

    def __init__(self, pipe: Any, branches: Mapping[Role, Branch], original: Any, arguments: Mapping[str, Any]) -> None:
        self.model_fn: Callable[..., Any] = pipe.model_fn
        self.nfe: Counter[str] = Counter()
        self.pipe = pipe
        self.original = original
        self._branches = branches
        self.arguments = dict(arguments)
        self.texts: dict[Any, list[Arguments]] = {}
        self._evaluated: list[tuple[Branch, dict[int, torch.Tensor]]] = []

    @property
    def name(self) -> str:
        """The name of the pipeline's class."""
        return self.original.__name__

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of an evaluation, all by name, or refuse one that cannot be repeated.

        Raises:
            ValueError: naming what it is given.
        """
        if args or not isinstance(kwargs.get("latents"), torch.Tensor) or not any(n in kwargs for n in _DENOISERS):
            raise ValueError(
                f"{self.name} does not evaluate its network as model_fn(dit=..., latents=..., timestep=...), so it "
                "cannot be reflected (several latents that walk side by side, as of video and audio, cannot)"
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
        arguments = arguments | (self.texts[branch.text][number] if branch.text in self.texts else {})
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
        """Return the arguments of an evaluation of other latents, at the timestep of a step, by a branch's network."""
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
        pipe, networks = self.pipe, {}
        name = next(name for name in _DENOISERS if name in arguments)
        stages = stages_of(pipe, name)
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
        parameters = inspect.signature(self.original.__call__).parameters
        if "switch_DiT_boundary" not in parameters:
            raise ValueError(
                f"{self.name} has two dits, and it is not known where they change, so it cannot be reflected"
            )
        boundary = self.arguments.get("switch_DiT_boundary", parameters["switch_DiT_boundary"].default)
        return int(float(timestep) < boundary * 1000)

    def _stage(self, arguments: Arguments, branch: Branch) -> int:
        if branch.experts in STAGES:
            return STAGES.index(str(branch.experts))
        pipe = self.pipe
        return self.stage_at(arguments["timestep"].flatten()[0]) if len(stages_of(pipe, "dit")) > 1 else 0

    def _is_told(self, arguments: Arguments) -> bool:
        """Return whether the network is told its guidance scale (Flux), not guided."""
        network = next(arguments[name] for name in _DENOISERS if name in arguments)
        return (
            isinstance(arguments.get("guidance"), torch.Tensor)
            and getattr(network, "guidance_embedder", None) is not None
        )


def pinned(latents: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return latents with the first frame that the pipeline puts back after each step (Wan 2.2 from an image)."""
    first = arguments.get("first_frame_latents")
    if not isinstance(first, torch.Tensor):
        return latents
    return torch.cat([first.to(latents).expand_as(latents[:, :, :1]), latents[:, :, 1:]], dim=2)


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Return the networks that a pipeline denoises with."""
    return [network for name in _DENOISERS for network in stages_of(pipe, name)]


def stages_of(pipe: Any, name: str) -> list[nn.Module]:
    """Return the networks of a pipeline that denoise: one, or two of a two-stage model."""
    networks = [getattr(pipe, name, None), getattr(pipe, f"{name}2", None)]
    return [network for network in networks if isinstance(network, nn.Module)]


def check_branch(pipe: Any, role: Role, branch: Branch) -> None:
    """Refuse a branch that a pipeline of DiffSynth cannot be given, naming the field (ValueError)."""
    name, own = type(pipe).__name__, denoisers_of(pipe)
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
            f"the {role} branch has a lora that is no adapter of peft in the dit; DiffSynth's load_lora adds one to "
            "the weights: load it into a copy of the dit, and give that as weights"
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
