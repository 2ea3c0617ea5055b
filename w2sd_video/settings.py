"""What can be set for a render, and what of it makes no sense whatever the model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from w2sd_video.branch import STAGES
from w2sd_video.sampler import Reflection, Role
from w2sd_video.strength import StrengthSchedule

ROLES: tuple[Role, ...] = ("base", "strong", "weak")
Value = int | float | bool | str | None


class ConfigError(ValueError):
    """Something asked for that cannot be done; the message is one line that names the value and what is allowed."""


@dataclass
class BranchConfig:
    """A setting of the model; what is left out is as the pipeline has it, the guidance scale as in base."""

    guidance_scale: float | tuple[float, float] | None = None
    """Scale of classifier-free guidance, -100 to 100; 1 switches it off. A pair: for high noise and for low."""
    weights: str | None = None
    """Name of a second denoiser, one of those in model.weights."""
    lora: dict[str, float] | None = None
    """Scale of each LoRA adapter by name, those in model.lora."""
    prompt: str | None = None
    """A prompt for this branch alone."""
    negative_prompt: str | None = None
    """A negative prompt for this branch alone."""
    experts: int | Literal["top", "bottom", "high", "low"] | None = None
    """Experts of a mixture: best or worst, or how many a token; of two stages the denoiser that does all steps."""
    control_scale: float | None = None
    """Conditioning scale of the ControlNet, -100 to 100; at 0 it is not evaluated."""
    ip_adapter_scale: float | None = None
    """Scale of the IP-Adapter, -100 to 100."""
    skip_layers: list[int | str] | None = None
    """Blocks that are left out: numbers in order of execution, negative ones from the end, or names."""
    perturbed_layers: list[int | str] | None = None
    """Blocks whose self-attention map is the identity, named in the same way."""


@dataclass
class ModelConfig:
    """The pipeline to load."""

    family: Literal["animatediff", "cogvideox", "pipeline", "dit_moe"] = "pipeline"
    """Kind of the pipeline; pipeline: any of diffusers."""
    pretrained: str = ""
    """Hub id, folder or file (owner/name/file: on the hub), or miniature:NAME for one that comes with this package."""
    variant: str | None = None
    """Variant of the pipeline's files, for example fp16."""
    weights: dict[str, str] = field(default_factory=dict)
    """Hub ids or folders of further denoisers, by the names that branches use."""
    motion_adapter: str | None = None
    """Hub id or folder of AnimateDiff's motion adapter; left out if it lies in the pipeline's own folder."""
    lora: dict[str, str | None] = field(default_factory=dict)
    """Hub ids or files (owner/name/file: on the hub) of LoRA adapters, by any names; null: still to be given."""
    controlnet: str | None = None
    """Hub id or folder of a ControlNet."""
    ip_adapter: str | None = None
    """File of an IP-Adapter (owner/name/folder/file: on the hub)."""
    scheduler: str | None = None
    """Class of scheduler that takes the place of the pipeline's own, for example DDIMScheduler."""
    components: dict[str, str] = field(default_factory=dict)
    """Hub ids or folders of components that the pipeline lacks, or that take the place of its own, by their names."""
    size: str | None = None
    """Published size of a DiT-MoE checkpoint file, for example S/2-8E2A; null: the one that fits."""
    vae: str | None = None
    """Hub id or folder of the VAE for a DiT-MoE checkpoint file; null: the one that it was trained with."""
    memory: Literal["device", "offload", "sequential"] = "device"
    """All on the device, one component at a time (offload), or one layer at a time (sequential, slowest)."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Millions of parameters of each component, for the estimates of --dry-run."""


@dataclass
class RenderConfig:
    """What to render, and how."""

    prompts: list[str] = field(default_factory=list)
    """What to show, a clip or an image each; for a class-conditional model numbers or names of classes."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The pipeline to load."""
    base: BranchConfig = field(default_factory=lambda: BranchConfig(guidance_scale=1.0))
    """The step that counts."""
    strong: BranchConfig = field(default_factory=BranchConfig)
    """The reflection's way down."""
    weak: BranchConfig = field(default_factory=BranchConfig)
    """The reflection's way back."""
    inputs: dict[str, str | None] = field(default_factory=dict)
    """Pictures and videos for the pipeline's call, by its arguments (image, ip_adapter_image, video); null: to give."""
    steps: int = 50
    """Sampling steps, 1 to 1000."""
    reflection_steps: int | tuple[float, float] | None = None
    """Reflected steps counted from the noisiest, or a window of fractions like [0, 0.5]; null: all but the last."""
    strength: float | str = 1.0
    """Scale of the reflection's displacement, -10 to 10; or a file with one for each noise level."""
    rounds: int = 1
    """Reflections at each reflected step, 1 to 100."""
    inversion: Literal["paper", "explicit", "current", "implicit", "resample", "resample-advanced"] = "paper"
    """Where the weak prediction is made; resample: nowhere, noise is added instead; -advanced: similar to the gap."""
    iterations: int = 2
    """Fixed-point iterations of the implicit inversion, 1 to 100."""
    span: int = 1
    """Steps that a reflection goes down and back, in one move, 1 to 1000."""
    autoguidance: float = 0.0
    """Weight of AutoGuidance on the steps that count, base + weight * (base - weak), -10 to 10; 0: none."""
    height: int | None = None
    """Pixels, 8 to 4096; null: as the model was trained."""
    width: int | None = None
    """Pixels, 8 to 4096; null: as the model was trained."""
    frames: int | None = None
    """Number of frames, 1 to 1024; null: as the model was trained. A model of images makes 1."""
    fps: float = 8.0
    """Frames a second of the file, 0.1 to 120."""
    seed: int = 0
    """Prompt number k, counted from 0, is sampled from seed + k, however many there are."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: a GPU where there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the networks."""
    compare: bool = False
    """Show weak, strong and W2SD next to each other, from the same noise."""
    output: str | None = None
    """File: .mp4, .gif, .png (of a clip a contact sheet), or a folder; numbered for several prompts. null: w2sd.*"""
    call: dict[str, Value] = field(default_factory=dict)
    """More arguments for the pipeline's call, for example max_sequence_length."""


_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1000),
    "rounds": (1, 100),
    "iterations": (1, 100),
    "span": (1, 1000),
    "autoguidance": (-10, 10),
    "height": (8, 4096),
    "width": (8, 4096),
    "frames": (1, 1024),
    "fps": (0.1, 120),
    "seed": (0, 2**62),
}
_SCALES = (-100, 100)
_OWN_ARGUMENTS = {
    *("prompt", "class_labels", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
    *("generator", "output_type", "num_videos_per_prompt", "num_images_per_prompt", "return_dict", "latents"),
}

FAMILY_OPTIONS = {
    "motion_adapter": "animatediff",
    "controlnet": "pipeline",
    "ip_adapter": "pipeline",
    "scheduler": "pipeline",
    "components": "pipeline",
    "size": "dit_moe",
    "vae": "dit_moe",
}
"""The settings of a model that only one family knows."""


def check(config: RenderConfig) -> None:
    """Check everything that can be checked without a model.

    Raises:
        ConfigError: the first value that is out of range or does not fit the others.
    """
    for name, (low, high) in _RANGES.items():
        _check_range(name, getattr(config, name), low, high)
    if config.base.guidance_scale is None:
        raise ConfigError("base.guidance_scale: is needed; 1 switches guidance off")
    if not config.model.pretrained:
        raise ConfigError("model.pretrained: is needed; the hub id or folder of a pipeline")
    for name, family in FAMILY_OPTIONS.items():
        if getattr(config.model, name) and config.model.family != family:
            raise ConfigError(f"model.{name}: is for the family {family}, but model.family is {config.model.family}")
    if not isinstance(config.prompts, list):
        raise ConfigError(f"prompts: must be a list of texts, not {config.prompts!r}")
    if not config.prompts:
        raise ConfigError("prompts: none given; write one after the command, or name a file of them with --prompts")
    for prompt in config.prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"prompts: {prompt!r} is not a text")
    for role in ROLES:
        _check_branch(role, getattr(config, role), config.model)
    _check_reflection(config)
    for name in config.call:
        if name in _OWN_ARGUMENTS:
            raise ConfigError(f"call.{name}: is set by its own option, and cannot be set here")
    for name in config.inputs:
        if name in _OWN_ARGUMENTS or name in config.call:
            raise ConfigError(f"inputs.{name}: is set elsewhere, and cannot be set here")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is nearest to an unknown one as a question, or else all that are known."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def reflected_steps(config: RenderConfig) -> range:
    """Return the steps that are reflected, counted from the noisiest."""
    return Reflection(config.reflection_steps).steps(config.steps)


def used_roles(config: RenderConfig) -> list[Role]:
    """Return the roles that are evaluated: base, and strong and weak as far as they are used."""
    used = Reflection(config.reflection_steps, autoguidance=config.autoguidance).roles
    return [role for role in ROLES if role in used]


def stage_scales(guidance_scale: float | tuple[float, float] | None) -> tuple[float, ...]:
    """Return a guidance scale for each stage that has one of its own: one, a pair, or none."""
    if guidance_scale is None:
        return ()
    return tuple(guidance_scale) if isinstance(guidance_scale, (tuple, list)) else (guidance_scale,)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} {value}: must be from {low} to {high}")


def _check_branch(role: str, branch: BranchConfig, model: ModelConfig) -> None:
    for scale in stage_scales(branch.guidance_scale):
        _check_range(f"{role}.guidance_scale", scale, *_SCALES)
    for name in ("control_scale", "ip_adapter_scale"):
        _check_range(f"{role}.{name}", getattr(branch, name), *_SCALES)
    if model.family != "pipeline" and (len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES):
        raise ConfigError(
            f"{role}: two stages (a pair of guidance scales, experts high, low) need model.family pipeline"
        )
    if isinstance(branch.experts, int) and branch.experts < 1:
        raise ConfigError(f"{role}.experts {branch.experts}: must be top, bottom, high, low or a number of at least 1")
    if branch.ip_adapter_scale is not None and not model.ip_adapter:
        raise ConfigError(f"{role}.ip_adapter_scale: a branch with no IP-Adapter loaded; name it in model.ip_adapter")
    for name in ("skip_layers", "perturbed_layers"):
        if getattr(branch, name) == []:
            raise ConfigError(f"{role}.{name}: is empty; name at least one block, or leave it out")
    if branch.weights is not None and branch.weights not in model.weights:
        known = ", ".join(model.weights) or "there are none"
        raise ConfigError(f"{role}.weights {branch.weights!r}: not among model.weights ({known})")
    for name, scale in (branch.lora or {}).items():
        if name not in model.lora:
            raise ConfigError(
                f"{role}.lora {name!r}: not among model.lora ({', '.join(model.lora) or 'there are none'})"
            )
        _check_range(f"{role}.lora.{name}", scale, *_SCALES)


def _check_reflection(config: RenderConfig) -> None:
    chosen = config.reflection_steps
    if isinstance(chosen, int) and not 0 <= chosen <= config.steps:
        raise ConfigError(f"reflection_steps {chosen}: must be from 0 to {config.steps}, the number of steps")
    if isinstance(chosen, (tuple, list)) and not 0 <= chosen[0] <= chosen[1] <= 1:
        raise ConfigError(f"reflection_steps {list(chosen)}: a window must be [start, stop], 0 <= start <= stop <= 1")
    most, reflected = max(config.steps - config.span, 0), reflected_steps(config)
    if config.inversion == "explicit" and len(reflected) and reflected[-1] >= most:
        last = "the last step" if config.span == 1 else f"the last {config.span} steps"
        raise ConfigError(f"reflection_steps: the explicit inversion cannot reflect {last}; at most {most}")
    if isinstance(config.strength, str):
        try:
            StrengthSchedule.read(config.strength)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    else:
        _check_range("strength", config.strength, -10, 10)
