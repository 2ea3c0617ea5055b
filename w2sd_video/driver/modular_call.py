"""One call of a modular pipeline, reflected: a block in its denoise loop goes through the turns of each step.

Every turn but the last of a step begins from a copy of the loop's state and ends at ``scheduler.step``, so that what
the blocks keep, and do after a step, is as in a stock loop. Networks and guiders of the turn's role are what the blocks
find among the components.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from w2sd_video.algorithm import StepRequest
from w2sd_video.backends import DENOISERS
from w2sd_video.backends.modular import Guiders, denoise_loops, is_guided, reason_against, with_reflection
from w2sd_video.branch import Branch, steps_without_gap
from w2sd_video.driver.arguments import check_no_own_timesteps, drawing_as, with_text
from w2sd_video.driver.call import ReflectedPipeline, Run, of_class, reflecting_class, second_of
from w2sd_video.driver.denoiser import check_same_shape
from w2sd_video.driver.gap_changes import gap_changes
from w2sd_video.driver.modular_networks import Networks
from w2sd_video.driver.modular_walk import LoopWalk, TurnOver
from w2sd_video.driver.networks import in_use
from w2sd_video.driver.parts import (
    branch_at_stage,
    check_no_cache,
    check_same_adapters,
    check_text_encoders,
    loop_of,
)
from w2sd_video.driver.rehearsal import CallState, Rehearsal, RehearsalOver, same_random_state
from w2sd_video.driver.rows import are_equal
from w2sd_video.driver.signatures import by_name, declared_signature, uncompiled
from w2sd_video.driver.turns import ProbeRequest, Turn
from w2sd_video.driver.walk import presented
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.gaps.swaps import attributes_put_back
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.trajectory import Trajectory


@contextmanager
def walking_blocks(
    pipe: Any,
    branches: Mapping[Role, Branch],
    settings: Reflection,
    make_walk: Callable[[Any, Reflection, CallState], LoopWalk] = LoopWalk,
) -> Iterator[Run]:
    """Reflect every call of a modular pipeline inside the block, and have each role answered by its branch.

    Args:
        pipe: a modular pipeline of diffusers, its components loaded.
        branches: the setting of every role.
        settings: where and how to reflect.
        make_walk: makes the walk of each call.

    Yields:
        A ``Run``, filled in by each call of the pipeline.

    Raises:
        TypeError, ValueError: see ``reflection``.
    """
    run = Run(nfe=dict.fromkeys(branches, 0))
    original = type(pipe)
    loop = loop_of(original)

    def make_call() -> BlocksCall:
        return BlocksCall(pipe, original, loop, branches, settings, run, make_walk)

    if isinstance(pipe, ReflectedPipeline):
        raise ValueError("the pipeline is being reflected already; end that block before beginning another")
    with make_call().prepared():
        pass  # what no call could be given is refused here
    with of_class(pipe, reflecting_class(original, loop, make_call, run)):
        yield run


class BlocksCall:
    """One call of a modular pipeline: rehearsals before it, the turns of its loop in it, counts after it."""

    def __init__(
        self,
        pipe: Any,
        original: type,
        loop: Any,
        branches: Mapping[Role, Branch],
        settings: Reflection,
        run: Run,
        make_walk: Callable[[Any, Reflection, CallState], LoopWalk],
    ) -> None:
        self._pipe = pipe
        self._make_walk = make_walk
        self._name = original.__name__
        self._original = original
        self._call_blocks = loop.__call__
        self._branches = branches
        self._settings = settings
        self._run = run
        self._used = [branch for role, branch in branches.items() if role in settings.roles]
        self._stand_ins: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._texts: dict[Any, dict[str, Any]] = {}
        self._changes: dict[Any, dict[str, Any]] = {}
        self._samples = 1
        self._begin = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Work out what each role is answered with, and keep the networks for this call.

        Raises:
            TypeError, ValueError: what this pipeline cannot be given as it is now.
        """
        pipe, branches = self._pipe, self._branches
        self._denoisers = self._loaded()
        denoisers = list(self._denoisers.values())
        self._check_loops()
        Trajectory.check(pipe.scheduler)
        named = {role: self._with_component(branch) for role, branch in branches.items()}
        self._stages: list[dict[Role, Branch]] = [
            {role: branch_at_stage(pipe, role, branch, denoisers, stage) for role, branch in named.items()}
            for stage in range(len(denoisers))
        ]
        self._guiders = Guiders(pipe.components)
        for branch in self._used:
            self._check_branch(branch)
        used = {
            role: [second_of(stage[role]) or own for stage, own in zip(self._stages, denoisers, strict=True)]
            for role in branches
        }
        self._networks = list(
            {id(each): each for each in [*denoisers, *chain(*used.values()), *self._others()]}.values()
        )
        with in_use(self._networks):
            if self._settings.is_on:
                check_no_cache(pipe, self._networks)
            self._state = CallState(stages=len(denoisers), leads=self._settings.is_on)
            self._walk = self._make_walk(pipe.scheduler, self._settings, self._state)
            self._answers = Networks(self._state)
            for role, branch in branches.items():
                check_loaded(branch.lora or {}, used[role])
                check_text_encoders(pipe, branch.lora or {})
                check_same_adapters(role, denoisers, used[role])
                for own, module, stage in zip(denoisers, used[role], self._stages, strict=True):
                    if module is not own:
                        check_same_shape(own, module)
                    self._answers.swaps_of(stage[role], module)
            yield

    def _loaded(self) -> dict[str, nn.Module]:
        """Return the denoisers of the pipeline by name, or refuse one whose components are not loaded."""
        pipe = self._pipe
        components = pipe.components
        names = [name for name in DENOISERS if name in components]
        if "scheduler" not in components or not names:
            raise TypeError(
                f"{self._name} cannot be reflected: it needs a scheduler and a denoiser named {', '.join(DENOISERS)}, "
                f"and its components are {', '.join(components) or 'none'}"
            )
        if missing := [name for name in ("scheduler", *names) if components[name] is None]:
            raise ValueError(
                f"{', '.join(missing)} of {self._name} {'is' if len(missing) == 1 else 'are'} not loaded; call "
                "pipe.load_components() or pipe.update_components(...) first"
            )
        return {name: components[name] for name in names}

    def _check_loops(self) -> None:
        """Refuse blocks without a denoise loop that can be reflected (TypeError)."""
        reasons = [reason_against(loop) for loop in denoise_loops(self._pipe._blocks)]
        if not reasons:
            raise TypeError(
                f"{self._name} cannot be reflected: none of its blocks is a denoise loop (a "
                "LoopSequentialPipelineBlocks with a denoiser among its components)"
            )
        if None not in reasons:
            raise TypeError(f"{self._name} cannot be reflected: {reasons[0]}")

    def _check_branch(self, branch: Branch) -> None:
        """Refuse what a branch sets and the blocks of a modular pipeline cannot be given (ValueError)."""
        if branch.control_scale is not None:
            raise ValueError(
                "a branch has a control_scale, which is no setting of a modular pipeline's branches: its blocks scale "
                "the ControlNet; pass controlnet_conditioning_scale to the call"
            )
        scales = branch.guidance_scale if isinstance(branch.guidance_scale, tuple) else (branch.guidance_scale,) * 2
        for name in self._guiders.own:
            scale = scales[_stage_of(name)]
            if scale is not None:
                self._guiders.check_scale(name, scale)
        if branch.guidance_scale is not None and not self._guiders.own and not self._is_told_scale():
            raise ValueError(
                f"a branch has guidance_scale={branch.guidance_scale}, but {self._name} has no guider and tells its "
                "network no scale; leave it out"
            )
        if branch.negative_prompt is not None and not any(map(is_guided, self._guiders.own.values())):
            raise ValueError(
                f"a branch has a negative_prompt, but no guider of {self._name} evaluates an unconditional prompt"
            )

    def _is_told_scale(self) -> bool:
        """Return whether the network is guidance-distilled, and told the scale as ``guidance``."""
        inputs = {given.name for loop in denoise_loops(self._pipe._blocks) for given in loop.inputs}
        config: Any = uncompiled(next(iter(self._denoisers.values()))).config
        return "guidance" in inputs and bool(config.get("guidance_embeds", True))

    def _with_component(self, branch: Branch) -> Branch:
        """Return a branch whose weights, where they are named after a component of the pipeline, are that one."""
        component = self._pipe.components.get(branch.weights) if isinstance(branch.weights, str) else None
        return replace(branch, weights=component) if isinstance(component, nn.Module) else branch

    def _others(self) -> list[nn.Module]:
        """Return the networks beside the denoisers that predict too (Ideogram's unconditional one)."""
        return [
            part
            for name, part in self._pipe.components.items()
            if isinstance(part, nn.Module) and name.endswith(("_transformer", "_unet")) and self._is_in_loop(name)
        ]

    def _is_in_loop(self, name: str) -> bool:
        return any(spec.name == name for loop in denoise_loops(self._pipe._blocks) for spec in loop.expected_components)

    @property
    def is_in_its_loop(self) -> bool:
        """Whether what runs is this call's own loop."""
        return not self._state.is_elsewhere

    @property
    def is_between_turns(self) -> bool:
        """Never: the denoise loop goes round once a step."""
        return False

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], running: list[Any]) -> Any:
        """Call the pipeline, reflected; the call stands among those that are running as long as it has the networks."""
        signature = declared_signature(self._original, "__call__")
        given = by_name(signature, args, kwargs)
        with self.prepared(), ExitStack() as stack:
            running.append(self)
            stack.callback(running.remove, self)
            stack.enter_context(attributes_put_back(self._walk.wrapped, always=False))
            for network in self._networks:
                stack.enter_context(self._answers.switched(network))
            self._parts = {"scheduler": presented(self._walk), **self._guiders.own}
            components = _standing_for(self._pipe, self._original, self._part)
            arguments = self._arguments(given)
            if self._settings.grid != 1.0:
                check_no_own_timesteps(arguments, self._settings.grid)
            self._walk.draw = drawing_as(arguments.get("generator"))
            guiders = self._guiders.own.values()
            self._walk.gap_changes = partial(gap_changes, self._pipe, self._branches, arguments, guiders)
            self._walk.idle_steps = partial(steps_without_gap, self._branches["strong"], self._branches["weak"])
            try:
                self._parts["_blocks"] = with_reflection(self._pipe._blocks, self._iterate, is_quiet=True)
                self._rehearse(components, arguments, given)
                self._parts["_blocks"] = with_reflection(self._pipe._blocks, self._iterate, self._walk.is_quiet)
                result = self._call_blocks(components, **given)
            finally:
                nfe = self._state.nfe
                self._run.nfe = {role: nfe[role] // self._samples for role in ("base", "strong", "weak")}
                self._run.steps = self._walk.steps_taken
                self._run.reflected_steps = self._walk.reflected_steps_taken
            if self._settings.is_on and not self._walk.steps_taken:
                raise RuntimeError(f"{self._name} never went round a denoise loop, so nothing was reflected")
        return result

    def _part(self, name: str) -> Any:
        """Return what the blocks find under a name of a component: the role's in a turn, else the pipeline's."""
        if name in self._stand_ins:
            return self._stand_ins[name]
        return self._parts[name] if name in self._parts else getattr(self._pipe, name)

    def _arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all inputs of the call by name, those with which it goes on from an earlier state among them."""
        inputs = {each.name: each.default for each in self._pipe._blocks.inputs if each.name}
        earlier = given.get("state")
        kept = {} if earlier is None else {k: v for k, v in earlier.values.items() if k in inputs}
        return inputs | kept | {name: value for name, value in given.items() if name not in ("state", "output")}

    def _rehearse(self, components: Any, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Have the pipeline make its inputs of the denoise loop for each prompt of a branch."""
        for text in dict.fromkeys(branch.text for branch in self._used if branch.text is not None):
            changes = with_text(arguments, *text, self._name)
            self._state.rehearsing = Rehearsal()
            try:
                with same_random_state(arguments.get("generator")):
                    self._call_blocks(components, **{**given, **changes})
            except RehearsalOver:
                self._texts[text] = self._shown
            finally:
                self._state.rehearsing = None

    def _iterate(self, loop: Any, components: Any, block_state: Any, i: int, t: Any) -> Any:
        """Go through the turns of one step of a denoise loop, and leave the loop's state as the step does."""
        if self._state.rehearsing is not None:
            self._shown = dict(vars(block_state))
            raise RehearsalOver
        if i == 0:
            self._begin_loop(loop, block_state)
        latents: torch.Tensor | None = None
        while True:
            turn = self._walk.turn_of(self._begin + i)
            latents, iteration = self._walk.latents_of(turn, latents), self._walk.iteration_of(turn, i)
            state = copy.copy(block_state)
            if not turn.takes_step:
                vars(state).update({name: _own_copy(value) for name, value in vars(state).items()})
            if latents is not None:
                state.latents = latents.to(block_state.latents.dtype)
            self._walk.shape = getattr(getattr(state, "latents", None), "shape", None)
            with self._answering(turn, iteration, block_state) as changes:
                vars(state).update(changes)
                try:
                    _, state = loop.loop_step(components, state, **self._told(turn, i, t, block_state.timesteps))
                    latents = state.latents
                except TurnOver as over:
                    latents = over.latents
            self._walk.check_stepped(turn)
            if turn.takes_step:
                kept = {name: value for name, value in vars(state).items() if name not in changes}
                vars(block_state).update(kept)
                return block_state

    def _begin_loop(self, loop: Any, block_state: Any) -> None:
        """Lay out the turns of a loop that begins, and learn what each text changes in its state."""
        if reason := reason_against(loop):
            raise TypeError(f"{self._name} cannot be reflected: {reason}")
        if self._settings.is_on and getattr(block_state, "cache_enabled", False):
            raise ValueError(
                "the loop keeps keys and values of its network for later steps, which would answer one role with "
                "another's; pass use_kv_cache=False"
            )
        if self._guiders.own and vars(block_state).get("negative_prompt_embeds", "no field") is None:
            for branch in self._used:
                if branch.guidance_scale not in (None, 1):
                    raise ValueError(
                        f"a branch has guidance_scale={branch.guidance_scale}, but this call of {self._name} has no "
                        "unconditional prompt; pass negative_prompt"
                    )
        latents = getattr(block_state, "latents", None)
        self._samples = len(latents) if isinstance(latents, torch.Tensor) else 1
        calls = _calls_among(self._walk.wrapped.timesteps, getattr(block_state, "timesteps", None))
        if calls is None:
            raise ValueError(
                f"the loop of {self._name} does not go through its scheduler's timesteps, so it cannot be reflected"
            )
        self._begin = calls.start
        self._guiders.begin()
        self._walk.begin(calls, latents if isinstance(latents, torch.Tensor) else None)
        self._changes = {
            text: {
                name: value
                for name, value in shown.items()
                if name not in ("latents", "generator") and not are_equal(value, vars(block_state).get(name))
            }
            for text, shown in self._texts.items()
        }

    @contextmanager
    def _answering(self, turn: Turn, i: int, block_state: Any) -> Iterator[dict[str, Any]]:
        """Put the networks and guiders of a turn's role in place, and yield its changes of the loop's state."""
        role, walk = turn.asked.role, self._walk
        settings = [self._state.setting(stage) for stage in self._stages]
        scales: list[Any] = [setting.guidance_scale for setting in settings]
        pairs = zip(self._denoisers.items(), settings, strict=True)
        networks = {name: second_of(setting) or own for (name, own), setting in pairs}
        guiders = self._guiders.of(role, i, {name: scales[_stage_of(name)] for name in self._guiders.own})
        changes = dict(self._changes.get(settings[0].text, {}))
        guidance = getattr(block_state, "guidance", None)
        if not guiders and scales[0] is not None and isinstance(guidance, torch.Tensor):
            changes["guidance"] = torch.full_like(guidance, scales[0])
        shares = walk.shares_latents(0), walk.shares_latents(1)
        self._stand_ins = {**networks, **guiders}
        try:
            with self._answers.answering(settings, list(networks.values()), guiders, *shares):
                yield changes
        finally:
            self._stand_ins = {}

    def _told(self, turn: Turn, i: int, t: Any, timesteps: Sequence[Any]) -> dict[str, Any]:
        """Return the number and the timestep of an iteration that the blocks are told."""
        asked = turn.asked
        if isinstance(asked, ProbeRequest):
            return {"i": i, "t": t}
        call = asked.call if isinstance(asked, StepRequest) else self._walk.call_of(asked)
        number = call - self._begin
        if number == i:
            return {"i": i, "t": t}
        return {"i": min(number, len(timesteps) - 1), "t": turn.timestep}


def _stage_of(guider: str) -> int:
    """Return which of two stages a guider of a pipeline guides, by its name."""
    return int(guider.endswith("_2"))


def _own_copy(value: Any) -> Any:
    """Return a value that may be filled without the loop's state seeing it."""
    return copy.copy(value) if type(value) in (dict, list) else value


def _calls_among(timesteps: torch.Tensor, those_of_loop: Any) -> range | None:
    """Return which of a scheduler's timesteps a loop goes through; None where they are none of them."""
    if not isinstance(those_of_loop, torch.Tensor):
        return None
    all_of_them, wanted = timesteps.tolist(), those_of_loop.tolist()
    starts = range(len(all_of_them) - len(wanted) + 1)
    matching = (start for start in starts if all_of_them[start : start + len(wanted)] == wanted)
    start = next(matching, None)
    return None if start is None else range(start, start + len(wanted))


def _standing_for(pipe: Any, original: type, part: Any) -> Any:
    """Return something that passes for a pipeline, but for what is found in it by name; settings go to the pipeline."""

    class Components(original):
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return part(name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(pipe, name, value)

    Components.__name__ = Components.__qualname__ = original.__name__
    return Components()
