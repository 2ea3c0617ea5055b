"""Predictions of a modular pipeline: its denoise loop goes round in its first step, as often as it is asked to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from w2sd_video.branch import Branch
from w2sd_video.driver.loop_plan import Plan
from w2sd_video.driver.modular_call import walking_blocks
from w2sd_video.driver.modular_walk import LoopWalk
from w2sd_video.driver.predicting import LedWalk, Loop
from w2sd_video.driver.step_call import StepCall
from w2sd_video.driver.turns import Turn
from w2sd_video.reflection_settings import Reflection, Role


def led_blocks(pipe: Any, branches: Mapping[Role, Branch], loop: Loop) -> AbstractContextManager[Any]:
    """Have a modular pipeline led by a loop inside the block."""
    return walking_blocks(pipe, branches, Reflection(), partial(_LedLoopWalk, loop=loop))


class _LedLoopWalk(LedWalk, LoopWalk):
    """A walk of a modular pipeline's loop whose every turn is asked for from outside."""

    is_quiet = True

    def _planned(self, calls: range) -> Plan:
        return replace(super()._planned(calls), turns=())

    def turn_of(self, call: int) -> Turn:
        """Return the turn that was asked for; the first one after saying that predictions can be."""
        if self._algorithm is None:
            self._wait(self.first, call)
            self._announce()
        self._show(self.turns[self.at])
        return self.turns[self.at]

    def latents_of(self, turn: Turn, left: torch.Tensor | None) -> torch.Tensor | None:
        """Return the latents that were asked for."""
        latents: torch.Tensor = turn.asked.latents  # type: ignore[union-attr]
        return latents

    def iteration_of(self, turn: Turn, i: int) -> int:
        """Return the iteration of the loop that a prediction is asked for at."""
        return turn.call - self.plan.calls.start

    def _stepped(self, step_call: StepCall) -> Any:
        shape = step_call.latents.shape
        if shape != self.shape:
            raise ValueError(
                f"the denoise loop steps latents of the shape {tuple(shape)}, and those of its state have "
                f"{tuple(self.shape or ())}, so that it can have no predictor; reflection(pipe, ...) takes it"
            )
        return super()._stepped(step_call)
