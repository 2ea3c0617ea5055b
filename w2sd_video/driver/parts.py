"""What is read off a pipeline before it is reflected: where its parts are, and what of it cannot be reflected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partialmethod
from typing import Any

from torch import nn

from w2sd_video.backends import DENOISERS, second_denoiser
from w2sd_video.branch import STAGES, Branch
from w2sd_video.driver.networks import foreign_processors
from w2sd_video.driver.signatures import codes_of, uncompiled
from w2sd_video.gaps.ip_adapter import has_ip_adapter
from w2sd_video.gaps.lora import active_adapters
from w2sd_video.reflection_settings import Role
from w2sd_video.trajectory import Trajectory


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Return the networks that a pipeline denoises with: one, or two for a two-stage model."""
    found = [getattr(pipe, name, None) for name in DENOISERS]
    denoisers = [module for module in found if isinstance(module, nn.Module)]
    if not denoisers or not hasattr(pipe, "scheduler"):
        raise TypeError(
            f"{type(pipe).__name__} cannot be reflected: it needs a scheduler and a denoiser named "
            f"{', '.join(DENOISERS)}"
        )
    return denoisers


def companions_of(pipe: Any, denoisers: list[nn.Module]) -> list[nn.Module]:
    """Return a pipeline's further networks of the class of its denoisers, which it may evaluate beside them."""
    classes = {type(uncompiled(denoiser)) for denoiser in denoisers}
    parts = [part for part in vars(pipe).values() if isinstance(part, nn.Module)]
    return [part for part in parts if type(uncompiled(part)) in classes and part not in denoisers]


def is_modular(pipe: Any) -> bool:
    """Return whether a pipeline is made of blocks, also where it is of a class that diffusers does not have yet."""
    return any(base.__name__ == "ModularPipeline" for base in type(pipe).__mro__)


def check_kind(pipe: Any) -> None:
    """Refuse a pipeline or a scheduler of which it is known beforehand that it cannot be reflected.

    Raises:
        TypeError: naming it.
    """
    if is_modular(pipe):
        raise TypeError(
            f"{type(pipe).__name__} is a modular pipeline, whose loop is a block of its own: it is reflected by "
            "reflection(pipe, ...), and predicted with by predictor(pipe, ...)"
        )
    Trajectory.check(pipe.scheduler)


def check_no_cache(pipe: Any, networks: Iterable[nn.Module]) -> None:
    """Refuse what keeps of one evaluation what it answers the next with, for that may be another role's.

    Raises:
        ValueError: a cache of diffusers, cache-dit, ParaAttention, DeepCache, TeaCache or T-GATE.
    """
    kept = next((cache for part in (pipe, *networks) if (cache := _cache_of(part))), None)
    if kept is not None:
        raise ValueError(
            f"the pipeline has a cache ({kept}), which would answer one role with what it kept of another; disable it "
            "before reflecting, or reflect no step (reflection_steps=0)"
        )


def _cache_of(part: Any) -> str | None:
    """Return a word for the cache that is put on a pipeline or a network, or None."""
    marks = {
        "is_cache_enabled": "enable_cache",
        "_is_cached": "cache-dit or ParaAttention",
        "enable_teacache": "TeaCache",
    }
    for mark, name in marks.items():
        if getattr(part, mark, False) is True:
            return name
    for module in part.modules() if isinstance(part, nn.Module) else [part]:
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if getattr(hook, "_is_stateful", False):  # casting and offloading keep nothing
                return type(hook).__name__
        for function in (vars(module).get("forward"), vars(module).get("__call__")):
            package = (getattr(function, "__module__", None) or "").partition(".")[0]
            if package in ("DeepCache", "cache_dit", "para_attn", "tgate"):
                return package
    return None


def check_same_adapters(role: Role, denoisers: Sequence[nn.Module], used: Sequence[nn.Module]) -> None:
    """Refuse a second denoiser without what acts in the pipeline's own beside its weights: adapters, FreeU, FreeNoise.

    Raises:
        ValueError: naming what is missing.
    """
    for own, second in zip(denoisers, used, strict=True):
        if any(second is denoiser for denoiser in denoisers):
            continue
        if missing := sorted(_acting_in(uncompiled(own)) - _acting_in(uncompiled(second))):
            raise ValueError(
                f"the second denoiser of the {role} branch lacks {' and '.join(missing)} of the pipeline's own: "
                "load it into both, or take it out of the pipeline's"
            )


def _acting_in(network: nn.Module) -> set[str]:
    """Return in words what has a network evaluated in another way than its class does by itself."""
    acting = {f"the LoRA {name}" for name in active_adapters(network)}
    acting |= {f"the attention processor {name}" for name in foreign_processors(network)}
    if has_ip_adapter(network):
        acting.add("the IP-Adapter")
    if any(getattr(block, "s1", None) for block in getattr(network, "up_blocks", ())):
        acting.add("FreeU (enable_freeu)")
    if any(type(module).__name__ == "FreeNoiseTransformerBlock" for module in network.modules()):
        acting.add("FreeNoise (enable_free_noise)")
    return acting


def check_text_encoders(pipe: Any, scales: Mapping[str, float]) -> None:
    """Refuse a LoRA's scale that a text encoder does not have too: the text is encoded once, for all branches.

    Raises:
        ValueError: naming the adapter and the text encoder.
    """
    for part, module in vars(pipe).items():
        if not isinstance(module, nn.Module) or not part.startswith("text_encoder"):
            continue
        loaded = active_adapters(module)
        for name in scales.keys() & loaded.keys():
            if loaded[name] != scales[name]:
                raise ValueError(
                    f"a branch has lora={{{name!r}: {scales[name]:g}}}, but this adapter acts in {part} too, at "
                    f"{loaded[name]:g}, and the text is encoded with that for all branches; load it "
                    "without its part for the text encoder, or give the branch the same scale"
                )


def loop_of(cls: type) -> type:
    """Return the class whose ``__call__`` is a pipeline's loop: the first that does not hand on to another's.

    A subclass may prepare arguments and call ``super().__call__``; what reaches that one counts.
    """
    classes = [base for base in cls.__mro__ if "__call__" in vars(base)]
    return next((base for base in classes if not _hands_on(vars(base)["__call__"])), classes[-1])


def _hands_on(function: Any) -> bool:
    if isinstance(function, partialmethod):  # what it calls, it calls past super()
        return False
    return any("__call__" in code.co_names for code in codes_of(function))


def controlnet_of(pipe: Any, branches: Mapping[Role, Branch]) -> nn.Module | None:
    """Return a pipeline's ControlNet, if it has one.

    Raises:
        ValueError: there is none, but a branch has a scale for it.
    """
    controlnet = getattr(pipe, "controlnet", None)
    if isinstance(controlnet, nn.Module):
        return controlnet
    check_control_scales(pipe, branches)
    return None


def check_control_scales(pipe: Any, branches: Mapping[Role, Branch]) -> None:
    """Refuse scales for a ControlNet of a pipeline that evaluates none.

    Raises:
        ValueError: a branch has one.
    """
    if any(branch.control_scale is not None for branch in branches.values()):
        raise ValueError(
            f"a branch has a control_scale, but {type(pipe).__name__} evaluates no ControlNet; leave it out, or use a "
            "pipeline with one"
        )


def branch_at_stage(pipe: Any, role: Role, branch: Branch, denoisers: list[nn.Module], stage: int) -> Branch:
    """Return a branch for one of a pipeline's denoisers: its second weights a module, its scale a number.

    Raises:
        ValueError: pairs for a model of one stage, a single module for two, or weights that are not loaded.
    """
    name, two_stage = type(pipe).__name__, len(denoisers) == len(STAGES)
    scale, weights, experts = branch.guidance_scale, branch.weights, branch.experts
    if weights is not None:
        weights = second_denoiser(pipe, weights)
    if not two_stage:
        for field, value in (("guidance_scale", scale), ("weights", weights)):
            if isinstance(value, (tuple, list)):
                raise ValueError(f"the {role} branch has a pair of {field}, but {name} has one denoiser; give one")
        if experts in STAGES:
            raise ValueError(
                f"the {role} branch has experts={experts!r}, one denoiser of a two-stage model, but {name} has only one"
            )
        return replace(branch, weights=weights)
    if isinstance(weights, nn.Module):
        raise ValueError(
            f"{name} has two denoisers, so the weights of the {role} branch must be a pair of modules (high noise, low)"
        )
    used = stage
    if experts in STAGES:
        used, experts = STAGES.index(str(experts)), None
    if weights is not None:
        weights = weights[used]
    elif used != stage:
        weights = denoisers[used]
    if isinstance(scale, (tuple, list)):
        scale = scale[used]
    return replace(branch, guidance_scale=scale, weights=weights, experts=experts)
