"""One call of a pipeline, reflected: what surrounds it, and what stands in for the scheduler and the networks in it."""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from operator import length_hint
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from w2sd_video.argument_checks import version_of
from w2sd_video.backends import DENOISERS
from w2sd_video.branch import Branch, steps_without_gap
from w2sd_video.driver.arguments import call_back_after_steps, check_no_own_timesteps, drawing_as, with_text
from w2sd_video.driver.controlnet import ControlSwitch
from w2sd_video.driver.denoiser import CompanionSwitch, DenoiserSwitch
from w2sd_video.driver.gap_changes import gap_changes
from w2sd_video.driver.guards import Momentum
from w2sd_video.driver.loop_state import LoopState
from w2sd_video.driver.networks import EVALUATING, in_use
from w2sd_video.driver.parts import (
    branch_at_stage,
    check_control_scales,
    check_kind,
    check_no_cache,
    check_same_adapters,
    check_text_encoders,
    companions_of,
    controlnet_of,
    denoisers_of,
    loop_of,
)
from w2sd_video.driver.rehearsal import CallState, Rehearsal, RehearsalOver, same_random_state
from w2sd_video.driver.signatures import as_given, by_name, codes_of, declared_signature, defaults, with_signature
from w2sd_video.driver.solvers import check_eta
from w2sd_video.driver.timesteps import counting_calls
from w2sd_video.driver.walk import Walk, presented
from w2sd_video.driver.watching import Watch
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.gaps.swaps import attributes_put_back, swapped
from w2sd_video.reflection_settings import Reflection, Role

Switch = DenoiserSwitch | CompanionSwitch | ControlSwitch


@dataclass
class Run:
    """What happened in the latest call of the pipeline, in all passes that it makes through its loop.

    Attributes:
        nfe: network evaluations a sample by role ("base", "strong", "weak"); a guided prediction counts as two.
        steps: steps of the scheduler, of all passes where the pipeline makes several (FreeInit, Framepack).
        reflected_steps: how many of them were reflected.
    """

    nfe: dict[str, int]
    steps: int = 0
    reflected_steps: int = 0


@contextmanager
def walking(
    pipe: Any,
    branches: Mapping[Role, Branch],
    settings: Reflection,
    walk_of: Callable[[Any, Reflection, CallState], Walk],
) -> Iterator[Run]:
    """Have a walk lead every call of a pipeline inside the block, and each role answered by its branch.

    The parts of the pipeline are looked up at each call. Outside its calls nothing stands in the place of a part.

    Args:
        pipe: a diffusers pipeline.
        branches: the setting of every role.
        settings: tell which roles are evaluated.
        walk_of: makes the walk of a scheduler, `Walk` itself for example.

    Yields:
        A ``Run``, filled in by each call of the pipeline.

    Raises:
        TypeError, ValueError: see ``reflection``.
    """
    run = Run(nfe=dict.fromkeys(branches, 0))
    loop = loop_of(type(pipe))

    def make_call() -> PipelineCall:
        return PipelineCall(pipe, loop, branches, settings, walk_of, run)

    if isinstance(pipe, ReflectedPipeline):
        raise ValueError("the pipeline is being reflected already; end that block before beginning another")
    with make_call().prepared():
        pass  # what no call could be given is refused here
    with of_class(pipe, reflecting_class(type(pipe), loop, make_call, run)):
        yield run


class PipelineCall:
    """One call of the pipeline: rehearsals before it, progress and callbacks in it, counts after it."""

    def __init__(
        self,
        pipe: Any,
        loop: Any,
        branches: Mapping[Role, Branch],
        settings: Reflection,
        walk_of: Callable[[Any, Reflection, CallState], Walk],
        run: Run,
    ) -> None:
        self._pipe = pipe
        self._branches = branches
        self._settings = settings
        self._walk_of = walk_of
        self._run = run
        self._used = [branch for role, branch in branches.items() if role in settings.roles]
        self._loop: Callable[..., Any] = loop.__call__
        self._signature = declared_signature(loop, "__call__")

    @property
    def is_in_its_loop(self) -> bool:
        """Whether what runs is this call's own loop."""
        return not self._state.is_elsewhere

    @property
    def is_between_turns(self) -> bool:
        """Whether its loop is in the midst of a step, with latents that are none of the pipeline's."""
        return self._settings.is_on and self._walk.is_between_turns

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Work out what stands in for the pipeline's parts, and keep its networks for this call.

        Raises:
            TypeError, ValueError: what this pipeline cannot be given as it is now.
        """
        pipe, branches = self._pipe, self._branches
        check_kind(pipe)
        denoisers = denoisers_of(pipe)
        stages = [
            {role: branch_at_stage(pipe, role, branch, denoisers, stage) for role, branch in branches.items()}
            for stage in range(len(denoisers))
        ]
        controlnet = controlnet_of(pipe, branches)
        used = {
            role: [second_of(stage[role]) or own for stage, own in zip(stages, denoisers, strict=True)]
            for role in branches
        }
        networks = list(itertools.chain(denoisers, *used.values())) + ([] if controlnet is None else [controlnet])
        with in_use(networks):
            if self._settings.is_on:
                check_no_cache(pipe, networks)
            for role, branch in branches.items():
                check_loaded(branch.lora or {}, used[role])
                check_text_encoders(pipe, branch.lora or {})
                check_same_adapters(role, denoisers, used[role])
            self._state = CallState(stages=len(denoisers), leads=self._settings.is_on)
            self._walk = self._walk_of(pipe.scheduler, self._settings, self._state)
            self._switches = [
                DenoiserSwitch(pipe, denoiser, stage, self._state)
                for denoiser, stage in zip(denoisers, stages, strict=True)
            ]
            self._companions = [
                CompanionSwitch(pipe, network, branches, self._state) for network in companions_of(pipe, denoisers)
            ]
            self._controls = [] if controlnet is None else [ControlSwitch(controlnet, branches, self._state)]
            yield

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], running: list[Any]) -> Any:
        """Call the pipeline, reflected; the call stands among those that are running as long as it has the networks."""
        given = by_name(self._signature, args, kwargs)
        with self.prepared(), ExitStack() as stack:
            running.append(self)
            stack.callback(running.remove, self)
            arguments = defaults(self._signature) | given
            self._tell(arguments)
            samples = 1
            stack.enter_context(counting_calls(type(self._pipe)))
            stack.enter_context(attributes_put_back(self._walk.wrapped, always=False))
            stack.enter_context(swapped([(self._pipe, {"scheduler": presented(self._walk)})]))
            switches: list[Switch] = [*self._switches, *self._companions, *self._controls]
            for switch in switches:
                stack.enter_context(switch.installed())
            try:
                self._rehearse(arguments, given, len(args))
                changes = self._with_callbacks_aside(arguments)
                changes |= call_back_after_steps(arguments | changes, self._state)
                result = self._call(given | changes, len(args))
                stepped = self._walk.samples or 1
                samples = min(_samples_in(result) or stepped, stepped)  # a sample may be several pictures
            except Exception as error:
                if self._state.is_watched and _is_of_the_loop(error):
                    raise ValueError(
                        f"{type(self._pipe).__name__} needs more of its network than a prediction (keys and values, "
                        "attention maps) or of its scheduler than latents, so it cannot be reflected; its loop failed "
                        f"in a turn without a network ({type(error).__name__}: {error})"
                    ) from error
                raise
            finally:
                if self._state.changed_scale is not None:  # the call ended inside the turn that has it changed
                    self._state.changed_scale()
                self._run.nfe = {role: self._state.nfe[role] // samples for role in ("base", "strong", "weak")}
                self._run.steps = self._walk.steps_taken
                self._run.reflected_steps = self._walk.reflected_steps_taken
            self._check_end()
        return result

    def _tell(self, arguments: Mapping[str, Any]) -> None:
        """Tell the walk and the switches what the call is given, and what is to be watched and measured in it."""
        state, walk = self._state, self._walk
        if hasattr(walk.wrapped, "in_place_of"):  # else it is ignored as in a stock call
            check_eta(arguments.get("eta"), type(walk.wrapped))
        if self._settings.grid != 1.0:
            check_no_own_timesteps(arguments, self._settings.grid)
        told = "distilled_guidance_scale"  # as HunyuanImage has the scale that a network is told, beside its guider's
        scale = arguments.get(told, arguments.get("guidance_scale"))
        state.guidance_scale = float(scale) if isinstance(scale, Real) else None
        state.stated_scales = {
            name: float(value)
            for name, value in arguments.items()
            if any(word in name for word in ("guidance", "cfg", "scale"))
            and name != told
            and isinstance(value, Real)
            and not isinstance(value, bool)
        }
        state.measures = any(
            branch.guidance_scale is not None or branch.negative_prompt is not None for branch in self._used
        )
        for control in self._controls:
            control.told(arguments)
        walk.draw = drawing_as(arguments.get("generator"))
        walk.on_turn = Momentum(self._pipe).after_turn
        walk.gap_changes = partial(gap_changes, self._pipe, self._branches, arguments, ())
        walk.idle_steps = partial(steps_without_gap, self._branches["strong"], self._branches["weak"])
        walk.watch = Watch(
            type(self._pipe).__name__, LoopState(self._pipe, PipelineCall._call.__code__), self._check_control
        )

    def _call(self, arguments: Mapping[str, Any], positional: int) -> Any:
        args, kwargs = as_given(arguments, positional)
        return self._loop(self._pipe, *args, **kwargs)

    @property
    def _is_led(self) -> bool:
        """Whether anything is not as in a stock call."""
        return self._settings.is_on or any(branch != Branch() for branch in self._used)

    def _check_end(self) -> None:
        """Refuse a result that was not led by the walk."""
        name = type(self._pipe).__name__
        if self.is_between_turns:
            raise ValueError(
                f"{name} ends its loop in the midst of a step: it goes round a number of times of its own, or was "
                "stopped there, so it cannot be reflected; stop it in a callback or by pipe._interrupt, or reflect no "
                "step (reflection_steps=0)"
            )
        if self._settings.is_on and self._walk.steps_taken == 0 and not getattr(self._pipe, "interrupt", False):
            raise RuntimeError(f"{name} never called scheduler.step, so nothing was reflected")
        if self._settings.is_on and self._walk.steps_taken and not self._state.nfe.total():
            raise RuntimeError(
                f"{name} evaluated its network in another thread than its loop's, so nothing was reflected"
            )
        self._check_control()
        if any(self._state.text_differs):
            raise ValueError(
                f"the text that {name} gives its network changed in the call, but a branch has a text of its own, "
                "encoded before the first step; leave the text of the branches out, or what changes the other"
            )

    def _check_control(self) -> None:
        """Refuse a scale for a ControlNet that the loop did not evaluate (one that is a part of the denoiser)."""
        if not all(control.was_asked for control in self._controls):
            check_control_scales(self._pipe, self._branches)

    def progress_bar(self, make_bar: Callable[..., Any], iterable: Any, total: int | None) -> Any:
        """Return a bar of real steps: the walk moves it, not the pipeline's loop."""
        if self._state.rehearsing is not None:
            return tqdm(iterable, disable=True)
        bar, walk = make_bar(total=total if iterable is None else length_hint(iterable)), self._walk

        def show_steps() -> None:
            plan = walk.plan
            bar.total = plan.total_steps
            if plan.reflected and not bar.disable:
                note = f"W2SD, {len(plan.reflected)} of {plan.total_steps} steps reflected"
                bar.set_description(f"{bar.desc}{note}" if bar.desc else note)

        move, bar.update = bar.update, lambda n=1: None
        walk.on_loop, walk.on_step = show_steps, lambda: move(1)
        return bar if iterable is None else _walked(iterable, bar)

    def _with_callbacks_aside(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Have the user's callbacks see the scheduler and the networks as they are in a stock loop."""

        def aside(callback: Callable[..., Any]) -> Callable[..., Any]:
            def call_aside(*args: Any, **kwargs: Any) -> Any:
                self._state.aside = True
                try:
                    with swapped([(self._pipe, {"scheduler": self._walk.wrapped})]):
                        return self._checked(callback, args, kwargs)
                finally:
                    self._state.aside = False

            if hasattr(callback, "tensor_inputs"):
                call_aside.tensor_inputs = callback.tensor_inputs  # type: ignore[attr-defined]
            return call_aside

        names = ("callback_on_step_end", "callback")
        return {name: aside(arguments[name]) for name in names if arguments.get(name) is not None}

    def _checked(self, callback: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Refuse that a callback changes the text where a branch has its own, learnt before the first step."""
        tensors = dict(args[-1]) if args and isinstance(args[-1], dict) else {}
        versions = {name: version_of(tensor) for name, tensor in tensors.items()}
        parts = {name: getattr(self._pipe, name, None) for name in ("scheduler", "controlnet", *DENOISERS)}
        result = callback(*args, **kwargs)
        for name, part in parts.items():
            if getattr(self._pipe, name, None) is not part and self._is_led:
                raise ValueError(
                    f"a callback replaced the pipeline's {name} in a reflected call; replace it before the call"
                )
        returned = result.items() if isinstance(result, dict) and self._state.rehearsals else ()
        for name, after in returned:
            is_unchanged = after is tensors.get(name) and version_of(after) == versions.get(name)
            if "prompt" in name and not is_unchanged:
                raise ValueError(
                    f"a callback changed {name}, but a branch has a text of its own, encoded before the first step; "
                    "leave the text of the branches out, or the callback"
                )
        return result

    def _rehearse(self, arguments: Mapping[str, Any], given: dict[str, Any], positional: int) -> None:
        """Learn what the pipeline gives its denoiser for each prompt, if a branch has one.

        What it gives it for its own shows in the first turn that is watched, where there are such.
        """
        texts = list(dict.fromkeys(branch.text for branch in self._used if branch.text is not None))
        if not texts:
            return
        is_watched = self._settings.is_on
        if is_watched:
            self._state.rehearsals[None] = Rehearsal()
        for text in texts if is_watched else [None, *texts]:
            changes = {} if text is None else with_text(arguments, *text, type(self._pipe).__name__)
            self._state.rehearsing = Rehearsal()
            try:
                with same_random_state(arguments.get("generator")):
                    self._call(given | changes, positional)
            except RehearsalOver:
                self._state.rehearsals[text] = self._state.rehearsing
            finally:
                self._state.rehearsing = self._state.probing = None  # what fails now is not in a turn


class ReflectedCall(Protocol):
    """One call of a pipeline, to be made once."""

    @property
    def is_in_its_loop(self) -> bool:
        """Whether what runs is this call's own loop."""

    @property
    def is_between_turns(self) -> bool:
        """Whether its loop is in the midst of a step, with latents that are none of the pipeline's."""

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], running: list[Any]) -> Any:
        """Call the pipeline, reflected; the call stands among those that are running as long as it does."""


class ReflectedPipeline:
    """What a pipeline is an instance of inside a block."""


def reflecting_class(original: Any, loop: Any, make_call: Callable[[], ReflectedCall], run: Run) -> type:
    """Return a subclass of a pipeline's class, of the same name, in which the calls of its loop are reflected.

    They are caught right before the class whose ``__call__`` is the loop, so that a subclass which prepares arguments
    and calls ``super().__call__`` does so as ever. What is made of the class, or copied from the pipeline, is stock.
    Of a subclass that calls it several times (once more at a larger size, say) the run is filled in by all of them.
    """
    running: list[Any] = []
    runs_of_thread: dict[int, list[Run]] = {}

    def call_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, ReflectedPipeline):  # a method that was taken inside the block, after it
            return loop.__call__(self, *args, **kwargs)
        try:
            return make_call().run(args, kwargs, running)
        finally:
            if (runs := runs_of_thread.get(threading.get_ident())) is not None:
                runs.append(replace(run))

    def call_to_the_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs = runs_of_thread[threading.get_ident()] = []
        try:
            result = super(Reflecting, self).__call__(*args, **kwargs)
        finally:
            del runs_of_thread[threading.get_ident()]
            run.nfe = {role: sum(one.nfe[role] for one in runs) for role in run.nfe}
            run.steps = sum(one.steps for one in runs)
            run.reflected_steps = sum(one.reflected_steps for one in runs)
        if not runs:
            raise RuntimeError(
                f"{original.__name__} did not call {loop.__name__}.__call__ by super().__call__: nothing was reflected"
            )
        return result

    shown = {"__call__": with_signature(call_loop, inspect.signature(loop.__call__)), "__module__": loop.__module__}
    caught = type(loop.__name__, (loop,), shown)

    class Reflecting(*([caught] if loop is original else [original, caught]), ReflectedPipeline):  # type: ignore[misc]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            function, arguments, *rest = super().__reduce_ex__(protocol)
            arguments = tuple(original if value is Reflecting else value for value in arguments)
            if function.__name__ == "__newobj__":  # of copyreg: pickle demands the class that the pipeline has now
                function, arguments = partial(original.__new__, original), arguments[1:]
            return function, arguments, *rest

        def progress_bar(self, iterable: Any = None, total: int | None = None, **looks: Any) -> Any:
            make_bar = partial(super().progress_bar, **looks)
            # What goes round over a range goes over samples, whose bar is no bar of steps.
            if not running or isinstance(iterable, range):
                return make_bar(iterable, total)
            return running[-1].progress_bar(make_bar, iterable, total)

    Reflecting.scheduler = _SchedulerInCalls(loop, running)
    if isinstance(getattr(original, "interrupt", None), property):
        # A loop that is interrupted, by another thread for example, ends the step that it is in, as a stock one does.
        Reflecting.interrupt = property(
            lambda self: not any(call.is_between_turns for call in running) and super(Reflecting, self).interrupt
        )
    if loop is not original:
        Reflecting.__call__ = with_signature(call_to_the_loop, inspect.signature(original.__call__))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Reflecting, name, getattr(original, name))
    return Reflecting


class _SchedulerInCalls:
    """The attribute of a pipeline's scheduler, which its loop is given in a reflected call only.

    The loop runs past it where its function is called itself: a method that was taken before the block, or a subclass
    that names the class in place of ``super()``.

    Args:
        loop: the class whose ``__call__`` is the loop.
        running: the reflected calls of the pipeline.
    """

    def __init__(self, loop: type, running: list[Any]) -> None:
        self._name = loop.__name__
        self._codes = codes_of(vars(loop)["__call__"])
        self._running = running

    def __get__(self, pipe: Any, owner: type) -> Any:
        if pipe is None or "scheduler" not in vars(pipe):
            raise AttributeError("scheduler")
        if not any(call.is_in_its_loop for call in self._running) and self._loop_runs_past(pipe):
            raise ValueError(
                f"{self._name}.__call__ was called past the pipeline, as a method that was taken before the block or "
                "by the name of its class, so nothing would be reflected; call the pipeline itself inside the block, "
                f"and {self._name}.__call__ by super().__call__ in a subclass"
            )
        return vars(pipe)["scheduler"]

    def __set__(self, pipe: Any, scheduler: Any) -> None:
        vars(pipe)["scheduler"] = scheduler

    def _loop_runs_past(self, pipe: Any) -> bool:
        """Return whether the innermost loop of a pipeline that runs in this thread was called by something else."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code in self._codes and any(value is pipe for value in frame.f_locals.values()):
                break
            frame = frame.f_back
        else:
            return False
        while frame is not None and frame.f_globals.get("__name__") != __name__:
            frame = frame.f_back
        return frame is None or frame.f_code is not PipelineCall._call.__code__


def second_of(branch: Branch) -> nn.Module | None:
    """Return the second denoiser that a branch is answered with, if it has one."""
    return branch.weights if isinstance(branch.weights, nn.Module) else None


def _is_of_the_loop(error: BaseException) -> bool:
    """Return whether an error is none of the package's or of a hook of a network's, nor says that memory ran out."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_ours = frames[-1].f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]
    is_of_network = any(frame.f_code in EVALUATING for frame in frames)
    return not (is_ours or is_of_network or isinstance(error, (MemoryError, torch.OutOfMemoryError)))


def _samples_in(result: Any) -> int | None:
    """Return how many samples a call has made: the length of the first thing that it returns, if that has one."""
    several = result.values() if isinstance(result, Mapping) else result
    first = next(iter(several if isinstance(result, (tuple, list, Mapping)) else [result]), None)
    return max(1, len(first)) if isinstance(first, Sized) and not isinstance(first, str) else None


def _walked(iterable: Any, bar: Any) -> Iterator[Any]:
    """Walk an iterable to its end, with a bar that something else moves."""
    with bar:
        yield from iterable


@contextmanager
def of_class(pipe: Any, reflecting: type) -> Iterator[None]:
    """Make a pipeline an instance of another class for a while."""
    before = type(pipe)
    pipe.__class__ = reflecting
    try:
        yield
    finally:
        pipe.__class__ = before
