"""A scheduler that walks a pipeline's own loop through the reflections.

It presents itself as the pipeline's scheduler, whose timesteps take one more turn of the loop for every request of the
sampler before the step that counts. Only that step reaches the scheduler it wraps, which therefore sees what it would
see in a loop of its own. Which turns there are is laid out before each loop (``loop_plan``).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from w2sd_video.algorithm import Step, StepRequest, shift_history
from w2sd_video.driver.drift import Drift
from w2sd_video.driver.edits import EDITED, UNKNOWN, Edits
from w2sd_video.driver.guards import CHANGED_LATER, HandedBack, KeptLevels, SameEvaluations
from w2sd_video.driver.loop_plan import GapChanges, IdleSteps, Plan, planned, with_looks
from w2sd_video.driver.rehearsal import CallState, RehearsalOver
from w2sd_video.driver.signatures import by_name, declared_signature, with_signature
from w2sd_video.driver.step_call import StepCall, without_variance
from w2sd_video.driver.timesteps import Timesteps, at_index
from w2sd_video.driver.turns import ProbeRequest, Turn, with_all_watches
from w2sd_video.driver.watching import LayoutMeasurement, Watch, check_scaling
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection
from w2sd_video.time_grid import set_timesteps
from w2sd_video.trajectory import Trajectory


class Walk:
    """The walk of one pipeline call: the plan of its loop, the place in it, and the reflection under way.

    Args:
        scheduler: takes the steps that count.
        settings: where and how to reflect.
        state: told, before each turn, which role the denoiser answers for.
        undoes_edits: whether a loop that changes its latents after each step is led, and not refused.

    Attributes:
        wrapped: the scheduler.
        plan: of the loop that was begun last; there is none before the first.
        turns: its turns, and those that it turned out to need while it was gone through.
        at: the place among them.
        steps_taken: of all loops of the call (FreeInit and Framepack make several).
        reflected_steps_taken: how many of them were reflected.
        samples: that went through the loops of the call.

    Raises:
        TypeError: a scheduler that is not known or cannot be reflected.
    """

    plan: Plan

    def __init__(self, scheduler: Any, settings: Reflection, state: CallState, undoes_edits: bool = False) -> None:
        self.wrapped = scheduler
        self._settings = settings
        self._state = state
        self._undoes_edits = undoes_edits
        # What the call tells before its loop begins.
        self.draw: Draw = torch.randn_like
        self.on_loop: Callable[[], None] = lambda: None
        self.on_turn: Callable[[bool], None] = lambda takes_step: None
        self.on_step: Callable[[], None] = lambda: None
        self.watch = Watch()
        self.gap_changes: GapChanges = lambda trajectory, moments: {}
        self.idle_steps: IdleSteps = lambda moments: ()
        # What is counted over all loops of the call.
        self.steps_taken = 0
        self.reflected_steps_taken = 0
        self.samples = 0
        # The place in the loop; what else is known of it is there when it has begun (`_begin`).
        self.turns: list[Turn] = []
        self.at = 0
        self._is_under_way = False
        self._shown: Turn | None = None
        self._handed_back = HandedBack()
        state.as_asked = self._as_asked
        self._step_signature = declared_signature(type(scheduler), "step", "model_output", "sample")
        # Pipelines give what they find in the signatures (eta, generator), as wrappers show them or hide them.
        self.set_timesteps = with_signature(self._set_timesteps, inspect.signature(scheduler.set_timesteps))
        self.step = with_signature(self._step, inspect.signature(scheduler.step))

    @property
    def _leads(self) -> bool:
        """Whether turns are taken that are none of the loop's own."""
        return self._settings.is_on or self._state.measures

    @property
    def turn(self) -> Turn | None:
        """The turn whose step is to be taken next; None where none is left."""
        return self.turns[self.at] if self.at < len(self.turns) else None

    @property
    def is_between_turns(self) -> bool:
        """Whether it has begun a step, or to watch its loop, and is not at the end of it."""
        return 0 < self.at < len(self.turns) and not self.turns[self.at - 1].takes_step

    # What the pipeline finds in the place of its scheduler.

    @property
    def timesteps(self) -> torch.Tensor:
        """The wrapped scheduler's timesteps; going through them goes through the turns."""
        timesteps = self.wrapped.timesteps
        if not isinstance(timesteps, torch.Tensor):
            return timesteps
        return Timesteps.shown(timesteps, range(len(timesteps)), self._walked)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        if self._settings.grid == 1.0:
            self.wrapped.set_timesteps(*args, **kwargs)
        else:
            signature = declared_signature(type(self.wrapped), "set_timesteps")
            set_timesteps(self.wrapped, by_name(signature, args, kwargs), self._settings.grid)
        self.turns, self.at, self._is_under_way = [], 0, False

    def __deepcopy__(self, memo: Any) -> Any:
        """Refuse to be copied while reflecting: each copy would reflect on its own, against the others."""
        if not self._settings.is_on:
            return copy.deepcopy(self.wrapped, memo)
        raise ValueError(
            "this pipeline copies its scheduler (several latents walk side by side, as in joint audio and video), "
            "which cannot be reflected"
        )

    def scale_model_input(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Scale latents for the network, by the level that the loop is at.

        Those that were handed for a request come to it as they were asked for, to the last bit. A scheduler that
        scales nothing is asked too, by pipelines that compare its exact class (Bria).
        """
        turn = self.turn
        if turn and (self._handed_back.asked or isinstance(turn.asked, Request)):
            return self._handed_back.divided(sample, self.plan.input_scale(turn.call))
        scale_as_stock = getattr(self.wrapped, "scale_model_input", None)
        return sample if scale_as_stock is None else scale_as_stock(sample, *args, **kwargs)

    # One loop, turn by turn.

    def _walked(self, calls: range) -> Iterator[torch.Tensor]:
        """Go through the turns of some calls of the wrapped scheduler.

        A call is gone on from when no step was taken in it: then its timesteps are only being read.
        """
        timesteps = self.wrapped.timesteps
        is_read_beside = self._is_under_way or not calls  # as by zip(timesteps, timesteps[1:])
        plan = None if is_read_beside else self._planned(calls)
        if plan is None or not plan.turns:
            yield from timesteps[calls.start : calls.stop]
            return
        self._begin(plan)
        self.on_loop()
        at, call = 0, calls.start
        self._is_under_way = True
        try:
            if not self._leads:
                yield from self._left_alone(calls)
                return
            while call in calls:
                turn = self.turns[at]
                self._show(turn if turn.call == call else None)
                yield at_index(call - calls.start, turn.timestep if turn.call == call else timesteps[call])
                if self.at == len(self.turns):
                    return
                call = call + 1 if self.at == at else self.turns[self.at].call
                at = self.at
        finally:
            self._is_under_way = False

    def _left_alone(self, calls: range) -> Iterator[torch.Tensor]:
        """Go through calls of the wrapped scheduler of which nothing is asked but the steps that the loop takes."""
        for call in calls:
            self.at = next((at for at, turn in enumerate(self.turns) if turn.call >= call), len(self.turns))
            self._announce()
            yield at_index(call - calls.start, self.wrapped.timesteps[call])

    def _planned(self, calls: range) -> Plan:
        """Lay out a loop over some calls of the wrapped scheduler."""
        state = self._state
        plan = self._sampling_planned(calls)
        return with_looks(plan, self.wrapped.timesteps, self._settings.is_on, state.measures, state.stages)

    def _sampling_planned(self, calls: range) -> Plan:
        """Lay out the turns that the sampler asks for."""
        trajectory, timesteps = Trajectory(self.wrapped), self.wrapped.timesteps
        return planned(trajectory, timesteps, calls, self._settings, self.idle_steps, self.gap_changes)

    def _begin(self, plan: Plan) -> None:
        """Begin a loop, of which nothing is known but its plan."""
        self.plan, self.turns, self.at = plan, list(plan.turns), 0
        self._algorithm: Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor] | None = None
        self._handed_back.forget()
        self._edits = Edits()
        self._measurement = LayoutMeasurement(self._state)
        self._drift = Drift(self.watch.pipeline)
        self._levels = KeptLevels(self.wrapped)
        self._evaluations = SameEvaluations(self.watch.pipeline, plan.reusing)
        self._announce()

    def _announce(self) -> None:
        """Tell the denoiser's switch which role the next evaluation answers for."""
        turn, state = self.turn, self._state
        asked = turn.asked if turn else None
        state.moment = self.plan.moment_at(turn.call) if turn else None
        state.request += 1
        state.role = asked.role if asked else "base"
        state.place += not getattr(asked, "shares_latents", False)
        state.probing = asked.rows if isinstance(asked, ProbeRequest) else None
        state.answered, state.given, state.answering, state.evaluated = [], [], 0, []
        own = state.rehearsals.get(None)
        is_first = isinstance(asked, ProbeRequest) and asked.is_first
        state.noting = own if is_first and own and not own.calls else None

    def _show(self, turn: Turn | None) -> None:
        """Note which turn the loop goes through, or that it goes through none."""
        self._shown, self._state.in_turn = turn, turn is not None

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if self._state.rehearsing is not None:
            raise RehearsalOver
        return self._stepped(StepCall(self._step_signature, args, kwargs))

    def _stepped(self, step_call: StepCall) -> Any:
        """Take the step of a turn, and go on to the next."""
        if self.turns and self.at == 0:  # the loop may be one of several, for samples one after another
            self.samples += len(step_call.latents)
        turn = self._shown
        self._show(None)
        if not self._leads or (turn is None and not self._settings.is_on):
            return self._step_alone(step_call)
        turn = self._checked(turn, step_call)
        self._state.step_taken = turn.takes_step
        step_call.arguments["model_output"] = step_call.prediction.detach()  # a loop may keep the graph of all turns
        step_call.arguments["sample"] = self._unedited(turn, step_call.latents)
        self.watch.check_evaluated(self._state.answering)
        if isinstance(turn.asked, ProbeRequest):
            result = self._hand_back(self._look(turn, turn.asked, step_call), step_call)
        else:
            result = self._answer(turn, step_call)
        self.at += 1
        self.on_turn(turn.takes_step)
        if self.turn is None:
            self._check_loop()
        self._announce()
        if turn.ends_step:
            self._count(turn)
            self.on_step()
        return result

    def _step_alone(self, step_call: StepCall) -> Any:
        """Take a step of a loop that is not led."""
        result = self.wrapped.step(*step_call.args, **step_call.kwargs)
        self._state.step_taken = True
        if self.turn is None or self.turn.ends_step:
            self.steps_taken += 1
            self.on_step()
        self.at = min(self.at + 1, len(self.turns))
        return result

    def _count(self, turn: Turn) -> None:
        self.steps_taken += 1
        self.reflected_steps_taken += self.plan.is_reflected(turn.call)

    def _checked(self, turn: Turn | None, step_call: StepCall) -> Turn:
        """Return the turn that a step answers, or say that the pipeline does not walk as it should."""
        if turn is None or turn is not self.turn:
            raise RuntimeError(
                "the pipeline's loop does not go through scheduler.timesteps in order, with one scheduler.step for "
                "each of them, so it cannot be reflected"
            )
        if step_call.arguments.get("per_token_timesteps") is not None and self.plan.reflected:
            raise ValueError("a pipeline that gives each token its own timestep cannot be reflected")
        return turn

    def _check_loop(self) -> None:
        """Look, at the end of a loop, at all that was compared in it without a wait (ValueError)."""
        self._handed_back.compare()
        self._drift.check()
        self._levels.check()
        self.watch.check()

    def _unedited(self, turn: Turn, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents that a turn is to step from, which a loop may have changed (inpainting).

        Raises:
            ValueError: a loop that has, in a way that cannot be undone.
        """
        handed_back, edits = self._handed_back.latents, self._edits
        is_watched = isinstance(turn.asked, ProbeRequest) and turn.asked.purpose == "watch"
        if handed_back is None or not (edits.are_made or self._handed_back.is_changed(latents)):
            return latents
        if not edits.are_made and not is_watched:
            raise ValueError(CHANGED_LATER)
        if not self._undoes_edits:
            raise ValueError(EDITED)
        if latents.shape != handed_back.shape:
            raise ValueError(UNKNOWN)
        if not edits.are_made:
            edits.find(self._state.given, self.scale_model_input(latents, turn.timestep))
            self.watch.changes_latents()
        return handed_back

    def _as_asked(self, samples: Any) -> Any:
        """Return what a network is given as samples, with the latents that the sampler asks for in the loop's place."""
        latents = self._handed_back.latents
        if latents is None or not self._edits.are_made:
            return samples
        return self._edits.undone(samples, self.scale_model_input(latents, self.turns[self.at].timestep))

    def _look(self, turn: Turn, asked: ProbeRequest, step_call: StepCall) -> torch.Tensor:
        """Look at a turn without a network, and return the latents that the loop is to go on with."""
        latents = step_call.latents
        if asked.purpose == "displace":
            return self._begin_step(latents.clone()).latents
        if asked.purpose == "measure":
            self._measurement.see(asked, step_call.prediction, latents)
            return latents
        if asked.purpose == "ask":
            return self.watch.see_told(asked, latents, self._state.given)
        if asked.is_first:
            check_scaling(self.wrapped, latents, turn.timestep, self.plan.input_scale(turn.call))
        if self.watch.is_inconclusive(asked):
            asked, again = asked.with_one_more()
            self.turns.insert(self.at + 1, replace(turn, asked=again))
        next_latents = self.watch.see(asked, latents, (self._state.given, step_call.arguments))
        if asked.purpose == "watch" and asked.is_last and self.watch.sees_records:
            rest = slice(self.at + 1, None)
            self.turns[rest] = with_all_watches(self.turns[rest], self.wrapped.timesteps, turn.call)
        return next_latents

    def _answer(self, turn: Turn, step_call: StepCall) -> Any:
        """Hand the pipeline's prediction to the algorithm, and return what it is to go on with: what is asked next."""
        state, latents = self._state, step_call.latents
        if turn.takes_step:
            self._evaluations.check(turn.call, state.evaluated)
        if turn.begins_call:
            # Pipelines may write into what they handed over, and the algorithm needs it until the step is taken.
            self._begin_step(latents if turn.takes_step else latents.clone())
        assert self._algorithm is not None
        if state.answered:
            rows = list(chain(*state.answered))
            self._drift.note(state.layouts[state.answering], rows, step_call.prediction, latents)
        self._handed_back.asked = None
        asked = self._algorithm.send(without_variance(step_call.prediction, latents))
        if isinstance(asked, Step):
            return self._take_step(asked, step_call)
        if isinstance(asked, StepRequest):
            return self._hand_back(asked.latents, step_call)
        wanted = asked.latents if asked.input_scale == 1.0 else asked.latents / asked.input_scale
        return self._hand_back(self._handed_back.to_be_divided(wanted, self.plan.input_scale(turn.call)), step_call)

    def _begin_step(self, latents: torch.Tensor) -> Request | StepRequest | Step:
        """Tell the algorithm the latents that a step begins with, as the pipeline has them; return what it asks for."""
        self._levels.compare()
        if self._algorithm is None:
            self._algorithm = self.plan.sampling(latents, self._settings, self.draw)
            return next(self._algorithm)
        return self._algorithm.send(latents)

    def _take_step(self, step: Step, step_call: StepCall) -> Any:
        """Take the wrapped scheduler's own step, with what it would have been given in a loop of its own."""
        shift_history(self.wrapped, self.plan.trajectory, step.call, step.displacement)
        self._handed_back.remember(None)
        return step_call.taken_by(self.wrapped, step.prediction)

    def _hand_back(self, latents: torch.Tensor, step_call: StepCall) -> Any:
        """Hand latents back, to be stepped from in the next turn."""
        # Schedulers return the precision of the prediction where it is the higher one.
        latents = latents.to(torch.promote_types(latents.dtype, step_call.prediction.dtype))
        self._handed_back.remember(latents)
        if self._edits.are_made:
            latents = latents.clone()  # the loop may write into them
        return step_call.handing_back(latents)


_WALKED = ("timesteps", "set_timesteps", "scale_model_input", "step", "__deepcopy__")


def presented(walk: Walk) -> Any:
    """Return a walk that passes for the scheduler it wraps: of a subclass, with all its attributes and signatures."""
    wrapped = walk.wrapped

    class Presented(type(wrapped)):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            return getattr(walk if name in _WALKED else wrapped, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(wrapped, name, value)

    return Presented()
