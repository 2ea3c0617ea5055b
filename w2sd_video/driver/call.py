"""One call of a pipeline, reflected: what surrounds it, and what stands in for the scheduler and the networks in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from w2sd_video.branch import Branch
from w2sd_video.driver.arguments import call_back_after_steps, drawing_as, with_text
from w2sd_video.driver.controlnet import ControlSwitch
from w2sd_video.driver.denoiser import DenoiserSwitch
from w2sd_video.driver.guards import Momentum
from w2sd_video.driver.parts import branch_at_stage, check_loop, controlnet_of, denoisers_of
from w2sd_video.driver.rehearsal import CallState, Rehearsal, RehearsalOver, same_random_state
from w2sd_video.driver.signatures import with_signature
from w2sd_video.driver.timesteps import counting_calls
from w2sd_video.driver.walk import Walk, presented
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.reflection_settings import Reflection, Role


@dataclass
class Run:
    """What happened in the latest call of the pipeline.

    Attributes:
        nfe: network evaluations a sample by role ("base", "strong", "weak"); a guided prediction counts as two.
        steps: steps of the scheduler.
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
    denoisers = denoisers_of(pipe)
    stages = [
        {role: branch_at_stage(pipe, role, branch, denoisers, stage) for role, branch in branches.items()}
        for stage in range(len(denoisers))
    ]
    for role, branch in branches.items():
        seconds = [stage[role].weights for stage in stages]
        used = [one if isinstance(one, nn.Module) else own for one, own in zip(seconds, denoisers, strict=True)]
        check_loaded(branch.lora or {}, used)
    state = CallState(stages=len(denoisers))
    check_loop(pipe)
    if settings.is_on and any(getattr(denoiser, "is_cache_enabled", False) for denoiser in denoisers):
        raise ValueError(
            "the denoiser has a cache enabled, which would answer one role with what it kept of another; call its "
            "disable_cache() before reflecting"
        )
    walk = walk_of(pipe.scheduler, settings, state)
    switches: list[DenoiserSwitch | ControlSwitch] = [
        DenoiserSwitch(pipe, denoiser, stage, state) for denoiser, stage in zip(denoisers, stages, strict=True)
    ]
    controlnet = controlnet_of(pipe, branches)
    if controlnet is not None:
        switches.append(ControlSwitch(controlnet, branches, state))
    run = Run(nfe=dict.fromkeys(branches, 0))
    scheduler = presented(walk)
    call = PipelineCall(pipe, scheduler, branches, settings, walk, switches, state, run)
    with _swapped(pipe, "scheduler", scheduler), _of_class(pipe, call.pipeline_class()):
        yield run


class PipelineCall:
    """What surrounds a call of the pipeline: rehearsals before it, progress and callbacks in it, counts after it."""

    def __init__(
        self,
        pipe: Any,
        scheduler: Any,
        branches: Mapping[Role, Branch],
        settings: Reflection,
        walk: Walk,
        switches: Sequence[DenoiserSwitch | ControlSwitch],
        state: CallState,
        run: Run,
    ) -> None:
        self._original = type(pipe)
        self._scheduler = scheduler
        self._signature = inspect.signature(type(pipe).__call__)
        self._used = [branch for role, branch in branches.items() if role in settings.roles]
        self._walk = walk
        self._switches = switches
        self._state = state
        self._run = run

    def pipeline_class(self) -> type:
        """Return a subclass of the pipeline's class, of the same name, whose calls come here."""
        call = self

        class Reflecting(self._original):  # type: ignore[name-defined]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return call.run(self, args, kwargs)

            def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
                return call.progress_bar(super().progress_bar, iterable, total)

        Reflecting.__call__ = with_signature(Reflecting.__call__, self._signature)  # type: ignore[method-assign]
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(Reflecting, name, getattr(self._original, name))
        return Reflecting

    def run(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline, reflected."""
        bound = self._signature.bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        if pipe.scheduler is not self._scheduler:
            raise ValueError("the pipeline's scheduler was replaced inside the block; replace it before reflecting")
        self._state.begin_call(bound.arguments.get("guidance_scale"))
        self._walk.begin_call(drawing_as(bound.arguments.get("generator")))
        self._walk.on_turn = Momentum(pipe).after_turn
        self._state.measures = any(
            branch.guidance_scale is not None or branch.negative_prompt is not None for branch in self._used
        )
        samples = 1
        try:
            with ExitStack() as stack:
                stack.enter_context(counting_calls(self._original))
                for switch in self._switches:
                    stack.enter_context(switch.installed())
                self._rehearse(pipe, bound)
                call_back_after_steps(bound.arguments, self._state)
                result = self._original.__call__(*bound.args, **bound.kwargs)
                samples = _samples_in(result)
        finally:
            self._run.nfe = {role: self._state.nfe[role] // samples for role in ("base", "strong", "weak")}
            self._run.steps, self._run.reflected_steps = self._walk.total_steps, self._walk.reflected_steps
            self._state.rehearsals.clear()
        if self._walk.at == 0 and not getattr(pipe, "interrupt", False):
            raise RuntimeError(f"{self._original.__name__} never called scheduler.step, so nothing was reflected")
        return result

    def progress_bar(self, make_bar: Callable[..., Any], iterable: Any, total: int | None) -> Any:
        """Return a bar of real steps: the walk moves it, not the pipeline's loop."""
        if self._state.rehearsing is not None:
            return tqdm(iterable, disable=True)
        bar, walk = make_bar(total=total if iterable is None else length_hint(iterable)), self._walk

        def show_steps() -> None:
            bar.total = walk.total_steps
            if walk.reflected_steps and not bar.disable:
                note = f"W2SD, {walk.reflected_steps} of {walk.total_steps} steps reflected"
                bar.set_description(f"{bar.desc}{note}" if bar.desc else note)

        move, bar.update = bar.update, lambda n=1: None
        walk.on_loop, walk.on_step = show_steps, lambda: move(1)
        return bar if iterable is None else _walked(iterable, bar)

    def _rehearse(self, pipe: Any, bound: inspect.BoundArguments) -> None:
        """Learn what the pipeline gives its denoiser for each prompt, if a branch has one."""
        texts = list(dict.fromkeys(branch.text for branch in self._used if branch.text is not None))
        if not texts:
            return
        for text in [None, *texts]:
            arguments = dict(bound.arguments)
            if text is not None:
                arguments = with_text(arguments, *text, self._original.__name__)
            self._state.rehearsing = Rehearsal()
            try:
                with same_random_state(arguments.get("generator")):
                    rehearsed = inspect.BoundArguments(self._signature, arguments)
                    self._original.__call__(*rehearsed.args, **rehearsed.kwargs)
            except RehearsalOver:
                self._state.rehearsals[text] = self._state.rehearsing
            finally:
                self._state.rehearsing = None


def _samples_in(result: Any) -> int:
    """Return how many samples a pipeline's call has made: the length of the first thing that it returns."""
    first = result[0] if isinstance(result, (tuple, list, Mapping)) else result
    return max(1, len(first)) if isinstance(first, Sized) else 1


def _walked(iterable: Any, bar: Any) -> Iterator[Any]:
    """Walk an iterable to its end, with a bar that something else moves."""
    with bar:
        yield from iterable


@contextmanager
def _swapped(pipe: Any, name: str, value: Any) -> Iterator[None]:
    """Put another component into a pipeline without its configuration taking note."""
    before = pipe.__dict__[name]
    pipe.__dict__[name] = value
    try:
        yield
    finally:
        pipe.__dict__[name] = before


@contextmanager
def _of_class(pipe: Any, other: type) -> Iterator[None]:
    """Make a pipeline an instance of another class for a while."""
    before = type(pipe)
    pipe.__class__ = other
    try:
        yield
    finally:
        pipe.__class__ = before
