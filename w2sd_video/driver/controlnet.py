"""The scale and the text of ControlNets, which a pipeline evaluates beside its denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from w2sd_video.branch import Branch
from w2sd_video.driver.networks import in_place_of
from w2sd_video.driver.rehearsal import CallsOfTurn, CallState
from w2sd_video.driver.signatures import as_given, by_name, named_signature
from w2sd_video.reflection_settings import Role

_OWN_SCALE = ("controlnet_conditioning_scale", "controls_conditioning_scale")
"""The argument of a pipeline's call for the scale of its ControlNets."""


class ControlSwitch:
    """Takes the place of a ControlNet's ``forward``, with the scale and the text of the current role.

    At a scale of 0 the ControlNet is not run: residuals of zeros are given, shaped like those that it gave before. A
    call of the pipeline that begins with such a branch runs it once, to learn the shapes.

    Args:
        controlnet: one ControlNet, several in one module, or a SparseCtrl.
        branches: the setting of each role.
        state: tells the current role.
    """

    def __init__(self, controlnet: nn.Module, branches: Mapping[Role, Branch], state: CallState) -> None:
        self._controlnet = controlnet
        self._branches = branches
        self._state = state
        self._signature = named_signature(controlnet)
        self._zeros: Any = None
        self._own: Any = None
        self._calls = CallsOfTurn(state)
        self.was_asked = False

    def told(self, arguments: Mapping[str, Any]) -> None:
        """Learn from the arguments of the pipeline's call which scale it has where it is on.

        Raises:
            ValueError: a scale of 0 beside a window, which cannot be told then from where the window is over.
        """
        self._own = next((value for name, value in arguments.items() if name in _OWN_SCALE), None)
        ends = arguments.get("control_guidance_start", 0.0), arguments.get("control_guidance_end", 1.0)
        is_windowed = any(end != whole for part, whole in zip(ends, (0.0, 1.0), strict=True) for end in _listed(part))
        is_set = any(branch.control_scale is not None for branch in self._branches.values())
        if is_set and is_windowed and any(scale == 0 for scale in _listed(self._own)):
            raise ValueError(
                "a branch has a control_scale, and the call a window of the ControlNet (control_guidance_start or "
                f"_end) at controlnet_conditioning_scale={self._own}, at which nothing tells where it is on; call the "
                "pipeline with a scale above 0, and set that of the other branches (base too) to 0"
            )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the switch in the ControlNet's place for one call of the pipeline."""
        try:
            with in_place_of(self._controlnet, self._answer):
                yield
        finally:
            self._zeros = None

    def _answer(self, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._state.is_elsewhere:
            return evaluate(*args, **kwargs)
        self.was_asked, call = True, self._calls.next()
        arguments = by_name(self._signature, args, kwargs)
        latents_name = next(iter(arguments))
        arguments[latents_name] = self._state.as_asked(arguments[latents_name])
        if shown := self._state.rehearsing or self._state.noting:
            shown.controls.append(arguments)
        if self._state.rehearsing is not None:
            return evaluate(*args, **kwargs)
        if self._state.probing is not None:
            self._state.given.append(arguments)
            return self._instead_of_residuals(arguments)
        self._state.evaluated.append([scale == 0 for scale in _listed(arguments.get("conditioning_scale"))])
        branch = self._state.setting(self._branches)
        if branch.control_scale is not None:
            scale = _in_window(arguments.get("conditioning_scale"), self._own, branch.control_scale)
            if self._zeros is not None and not any(_listed(scale)):
                return self._zeros
            arguments["conditioning_scale"] = scale
        own_text, text = self._state.rehearsals.get(None), self._state.rehearsals.get(branch.text)
        if own_text is not None and text is not None:
            arguments |= own_text.control_changes(call, text, latents_name)
        positional, named = as_given(arguments, len(args))
        looked_at = self._state.kept.evaluated(self._controlnet) if self._state.leads else nullcontext()
        with looked_at:
            residuals = evaluate(*positional, **named)
        if self._zeros is None:
            self._zeros = tree_map_only(torch.Tensor, lambda one: one.new_zeros(()).expand(one.shape), residuals)
        return residuals

    def _instead_of_residuals(self, arguments: dict[str, Any]) -> Any:
        """Return what pipelines hand on to a denoiser that is not run in this turn: no residuals, and one of zeros."""
        latents = next(iter(arguments.values()))  # a batch, or a list of samples (Z-Image)
        return ([], latents[0].new_zeros(len(latents))) if self._zeros is None else self._zeros


def _in_window(given: Any, own: Any, scale: float) -> Any:
    """Return a branch's scale in the form of the one that is given, 0 where the window of the call has it at 0."""
    if isinstance(given, (list, tuple)):
        owns = own if isinstance(own, (list, tuple)) else [own] * len(given)
        return [_in_window(*pair, scale) for pair in zip(given, owns, strict=True)]
    own = own[0] if isinstance(own, (list, tuple)) else own
    return scale * (given / own) if given is not None and own else scale


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
