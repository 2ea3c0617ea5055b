"""What a pipeline is called with, by the names that its call has for it."""

from __future__ import annotations

import inspect
from typing import Any

from w2sd_video.settings.model_checks import class_label
from w2sd_video.settings.panels import filled
from w2sd_video.settings.schema import ConfigError, RenderConfig, stage_scales, used_roles
from w2sd_video.settings.sources import index_of


def call_arguments(pipe: Any, config: RenderConfig, prompts: list[str], seeds: list[int]) -> dict[str, Any]:
    """Return what a pipeline is called with, by the names that its call has for it."""
    import torch

    parameters = inspect.signature(type(pipe).__call__).parameters
    if "class_labels" in parameters:  # what tells a pipeline of classes: its call takes no prompt
        names, denoiser_config = getattr(pipe, "labels", {}), pipe.transformer.config
        # What DiT-MoE's config and DiT's call the number of classes.
        count = denoiser_config.get("num_classes") or denoiser_config.get("num_embeds_ada_norm")
        conditioning: dict[str, Any] = {"class_labels": [class_label(prompt, names, count) for prompt in prompts]}
    else:
        conditioning = {"prompt": prompts}
    sizes = {name: getattr(config, name) for name in ("height", "width")}
    sizes |= {"num_frames": config.frames if "num_frames" in parameters else None}
    return {
        **conditioning,
        "num_inference_steps": config.steps,
        "guidance_scale": _call_guidance(config),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],  # the CPU's, on any device
        "output_type": "np",
        **{name: value for name, value in sizes.items() if value is not None},
        **config.call,
    }


def _call_guidance(config: RenderConfig) -> float:
    """Return the scale for the pipeline's own argument: above 1 as soon as a branch needs the unconditional half."""
    used = [filled(config, getattr(config, role)) for role in used_roles(config)]
    scales = [scale for branch in used for scale in stage_scales(branch.guidance_scale)]
    if all(scale == 1 for scale in scales):
        return 1.0
    return scales[0] if scales[0] > 1 else max(2.0, *scales)  # any number above 1: each branch has its own scale


def known_class(config: RenderConfig) -> Any:
    """Return the class of a pipeline of diffusers that is known before it is loaded; None for any other."""
    import diffusers

    name = index_of(config.model).get("_class_name", "")
    is_plain = config.model.family == "pipeline" and not config.model.controlnet
    return getattr(diffusers, name, None) if is_plain else None


def check_call(pipeline: Any, config: RenderConfig) -> None:
    """Refuse settings that the call of a pipeline's class has no argument for."""
    parameters, name = list(inspect.signature(pipeline.__call__).parameters), pipeline.__name__
    for section in ("call", "inputs"):
        for argument in getattr(config, section):
            if argument not in parameters:
                raise ConfigError(
                    f"{section}.{argument}: {name} takes no such argument; it takes {', '.join(parameters[1:])}"
                )
    for size in ("height", "width"):
        if getattr(config, size) is not None and size not in parameters:
            raise ConfigError(f"{size} {getattr(config, size)}: {name} makes one size only; leave it out")
    if (config.frames or 1) > 1 and "num_frames" not in parameters:
        raise ConfigError(f"frames {config.frames}: {name} takes no number of frames; leave it out")
