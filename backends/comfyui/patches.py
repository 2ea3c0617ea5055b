"""What nodes have put into a model beside weights, and ComfyUI calls at evaluations.

None of it says at which noise levels it acts, nor whether it keeps something for the next evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

import comfy.hooks
import numpy as np
import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from w2sd_video.backends.comfyui.pairs import Model

GUIDING = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)
"""Options of a model with functions that are given the predictions of both prompts, or make them."""

ALIKE = (__name__.rpartition(".")[0], "comfy_api.torch_helpers")
"""Packages whose functions do the same at every evaluation: this one, and ComfyUI's torch.compile."""

OF_A_SAMPLING = {"registered_hooks", "to_load_options"}
"""Options in which ComfyUI has once more what else is looked at."""

OF_A_RUN = {"model_sampling", "latent_format", "manual_cast_dtype"}
"""What nodes replace in a model for the whole of a sampling."""

DATA = (int, float, complex, str, bytes, type(None), np.ndarray, np.generic, torch.Tensor, torch.dtype, torch.device)
SHARE = 0.5
"""Of the layers that a pass of a network has run, less than each later one runs."""


def acting(
    model: Model, options: Mapping[str, Any], conditions: Mapping[str, Iterable[Mapping[str, Any]]]
) -> list[str]:
    """Return the names of what is called when a model is evaluated, but of what is known to act alike each time.

    Args:
        model: its wrappers and injections, and what it replaces in its network, are among it.
        options: those that it is sampled with.
        conditions: its conditioning, as guiders keep it: hooks, and ControlNets that are not ComfyUI's own.
    """
    objects = {name: value for name, value in model.object_patches.items() if name not in OF_A_RUN}
    found = [
        *_leaves({name: value for name, value in options.items() if name not in OF_A_SAMPLING}),
        *_leaves({"wrappers": model.wrappers, "callbacks": model.callbacks}),
        *_leaves({"injections": model.injections, "object_patches": objects}),
        *chain.from_iterable(_of_conditioning(each) for those in conditions.values() for each in those),
    ]
    return sorted({_named(place, value) for place, value in found})


def guiding(options: Mapping[str, Any]) -> list[Any]:
    """Return the functions of guidance that a model has."""
    return [value for _, value in _leaves({name: options.get(name) for name in GUIDING})]


class Memory:
    """What functions of guidance keep from one evaluation to the next, for each role as if there were no other.

    APG keeps its momentum so, in a variable around its function, which each evaluation changes.

    Args:
        functions: those of all roles.
    """

    def __init__(self, functions: Iterable[Any]) -> None:
        self._places = list({id(place): (place, name) for place, name in _places(functions)}.values())
        self._begun = _copies(self._now())
        self._kept: dict[str, list[Any]] = {}

    @contextmanager
    def of(self, role: str) -> Iterator[None]:
        """Have functions remember what they were told in a role, for as long."""
        outside = self._now()
        self._set(self._kept[role] if role in self._kept else _copies(self._begun))
        try:
            yield
        finally:
            self._kept[role] = self._now()
            self._set(outside)

    def _now(self) -> list[Any]:
        return [getattr(place, name) for place, name in self._places]

    def _set(self, values: Iterable[Any]) -> None:
        for (place, name), value in zip(self._places, values, strict=True):
            setattr(place, name, value)


class Runs:
    """Sees to it that evaluations run their network, and nothing answers for it out of what it kept.

    Args:
        network: the network; one that is no module (TensorRT's) has no layers that can be looked at.
        suspects: names of what may do so; where there are none nothing is looked at.
    """

    def __init__(self, network: Any, suspects: Sequence[str]) -> None:
        self._network = network
        self._suspects = suspects if isinstance(network, nn.Module) else ()
        self._role: str | None = None
        self._passes = 0
        self._ran: set[nn.Module] = set()
        self._most = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at which layers run, for as long."""
        hooks = []
        if self._suspects:
            layers = [each for each in self._network.modules() if not any(each.children())]
            hooks = [layer.register_forward_pre_hook(self._note) for layer in layers]
            hooks.append(self._network.register_forward_pre_hook(self._begin))
            hooks.append(self._network.register_forward_hook(self._end))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def evaluated(self, role: str) -> Iterator[None]:
        """Look at an evaluation, of one pass of the network or more.

        Raises:
            ValueError: a pass left out most of the network, or there was none.
        """
        self._role, self._passes = role, 0
        try:
            yield
            if self._suspects and not self._passes:
                self._ran.clear()
                self._check(role)
        finally:
            self._role = None

    def _begin(self, *_: Any) -> None:
        self._ran.clear()

    def _note(self, layer: nn.Module, _: Any) -> None:
        self._ran.add(layer)

    def _end(self, *_: Any) -> None:
        if self._role is not None:  # and not the other model's turn, of the same network
            self._passes += 1
            self._check(self._role)
            self._most = max(self._most, len(self._ran))

    def _check(self, role: str) -> None:
        if self._most and len(self._ran) <= SHARE * self._most:
            raise ValueError(
                f"an evaluation of {role} ran {len(self._ran)} layers of the network, and an earlier one {self._most}: "
                "something answers in its place, as caches do, which expect one evaluation a step and would mix up "
                f"those of a reflection; take it out ({', '.join(self._suspects)})"
            )


def is_compiled(model: Model, options: Mapping[str, Any]) -> bool:
    """Return whether torch.compile has a model's network, in which no layer can be looked at."""
    wrappers = options["transformer_options"].get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    return "torch.compile" in wrappers or any(hasattr(each, "_orig_mod") for each in model.object_patches.values())


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is no data in nested options, each with the last word of its place."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, name if isinstance(name, str) else place)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _leaves(item, place)
    elif not isinstance(value, DATA) and not str(getattr(value, "__module__", "")).startswith(ALIKE):
        yield place, value


def _of_conditioning(conditioning: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    control = conditioning.get("control")
    hooks = list(conditioning["hooks"].hooks) if conditioning.get("hooks") else []
    while control is not None:
        if type(control).__module__ != "comfy.controlnet":  # those have no other range than all have
            yield "control", control
        hooks += [hook for group in control.get_extra_hooks() for hook in group.hooks]
        control = control.previous_controlnet
    for hook in hooks:
        if hook.hook_type is comfy.hooks.EnumHookType.TransformerOptions:
            yield from _leaves(hook.transformers_dict)
        elif hook.hook_type not in (comfy.hooks.EnumHookType.Weight, comfy.hooks.EnumHookType.AdditionalModels):
            yield "hooks", hook


def _named(place: str, value: Any) -> str:
    """Return a name that tells a user which node it is of."""
    of = value if hasattr(value, "__qualname__") else type(value)
    return f"{place}: {of.__qualname__.partition('.<locals>')[0]} of {of.__module__}"


def _places(functions: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Yield where functions keep what they remember: the variables around them, the attributes of their objects."""
    pending, seen = list(functions), set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, partial):
            pending.append(value.func)
        elif isinstance(value, MethodType):
            pending += [value.__func__, value.__self__]
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
                yield cell, "cell_contents"
                if isinstance(content, (FunctionType, MethodType, partial)):
                    pending.append(content)
        elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)) and not _is_of_comfyui(value):
            yield value, "__dict__"


def _is_of_comfyui(value: Any) -> bool:
    """Return whether an object is a model, a guider, ..., whose state is ComfyUI's own."""
    return type(value).__module__.startswith("comfy.")


def _copies(values: Iterable[Any]) -> list[Any]:
    """Return values, of containers a copy: one for all that share it."""
    copies: dict[int, Any] = {}
    return [
        copies.setdefault(id(value), value.copy()) if type(value) in (dict, list, set) else value for value in values
    ]
