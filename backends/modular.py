"""Modular pipelines of diffusers: a block in the place of those of their denoise loop, and a guider for each role.

``reflection(pipe, ...)`` uses it; of a pipeline's own blocks, guiders and components none is changed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InsertableDict
from torch import nn

from w2sd_video.backends import DENOISERS
from w2sd_video.reflection_settings import Role

Iteration = Callable[[Any, Any, Any, int, Any], Any]
"""``(loop, components, block_state, i, t) -> block_state``: one iteration of a denoise loop."""


class ReflectionBlock(ModularPipelineBlocks):
    """Takes the place of all blocks of a denoise loop, and runs them once for each prediction that is asked for.

    Args:
        loop: the loop with its own blocks.
        iterate: goes once round it.
    """

    def __init__(self, loop: Any, iterate: Iteration) -> None:
        super().__init__()
        self._loop = loop
        self._iterate = iterate

    @property
    def description(self) -> str:
        """What it does, for a person."""
        return f"Weak-to-strong reflection of the latents of {type(self._loop).__name__} (arXiv 2502.00473)"

    @property
    def inputs(self) -> list[Any]:
        """What the blocks of the loop take."""
        return self._loop.inputs

    @property
    def expected_components(self) -> list[Any]:
        """The components that the blocks of the loop use."""
        return self._loop.expected_components

    @property
    def expected_configs(self) -> list[Any]:
        """The settings of the pipeline that the blocks of the loop read."""
        return self._loop.expected_configs

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What the blocks of the loop give."""
        return self._loop.intermediate_outputs

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        """Go through the blocks of the loop as often as the step takes, and leave the state after it."""
        return components, self._iterate(self._loop, components, block_state, i, t)


class SecondDenoiser(ModularPipelineBlocks):
    """Makes second weights a component of a pipeline, which loads, moves and offloads them with its others.

    A branch names them: ``Branch(weights="weak_transformer")``. Inserted among the blocks of a pipeline, it does
    nothing when these run.

    Args:
        name: of the component.
        kind: class of the network, that of the pipeline's own denoiser.
        from_pretrained: where it is loaded from, as ``ComponentSpec`` takes it: ``pretrained_model_name_or_path``,
            ``subfolder``, ...
    """

    def __init__(self, name: str, kind: type[nn.Module], **from_pretrained: Any) -> None:
        super().__init__()
        self._spec = ComponentSpec(name=name, type_hint=kind, **from_pretrained)

    @property
    def description(self) -> str:
        """What it does, for a person."""
        return f"Second weights of the denoiser, {self._spec.name}, for a branch of a reflection"

    @property
    def expected_components(self) -> list[Any]:
        """The second denoiser."""
        return [self._spec]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Leave all as it is."""
        return components, state


def denoise_loops(blocks: Any) -> Iterator[Any]:
    """Yield the loops of a pipeline's blocks that evaluate a denoiser."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        if any(spec.name in DENOISERS for spec in blocks.expected_components):
            yield blocks
        return
    for block in blocks.sub_blocks.values():
        yield from denoise_loops(block)


def reason_against(loop: Any) -> str | None:
    """Return why the steps of a loop cannot be reflected; None where they can."""
    for name, block in loop.sub_blocks.items():
        if not {"i", "t"} <= inspect.signature(block.__call__).parameters.keys():
            return f"its block {name!r} is not one of a loop over scheduler.timesteps, which take (i, t)"
    names = {spec.name for spec in loop.expected_components} | {given.name for given in loop.inputs if given.name}
    if schedulers := sorted(name for name in names if name.endswith("_scheduler")):
        return f"it steps several latents side by side ({', '.join(schedulers)})"
    return None


def with_reflection(blocks: Any, iterate: Iteration, is_quiet: bool = False) -> Any:
    """Return blocks in whose denoise loops a `ReflectionBlock` has the place of their own; others are shared.

    Args:
        blocks: of a pipeline; they are left as they are.
        iterate: goes once round a loop.
        is_quiet: whether the loops are to show no progress.
    """
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        inserted = {"reflect": ReflectionBlock(blocks, iterate)} if any(denoise_loops(blocks)) else None
    else:
        reflected = {name: with_reflection(block, iterate, is_quiet) for name, block in blocks.sub_blocks.items()}
        is_changed = any(block is not blocks.sub_blocks[name] for name, block in reflected.items())
        inserted = reflected if is_changed else None
    if inserted is None:
        return blocks
    changed = copy.copy(blocks)
    changed.sub_blocks = InsertableDict(inserted)
    if is_quiet:
        changed._progress_bar_config = {"disable": True}
    return changed


class Guiders:
    """The guiders of one call of a pipeline: for each role a copy with a state of its own, the pipeline's left alone.

    A guider that keeps something from step to step (APG its momentum) sees one evaluation a step: however often a role
    is evaluated in it, each begins from what the role's step before has left.

    Args:
        components: those of the pipeline, by name.
    """

    def __init__(self, components: Mapping[str, Any]) -> None:
        self.own = {name: _fresh(part) for name, part in components.items() if isinstance(part, BaseGuidance)}
        self.begin()

    def begin(self) -> None:
        """Begin a loop, in which no guider has seen a step."""
        self._step: dict[Role, int] = {}
        self._begun: dict[Role, dict[str, Any]] = {}
        self._latest: dict[Role, dict[str, Any]] = {}

    def of(self, role: Role, step: int, scales: Mapping[str, float | None]) -> dict[str, Any]:
        """Return the guiders for an evaluation.

        Args:
            role: whose it is.
            step: the iteration of the loop, which they are told whatever timestep the network is.
            scales: guidance scale w of ``uncond + w * (cond - uncond)`` by guider; None is the guider's own.
        """
        if self._step.get(role) != step:
            self._step[role], self._begun[role] = step, self._latest.get(role, self.own)
        guiders = {name: _copied(guider) for name, guider in self._begun[role].items()}
        for name, guider in guiders.items():
            _begin_momentum(guider, self._latest.get("base", {}).get(name))
            guider.set_state = _telling(guider, step)
            scale = scales.get(name)
            if scale is not None:
                guider.guidance_scale = scale - 1 if guider.use_original_formulation else scale
        self._latest[role] = guiders
        return guiders

    def check_scale(self, name: str, scale: float) -> None:
        """Refuse a scale that a guider cannot be given.

        Raises:
            ValueError: a guider without a single scale, or one that evaluates no unconditional prompt, which is then
                not encoded.
        """
        guider = self.own[name]
        kind = type(guider).__name__
        if not hasattr(guider, "guidance_scale"):
            raise ValueError(
                f"a branch has guidance_scale={scale}, but {name} is a {kind}, which has no such scale; leave it out, "
                "or use another guider"
            )
        if scale != 1 and not is_guided(guider):
            raise ValueError(
                f"a branch has guidance_scale={scale}, but {name} is a {kind} that evaluates no unconditional prompt "
                "(it is disabled, or its scale is that of no guidance); give the pipeline a guider that guides"
            )


def is_guided(guider: Any) -> bool:
    """Return whether a guider that has seen no step asks for more than the conditional prediction."""
    return guider._enabled and guider.num_conditions > 1


def _fresh(guider: Any) -> Any:
    """Return a copy of a guider as it was before its first step."""
    copied = _copied(guider)
    copied._step = copied._num_inference_steps = copied._timestep = None
    copied._count_prepared = 0
    if hasattr(copied, "momentum_buffer"):
        copied.momentum_buffer = None
    return copied


def _copied(guider: Any) -> Any:
    """Return a copy of a guider and its state; networks and the configuration are shared."""
    copied = copy.copy(guider)
    state = {name: value for name, value in vars(guider).items() if name not in ("_internal_dict", "set_state")}
    networks = {id(value): value for value in state.values() if isinstance(value, nn.Module)}
    vars(copied).pop("set_state", None)
    vars(copied).update(copy.deepcopy(state, networks))
    return copied


def _begin_momentum(guider: Any, base: Any) -> None:
    """Begin the momentum of a role that is first evaluated in a later step: guiders do so in step 0 only."""
    running = getattr(base, "momentum_buffer", None)
    if running is not None and guider.momentum_buffer is None:
        guider.momentum_buffer = type(running)(running.momentum)


def _telling(guider: Any, step_under_way: int) -> Callable[..., None]:
    """Return a ``set_state`` that tells a guider the step under way, not that of the level the network is told."""

    def set_state(step: int, num_inference_steps: int, timestep: Any) -> None:
        type(guider).set_state(guider, step_under_way, num_inference_steps, timestep)

    return set_state
