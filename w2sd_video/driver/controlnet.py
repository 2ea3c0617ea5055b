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
from w2sd_video.driver.rehearsal import CallState
from w2sd_video.driver.signatures import as_given, by_name, named_signature
from w2sd_video.gaps.swaps import scale_like
from w2sd_video.reflection_settings import Role


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
        self.was_asked = False

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
        self.was_asked = True
        arguments = by_name(self._signature, args, kwargs)
        latents_name = next(iter(arguments))
        arguments[latents_name] = self._state.as_asked(arguments[latents_name])
        if shown := self._state.rehearsing or self._state.noting:
            shown.control = arguments
        if self._state.rehearsing is not None:
            return evaluate(*args, **kwargs)
        if self._state.probing is not None:
            self._state.given.append(arguments)
            return self._instead_of_residuals(arguments)
        branch = self._state.setting(self._branches)
        scale = branch.control_scale
        if scale == 0 and self._zeros is not None:
            return self._zeros
        if scale is not None:
            arguments["conditioning_scale"] = scale_like(arguments.get("conditioning_scale"), scale)
        own_text, text = self._state.rehearsals.get(None), self._state.rehearsals.get(branch.text)
        if own_text is not None and text is not None:
            arguments |= own_text.control_changes(text, next(iter(arguments)))
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
