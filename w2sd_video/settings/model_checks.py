"""What of a configuration its model cannot do, told by the model's files without loading it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

from w2sd_video.branch import STAGES
from w2sd_video.messages import ConfigError, first_line
from w2sd_video.settings.schema import ROLES, BranchConfig, ModelConfig, RenderConfig
from w2sd_video.settings.sources import (
    MINIATURE,
    class_names,
    component,
    denoiser_of,
    index_of,
    is_class_conditional,
    path_of,
    read_json,
    sources_of,
    stages_of,
    world_of,
)

_EXPERTS = ("num_routed_experts", "n_routed_experts", "num_experts")
"""What the configs of mixtures call the number of their experts: there is no common name, the first one counts."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes that a model can do: sides of multiples, in pixels, and 1 + k * frame_step frames, up to most_frames."""

    multiple: int
    frame_step: int
    most_frames: int


def check_plan(config: RenderConfig) -> None:
    """Check what depends on the model, as far as its files tell without loading it.

    Raises:
        ConfigError: a missing model folder, a branch or a size that the model cannot do, an unknown word or class.
    """
    try:
        _check_plan(config)
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model {config.model.pretrained}: its config files hold what no such model has: {first_line(error)}"
        ) from error


def _check_plan(config: RenderConfig) -> None:
    model = config.model
    for source in sources_of(model):
        path_of(source)
    for role in ROLES:
        _check_branch(role, getattr(config, role), model)
    if is_class_conditional(model):
        _check_classes(config)
    elif model.pretrained.startswith(MINIATURE):
        _check_vocabulary(config)
    _check_sizes(config)


def limits_of(model: ModelConfig) -> Limits:
    """Return the sizes that a model can do, as far as its files tell; else those of its family."""
    vae = component(model.pretrained, "vae")
    # Each block but the last halves the sides; of a VAE that does not list its blocks 8 is taken, as most have it.
    scale = 2 ** (len(vae["block_out_channels"]) - 1) if "block_out_channels" in vae else 8
    if model.family == "animatediff":
        adapter = component(model.pretrained, "motion_adapter")
        if model.motion_adapter:
            adapter = read_json(model.motion_adapter, "config.json")
        return Limits(math.lcm(8, scale), 1, adapter.get("motion_max_seq_length", 32))  # 32 is the default of its class
    if model.family == "cogvideox":
        patch = component(model.pretrained, "transformer").get("patch_size", 2)
        step = 2 * vae.get("temporal_compression_ratio", 4)  # its VAE decodes latent frames in pairs, after one alone
        return Limits(math.lcm(8, scale * patch), step, 1024)
    return Limits(math.lcm(8, scale), 1, 1024)


def class_label(prompt: str, names: Mapping[str, int], count: int | None) -> int:
    """Return the number of a class.

    Args:
        prompt: a number, or one of the names.
        names: numbers of the classes by name.
        count: how many classes there are; None if it is not known.

    Raises:
        ConfigError: neither a number of a class nor the name of one.
    """
    label = int(prompt) if prompt.isascii() and prompt.isdigit() else names.get(prompt)
    if label is not None and (count is None or label < count):
        return label
    nearest = difflib.get_close_matches(prompt, names, n=1)
    known = f", or a name: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}" if names else ""
    numbers = "a number" if count is None else f"a number from 0 to {count - 1}"
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"prompt {prompt!r}: this model is asked for classes; use {numbers}{known}{suggestion}")


def _check_branch(role: str, branch: BranchConfig, model: ModelConfig) -> None:
    pipeline_class = index_of(model).get("_class_name", "")
    if branch.control_scale is not None and not model.controlnet and "ControlNet" not in pipeline_class:  # by its name
        raise ConfigError(f"{role}.control_scale: a control branch without a ControlNet; name it in model.controlnet")
    if stages_of(model) == 1:
        for name, value in (("experts", branch.experts), ("guidance_scale", branch.guidance_scale)):
            if value in STAGES or isinstance(value, (tuple, list)):
                raise ConfigError(
                    f"{role}.{name} {value}: is for a two-stage model, but {pipeline_class} has one denoiser"
                )
    denoiser = denoiser_of(model)
    if branch.experts is None or branch.experts in STAGES or not denoiser:
        return
    expert_counts = [denoiser[name] for name in _EXPERTS if denoiser.get(name)]
    if not expert_counts:
        raise ConfigError(f"{role}.experts {branch.experts}: {denoiser.get('_class_name')} is no mixture of experts")
    if isinstance(branch.experts, int) and branch.experts > expert_counts[0]:
        raise ConfigError(
            f"{role}.experts {branch.experts}: the model has {expert_counts[0]} experts; use 1 to {expert_counts[0]}"
        )


def _check_classes(config: RenderConfig) -> None:
    for role in ROLES:
        for name in ("prompt", "negative_prompt"):
            if getattr(getattr(config, role), name) is not None:
                raise ConfigError(f"{role}.{name}: this model is asked for classes, and a branch cannot have its own")
    index, denoiser = index_of(config.model), component(config.model.pretrained, "transformer")
    if denoiser:
        names = class_names(index.get("id2label") or {})
        for prompt in config.prompts:
            class_label(prompt, names, denoiser.get("num_classes") or denoiser.get("num_embeds_ada_norm"))


def _check_vocabulary(config: RenderConfig) -> None:
    from w2sd_video.miniatures import scenes, world

    parse = scenes.parse if world_of(config.model) == "scenes" else world.parse
    texts = [getattr(getattr(config, role), name) for role in ROLES for name in ("prompt", "negative_prompt")]
    for prompt in [*config.prompts, *(text for text in texts if text)]:
        try:
            parse(prompt)
        except ValueError as error:
            raise ConfigError(f"prompt: {error}") from error


def _check_sizes(config: RenderConfig) -> None:
    limits = limits_of(config.model)
    for name in ("height", "width"):
        value = getattr(config, name)
        if value is not None and value % limits.multiple:
            lower = value // limits.multiple * limits.multiple
            nearest = " or ".join(str(size) for size in (lower, lower + limits.multiple) if size)
            raise ConfigError(f"{name} {value}: must be a multiple of {limits.multiple} for this model; use {nearest}")
    frames, step = config.frames, limits.frame_step
    if frames is not None and frames > limits.most_frames:
        raise ConfigError(f"frames {frames}: this model makes at most {limits.most_frames}")
    if frames is not None and (frames - 1) % step:
        lower = (frames - 1) // step * step + 1
        raise ConfigError(f"frames {frames}: this model makes 1 + {step} k frames; use {lower} or {lower + step}")
