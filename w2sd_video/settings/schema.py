"""What can be set for a render: the configuration as dataclasses, which are its documentation and its command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from w2sd_video.reflection_settings import Inversion, Reading, Reflection, Role
from w2sd_video.reuse import Carried
from w2sd_video.window import Window

ROLES: tuple[Role, ...] = ("base", "strong", "weak")
"""All roles, in the order in which the evaluations are listed."""

Value = int | float | bool | str | None


@dataclass
class BranchConfig:
    """A setting of the model; what is left out is as the pipeline has it, the guidance scale as in base."""

    guidance_scale: float | tuple[float, float] | None = None
    """Scale of classifier-free guidance, -100 to 100; 1 switches it off, in every pipeline. A pair: high noise, low."""
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
    windows: dict[str, tuple[float, float] | Window | str] | None = None
    """Where a setting above is on, by its name: [start, stop] of the steps; of guidance_scale also a strength file."""


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
    attention: str = "sdpa"
    """What the denoisers attend by: sdpa (torch's own), xformers, flash, sage or any other name that diffusers has."""
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
    reflection_steps: int | tuple[float, float] | Window | None = None
    """Reflected steps from the noisiest, or a window of fractions like [0, 0.5], half up; null: all but the last."""
    strength: float | str = 1.0
    """Scale of the reflection's displacement, -10 to 10 (1: the paper's, no pair's own); or a file with one a level."""
    rounds: int = 1
    """Reflections at each reflected step, 1 to 100."""
    inversion: Inversion = "auto"
    """Where the weak prediction is made; auto: current for flow, else paper; resample: nowhere, adding noise."""
    iterations: int = 2
    """Fixed-point iterations of the implicit inversion, 1 to 100."""
    span: int = 1
    """Steps that a reflection goes down and back, in one move, 1 to 1000."""
    autoguidance: float | str = 0.0
    """Weight of AutoGuidance on the steps that count, base + weight * (base - weak), -10 to 10; or a strength file."""
    autoguidance_steps: int | tuple[float, float] | Window | None = None
    """Where AutoGuidance is on, as of reflection_steps; null: everywhere."""
    autoguidance_gap: Literal["base", "strong"] = "base"
    """Whose prediction weak's is taken from in AutoGuidance."""
    reading: Reading = "epsilon"
    """What a gap is taken in: as noise, as the denoised sample, or as the network predicts."""
    reuse: int = 1
    """A gap is measured at every so many of its steps, and carried to the others, 1 to 1000."""
    carried: Carried = "held"
    """How a gap comes to the steps that do not measure it."""
    solver: str | None = None
    """Class of scheduler that takes the steps, for example DPMSolverMultistepScheduler; null: the pipeline's own."""
    grid: float = 1.0
    """Exponent of the timesteps' spacing, 0.2 to 5; above 1 they are denser at low noise, 1: the scheduler's own."""
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
    """Show weak, strong, strong at W2SD's cost and W2SD next to each other, from the same noise."""
    output: str | None = None
    """File: .mp4, .gif, .png (of a clip a contact sheet), or a folder; numbered for several prompts. null: w2sd.*"""
    call: dict[str, Value] = field(default_factory=dict)
    """More arguments for the pipeline's call, for example max_sequence_length."""


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


OF_A_REFLECTION = tuple(setting.name for setting in fields(Reflection))
"""The settings of a configuration that a `Reflection` has by the same name."""


def used_roles(config: RenderConfig) -> list[Role]:
    """Return the roles that are evaluated: base, and strong and weak as far as they are used."""
    used = reflection_of(config).roles
    return [role for role in ROLES if role in used]


def reflection_of(config: RenderConfig) -> Reflection:
    """Return what a configuration says of where it reflects and pushes, for its evaluations to be counted.

    Strengths and weights of AutoGuidance for each noise level count as one, for the levels are the scheduler's.
    """
    return Reflection(
        config.reflection_steps,
        strength=1.0 if isinstance(config.strength, str) else config.strength,
        autoguidance=1.0 if isinstance(config.autoguidance, str) else config.autoguidance,
        reuse=1 if config.inversion.startswith("resample") else config.reuse,
        autoguidance_steps=config.autoguidance_steps,
        autoguidance_gap=config.autoguidance_gap,
    )


def without_reflection(config: RenderConfig) -> RenderConfig:
    """Return a configuration that neither reflects nor pushes, and says nothing more of how that would be done."""
    usual: dict[str, Any] = {setting.name: setting.default for setting in fields(RenderConfig)}
    own = {"reflection_steps": 0, "grid": config.grid}  # a grid spaces the steps of any sampler
    return replace(config, **{name: usual[name] for name in OF_A_REFLECTION} | own)


def filled(config: RenderConfig, branch: BranchConfig) -> BranchConfig:
    """Return a branch with a guidance scale: base's, in base's window, if it has none of its own."""
    if branch.guidance_scale is not None:
        return branch
    windows = {name: window for name, window in (config.base.windows or {}).items() if name == "guidance_scale"}
    return replace(
        branch, guidance_scale=config.base.guidance_scale, windows={**windows, **(branch.windows or {})} or None
    )


def stage_scales(guidance_scale: float | tuple[float, float] | None) -> tuple[float, ...]:
    """Return a guidance scale for each stage that has one of its own: one, a pair, or none."""
    if guidance_scale is None:
        return ()
    return tuple(guidance_scale) if isinstance(guidance_scale, (tuple, list)) else (guidance_scale,)
