"""Watching a pipeline's loop before it is led: what it is handed where no network runs, and what is compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from w2sd_video.driver.comparing import copied, differences
from w2sd_video.driver.loop_state import LoopState
from w2sd_video.driver.measuring import Probed, at_other_weights, measured, probe_rows
from w2sd_video.driver.rehearsal import CallState
from w2sd_video.driver.rows import Arguments
from w2sd_video.driver.turns import ProbeRequest

_MOST_TURNS = 60
"""A loop that draws from a generator of all threads does so in each of them, another thread hardly ever."""
_PAUSE = 0.005
"""Seconds for another thread to come to the end of its draws."""


class Watch:
    """The watch over one call of a pipeline.

    Args:
        pipeline: its name.
        loop_state: what its loop knows; None where nothing but the latents is looked at.
        on_watched: called when the loop has been watched at its first step.
    """

    def __init__(
        self, pipeline: str = "", loop_state: LoopState | None = None, on_watched: Callable[[], None] = lambda: None
    ) -> None:
        self.pipeline = pipeline
        self._loop_state = loop_state
        self._on_watched = on_watched
        self._first = torch.zeros(0)
        self._given: list[Arguments] = []

    @property
    def sees_records(self) -> bool:
        """Whether the loop was found to keep what does no harm only if nothing depends on it."""
        return self._loop_state is not None and self._loop_state.keeps_records

    def changes_latents(self) -> None:
        """Note that the loop changes its latents in every turn, so that what depends on anything depends on them."""
        if self._loop_state:
            self._loop_state.depends_on = "the latents that it changes in every turn"

    def see(self, asked: ProbeRequest, latents: torch.Tensor, handed_on: Any) -> torch.Tensor:
        """Look at a turn and return the latents for the next: others after the very first, then the own ones.

        The last two turns have to be alike, and every second of those that repeat; what the very first one has handed
        on is what these do. At a later step there was a step before the first of them, after which callbacks may have
        left something behind, and what is compared is looked at in the end.

        Args:
            asked: the turn.
            latents: what the loop steps from.
            handed_on: all that it gave its networks and the scheduler.

        Raises:
            ValueError: a loop that is not as it had been.
        """
        if asked.number == 0 and asked.purpose != "repeat":
            self._first = latents.clone()
        if self._loop_state and asked.is_first:
            self._loop_state.begin(handed_on)
        elif self._loop_state and asked.is_of_pair:
            if asked.is_last:
                self._loop_state.compare(handed_on)
            else:
                self._loop_state.remember(handed_on)
        elif self._loop_state and asked.purpose == "repeat" and not asked.is_of_others:
            self._loop_state.compare_handed_on(handed_on)
        is_watched = asked.purpose == "watch" and asked.is_last
        if is_watched or (asked.purpose == "repeat" and asked.is_last):
            self.check()
        if is_watched:
            self._on_watched()
        if asked.is_before_others:
            return probe_rows(0, [latents.shape], asked.number, latents)[0]
        return self._first.clone()  # the pipeline may write into it

    def see_told(self, asked: ProbeRequest, latents: torch.Tensor, given: list[Arguments]) -> torch.Tensor:
        """Look at what the networks are given at two timesteps, and return the latents as they are handed on.

        Raises:
            ValueError: the same at both.
        """
        if asked.number == 0:
            self._given = copied(given)
        elif len(given) == len(self._given) and not any(flag for flag, _ in differences(self._given, given)):
            raise ValueError(TOLD.format(self.pipeline))
        return latents

    def is_inconclusive(self, asked: ProbeRequest) -> bool:
        """Whether the second of two turns that have to be alike was disturbed, perhaps by another thread's draws."""
        if self._loop_state is None or not (asked.is_of_pair and asked.is_last):
            return False
        if not self._loop_state.was_drawn_beside() or asked.total >= _MOST_TURNS:
            return False
        time.sleep(_PAUSE)
        return True

    def check(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: a loop that was not as it had been.
        """
        if self._loop_state:
            self._loop_state.check()

    def check_evaluated(self, answering: int) -> None:
        """Refuse a turn of a pipeline in which its network did not answer where the loop runs (ValueError)."""
        if self.pipeline and not answering:
            raise ValueError(
                f"{self.pipeline} does not evaluate its network in every turn of its loop, in the loop's thread, so "
                "it cannot be reflected"
            )


class LayoutMeasurement:
    """What the probe turns of a loop show of how it lays its guidance out, kept in the state of the call.

    Args:
        state: of the call.
    """

    def __init__(self, state: CallState) -> None:
        self._state = state
        self._probed: list[Probed] = []
        self._own_scale: float | None = None

    def see(self, asked: ProbeRequest, prediction: torch.Tensor, latents: torch.Tensor) -> None:
        """Keep what a probe turn shows, and find the layout after the last."""
        state = self._state
        self._probed.append(Probed(state.answered, prediction.clone(), latents.clone()))
        state.many_rows = sum(map(len, state.answered)) >= 2 * len(latents)
        if state.changed_scale is not None:
            self._own_scale, state.changed_scale = state.changed_scale(), None
        if asked.is_last:
            if not state.layouts:
                state.layouts[state.answering] = measured(self._probed, self._own_scale, state.stated_scales)
            elif state.answering not in state.layouts:
                of_first_stage = next(iter(state.layouts.values()))
                state.layouts[state.answering] = at_other_weights(of_first_stage, self._probed[-1])
            self._probed = []


def check_scaling(scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor, input_scale: float) -> None:
    """Refuse a scheduler that scales its input in a way of its own, which is not known at other levels.

    Raises:
        ValueError: it does.
    """
    scale = getattr(scheduler, "scale_model_input", None)
    if scale is None or scale.__module__.startswith("diffusers."):
        return
    if not torch.allclose(scale(latents, timestep), latents / input_scale, rtol=1e-2):
        raise ValueError(
            f"{type(scheduler).__name__} scales its input in a way of its own (scale_model_input), so it cannot "
            "be reflected; use the scheduler of diffusers as it is"
        )


TOLD = (
    "{} does not tell its network the timestep that its loop is handed (but one that it looks up by its place, for "
    'example), so inversion="explicit", which has it told the next one, cannot be had; take another inversion'
)
