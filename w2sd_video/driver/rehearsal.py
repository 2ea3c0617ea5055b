"""What a pipeline gives its denoiser, learnt before the first step, and what is known of the running call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from w2sd_video.branch import Branch
from w2sd_video.driver.layout import Layout
from w2sd_video.driver.network_state import NetworkState
from w2sd_video.driver.rows import Arguments, are_equal
from w2sd_video.reflection_settings import Role
from w2sd_video.window import Moment

_FOLLOWS_LATENTS = ("timestep", "residual", "controlnet", "block_samples")
"""Parts of the names of arguments that are computed from the latents, and differ for that alone."""


class RehearsalOver(BaseException):
    """Ends a rehearsal: the denoiser's arguments are known. Not an error, so no ``except Exception`` may take it."""


class CallsOfTurn:
    """Counts the evaluations of one network in a turn, and their rows."""

    def __init__(self, state: CallState) -> None:
        self._state = state
        self._turn, self._count, self.rows = -1, 0, 0

    def next(self, rows: int = 0) -> int:
        """Return the number of an evaluation of so many rows, from 0 in each turn."""
        if self._turn != self._state.request:
            self._turn, self._count, self.rows = self._state.request, -1, 0
        self._count, self.rows = self._count + 1, self.rows + rows
        return self._count


class Rehearsal:
    """The arguments of every evaluation in one step of a pipeline, in order: of its denoiser, and of its ControlNet."""

    def __init__(self) -> None:
        self.calls: list[Arguments] = []
        self.controls: list[Arguments] = []

    def changes(self, call: int, other: Rehearsal, latents_name: str) -> Arguments:
        """Return the arguments that turn a call of this rehearsal into that of another: its text.

        Both began from the same noise, so that what differs is the text; what is computed from latents is left out.
        """
        return _changes(self.calls[call], other.calls[call], latents_name)

    def differs(self, other: Rehearsal, latents_name: str) -> bool:
        """Return whether another rehearsal gives the denoiser anything else."""
        return any(self.changes(call, other, latents_name) for call in range(len(self.calls)))

    def control_changes(self, call: int, other: Rehearsal, latents_name: str) -> Arguments:
        """Return the same for a call of the ControlNet.

        Raises:
            ValueError: one that is evaluated more often than in the first step.
        """
        if call >= min(len(self.controls), len(other.controls)):
            raise ValueError(
                "the pipeline evaluates its ControlNet more often than in its first step, so a branch cannot have a "
                "text of its own; leave it out"
            )
        return _changes(self.controls[call], other.controls[call], latents_name)


def _changes(shown: Arguments, wanted: Arguments, latents_name: str) -> Arguments:
    return {
        key: wanted.get(key)
        for key in {**shown, **wanted}
        if not follows_latents(key, latents_name) and not are_equal(shown.get(key), wanted.get(key))
    }


def follows_latents(name: str, latents_name: str) -> bool:
    """Return whether an argument of a network is the latents, or computed from them or the timestep."""
    return name in (latents_name, "t") or any(part in name for part in _FOLLOWS_LATENTS)


@contextmanager
def same_random_state(generators: Any) -> Iterator[None]:
    """Put every generator back to where it was, the global ones too."""
    listed = generators if isinstance(generators, (list, tuple)) else [generators]
    states = [(generator, generator.get_state()) for generator in listed if generator is not None]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


@dataclass
class CallState:
    """What scheduler and denoiser of a pipeline tell each other in the running call.

    Attributes:
        role: the role that the next evaluation answers for.
        moment: the step that it belongs to.
        request: counts the sampler's requests, so that evaluations of one request can be told from the next.
        place: counts the latents and timesteps that are evaluated: requests that share them have one.
        nfe: rows of the network by role, of all samples together.
        kept: what the networks keep from evaluation to evaluation.
        measures: whether the call begins with turns that measure the layout of guidance.
        probing: the number of the probe turn that is under way; None in all others.
        answered: rows that the evaluations of this turn were answered with, where they are no network's own.
        given: the arguments of the networks in a turn in which they are not run.
        evaluated: what the loop has its networks evaluated with in this turn: rows and names of what is given to each.
        answering: the denoiser that answered last in this turn; 0 where none has.
        layouts: what the probe turns have shown, by the denoiser that answered in them.
        stated_scales: the numbers among the call's arguments that are named for guidance or a scale.
        many_rows: whether a sample is made of more than one row, so that its guidance scale has to be changed to tell
            which it acts on.
        changed_scale: puts the pipeline's guidance scale back after the probe turn that has it changed, and returns it.
        stages: how many denoisers the pipeline has; each has weights of its own.
        rehearsing: set while the pipeline only shows what it gives its denoiser.
        rehearsals: what it showed, by the text of the branch (None: its own).
        text_differs: what is true where the text of the pipeline's own was not what it showed.
        noting: what the pipeline shows in the first turn that is watched, if that is to be learnt.
        guidance_scale: the argument of the pipeline's call, if it is a number.
        leads: whether the loop is led: then the network is evaluated in its turns only.
        in_turn: whether the loop is in a turn, its step not yet taken.
        step_taken: whether the scheduler's own step was the last to be taken.
        thread: the thread that the call runs in.
        as_asked: from what a network is given as samples to what the sampler asks it for.
        aside: whether a callback of the user's is running, which sees and evaluates what it would in a stock loop.
    """

    role: Role = "base"
    moment: Moment | None = None
    request: int = 0
    place: int = 0
    nfe: Counter[str] = field(default_factory=Counter)
    kept: NetworkState = field(default_factory=NetworkState)
    measures: bool = False
    probing: int | None = None
    answered: list[list[torch.Tensor]] = field(default_factory=list)
    given: list[Arguments] = field(default_factory=list)
    evaluated: list[Any] = field(default_factory=list)
    answering: int = 0
    layouts: dict[int, Layout] = field(default_factory=dict)
    stated_scales: dict[str, float] = field(default_factory=dict)
    many_rows: bool = False
    changed_scale: Callable[[], float] | None = None
    stages: int = 1
    rehearsing: Rehearsal | None = None
    rehearsals: dict[Any, Rehearsal] = field(default_factory=dict)
    text_differs: list[bool | torch.Tensor] = field(default_factory=list)
    noting: Rehearsal | None = None
    guidance_scale: float | None = None
    leads: bool = False
    in_turn: bool = False
    step_taken: bool = False
    thread: int = field(default_factory=threading.get_ident)
    as_asked: Callable[[Any], Any] = lambda samples: samples
    aside: bool = False

    def setting(self, branches: Mapping[Role, Branch]) -> Branch:
        """Return the branch of the current role, as it is at this step."""
        branch = branches[self.role]
        return branch if self.moment is None else branch.at(self.moment)

    @property
    def is_watched(self) -> bool:
        """Whether what runs is a turn without a network, and not what follows on the scheduler's own step."""
        return self.probing is not None and (self.in_turn or not self.step_taken)

    @property
    def is_elsewhere(self) -> bool:
        """Whether what runs is no part of the pipeline's own loop: a callback, or another thread."""
        return self.aside or threading.get_ident() != self.thread
