"""What the networks of a modular pipeline are evaluated with in a turn, and what of it is at hand already."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.driver.networks import in_place_of
from w2sd_video.driver.rehearsal import CallState
from w2sd_video.driver.rows import Arguments, are_equal, output_like, output_shapes
from w2sd_video.driver.signatures import by_name, named_signature, uncompiled
from w2sd_video.gaps import Swap, swapped, swaps_of


class _Evaluated(NamedTuple):
    """An evaluation at the latents and the timestep under way.

    Attributes:
        network: of which it is.
        settings: the role's branches, by stage, without guidance.
        number: among the evaluations of its turn, from 0: the first is that of the prompt.
        conditions: how many its guiders asked for; as many, and they prepare the network alike.
        arguments: what it was given.
        output: what it gave.
    """

    network: nn.Module
    settings: Sequence[Branch]
    number: int
    conditions: Sequence[int]
    arguments: Arguments
    output: Any


class Networks:
    """The networks of one call: counted, and evaluated with the changes that the branch of the turn's role says.

    Args:
        state: tells the role, and which thread the call runs in.
    """

    def __init__(self, state: CallState) -> None:
        self._state = state
        self._known_swaps: list[tuple[Branch, nn.Module, list[Swap]]] = []
        self._swaps: dict[int, list[Swap]] = {}
        self._guiders: Mapping[str, Any] = {}
        self._settings: Sequence[Branch] = []
        self._number = 0
        self._at_hand: list[_Evaluated] = []
        self._are_shared = False
        self._evaluating = threading.RLock()

    def swaps_of(self, branch: Branch, network: nn.Module) -> list[Swap]:
        """Return what a branch changes in a network while it is evaluated (ValueError: what it cannot be given)."""
        for known, module, swaps in self._known_swaps:
            if known == branch and module is network:
                return swaps
        swaps = swaps_of(uncompiled(network), branch)
        self._known_swaps.append((branch, network, swaps))
        return swaps

    @contextmanager
    def answering(
        self,
        settings: Sequence[Branch],
        networks: Sequence[nn.Module],
        guiders: Mapping[str, Any],
        shares: bool,
        next_shares: bool,
    ) -> Iterator[None]:
        """Evaluate networks as a role's branches say, for one turn.

        Args:
            settings: of the role, a branch for each stage.
            networks: of the stages.
            guiders: of the role, by name.
            shares: whether the turn before had the same latents and timestep.
            next_shares: whether the turn after has.
        """
        self._swaps = {
            id(network): self.swaps_of(setting, network) for network, setting in zip(networks, settings, strict=True)
        }
        self._settings = [replace(setting, guidance_scale=None, windows=None) for setting in settings]
        self._guiders, self._number, self._are_shared = guiders, 0, next_shares
        if not shares:
            self._at_hand = []
        try:
            yield
        finally:
            self._swaps = {}

    @contextmanager
    def switched(self, network: nn.Module) -> Iterator[None]:
        """Stand in a network's place; evaluations of other threads pass by, and wait while it is changed."""
        signature = named_signature(network)
        latents_name = next(iter(signature.parameters))

        def answer(evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._state.is_elsewhere:
                with self._evaluating:
                    return evaluate(*args, **kwargs)
            arguments = by_name(signature, args, kwargs)
            if self._state.probing is not None:
                samples = arguments[latents_name]
                zeros = [samples[0].new_zeros(shape) for shape in output_shapes(uncompiled(network), samples)]
                return output_like(zeros, samples, arguments)
            known = self._known(network, arguments)
            self._number += 1
            if known is not None:
                return known
            self._state.nfe[self._state.role] += len(arguments[latents_name])
            with ExitStack() as stack:
                if self._state.leads:
                    stack.enter_context(self._state.kept.evaluated(uncompiled(network)))
                stack.enter_context(self._evaluating)
                stack.enter_context(swapped(self._swaps.get(id(network), [])))
                output = evaluate(*args, **kwargs)
            if self._are_shared:
                kept = copy.deepcopy(output)  # a guider may write into what it is given
                place = (self._number - 1, self._conditions(), arguments, kept)
                self._at_hand.append(_Evaluated(network, self._settings, *place))
            return output

        with in_place_of(network, answer):
            yield

    def _known(self, network: nn.Module, arguments: Arguments) -> Any:
        """Return what the network gave for the same arguments to a role that differs in guidance at most."""
        for each in self._at_hand:
            is_alike = (
                each.network is network
                and each.number == self._number
                and (self._number == 0 or each.conditions == self._conditions())
                and each.settings == self._settings
            )
            if is_alike and are_equal(each.arguments, arguments):
                return copy.deepcopy(each.output)
        return None

    def _conditions(self) -> list[int]:
        return [guider.num_conditions for guider in self._guiders.values()]
