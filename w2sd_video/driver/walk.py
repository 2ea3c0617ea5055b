"""A scheduler that walks a pipeline's own loop through the reflections.

It presents itself as the pipeline's scheduler, whose timesteps take one more turn of the loop for every request of the
sampler before the step that counts. Only that step reaches the scheduler it wraps, which therefore sees what it would
see in a loop of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from w2sd_video.algorithm import Step, StepRequest, asked_by, pushed_steps, reflected_steps, shift_history, w2sd
from w2sd_video.driver.comparing import copied, differences
from w2sd_video.driver.drift import Drift
from w2sd_video.driver.edits import EDITED, UNKNOWN, Edits
from w2sd_video.driver.guards import CHANGED_LATER, HandedBack
from w2sd_video.driver.measuring import PROBE_TURNS, Probed, at_other_weights, measured
from w2sd_video.driver.rehearsal import CallState, RehearsalOver
from w2sd_video.driver.signatures import as_given, by_name, declared_signature, with_signature
from w2sd_video.driver.timesteps import Timesteps, at_index
from w2sd_video.driver.turns import (
    WATCH_TURNS,
    ProbeRequest,
    Turn,
    asks,
    probes,
    repeats,
    with_all_watches,
    with_later_watches,
    with_measures,
)
from w2sd_video.driver.watching import Watch, check_scaling
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection
from w2sd_video.reuse import Changes
from w2sd_video.time_grid import set_timesteps
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment


class Walk:
    """The walk of one pipeline call: the turns, where we are among them, and the reflection under way.

    Args:
        scheduler: takes the steps that count.
        settings: where and how to reflect.
        state: told, before each turn, which role the denoiser answers for.
        undoes_edits: whether a loop that changes its latents after each step is led, and not refused.

    Raises:
        TypeError: a scheduler that is not known or cannot be reflected.
    """

    def __init__(self, scheduler: Any, settings: Reflection, state: CallState, undoes_edits: bool = False) -> None:
        self.wrapped = scheduler
        self.turns: list[Turn] = []
        self.at = 0
        self.total_steps = 0
        self.reflected_steps = 0
        self.steps_taken = 0
        self.reflected_steps_taken = 0
        self.samples = 0
        self.draw: Draw = torch.randn_like
        self.on_loop: Callable[[], None] = lambda: None
        self.on_turn: Callable[[bool], None] = lambda takes_step: None
        self.on_step: Callable[[], None] = lambda: None
        self._settings = settings
        self._state = state
        self._begin, self._end = 0, 0
        self._moments: dict[int, Moment] = {}
        self._of_steps: dict[int, Moment] = {}
        self._levels: Any = {}
        self._levels_differ: list[bool | torch.Tensor] = []
        self._is_under_way = False
        self._begins_loop = False
        self._positional = 0
        self._reflected: frozenset[int] = frozenset()
        self._pushed: frozenset[int] = frozenset()
        self._reusing: set[int] = set()
        self._evaluated_before: list[Any] = []
        self.idle: Collection[int] = ()
        self._shown: Turn | None = None
        self._handed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._algorithm: Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor] | None = None
        self.watch = Watch()
        self.gap_changes: Callable[[Trajectory, Mapping[int, Moment]], Changes] = lambda trajectory, moments: {}
        self.idle_steps: Callable[[Mapping[int, Moment]], Collection[int]] = lambda moments: ()
        self._drift = Drift()
        self._handed_back, self._edits, self._undoes_edits = HandedBack(), Edits(), undoes_edits
        state.as_asked = self._as_asked
        self._probed: list[Probed] = []
        self._own_scale: float | None = None
        self._step_signature = declared_signature(type(scheduler), "step", "model_output", "sample")
        # Pipelines give what they find in the signatures (eta, generator), as wrappers show them or hide them.
        self.set_timesteps = with_signature(self._set_timesteps, inspect.signature(scheduler.set_timesteps))
        self.step = with_signature(self._step, inspect.signature(scheduler.step))

    @property
    def timesteps(self) -> torch.Tensor:
        """The wrapped scheduler's timesteps; going through them goes through the turns."""
        timesteps = self.wrapped.timesteps
        if not isinstance(timesteps, torch.Tensor):
            return timesteps
        return Timesteps.shown(timesteps, range(len(timesteps)), self._walked)

    @property
    def _leads(self) -> bool:
        """Whether turns are taken that are none of the loop's own."""
        return self._settings.is_on or self._state.measures

    @property
    def is_between_turns(self) -> bool:
        """Whether it has begun a step, or to watch its loop, and is not at the end of it."""
        return 0 < self.at < len(self.turns) and not self.turns[self.at - 1].takes_step

    def scale_model_input(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Scale latents for the network, by the level that the loop is at.

        Those that were handed for a request come to it as they were asked for, to the last bit. A scheduler that
        scales nothing is asked too, by pipelines that compare its exact class (Bria).
        """
        turn = self.turns[self.at] if self.at < len(self.turns) else None
        if turn and (self._handed or isinstance(turn.asked, Request)):
            return self._divided(sample, self._input_scale(turn.call))
        scale_as_stock = getattr(self.wrapped, "scale_model_input", None)
        return sample if scale_as_stock is None else scale_as_stock(sample, *args, **kwargs)

    def _divided(self, sample: torch.Tensor, scale: float) -> torch.Tensor:
        if scale == 1.0:
            return sample
        if self._handed is None:
            return sample / scale
        undivided, wanted = self._handed
        if undivided.shape[1:] != sample.shape[1:] or len(sample) % len(undivided):
            return sample / scale
        copies = len(sample) // len(undivided)
        return torch.where(sample == torch.cat([undivided] * copies), torch.cat([wanted] * copies), sample / scale)

    def _input_scale(self, call: int) -> float:
        """Return what a loop has its latents divided by at a call."""
        return self._trajectory.input_scale(self._trajectory.level(self._trajectory.step_at(call)))

    def __deepcopy__(self, memo: Any) -> Any:
        """Refuse to be copied while reflecting: each copy would reflect on its own, against the others."""
        if not self._settings.is_on:
            return copy.deepcopy(self.wrapped, memo)
        raise ValueError(
            "this pipeline copies its scheduler (several latents walk side by side, as in joint audio and video), "
            "which cannot be reflected"
        )

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        if self._settings.grid == 1.0:
            self.wrapped.set_timesteps(*args, **kwargs)
        else:
            signature = declared_signature(type(self.wrapped), "set_timesteps")
            set_timesteps(self.wrapped, by_name(signature, args, kwargs), self._settings.grid)
        self.turns, self.at, self._is_under_way = [], 0, False

    def _walked(self, calls: range) -> Iterator[torch.Tensor]:
        """Go through the turns of some calls of the wrapped scheduler.

        A call is gone on from when no step was taken in it: then its timesteps are only being read.
        """
        timesteps = self.wrapped.timesteps
        is_read_beside = self._is_under_way or not calls  # as by zip(timesteps, timesteps[1:])
        if is_read_beside or not self._plan(calls):
            yield from timesteps[calls.start : calls.stop]
            return
        self._handed_back.forget()
        self._handed = None
        self.on_loop()
        at, call = 0, calls.start
        self._is_under_way = True
        try:
            if not self._leads:
                yield from self._left_alone(calls)
                return
            while call in calls:
                turn = self.turns[at]
                self._shown = turn if turn.call == call else None
                self._state.in_turn = self._shown is not None
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

    def _plan(self, calls: range) -> bool:
        """Lay out the turns for some calls of the wrapped scheduler; steps are counted from the first of them.

        Returns:
            Whether there is a step to lead; where there is none, a loop that is not to be led is left alone.
        """
        trajectory = Trajectory(self.wrapped)
        steps_to_come = trajectory.steps_from(calls.start)
        if not steps_to_come and not self._settings.is_on:
            return False
        self._begin, self._end, self.at, self._algorithm, self._begins_loop = calls.start, calls.stop, 0, None, True
        self._probed, self._own_scale, self._drift, self._edits = [], None, Drift(), Edits()
        self._trajectory, self._levels, self._levels_differ = trajectory, copied(_levels_of(self.wrapped)), []
        steps = trajectory.steps_from(calls.start, calls.stop)
        if not steps:
            raise ValueError(f"the pipeline begins at timestep {calls.start} of {calls.stop}: no step is left")
        self.total_steps = len(steps)
        self._moments = {call: self._moment_of(call, steps[0], len(steps)) for call in calls}
        self._of_steps = {step: self._moments[trajectory.calls[step]] for step in steps}
        self.idle = self.idle_steps(self._of_steps)
        self._changes = self.changes() if self._settings.reuse > 1 else {}
        self._reflected = reflected_steps(trajectory, self._settings, calls.start, self.idle, calls.stop)
        self.reflected_steps = len(self._reflected)
        self._pushed, self._reusing = pushed_steps(trajectory, self._settings, calls.start, calls.stop), set()
        timesteps, begin = self.wrapped.timesteps, calls.start
        probe_turns, self.turns = self._probe_turns(begin), []
        asked_for_call: list[Request | StepRequest] = []
        for asked in asked_by(self._w2sd(torch.zeros(0), torch.randn_like)):
            if isinstance(asked, Step):
                self.turns += self._turns_of(asked.call, asked_for_call)
                if self._reuses_gap(asked.call, asked_for_call):
                    self._reusing.add(asked.call)
                asked_for_call = []
            else:
                asked_for_call.append(asked)
        self.turns = probe_turns + (self._asks(begin) if probe_turns else []) + self.turns
        if self._state.measures and self._state.stages > 1:
            self.turns = with_measures(self.turns, timesteps[begin])
        self.turns = self._with_later_watches(begin)
        self._announce()
        return True

    def changes(self) -> Changes:
        """Return the steps of this call from which on a role's prediction is made otherwise.

        Raises:
            ValueError: two denoisers, and nothing that tells when they change.
        """
        return self.gap_changes(self._trajectory, self._of_steps)

    def _compare_levels(self) -> None:
        """Compare the levels that the scheduler has with those that the loop began with, without a wait."""
        self._levels_differ += [flag for flag, _ in differences(self._levels, _levels_of(self.wrapped))]

    def _check_levels(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: the scheduler had other levels than the loop began with.
        """
        if any(self._levels_differ):
            raise ValueError(
                "the scheduler's timesteps or noise levels changed in the call (by a callback, for example), so its "
                "steps were at others than the reflections; change them before the first step, or reflect no step "
                "(reflection_steps=0)"
            )

    def _probe_turns(self, begin: int) -> list[Turn]:
        """Return the turns at the beginning of a call in which its loop is watched, and its layout measured."""
        timestep = self.wrapped.timesteps[begin]
        turns = []
        if self._settings.is_on:
            turns = probes(begin, timestep, "watch", WATCH_TURNS) + repeats(begin, timestep, self.total_steps + 1)
        return turns + (probes(begin, timestep, "measure", PROBE_TURNS) if self._state.measures else [])

    def _asks(self, begin: int) -> list[Turn]:
        """Return the turns in which is seen whether the network is told another timestep, if it will have to be."""
        asked = [turn for turn in self.turns if isinstance(turn.asked, Request)]
        told = [turn.timestep for turn in asked if turn.asked.step != self._trajectory.step_at(turn.call)]  # type: ignore[union-attr]
        return asks(begin, self.wrapped.timesteps[begin], told[-1]) if told else []

    def _with_later_watches(self, begin: int) -> list[Turn]:
        """Return the turns, with those among them in which the loop is watched again."""
        return with_later_watches(self.turns, self.wrapped.timesteps, begin) if self._settings.is_on else self.turns

    def _moment_of(self, call: int, first: int, total: int) -> Moment:
        """Return the step that a call of the wrapped scheduler belongs to, of those from the first on."""
        place = max(self._trajectory.step_at(call) - first, 0)
        return Moment(place, total, self._trajectory.level(first + place))

    def _turns_of(self, call: int, asked_for_call: Sequence[Request | StepRequest]) -> list[Turn]:
        """Return the turns for one call of the wrapped scheduler, of which the last takes its step."""
        last, trajectory = len(asked_for_call) - 1, self._trajectory
        ends_step = trajectory.step_of_call(call + 1) is not None or call + 1 == trajectory.number_of_calls
        is_reflected = trajectory.step_of_call(call) in self._reflected
        # A gap that is reused asks for nothing, and yet what is evaluated next is at other latents than the loop's.
        reuses_gap = is_reflected and isinstance(asked_for_call[0], StepRequest)
        before = probes(call, self.wrapped.timesteps[call], "displace", 1) if reuses_gap else []
        return before + [
            Turn(
                call,
                self._timestep_of(asked),
                asked,
                begins_call=number == 0 and not reuses_gap,
                takes_step=number == last,
                ends_step=number == last and ends_step,
            )
            for number, asked in enumerate(asked_for_call)
        ]

    def _reuses_gap(self, call: int, asked_for_call: Sequence[Request | StepRequest]) -> bool:
        """Return whether a call has a gap that was measured before, of a reflection or of AutoGuidance."""
        step = self._trajectory.step_of_call(call)
        pushes = any(isinstance(asked, StepRequest) and asked.role == "weak" for asked in asked_for_call)
        reflects = isinstance(asked_for_call[0], Request)
        return (step in self._reflected and not reflects) or (step in self._pushed and not pushes)

    def _timestep_of(self, asked: Request | StepRequest) -> torch.Tensor:
        if isinstance(asked, Request):
            return self._trajectory.timesteps[asked.step]
        return self.wrapped.timesteps[asked.call]

    def _announce(self) -> None:
        """Tell the denoiser's switch which role the next evaluation answers for."""
        turn = self.turns[self.at] if self.at < len(self.turns) else None
        asked = turn.asked if turn else None
        self._state.moment = self._moments.get(turn.call) if turn else None
        self._state.request += 1
        self._state.role = asked.role if asked else "base"
        self._state.place += not getattr(asked, "shares_latents", False)
        self._state.probing = asked.rows if isinstance(asked, ProbeRequest) else None
        self._state.answered, self._state.given, self._state.answering, self._state.evaluated = [], [], 0, []
        own = self._state.rehearsals.get(None)
        is_first = isinstance(asked, ProbeRequest) and asked.is_first
        self._state.noting = own if is_first and own and not own.calls else None

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if self._state.rehearsing is not None:
            raise RehearsalOver
        if self._begins_loop:  # which may be one of several, for samples one after another
            self.samples += len(by_name(self._step_signature, args, kwargs)["sample"])
            self._begins_loop = False
        turn, self._shown, self._state.in_turn = self._shown, None, False
        if not self._leads or (turn is None and not self._settings.is_on):
            return self._step_alone(args, kwargs)
        arguments, self._positional = by_name(self._step_signature, args, kwargs), len(args)
        arguments["model_output"] = arguments["model_output"].detach()  # of a loop that keeps the graph of all turns
        turn = self._checked(turn, arguments)
        self._state.step_taken = turn.takes_step
        arguments["sample"] = self._unedited(turn, arguments)
        self.watch.check_evaluated(self._state.answering)
        if isinstance(turn.asked, ProbeRequest):
            result = self._result(self._look(turn, turn.asked, arguments), arguments)
        else:
            self._check_what_is_reused(turn)
            result = self._answer(turn, arguments)
        self.at += 1
        self.on_turn(turn.takes_step)
        if self.at == len(self.turns):
            self._handed_back.compare()
            self._drift.check(self.watch.pipeline)
            self._check_levels()
            self.watch.check()
        self._announce()
        if turn.ends_step:
            self._count(turn)
            self.on_step()
        return result

    def _check_what_is_reused(self, turn: Turn) -> None:
        """Look whether the loop has its network evaluated as where the gap was measured, at a step that reuses it.

        Raises:
            ValueError: it has not: an adapter or a guidance of the loop's own has begun or ended since.
        """
        if self._settings.reuse == 1 or not turn.takes_step:
            return
        if turn.call not in self._reusing:
            self._evaluated_before = self._state.evaluated
        elif self._state.evaluated != self._evaluated_before:
            step = self._moments[turn.call].step
            raise ValueError(
                f"{self.watch.pipeline} has its network evaluated otherwise at step {step} than where the gap was "
                "measured that is reused there (an adapter or a guidance of its own begins or ends); measure it at "
                "every step (reuse=1)"
            )

    def _unedited(self, turn: Turn, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the latents that a turn is to step from, which a loop may have changed (inpainting).

        Raises:
            ValueError: a loop that has, in a way that cannot be undone.
        """
        latents, handed_back, edits = arguments["sample"], self._handed_back.latents, self._edits
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

    def _step_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take a step of a loop that is not led."""
        result = self.wrapped.step(*args, **kwargs)
        self._state.step_taken = True
        if self.at == len(self.turns) or self.turns[self.at].ends_step:
            self.steps_taken += 1
            self.on_step()
        self.at = min(self.at + 1, len(self.turns))
        return result

    def _count(self, turn: Turn) -> None:
        """Count the steps of all passes of a call (FreeInit and Framepack make several)."""
        self.steps_taken += 1
        self.reflected_steps_taken += self._trajectory.step_at(turn.call) in self._reflected

    def _look(self, turn: Turn, asked: ProbeRequest, arguments: dict[str, Any]) -> torch.Tensor:
        """Look at a turn without a network, and return the latents that the loop is to go on with."""
        latents = arguments["sample"]
        if asked.purpose == "displace":
            return self._begin_step(latents.clone()).latents
        if asked.purpose == "measure":
            self._measure(asked, arguments["model_output"], latents)
            return latents
        if asked.purpose == "ask":
            return self.watch.see_told(asked, latents, self._state.given)
        if asked.is_first:
            level = self._trajectory.level(self._trajectory.step_at(turn.call))
            check_scaling(self.wrapped, latents, turn.timestep, self._trajectory.input_scale(level))
        if self.watch.is_inconclusive(asked):
            asked, again = asked.with_one_more()
            self.turns.insert(self.at + 1, replace(turn, asked=again))
        next_latents = self.watch.see(asked, latents, (self._state.given, arguments))
        if asked.purpose == "watch" and asked.is_last and self.watch.sees_records:
            rest = slice(self.at + 1, None)
            self.turns[rest] = with_all_watches(self.turns[rest], self.wrapped.timesteps, turn.call)
        return next_latents

    def _measure(self, asked: ProbeRequest, prediction: torch.Tensor, latents: torch.Tensor) -> None:
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

    def _checked(self, turn: Turn | None, arguments: dict[str, Any]) -> Turn:
        """Return the turn that a step answers, or say that the pipeline does not walk as it should."""
        if arguments.get("per_token_timesteps") is not None and self.reflected_steps:
            raise ValueError("a pipeline that gives each token its own timestep cannot be reflected")
        if turn is None or self.at == len(self.turns) or turn is not self.turns[self.at]:
            raise RuntimeError(
                "the pipeline's loop does not go through scheduler.timesteps in order, with one scheduler.step for "
                "each of them, so it cannot be reflected"
            )
        return turn

    def _answer(self, turn: Turn, arguments: dict[str, Any]) -> Any:
        """Hand the pipeline's prediction to the algorithm, and return what it is to go on with: what is asked next."""
        latents = arguments["sample"]
        if turn.begins_call:
            # Pipelines may write into what they handed over, and the algorithm needs it until the step is taken.
            self._begin_step(latents if turn.takes_step else latents.clone())
        assert self._algorithm is not None
        if self._state.answered:
            layout, rows = self._state.layouts[self._state.answering], list(chain(*self._state.answered))
            if len(rows) < sum(layout.calls) and any(pair.uncond < len(rows) for pair in layout.pairs):
                raise ValueError(  # the row that was answered as the unconditional one may be the only one
                    f"{self.watch.pipeline} evaluates fewer rows than in its first step, so a branch cannot set its "
                    "guidance_scale; leave it out, or reflect the steps before (reflection_steps)"
                )
            self._drift.note(layout, rows, arguments["model_output"], latents)
        self._handed = None
        asked = self._algorithm.send(without_variance(arguments["model_output"], latents))
        if isinstance(asked, Step):
            return self._take_step(asked, arguments)
        if isinstance(asked, StepRequest):
            return self._result(asked.latents, arguments)
        wanted = asked.latents if asked.input_scale == 1.0 else asked.latents / asked.input_scale
        return self._result(self._handed_at(turn.call, wanted), arguments)

    def _handed_at(self, call: int, wanted: torch.Tensor) -> torch.Tensor:
        """Return latents that, divided as the loop does at a call, are as a network is to see them.

        Those of another level (of the paper's inversion) are brought to the scale of the call's. So it does not matter
        how a loop divides: by the scheduler, by a sigma of its own, or what it makes of the undivided ones beside.
        """
        scale = self._input_scale(call)
        self._handed = wanted if scale == 1.0 else wanted * scale, wanted
        return self._handed[0]

    def _begin_step(self, latents: torch.Tensor) -> Request | StepRequest | Step:
        """Tell the algorithm the latents that a step begins with, as the pipeline has them; return what it asks for."""
        self._compare_levels()
        if self._algorithm is None:
            self._algorithm = self._w2sd(latents, self.draw)
            return next(self._algorithm)
        return self._algorithm.send(latents)

    def _w2sd(
        self, latents: torch.Tensor, draw: Draw
    ) -> Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor]:
        """Return the algorithm over the steps of this call."""
        steps = self._begin, self._changes, self.idle, self._end
        return w2sd(self._trajectory, latents, self._settings, draw, *steps)

    def _take_step(self, step: Step, arguments: dict[str, Any]) -> Any:
        """Take the wrapped scheduler's own step, with what it would have been given in a loop of its own."""
        shift_history(self.wrapped, self._trajectory, step.call, step.displacement)
        self._handed_back.remember(None)
        prediction = with_variance(step.prediction, arguments["model_output"])
        positional, named = as_given(arguments | {"model_output": prediction}, self._positional)
        return self.wrapped.step(*positional, **named)

    def _result(self, latents: torch.Tensor, arguments: dict[str, Any]) -> Any:
        """Hand latents back in the form in which the wrapped scheduler returns them."""
        # Schedulers return the precision of the prediction where it is the higher one.
        latents = latents.to(torch.promote_types(latents.dtype, arguments["model_output"].dtype))
        self._handed_back.remember(latents)
        if self._edits.are_made:
            latents = latents.clone()  # the loop may write into them
        if "timestep_back" in self._step_signature.parameters:
            return latents, arguments["old_pred_original_sample"]
        if arguments.get("return_dict", True):
            from diffusers.schedulers.scheduling_utils import SchedulerOutput

            return SchedulerOutput(prev_sample=latents)
        return latents, latents  # whichever the pipeline goes on with: PixArt at one step takes the second


def _levels_of(scheduler: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that a scheduler keeps its timesteps and noise levels in."""
    values = vars(scheduler)
    return {name: values[name] for name in ("timesteps", "sigmas", "alphas_cumprod") if name in values}


def without_variance(prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the part of a prediction that is not a learned variance (DDPM takes both in one tensor)."""
    if prediction.shape == latents.shape:
        return prediction
    return prediction[:, : latents.shape[1]]


def with_variance(prediction: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return a prediction with the learned variance that the pipeline's own one has behind it, if it has one."""
    if prediction.shape == own.shape:
        return prediction
    return torch.cat([prediction, own[:, prediction.shape[1] :]], dim=1)


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
