"""Which models of ComfyUI can be strong and weak for each other, and how two of one base are told apart.

ComfyUI loads a network once, however many MODELs are made of it: of two with different LoRAs, both loaded, the second
one's weights would serve both. What they do not have in common is therefore put into hooks, which ComfyUI applies for
each conditioning.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import comfy.hooks
import torch

Model = Any
"""A ``comfy.model_patcher.ModelPatcher``, what ComfyUI's MODEL is."""


def kind_of(model: Model) -> Literal["variance_exploding", "flow"]:
    """Return how latents are made of sigma, as of ``Trajectory.from_sigmas``, by making some.

    Raises:
        ValueError: neither way.
    """
    sampling = model.get_model_object("model_sampling")
    sigma, zeros, ones = torch.tensor(0.25), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    noise = float(sampling.noise_scaling(sigma, ones, zeros.clone()))
    sample = float(sampling.noise_scaling(sigma, zeros, ones.clone()))
    if (noise, sample) == (0.25, 1.0):
        return "variance_exploding"
    if (noise, sample) == (0.25, 0.75):
        return "flow"
    raise ValueError(
        f"{named(model)} cannot be reflected: at sigma 0.25 it has {noise:g} of noise and {sample:g} of the sample, "
        "where 0.25 and 1 (noise prediction) or 0.25 and 0.75 (flow matching) are known"
    )


def check_pair(strong: Model, weak: Model, sigmas: torch.Tensor) -> None:
    """Refuse a weak model that cannot be compared with the strong one (ValueError), before either is loaded."""
    latents = [_latent_space(model) for model in (strong, weak)]
    if latents[0] != latents[1]:
        raise ValueError(
            f"strong and weak have different latents: {named(strong)} has {latents[0]}, {named(weak)} {latents[1]}; "
            "both models must be of one latent space"
        )
    if kind_of(strong) != kind_of(weak):
        raise ValueError(
            f"strong and weak are sampled differently: {named(strong)} is {kind_of(strong)}, {named(weak)} "
            f"{kind_of(weak)}; both must predict noise or velocity, or both be flow-matching"
        )
    known, most = (float(model.get_model_object("model_sampling").sigma_max) for model in (weak, strong))
    if min(float(sigmas[0]), most) > known * 1.001:
        raise ValueError(
            f"the sigmas begin at {float(sigmas[0]):g}, and weak ({named(weak)}) knows none above {known:g}; apply the "
            "same model sampling nodes to strong and weak"
        )
    if strong.load_device != weak.load_device:
        raise ValueError(f"strong is on {strong.load_device} and weak on {weak.load_device}; put both on one device")
    if share_weights(strong, weak):
        _check_shared(strong, weak)


def share_weights(strong: Model, weak: Model) -> bool:
    """Return whether two models are one network in memory."""
    return strong.model is weak.model


def separated(strong: Model, weak: Model) -> tuple[Model, Model, comfy.hooks.HookGroup, comfy.hooks.HookGroup]:
    """Return two models of one network with the weights' patches that both have, and hooks of those that one has."""
    common = {
        key for key in strong.patches.keys() & weak.patches.keys() if _equal(strong.patches[key], weak.patches[key])
    }
    own_patches = [{key: model.patches[key] for key in model.patches.keys() - common} for model in (strong, weak)]
    pair = strong.clone(), weak.clone()
    # By its version ComfyUI tells whether to load a network again: not for the other model, nor at the next sampling.
    version = uuid.uuid5(strong.patches_uuid, str(weak.patches_uuid)) if any(own_patches) else strong.patches_uuid
    for model in pair:
        model.patches = {key: model.patches[key] for key in model.patches if key in common}
        model.patches_uuid = version
        model.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed  # patched weights are kept, for they alternate
    return *pair, *(_hooks(patches) for patches in own_patches)


def hooked(conditions: Mapping[str, Iterable[dict]], hooks: comfy.hooks.HookGroup) -> dict[str, list[dict]]:
    """Return conditioning, as guiders keep it, with further hooks; what shared a group of hooks shares one again."""
    groups: dict[int, comfy.hooks.HookGroup] = {}

    def with_hooks(condition: dict) -> dict:
        before = condition.get("hooks")
        group = groups.setdefault(id(before), hooks if before is None else before.clone_and_combine(hooks))
        return {**condition, "hooks": group}

    if not len(hooks):
        return {name: list(those) for name, those in conditions.items()}
    return {name: [with_hooks(condition) for condition in those] for name, those in conditions.items()}


def named(model: Model) -> str:
    """Return what to call a model in a message."""
    return type(model.model).__name__


class PatchesHook(comfy.hooks.WeightHook):
    """A hook of patches as ``ModelPatcher.patches`` has them, each with its strength and place."""

    def __init__(self, patches: Mapping[str, list[tuple]] | None = None) -> None:
        super().__init__()
        self.need_weight_init = False
        self.patches = {} if patches is None else patches

    def clone(self) -> PatchesHook:
        """Return another of the same patches, that counts as the same hook."""
        other = super().clone()
        other.patches = self.patches
        return other

    def add_hook_patches(self, model: Model, model_options: dict, target_dict: dict, registered: Any) -> bool:
        """Make the patches known to a model, in their order."""
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        version = model.patches_uuid
        for (_, strength, strength_model), patches in self._by_strength().items():
            model.add_hook_patches(self, patches, strength_patch=strength, strength_model=strength_model)
        model.patches_uuid = version  # what is loaded is the same
        registered.add(self)
        return True

    def _by_strength(self) -> dict[tuple[int, float, float], dict[Any, Any]]:
        """Return the patches by their place among those of a weight, and by strength, in the order of the places."""
        groups: dict[tuple[int, float, float], dict[Any, Any]] = {}
        for name, patches in self.patches.items():
            for place, (strength, patch, strength_model, offset, function) in enumerate(patches):
                key = name if offset is None and function is None else (name, offset, function)
                groups.setdefault((place, strength, strength_model), {})[key] = patch
        return dict(sorted(groups.items(), key=lambda group: group[0][0]))


def _hooks(patches: Mapping[str, list[tuple]]) -> comfy.hooks.HookGroup:
    group = comfy.hooks.HookGroup()
    if patches:
        group.add(PatchesHook(patches))
    return group


def _equal(some: list[tuple], others: list[tuple]) -> bool:
    """Return whether patches of a weight are the same, in the same order and strength."""
    return len(some) == len(others) and all(
        _same(this, that)
        for one, other in zip(some, others, strict=True)
        for this, that in zip(one, other, strict=True)
    )


def _same(this: Any, that: Any) -> bool:
    return this is that or (isinstance(this, (int, float, tuple)) and type(this) is type(that) and this == that)


def _latent_space(model: Model) -> str:
    latent = model.get_model_object("latent_format")
    return (
        f"{type(latent).__name__} of {latent.latent_channels} channels, scaled by {getattr(latent, 'scale_factor', 1)}"
    )


def _check_shared(strong: Model, weak: Model) -> None:
    """Refuse two models of one network whose difference ComfyUI would apply to both (ValueError)."""
    samplings = [model.get_model_object("model_sampling") for model in (strong, weak)]
    if not _equal_samplings(*samplings):
        raise ValueError(
            "strong and weak are one network with different model sampling (shift, prediction type, ...), of which "
            "ComfyUI can use one only; put that node before the two part"
        )
    for what in ("object_patches", "weight_wrapper_patches", "injections"):
        mine, others = ({k: v for k, v in getattr(m, what).items() if k != "model_sampling"} for m in (strong, weak))
        differing = sorted(k for k in mine.keys() | others.keys() if not _same_object(mine.get(k), others.get(k)))
        if differing:
            raise ValueError(
                f"strong and weak are one network with different {what.replace('_', ' ')} ({', '.join(differing)}), of "
                "which ComfyUI can use one only; put the node that makes them before the two part, or load the model "
                "from a second file"
            )


def _same_object(this: Any, that: Any) -> bool:
    if isinstance(this, list) and isinstance(that, list):
        return len(this) == len(that) and all(map(_same_object, this, that))
    return this is that


def _equal_samplings(this: Any, that: Any) -> bool:
    """Return whether two samplings are alike: the classes that nodes make anew each time, and all their numbers."""
    if this is that:
        return True
    if [base.__name__ for base in type(this).__mro__] != [base.__name__ for base in type(that).__mro__]:
        return False
    mine, others = this.state_dict(), that.state_dict()
    numbers = [{k: v for k, v in vars(s).items() if isinstance(v, (int, float, str))} for s in (this, that)]
    return (
        numbers[0] == numbers[1]
        and mine.keys() == others.keys()
        and all(torch.equal(mine[name].cpu(), others[name].cpu()) for name in mine)
    )
