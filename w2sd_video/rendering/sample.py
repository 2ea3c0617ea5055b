"""Sampling clips with a loaded pipeline, as a configuration says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from w2sd_video.backends import registered
from w2sd_video.branch import STAGES
from w2sd_video.messages import ConfigError, first_line, is_out_of_memory
from w2sd_video.rendering.call_arguments import base_is_pipelines, call_arguments
from w2sd_video.rendering.video import to_uint8
from w2sd_video.settings.schema import OF_A_REFLECTION, ROLES, BranchConfig, RenderConfig, filled, reflection_of
from w2sd_video.settings.sources import MINIATURE
from w2sd_video.strength import StrengthSchedule

if TYPE_CHECKING:
    from w2sd_video.plugin import Run


def sample_clips(
    pipe: Any,
    config: RenderConfig,
    prompts: list[str],
    seeds: list[int],
    inputs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[np.ndarray, dict[str, int]]:
    """Sample prompts in one batch, each from the noise of its own seed.

    Args:
        pipe: as `load` returns it.
        config: how to sample; its prompts and its seed are not looked at.
        prompts: texts, or numbers or names of classes.
        seeds: one a prompt.
        inputs: further arguments of the pipeline's call, as `read_inputs` returns them.

    Returns:
        Clips, uint8 (prompts, frames, height, width, 3), an image being a clip of one frame; and network evaluations a
        clip by role.

    Raises:
        ConfigError: a scheduler, branch or setting that this pipeline cannot be reflected with; or frames that are not
            finite.
    """
    arguments = call_arguments(pipe, config, prompts, seeds)
    with reflected(pipe, config) as run:
        try:
            result = pipe(**arguments, **inputs)
        except Exception as error:
            if is_out_of_memory(error) or not (config.call or isinstance(error, (TypeError, ValueError))):
                raise
            raise ConfigError(_refusal(pipe, config, error)) from error
    frames = result.images[:, None] if hasattr(result, "images") else result.frames
    try:
        return to_uint8(frames), dict(run.nfe)
    except ValueError as error:  # values that are not finite
        raise ConfigError(_why_not_finite(pipe, config)) from error


@contextmanager
def reflected(pipe: Any, config: RenderConfig) -> Iterator[Run]:
    """Reflect a pipeline as a configuration says.

    Raises:
        ConfigError: a scheduler, branch or setting that this pipeline cannot be reflected with.
    """
    from w2sd_video.plugin import reflection

    with ExitStack() as stack:
        try:
            run = stack.enter_context(reflection(pipe, **reflection_arguments(pipe, config)))
        except (TypeError, ValueError) as error:
            raise ConfigError(first_line(error)) from error
        yield run


def reflection_arguments(pipe: Any, config: RenderConfig) -> dict[str, Any]:
    """Return what `reflection` is called with, beside the pipeline."""
    branches: dict[str, Any] = {role: branch_of(filled(config, getattr(config, role))) for role in ROLES}
    if base_is_pipelines(pipe, config):
        # With a scale strong and weak can share evaluations, where they differ in no more than scales and stages.
        share = any(one.guidance_scale is not None or one.experts in STAGES for one in (config.strong, config.weak))
        for role in ("base",) if share else ROLES:
            branches[role] = replace(branches[role], guidance_scale=None)
    return {**branches, **settings_of_a_reflection(config)}


def settings_of_a_reflection(config: RenderConfig) -> dict[str, Any]:
    """Return what `reflection` is called with beside the pipeline and the branches."""
    return {name: getattr(config, name) for name in (*OF_A_REFLECTION, "solver")}


def _refusal(pipe: Any, config: RenderConfig, error: Exception) -> str:
    """Say what a pipeline refuses or stumbles over, and what it was called with that this package knows nothing of."""
    if not config.call:
        return first_line(error)
    given = ", ".join(f"call.{name} {value}" for name, value in config.call.items())
    return f"{type(pipe).__name__} cannot be called with steps {config.steps}, {given}: {first_line(error)}"


def _why_not_finite(pipe: Any, config: RenderConfig) -> str:
    """Say what makes frames hold values that are not finite: weights that hold some, or else the sampling."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for name, second in registered(pipe).items():
        modules = second if isinstance(second, tuple) else (second,)
        networks |= {f"{name}{' (the second)' * number}": module for number, module in enumerate(modules)}
    for name, network in networks.items():
        for part, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
                hint = "" if config.dtype == "float32" else f", or {config.dtype} cannot hold them: take another dtype"
                return f"model: the weights of {name} hold NaN or infinity ({part}); the file is damaged{hint}"
    advice = ["lower strength or rounds"] if reflection_of(config).reflects else []
    advice += ["lower base.guidance_scale or autoguidance"]
    advice += ["take dtype bfloat16 or float32"] if config.dtype == "float16" else []
    return f"the sampling diverged: the frames hold values that are not finite; {', or '.join(advice)}"


def branch_of(branch: BranchConfig) -> Any:
    """Return the branch that a part of a configuration describes."""
    from w2sd_video.branch import Branch

    windows = {
        name: StrengthSchedule.read(window) if isinstance(window, str) else window
        for name, window in (branch.windows or {}).items()
    }
    return Branch(**vars(branch) | {"windows": windows or None})


@contextmanager
def threads_for(pretrained: str) -> Iterator[None]:
    """Sample miniatures in one thread: layers so small lose by being shared out, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if pretrained.startswith(MINIATURE) else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
