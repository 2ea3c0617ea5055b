"""A scheduler that walks a pipeline's own loop through the reflections.

It presents itself as the pipeline's scheduler, with a timestep for every request of the sampler before the step that
counts (as ``HeunDiscreteScheduler`` repeats its timesteps for the second order). Only that step reaches the scheduler
it wraps, which therefore sees what it would see in a loop of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from w2sd_video.algorithm import Step, StepRequest, asked_by, reflected_steps, shift_history, w2sd
from w2sd_video.driver.rehearsal import CallState, RehearsalOver
from w2sd_video.driver.signatures import as_given, by_name, declared_signature, with_signature
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection
from w2sd_video.trajectory import Trajectory


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
    asked: Request | StepRequest
    begins_call: bool = True
    takes_step: bool = False
    ends_step: bool = False


class Timesteps(torch.Tensor):
    """The timesteps of all turns. What is computed from them is a plain tensor.

    Slicing off a beginning, as image-to-video does, is meant in the scheduler's own calls and starts the walk there.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    begin_at: Callable[[int], torch.Tensor]

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return the timesteps at an index; a slice from a positive start to the end starts the walk there."""
        if isinstance(index, slice) and index.step is None and index.stop is None and (index.start or 0) > 0:
            return self.begin_at(index.start)
        return self.as_subclass(torch.Tensor)[index]


class Sigmas(torch.Tensor):
    """The sigmas of all turns. What a pipeline writes into them (Cosmos its last one) goes to the wrapped scheduler."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    write: Callable[[Any, Any], None]

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write the sigmas of the calls that these turns stand for."""
        self.write(index, value)


class Walk:
    """The walk of one pipeline call: the turns, where we are among them, and the reflection under way.

    Args:
        scheduler: takes the steps that count; the pipeline's, or a copy of it.
        settings: where and how to reflect.
        state: told, before each turn, which role the denoiser answers for.

    Raises:
        TypeError: a scheduler that is not known or cannot be reflected.
    """

    def __init__(self, scheduler: Any, settings: Reflection, state: CallState) -> None:
        self.wrapped = scheduler
        self.turns: list[Turn] = []
        self.at = 0
        self.total_steps = 0
        self.reflected_steps = 0
        self.steps_taken = 0
        self.reflected_steps_taken = 0
        self.image_strength: float | None = None
        self.draw: Draw = torch.randn_like
        self.on_step: Callable[[], None] = lambda: None
        self._settings = settings
        self._state = state
        self._reflected: frozenset[int] = frozenset()
        self._positional = 0
        self._begin = 0
        self._slices_count_turns = False
        self._algorithm: Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor] | None = None
        self._old_sample: torch.Tensor | None = None
        self._step_signature = declared_signature(type(scheduler), "step")
        self._timesteps_signature = declared_signature(type(scheduler), "set_timesteps")
        self.set_timesteps = with_signature(self._set_timesteps, self._timesteps_signature)
        self.step = with_signature(self._step, self._step_signature)

    @property
    def stock_calls(self) -> int:
        """How often a stock loop would go round."""
        return len(self.wrapped.timesteps) - self._begin if self.turns else 0

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps of all turns."""
        if not self.turns:
            return self.wrapped.timesteps
        timesteps = torch.stack([turn.timestep for turn in self.turns]).as_subclass(Timesteps)
        timesteps.begin_at = self._begin_at
        return timesteps

    @property
    def sigmas(self) -> torch.Tensor:
        """The wrapped scheduler's sigmas, one a turn and the final one."""
        sigmas = self.wrapped.sigmas
        if not self.turns:
            return sigmas
        calls = torch.tensor([*(turn.call for turn in self.turns), len(self.wrapped.timesteps)])

        def write(index: Any, value: Any) -> None:
            self.wrapped.sigmas[calls[index]] = value
            self._plan(self._begin)

        of_turns = sigmas[calls].as_subclass(Sigmas)
        of_turns.write = write
        return of_turns

    @property
    def set_begin_index(self) -> Callable[[int], None]:
        """Set where the wrapped scheduler begins, if it can; a slice of the timesteps has said it already."""
        set_wrapped = self.wrapped.set_begin_index

        def set_begin_index(begin_index: int = 0) -> None:
            set_wrapped(self._begin or self._call_of_slice(begin_index))

        return set_begin_index

    def scale_model_input(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Scale latents for the network: by their own level, whatever the timestep that the network is told.

        A scheduler that scales nothing is asked too, by pipelines that compare its exact class (Bria).
        """
        asked = self.turns[self.at].asked if self.at < len(self.turns) else None
        if isinstance(asked, Request):
            return sample if asked.input_scale == 1.0 else sample / asked.input_scale
        scale = getattr(self.wrapped, "scale_model_input", None)
        return sample if scale is None else scale(sample, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        """Refuse to be copied while reflecting: each copy would reflect on its own, against the others."""
        if not self._settings.is_on:
            return copy.deepcopy(self.wrapped, memo)
        raise ValueError(
            "this pipeline copies its scheduler (several latents walk side by side, as in joint audio and video), "
            "which cannot be reflected"
        )

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        arguments = by_name(self._timesteps_signature, args, kwargs)
        self._slices_count_turns = any(arguments.get(name) is not None for name in ("timesteps", "sigmas"))
        self.wrapped.set_timesteps(*args, **kwargs)
        self._plan(0)

    def _plan(self, begin: int) -> None:
        """Lay out the turns from a call of the wrapped scheduler on; steps are counted from there."""
        self._begin, self.at, self._algorithm, self._old_sample = begin, 0, None, None
        self._trajectory = trajectory = Trajectory(self.wrapped)
        steps = trajectory.steps_from(begin)
        if not steps:
            total = len(self.wrapped.timesteps)
            raise ValueError(f"the pipeline begins at timestep {begin} of {total}: no step is left")
        self.total_steps = len(steps)
        self._reflected = reflected_steps(trajectory, self._settings, begin)
        self.reflected_steps = len(self._reflected)
        self.turns = []
        asked_for_call: list[Request | StepRequest] = []
        for asked in asked_by(w2sd(trajectory, torch.zeros(0), self._settings, begin=begin)):
            if isinstance(asked, Step):
                self.turns += self._turns_of(asked.call, asked_for_call)
                asked_for_call = []
            else:
                asked_for_call.append(asked)
        self._announce()

    def _turns_of(self, call: int, asked_for_call: Sequence[Request | StepRequest]) -> list[Turn]:
        """Return the turns for one call of the wrapped scheduler, of which the last takes its step."""
        last, trajectory = len(asked_for_call) - 1, self._trajectory
        ends_step = trajectory.step_of_call(call + 1) is not None or call + 1 == trajectory.number_of_calls
        return [
            Turn(call, self._timestep_of(asked), asked, number == 0, number == last, number == last and ends_step)
            for number, asked in enumerate(asked_for_call)
        ]

    def _timestep_of(self, asked: Request | StepRequest) -> torch.Tensor:
        if isinstance(asked, Request):
            return self._trajectory.timesteps[asked.step]
        return self.wrapped.timesteps[asked.call]

    def _call_of_slice(self, start: int) -> int:
        """Return the call meant by the start of a slice, counted in calls.

        Pipelines with their own sigmas count the turns that we showed them instead: of these they leave out the share
        that image-to-image's ``strength`` says, and so do we of the calls.
        """
        if not self._slices_count_turns:
            return start
        total = len(self.wrapped.timesteps)
        if self.image_strength is None:
            return round(start * total / len(self.turns))
        return int(max(total - min(total * self.image_strength, total), 0))

    def _begin_at(self, start: int) -> torch.Tensor:
        self._plan(self._call_of_slice(start))
        return self.timesteps.as_subclass(torch.Tensor)

    def _announce(self) -> None:
        """Tell the denoiser's switch which role the next evaluation answers for."""
        asked = self.turns[self.at].asked if self.at < len(self.turns) else None
        self._state.request += 1
        self._state.role = asked.role if asked else "base"
        self._state.shares_latents = isinstance(asked, Request) and asked.shares_latents

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if self._state.rehearsing is not None:
            raise RehearsalOver
        arguments, self._positional = by_name(self._step_signature, args, kwargs), len(args)
        turn = self._checked_turn(arguments)
        self._state.step_taken = turn.takes_step
        self._state.call = turn.call - self._begin
        result = self._answer(turn, arguments)
        self.at += 1
        self._announce()
        if turn.ends_step:
            self._count(turn)
            self.on_step()
        return result

    def _count(self, turn: Turn) -> None:
        """Count the steps of all passes of a call (FreeInit and Framepack make several)."""
        step = max(s for s, call in enumerate(self._trajectory.calls) if call <= turn.call)
        self.steps_taken += 1
        self.reflected_steps_taken += step in self._reflected

    def _checked_turn(self, arguments: dict[str, Any]) -> Turn:
        """Return the turn that this step answers, or say that the pipeline does not walk as it should."""
        if arguments.get("per_token_timesteps") is not None and self.reflected_steps:
            raise ValueError("a pipeline that gives each token its own timestep cannot be reflected")
        turn = self.turns[self.at] if self.at < len(self.turns) else None
        if turn is None or float(arguments["timestep"]) != float(turn.timestep):
            expected = "no further step" if turn is None else f"timestep {float(turn.timestep)}"
            raise RuntimeError(
                f"the pipeline stepped at timestep {float(arguments['timestep'])} where {expected} was expected: its "
                "loop does not walk scheduler.timesteps in order, so it cannot be reflected"
            )
        return turn

    def _answer(self, turn: Turn, arguments: dict[str, Any]) -> Any:
        """Hand the pipeline's prediction to the algorithm, and return what it is to go on with: what is asked next."""
        latents = arguments["sample"]
        if turn.begins_call:
            # Pipelines may write into what they handed over, and the algorithm needs it until the step is taken.
            self._begin_step(latents if turn.takes_step else latents.clone())
        assert self._algorithm is not None
        asked = self._algorithm.send(without_variance(arguments["model_output"], latents))
        return self._take_step(asked, arguments) if isinstance(asked, Step) else self._result(asked.latents, arguments)

    def _begin_step(self, latents: torch.Tensor) -> None:
        """Tell the algorithm the latents that a step begins with, as the pipeline has them."""
        if self._algorithm is None:
            self._algorithm = w2sd(self._trajectory, latents, self._settings, self.draw, self._begin)
            next(self._algorithm)
        else:
            self._algorithm.send(latents)

    def _take_step(self, step: Step, arguments: dict[str, Any]) -> Any:
        """Take the wrapped scheduler's own step, with what it would have been given in a loop of its own."""
        shift_history(self.wrapped, self._trajectory, step)
        arguments = arguments | {"model_output": with_variance(step.prediction, arguments["model_output"])}
        if "timestep_back" in arguments:
            back = None if step.call == self._begin else self.wrapped.timesteps[step.call - 1]
            arguments = arguments | {"timestep_back": back, "old_pred_original_sample": self._old_sample}
        positional, named = as_given(arguments, self._positional)
        result = self.wrapped.step(*positional, **named)
        if "timestep_back" in arguments:
            self._old_sample = result[1]
        return result

    def _result(self, latents: torch.Tensor, arguments: dict[str, Any]) -> Any:
        """Return latents in the form in which the wrapped scheduler returns them."""
        if "timestep_back" in self._step_signature.parameters:
            return latents, self._old_sample
        if arguments.get("return_dict", True):
            from diffusers.schedulers.scheduling_utils import SchedulerOutput

            return SchedulerOutput(prev_sample=latents)
        return (latents,)


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


_WALKED = ("timesteps", "sigmas", "set_timesteps", "set_begin_index", "scale_model_input", "step", "__deepcopy__")


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
