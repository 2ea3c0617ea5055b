"""What of a configuration its model cannot do, told by the model's files without loading it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

from w2sd_video.branch import STAGES
from w2sd_video.messages import ConfigError, first_line, suggest
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
    scheduler_of,
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
    check_vocabulary(model, _texts(config))
    check_eta_of(config, config.solver or scheduler_of(model))
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
        names: numbers of the classes by name; a model that names any was trained on no others.
        count: how many the network has room for; None if it is not known.

    Raises:
        ConfigError: neither a number of a class nor the name of one.
    """
    label = int(prompt) if prompt.isascii() and prompt.isdigit() else names.get(prompt)
    known = sorted(set(names.values())) or range(count or 0)
    if label is not None and (count is None or label < count) and (label in known or not known):
        return label
    numbers = f"a number from {known[0]} to {known[-1]}" if known else "a number"
    listed = f", or a name: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}" if names else ""
    nearest = suggest(prompt, names, otherwise="")
    raise ConfigError(
        f"prompt {prompt!r}: this model is asked for classes; use {numbers}{listed}{'; ' if nearest else ''}{nearest}"
    )


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


def check_vocabulary(model: ModelConfig, texts: Iterable[str]) -> None:
    """Refuse what the network of a miniature of texts cannot know: it was trained on the words of its world alone.

    Raises:
        ConfigError: naming what it does not know.
    """
    if not model.pretrained.startswith(MINIATURE) or is_class_conditional(model):
        return
    from w2sd_video.miniatures import scenes, world

    of_world = scenes if world_of(model) == "scenes" else world
    for text in texts:
        try:
            of_world.parse(text)
        except ValueError as error:
            raise ConfigError(f"prompt: {error}") from error
        if unknown := next((word for word in text.split() if word not in of_world.WORDS), None):
            raise ConfigError(
                f"prompt: {unknown!r} in {text!r}: this network knows words in small letters, without full stops and "
                "commas"
            )


def _texts(config: RenderConfig) -> Iterator[str]:
    """Yield all that a pipeline of texts is told by a configuration."""
    yield from config.prompts
    told = [getattr(getattr(config, role), name) for role in ROLES for name in ("prompt", "negative_prompt")]
    yield from (text for text in (*told, config.call.get("negative_prompt")) if text and isinstance(text, str))


def check_eta_of(config: RenderConfig, scheduler: str) -> None:
    """Refuse noise of the steps (`call.eta`) that a scheduler, by the name of its class, would leave out in silence.

    Raises:
        ConfigError: naming it, and those that add it.
    """
    import diffusers

    from w2sd_video.driver.solvers import check_eta

    kind = getattr(diffusers, scheduler, None)
    try:
        if kind is not None and config.call.get("eta"):
            check_eta(config.call["eta"], kind, "call.eta")
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
