"""The turns of a pipeline's loop: what is asked for in each, and those in which it is only looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from w2sd_video.algorithm import StepRequest
from w2sd_video.inversions import Request
from w2sd_video.reflection_settings import Role

Purpose = Literal["watch", "repeat", "ask", "watch again", "measure", "displace"]

WATCH_TURNS = 4
"""Turns in which a loop is watched: it is handed other latents and has to step from them, then its own ones, twice."""
LATER_WATCH_TURNS = 3
"""Turns in which it is watched at a later step: one that settles, and two that have to be alike."""


@dataclass(frozen=True)
class ProbeRequest:
    """A turn in which no network is run, mostly so that it can be seen what the pipeline makes of its evaluations.

    Attributes:
        purpose: ``watch``: that the loop can be led, ``watch again`` at a later step; ``repeat``: that what it keeps
            does no harm, however often; ``ask``: that its network is told the timestep that it is handed;
            ``measure``: how it lays its guidance out; ``displace``: nothing, but that it goes on with the latents that
            a gap of an earlier step displaces.
        number: among the turns of its purpose, from 0.
        total: how many these are.
        role: whose evaluation it stands before.
    """

    purpose: Purpose
    number: int
    total: int
    role: Role = "base"

    @property
    def is_last(self) -> bool:
        """Whether it is the last of its purpose: then what they have shown is looked at."""
        return self.number == self.total - 1

    @property
    def is_first(self) -> bool:
        """Whether it is the very first one, of a loop that has kept nothing yet."""
        return (self.purpose, self.number) == ("watch", 0)

    @property
    def is_of_pair(self) -> bool:
        """Whether it is one of the two that have to be alike, the last ones of those that watch."""
        return self.purpose.startswith("watch") and self.number >= self.total - 2

    @property
    def is_of_others(self) -> bool:
        """Whether it is one of every two that repeat in which latents and answers are others."""
        return self.purpose == "repeat" and self.number % 2 == 0

    @property
    def is_before_others(self) -> bool:
        """Whether the loop is handed other latents after it: after the first one, and for those that repeat."""
        if self.purpose == "repeat":
            return not self.is_of_others and not self.is_last
        return self.purpose == "watch" and (self.number == 0 or self.is_last)

    def with_one_more(self) -> tuple[ProbeRequest, ProbeRequest]:
        """Return the last of its purpose as the last but one, and a new last one."""
        total = self.total + 1
        return replace(self, total=total), replace(self, number=self.number + 1, total=total)

    @property
    def rows(self) -> int:
        """Which rows the network's are: the two turns that have to be alike come after others, and after each other.

        The very first turn has those of the two as well.
        """
        if self.purpose == "repeat":
            return 1 + self.number if self.is_of_others else 0
        return self.number if self.purpose == "measure" else int(not self.is_of_pair and not self.is_first)


@dataclass(frozen=True)
class Turn:
    """One iteration of the pipeline's loop, in which one prediction is made.

    Attributes:
        call: index among the wrapped scheduler's timesteps.
        timestep: what the network is told.
        asked: what the algorithm asks for here.
        begins_call: whether it is the first turn for its call of the wrapped scheduler.
        takes_step: whether the wrapped scheduler's own step is taken after it; it is the last turn for its call.
        ends_step: whether a step of the trajectory is complete after it.
    """

    call: int
    timestep: torch.Tensor
    asked: Request | StepRequest | ProbeRequest
    begins_call: bool = True
    takes_step: bool = False
    ends_step: bool = False


def probes(call: int, timestep: torch.Tensor, purpose: Purpose, total: int) -> list[Turn]:
    """Return the turns before a call of the wrapped scheduler in which its loop is looked at."""
    return [Turn(call, timestep, ProbeRequest(purpose, number, total)) for number in range(total)]


def asks(call: int, timestep: torch.Tensor, told: torch.Tensor) -> list[Turn]:
    """Return two turns that differ in the timestep: that of their call, and another one."""
    requests = [ProbeRequest("ask", number, 2) for number in range(2)]
    return [Turn(call, of_turn, asked) for of_turn, asked in zip((timestep, told), requests, strict=True)]


def with_measures(turns: Sequence[Turn], measured: torch.Tensor) -> list[Turn]:
    """Return turns with one that measures before the first at each timestep, whose stage may be another.

    An inversion may ask for the timestep of the next step, which the next denoiser is there for.

    Args:
        turns: of all calls, in order.
        measured: the timestep at which the layout is measured already.
    """
    seen, laid_out = {float(measured)}, []
    for turn in turns:
        timestep = float(turn.timestep)
        if timestep not in seen:
            seen.add(timestep)
            laid_out += probes(turn.call, turn.timestep, "measure", 1)
        laid_out.append(turn)
    return laid_out


def with_later_watches(turns: Sequence[Turn], timesteps: torch.Tensor, begin: int) -> list[Turn]:
    """Return turns with more of them before the middle and before the last of the calls that have several.

    Args:
        turns: of all calls, in order.
        timesteps: the wrapped scheduler's.
        begin: the first call, which is watched anyway.
    """
    several = sorted({turn.call for turn in turns if not turn.begins_call and turn.call != begin})
    return _with_watches(turns, timesteps, {several[len(several) // 2], several[-1]} if several else set())


def with_all_watches(rest: Sequence[Turn], timesteps: torch.Tensor, begin: int) -> list[Turn]:
    """Return the turns that are left of a loop that keeps records: repeated as often, and watched before every call.

    Args:
        rest: of all calls, in order, with repeated turns and later watches.
        timesteps: the wrapped scheduler's.
        begin: the first call, which has been watched.
    """
    rest = [turn for turn in rest if not (isinstance(turn.asked, ProbeRequest) and turn.asked.purpose == "repeat")]
    watched = {turn.call for turn in rest if isinstance(turn.asked, ProbeRequest) and turn.asked.is_of_pair}
    laid_out = _with_watches(rest, timesteps, {turn.call for turn in rest} - watched - {begin})
    return repeats(begin, timesteps[begin], len(laid_out)) + laid_out


def repeats(call: int, timestep: torch.Tensor, least: int) -> list[Turn]:
    """Return so many turns, or one more, that show whether a loop does the same however often it goes round."""
    return probes(call, timestep, "repeat", least + least % 2)


def _with_watches(turns: Sequence[Turn], timesteps: torch.Tensor, watched: set[int]) -> list[Turn]:
    """Return turns with those that watch before the first one of some calls."""
    watched = set(watched)
    laid_out: list[Turn] = []
    for turn in turns:
        if turn.call in watched:
            watched.remove(turn.call)
            laid_out += probes(turn.call, timesteps[turn.call], "watch again", LATER_WATCH_TURNS)
        laid_out.append(turn)
    return laid_out
