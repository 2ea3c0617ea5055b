"""One line that turns reflection on in a script of the user's own: ``with reflection(pipe, strong=..., weak=...)``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from w2sd_video.branch import Branch
from w2sd_video.driver.denoiser import DenoiserSwitch
from w2sd_video.driver.pipeline import (
    branch_at_stage,
    check_arguments,
    check_loop,
    controlnet_of,
    denoisers_of,
    source_of,
)
from w2sd_video.driver.rehearsal import CallState, Rehearsal, RehearsalOver
from w2sd_video.driver.scheduler import Walk, presented
from w2sd_video.driver.signatures import with_signature
from w2sd_video.gaps.control import ControlSwitch
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.sampler import Inversion, Reflection, Role, drawing_from
from w2sd_video.strength import StrengthSchedule, as_strength


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
def reflection(
    pipe: Any,
    *,
    strong: Branch,
    weak: Branch,
    base: Branch | None = None,
    reflection_steps: int | tuple[float, float] | None = None,
    strength: float | str | Path | StrengthSchedule = 1.0,
    rounds: int = 1,
    inversion: Inversion = "paper",
    iterations: int = 2,
    autoguidance: float = 0.0,
    span: int = 1,
) -> Iterator[Run]:
    """Reflect every call of a diffusers pipeline inside the block (algorithm 1 of the paper).

    The pipeline's own loop runs, so its guidance, control, adapters, conditioning, offloading and callbacks go on
    working. After the block, also after an exception, the pipeline is what it was.

    Args:
        pipe: any diffusers pipeline that loops over ``scheduler.step`` with a known scheduler.
        strong: the setting that denoises in a reflection.
        weak: the setting that inverts.
        base: the setting of the step that counts; None is the pipeline's own.
        reflection_steps: λ, counted from the noisiest step; or a window (start, stop) of fractions; None for all
            steps but the last.
        strength: scale of the displacement; 1 is the paper's. A ``StrengthSchedule``, or the name of its file, has one
            for each noise level.
        rounds: reflections that follow each other at each reflected step.
        inversion: where the weak prediction is made: "paper", "explicit", "current" or "implicit"; "resample" makes
            none and adds noise instead, "resample-advanced" noise that is similar to the gap (``Reflection``).
        iterations: fixed-point iterations of "implicit".
        autoguidance: weight g of AutoGuidance on the steps that count: ``base + g * (base - weak)``. With
            ``reflection_steps=0`` it is AutoGuidance alone.
        span: how many steps a reflection goes down and back, in one move.

    Yields:
        A ``Run``, filled in by each call of the pipeline.

    Raises:
        TypeError: a scheduler that is not known or cannot be reflected, or a pipeline without a denoiser.
        ValueError: a setting out of range, weights or LoRA that are not loaded, a second denoiser of another shape,
            experts, layers or side networks that the pipeline does not have; or, inside the block, a guidance scale or
            text that this pipeline cannot be given.
    """
    settings = Reflection(reflection_steps, as_strength(strength), rounds, inversion, iterations, autoguidance, span)
    branches: dict[Role, Branch] = {"base": base or Branch(), "strong": strong, "weak": weak}
    with walking(pipe, branches, settings, Walk) as run:
        yield run


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
    state = CallState()
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
    call = _PipelineCall(pipe, scheduler, branches, settings, walk, switches, state, run)
    with _swapped(pipe, "scheduler", scheduler), _of_class(pipe, call.pipeline_class()):
        yield run


class _PipelineCall:
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
        self._off = not settings.is_on
        self._used = [branch for role, branch in branches.items() if role in settings.roles]
        self._doubles_batch = bool(re.search(r"torch\.cat\(\[latents\] \* 2", source_of(pipe)))
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
                return call.progress_bar(self, super().progress_bar, iterable)

        if isinstance(getattr(self._original, "num_timesteps", None), property):
            Reflecting.num_timesteps = property(lambda _: call.stock_calls)
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
        if not self._off:
            check_arguments(pipe, bound.arguments)
        self._state.begin_call(bound.arguments.get("guidance_scale"))
        self._walk.image_strength = bound.arguments.get("strength")
        self._walk.draw = drawing_from(bound.arguments.get("generator"))
        try:
            with ExitStack() as stack:
                for switch in self._switches:
                    stack.enter_context(switch.installed())
                self._rehearse(pipe, bound)
                _set_callback(bound, self._state)
                _adapt_every_turn(bound)
                result = self._original.__call__(*bound.args, **bound.kwargs)
        finally:
            self._run.nfe = {role: self._state.nfe[role] for role in ("base", "strong", "weak")}
            self._run.steps, self._run.reflected_steps = self._walk.total_steps, self._walk.reflected_steps
            self._state.rehearsals.clear()
        if self._walk.at == 0 and not getattr(pipe, "interrupt", False):
            raise RuntimeError(f"{self._original.__name__} never called scheduler.step, so nothing was reflected")
        return result

    @property
    def stock_calls(self) -> int:
        """How often a stock loop would go round."""
        return self._walk.stock_calls

    def progress_bar(self, pipe: Any, make_bar: Callable[..., Any], iterable: Any) -> Any:
        """Return a bar of real steps: the walk moves it, not the pipeline's loop."""
        if self._state.rehearsing is not None:
            return tqdm(iterable, disable=True)
        bar = make_bar(total=self._walk.total_steps)
        if self._walk.reflected_steps and not bar.disable:
            note = f"W2SD, {self._walk.reflected_steps} of {self._walk.total_steps} steps reflected"
            bar.set_description(f"{bar.desc}{note}" if bar.desc else note)
        move, bar.update = bar.update, lambda n=1: None
        self._walk.on_step = lambda: move(1)
        return bar if iterable is None else _walked(iterable, bar)

    def _rehearse(self, pipe: Any, bound: inspect.BoundArguments) -> None:
        """Learn what the pipeline gives its denoiser for each prompt and for both named calls, if a branch needs it."""
        texts = list(dict.fromkeys(branch.text for branch in self._used if branch.text is not None))
        guided = any(branch.guidance_scale is not None for branch in self._used)
        # Where one look at the source shows a doubled batch, its halves are found without a rehearsal.
        if not texts and (not guided or self._doubles_batch):
            return
        for text in [None, *texts]:
            arguments = dict(bound.arguments)
            if text is not None:
                arguments = _with_text(arguments, *text, self._original.__name__)
            self._state.rehearsing = Rehearsal()
            try:
                with _same_random_state(arguments.get("generator")):
                    rehearsed = inspect.BoundArguments(self._signature, arguments)
                    self._original.__call__(*rehearsed.args, **rehearsed.kwargs)
            except RehearsalOver:
                self._state.rehearsals[text] = self._state.rehearsing
            finally:
                self._state.rehearsing = None


def _walked(iterable: Any, bar: Any) -> Iterator[Any]:
    """Walk an iterable to its end, with a bar that something else moves."""
    with bar:
        yield from iterable


def _with_text(arguments: dict[str, Any], prompt: Any, negative_prompt: Any, pipeline: str) -> dict[str, Any]:
    """Return a pipeline's arguments with another prompt, negative prompt, or both, one a sample."""
    own, embedded_own = arguments.get("prompt"), arguments.get("prompt_embeds")
    samples = len(own) if isinstance(own, list) else 1 if embedded_own is None else len(embedded_own)
    if prompt is not None and negative_prompt is None and arguments.get("negative_prompt_embeds") is not None:
        raise ValueError("a branch has a prompt, but the call has negative_prompt_embeds; pass negative_prompt as text")
    changed: dict[str, Any] = {}
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if text is None:
            continue
        if name not in arguments:
            raise ValueError(f"a branch has a {name}, but {pipeline} takes none")
        texts = [text] * samples if isinstance(text, str) else list(text)
        if len(texts) != samples:
            raise ValueError(f"a branch has {len(texts)} prompts, but the pipeline was called with {samples}")
        for other, value in arguments.items():
            if other.startswith((f"{name}_", f"pooled_{name}_", f"{name.replace('_prompt', '_pooled_prompt')}_")):
                changed |= {other: None} if isinstance(value, torch.Tensor) else {}
        changed[name] = texts[0] if samples == 1 and not isinstance(own, list) else texts
    return arguments | changed


def _set_callback(bound: inspect.BoundArguments, state: CallState) -> None:
    """Have the user's callback called once a call of the scheduler's own step, with the index of a stock loop."""
    callback = bound.arguments.get("callback_on_step_end")
    if callback is None:
        return
    if hasattr(callback, "tensor_inputs"):
        bound.arguments["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs

    def on_step_end(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return callback(pipe, state.call, timestep, kwargs) if state.step_taken else {}

    bound.arguments["callback_on_step_end"] = on_step_end


def _adapt_every_turn(bound: inspect.BoundArguments) -> None:
    """Have a T2I-Adapter act in every turn, of which there are more than the steps that its pipeline counts them by."""
    if bound.arguments.get("adapter_conditioning_factor") == 1:
        bound.arguments["adapter_conditioning_factor"] = sys.maxsize


@contextmanager
def _same_random_state(generators: Any) -> Iterator[None]:
    """Put every generator back to where it was, the global ones too."""
    listed = generators if isinstance(generators, (list, tuple)) else [generators]
    states = [(generator, generator.get_state()) for generator in listed if generator is not None]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


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
