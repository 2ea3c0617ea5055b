"""A walk that the block of a modular pipeline leads turn by turn."""

from __future__ import annotations

from typing import Any

import torch

from w2sd_video.driver.loop_plan import Plan
from w2sd_video.driver.step_call import StepCall
from w2sd_video.driver.turns import Turn
from w2sd_video.driver.walk import Walk
from w2sd_video.inversions import Request


class TurnOver(BaseException):
    """Ends a turn at ``scheduler.step``, with the latents to go on with. No ``except Exception`` may take it."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents


class LoopWalk(Walk):
    """A walk whose every turn begins from a copy of the loop's state: what the loop keeps need not be watched.

    Attributes:
        shape: of the latents in the loop's state. Where the blocks step latents of that shape, a turn ends right at
            ``scheduler.step``; where they step a part of them (LTX all frames but the first), they lay out the latents
            that they are handed.
        is_quiet: whether the loop shows no progress.
        first: the latents that the loop begins with.
    """

    shape: torch.Size | None = None
    is_quiet = False
    first = torch.zeros(0)

    @property
    def timesteps(self) -> torch.Tensor:
        """The wrapped scheduler's timesteps."""
        return self.wrapped.timesteps

    def begin(self, calls: range, latents: torch.Tensor | None) -> None:
        """Begin a loop over some calls of the wrapped scheduler."""
        if latents is not None:
            self.first = latents
        self._begin(self._planned(calls))

    def _planned(self, calls: range) -> Plan:
        return self._sampling_planned(calls)

    def turn_of(self, call: int) -> Turn:
        """Return the turn that is to be gone through, for a call of the wrapped scheduler.

        Raises:
            RuntimeError: the loop is at another step.
        """
        turn = self.turn
        if turn is None or turn.call != call:
            raise RuntimeError("the denoise loop does not go through its timesteps in order, so it cannot be reflected")
        self._show(turn)
        return turn

    def latents_of(self, turn: Turn, left: torch.Tensor | None) -> torch.Tensor | None:
        """Return the latents of a turn: those that the one before left; None are those of the loop's state."""
        return left

    def iteration_of(self, turn: Turn, i: int) -> int:
        """Return the iteration of the loop that a turn belongs to, where the loop is in its i-th."""
        return i

    def shares_latents(self, ahead: int) -> bool:
        """Return whether the turn that is so far ahead has the latents and the timestep of the one before it."""
        at = self.at + ahead
        return at < len(self.turns) and getattr(self.turns[at].asked, "shares_latents", False)

    def call_of(self, asked: Any) -> int:
        """Return the call of the wrapped scheduler at whose timestep a prediction is asked for."""
        assert isinstance(asked, Request)
        return self.plan.trajectory.calls[asked.step]

    def check_stepped(self, turn: Turn) -> None:
        """Refuse blocks that did not step in a turn (RuntimeError)."""
        if self._shown is turn:
            raise RuntimeError("the blocks of the denoise loop never call scheduler.step, so it cannot be reflected")

    def _stepped(self, step_call: StepCall) -> Any:
        turn = self._shown
        result = super()._stepped(step_call)
        if turn is None or turn.takes_step or step_call.latents.shape != self.shape:
            return result
        raise TurnOver(result[0])
