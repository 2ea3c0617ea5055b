"""What a configuration will evaluate, and what of it a model cannot do, found out without loading one."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

from w2sd_video.branch import STAGES
from w2sd_video.settings import (
    ROLES,
    BranchConfig,
    ConfigError,
    ModelConfig,
    RenderConfig,
    reflected_steps,
    stage_scales,
)
from w2sd_video.sources import (
    MINIATURE,
    class_names,
    component,
    denoiser_of,
    index_of,
    is_class_conditional,
    path_of,
    read_json,
    stages_of,
)

_SECOND_ORDER = ("HeunDiscreteScheduler", "DPMSolverSDEScheduler")
"""Schedulers that evaluate twice a step, but for the last."""

_EXPERTS = ("num_routed_experts", "n_routed_experts", "num_experts")
"""What the configs of mixtures call the number of their experts."""


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
    model = config.model
    single = (model.pretrained, model.motion_adapter, model.controlnet, model.ip_adapter, model.vae)
    for source in (*single, *model.weights.values(), *model.lora.values(), *model.components.values()):
        if source:
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
    scale = 2 ** (len(vae["block_out_channels"]) - 1) if "block_out_channels" in vae else 8
    if model.family == "animatediff":
        adapter = component(model.pretrained, "motion_adapter")
        if model.motion_adapter:
            adapter = read_json(model.motion_adapter, "config.json")
        return Limits(math.lcm(8, scale), 1, adapter.get("motion_max_seq_length", 32))
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
    near = difflib.get_close_matches(prompt, names, n=1)
    known = f", or a name: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}" if names else ""
    numbers = "a number" if count is None else f"a number from 0 to {count - 1}"
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"prompt {prompt!r}: this model is asked for classes; use {numbers}{known}{meant}")


def weak_panel(config: RenderConfig) -> BranchConfig:
    """Return the setting that the weak clip of a comparison is sampled with: base with the gap's fields from weak.

    Fields in which strong and weak agree are no part of the gap (as a guidance of 1 in both), and stay as in base.
    """
    strong, weak = filled(config, config.strong), filled(config, config.weak)
    names = [one.name for one in dataclasses.fields(BranchConfig)]
    gap = {name: getattr(weak, name) for name in names if getattr(weak, name) != getattr(strong, name)}
    return dataclasses.replace(config.base, **gap)


def filled(config: RenderConfig, branch: BranchConfig) -> BranchConfig:
    """Return a branch with a guidance scale: base's, if it has none of its own."""
    scale = config.base.guidance_scale if branch.guidance_scale is None else branch.guidance_scale
    return dataclasses.replace(branch, guidance_scale=scale)


def panels(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the clips to sample, by their labels: W2SD alone, or weak, strong and W2SD for a comparison."""
    if not config.compare:
        return {"W2SD": config}
    strong = dataclasses.replace(config, reflection_steps=0, autoguidance=0.0)
    weak = dataclasses.replace(strong, base=weak_panel(config))
    return {"weak": weak, "strong": strong, "W2SD": config}


def evaluations(config: RenderConfig) -> dict[str, int]:
    """Return the network evaluations of one clip by role; a guided prediction takes two.

    Exact, but for two cases in which they are the most that there can be: stages of a two-stage model that need
    different numbers, and a strength for each noise level, which is 0 at some.
    """
    stages = evaluations_by_stage(config)
    return {role: max(stage[role] for stage in stages) for role in ROLES}


def evaluations_by_stage(config: RenderConfig) -> list[dict[str, int]]:
    """Return the evaluations by role if all steps were of one stage: for each stage that a branch tells apart."""
    branches = [filled(config, getattr(config, role)) for role in ROLES]
    apart = any(len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES for branch in branches)
    return [_evaluations(config, branches, stage) for stage in range(2 if apart else 1)]


def _evaluations(config: RenderConfig, branches: list[BranchConfig], stage: int) -> dict[str, int]:
    embedded = bool(component(config.model.pretrained, "transformer").get("guidance_embeds"))
    base, strong, weak = (_halves(branch, stage, embedded) for branch in branches)
    reflections, calls = len(reflected_steps(config)) * config.rounds, _scheduler_calls(config)
    each_weak = len(weak) * {"implicit": config.iterations, "resample": 0}.get(config.inversion, 1)
    same = _but_guidance(branches[1], stage) == _but_guidance(branches[2], stage) and not embedded
    if same and config.inversion in ("current", "implicit"):
        each_weak -= len(weak & strong)  # the first weak prediction is made where the strong one was
    return {
        "base": len(base) * calls,
        "strong": len(strong) * reflections,
        "weak": each_weak * reflections + (len(weak) * calls if config.autoguidance else 0),
    }


def _scheduler_calls(config: RenderConfig) -> int:
    """Return how many predictions the scheduler is given: most take one a step, and of the others a few are known."""
    name = config.model.scheduler or (index_of(config.model).get("scheduler") or ["", ""])[1]
    if name == "PNDMScheduler":
        return config.steps + 1
    return 2 * config.steps - 1 if name in _SECOND_ORDER else config.steps


def _stage_used(branch: BranchConfig, stage: int) -> int:
    """Return which of two denoisers a branch has for a stage."""
    return STAGES.index(str(branch.experts)) if branch.experts in STAGES else stage


def _halves(branch: BranchConfig, stage: int, embedded: bool) -> set[str]:
    """Return the halves of guidance that a prediction evaluates; a network that is told the scale has but one."""
    scales = stage_scales(branch.guidance_scale)
    scale = scales[_stage_used(branch, stage)] if len(scales) == 2 else scales[0]
    return {"cond"} if embedded else {1.0: {"cond"}, 0.0: {"uncond"}}.get(float(scale), {"cond", "uncond"})


def _but_guidance(branch: BranchConfig, stage: int) -> tuple[BranchConfig, int]:
    """Return what two branches must have in common to share evaluations at a stage."""
    experts = None if branch.experts in STAGES else branch.experts
    return dataclasses.replace(branch, guidance_scale=None, experts=experts), _stage_used(branch, stage)


def _check_branch(role: str, branch: BranchConfig, model: ModelConfig) -> None:
    kind = index_of(model).get("_class_name", "")
    if branch.control_scale is not None and not model.controlnet and "ControlNet" not in kind:
        raise ConfigError(f"{role}.control_scale: a control branch without a ControlNet; name it in model.controlnet")
    if stages_of(model) == 1:
        for name, value in (("experts", branch.experts), ("guidance_scale", branch.guidance_scale)):
            if value in STAGES or isinstance(value, (tuple, list)):
                raise ConfigError(f"{role}.{name} {value}: is for a two-stage model, but {kind} has one denoiser")
    denoiser = denoiser_of(model)
    if branch.experts is None or branch.experts in STAGES or not denoiser:
        return
    numbers = [denoiser[name] for name in _EXPERTS if denoiser.get(name)]
    if not numbers:
        raise ConfigError(f"{role}.experts {branch.experts}: {denoiser.get('_class_name')} is no mixture of experts")
    if isinstance(branch.experts, int) and branch.experts > numbers[0]:
        raise ConfigError(f"{role}.experts {branch.experts}: the model has {numbers[0]} experts; use 1 to {numbers[0]}")


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
    from w2sd_video.miniatures import world

    texts = [getattr(getattr(config, role), name) for role in ROLES for name in ("prompt", "negative_prompt")]
    for prompt in [*config.prompts, *(text for text in texts if text)]:
        try:
            world.parse(prompt)
        except ValueError as error:
            raise ConfigError(f"prompt: {error}") from error


def _check_sizes(config: RenderConfig) -> None:
    limits = limits_of(config.model)
    for name in ("height", "width"):
        value = getattr(config, name)
        if value is not None and value % limits.multiple:
            lower = value // limits.multiple * limits.multiple
            near = " or ".join(str(one) for one in (lower, lower + limits.multiple) if one)
            raise ConfigError(f"{name} {value}: must be a multiple of {limits.multiple} for this model; use {near}")
    frames, step = config.frames, limits.frame_step
    if frames is not None and frames > limits.most_frames:
        raise ConfigError(f"frames {frames}: this model makes at most {limits.most_frames}")
    if frames is not None and (frames - 1) % step:
        lower = (frames - 1) // step * step + 1
        raise ConfigError(f"frames {frames}: this model makes 1 + {step} k frames; use {lower} or {lower + step}")
