"""What a pipeline is called with, by the names that its call has for it."""

from __future__ import annotations

import inspect
from typing import Any

from w2sd_video.backends import DENOISERS
from w2sd_video.messages import ConfigError
from w2sd_video.settings.model_checks import check_eta_of, class_label
from w2sd_video.settings.schema import RenderConfig, filled, stage_scales, used_roles
from w2sd_video.settings.sources import index_of

_COUNT_FROM_0 = ("Cosmos2", "CosmosTextToWorld", "CosmosVideoToWorld", "Krea2", "ZImage")
"""Starts of the names of pipelines that add guidance to the conditional prediction: their number is w - 1."""


def call_arguments(pipe: Any, config: RenderConfig, prompts: list[str], seeds: list[int]) -> dict[str, Any]:
    """Return what a pipeline is called with, by the names that its call has for it."""
    import torch

    parameters = inspect.signature(type(pipe).__call__).parameters
    check_eta_of(config, config.solver or type(pipe.scheduler).__name__)
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
        **_guidance_arguments(pipe, config),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],  # the CPU's, on any device
        "output_type": "np",
        **{name: value for name, value in sizes.items() if value is not None},
        **config.call,
    }


def base_is_pipelines(pipe: Any, config: RenderConfig) -> bool:
    """Return whether base is what the pipeline does by itself when it is called with `call_arguments`.

    Then its own rule of guidance is base's, also where it rescales, changes over the steps or keeps a norm.
    """
    if "guidance_scale" in (config.base.windows or {}):
        return False
    scale = _call_guidance(pipe, config)
    given = _guidance_arguments(pipe, config)
    set_otherwise = any(config.call.get(name, number) != number for name, number in given.items())
    is_guided = scale == 1 or (
        bool(given)
        and not getattr(pipe.config, "is_distilled", False)
        and ("true_cfg_scale" not in given or config.call.get("negative_prompt") is not None)
    )
    at_scale = stage_scales(config.base.guidance_scale) == (scale,)
    return at_scale and is_guided and not set_otherwise and "guidance_scale_2" not in config.call


def _guidance_arguments(pipe: Any, config: RenderConfig) -> dict[str, float]:
    """Return the scale that a pipeline is called with, by the arguments that its call has for it."""
    known = inspect.signature(type(pipe).__call__).parameters
    number = _call_guidance(pipe, config) - _counts_from(pipe)
    names = ["guidance_scale"]
    denoiser = next(part.config for name in DENOISERS if (part := getattr(pipe, name, None)) is not None)
    # Its other argument is for a network that is told the scale, and ignored by one that is not.
    if not denoiser.get("guidance_embeds", "guidance_scale" in known):
        names.append("true_cfg_scale")
    return {name: number for name in names if name in known}


def _call_guidance(pipe: Any, config: RenderConfig) -> float:
    """Return w of the pipeline's own guidance: base's, or one that is on as soon as a branch needs the other half."""
    used = [filled(config, getattr(config, role)) for role in used_roles(config)]
    scales = [float(scale) for branch in used for scale in stage_scales(branch.guidance_scale)]
    if all(scale == 1 for scale in scales):
        return 1.0
    above = 1 + _counts_from(pipe)
    return scales[0] if scales[0] > above else max(above + 1.0, *scales)  # each branch has its own


def _counts_from(pipe: Any) -> int:
    """Return 1 for a pipeline whose number for w is w - 1, and 0 for any other."""
    return int(any(kind.__name__.startswith(_COUNT_FROM_0) for kind in type(pipe).__mro__))


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
