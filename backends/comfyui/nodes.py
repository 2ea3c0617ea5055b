"""The nodes, as ComfyUI's version 3 of nodes has them; the classic mapping holds the same classes."""

from __future__ import annotations

from typing import Any, Literal, get_args

from comfy_api.latest import ComfyExtension, io

from w2sd_video.backends.comfyui.pairs import Model
from w2sd_video.backends.comfyui.sampling import Reflecting, Weak, guider_of, with_weak
from w2sd_video.backends.comfyui.skip_layers import without_blocks
from w2sd_video.presets import PRESETS
from w2sd_video.reflection_settings import Reading, Reflection, WeakInversion
from w2sd_video.reuse import Carried
from w2sd_video.strength import StrengthSchedule
from w2sd_video.window import Window

CATEGORY = "sampling/W2SD"
GUIDANCE = {"min": -100.0, "max": 100.0, "step": 0.1, "round": 0.01}
INVERSIONS = ("auto", *get_args(WeakInversion))
SETTINGS = {
    "recommended": Reflection(**PRESETS["recommended"]),
    "paper": Reflection(**PRESETS["paper"]),
    "fast": Reflection(**PRESETS["fast"]),
    "off": Reflection(0),
}

Settings = io.Custom("W2SD_SETTINGS")
Schedule = io.Custom("W2SD_STRENGTH")


def _guidance_of_reflection() -> list[Any]:
    return [
        io.Float.Input(
            "strong_cfg", default=1.0, tooltip="Guidance of strong in a reflection; the paper's is 1.", **GUIDANCE
        ),
        io.Float.Input(
            "weak_cfg", default=1.0, tooltip="Guidance of weak in a reflection; the paper's is 1.", **GUIDANCE
        ),
    ]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a list, or refuse it (ValueError)."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between them, got {text!r}") from None


class W2SDGuider(io.ComfyNode):
    """A GUIDER for SamplerCustomAdvanced, together with W2SD Sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDGuider",
            display_name="W2SD Guider",
            category=CATEGORY,
            description="A strong and a weak model, each with its conditioning and guidance. Sample with W2SD Sampler.",
            inputs=[
                io.Model.Input("strong", tooltip="The model whose steps count."),
                io.Model.Input(
                    "weak",
                    tooltip="A worse one of the same latent space: an earlier checkpoint, another LoRA strength, "
                    "skipped layers; or the strong one again, with a poorer prompt or guidance.",
                ),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative", optional=True, tooltip="May be left out where every cfg is 1."),
                io.Conditioning.Input("weak_positive", optional=True, tooltip="Left out: that of strong."),
                io.Conditioning.Input("weak_negative", optional=True, tooltip="Left out: that of strong."),
                io.Float.Input("cfg", default=5.0, tooltip="Guidance of the steps that count.", **GUIDANCE),
                *_guidance_of_reflection(),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(
        cls,
        strong: Model,
        weak: Model,
        positive: list,
        cfg: float,
        strong_cfg: float,
        weak_cfg: float,
        negative: list | None = None,
        weak_positive: list | None = None,
        weak_negative: list | None = None,
    ) -> io.NodeOutput:
        """Return a guider of ComfyUI on the strong model, which knows of the weak one."""
        model = with_weak(strong, Weak(weak, weak_positive, weak_negative, weak_cfg, strong_cfg), settings=None)
        return io.NodeOutput(guider_of(model, positive, negative, cfg))


class W2SDModel(io.ComfyNode):
    """A MODEL that KSampler, and every other sampling node, reflects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDModel",
            display_name="W2SD Model (for KSampler)",
            category=CATEGORY,
            description="The strong model, reflected wherever it is sampled. Conditioning and cfg of the steps that "
            "count are those of the sampling node.",
            inputs=[
                io.Model.Input("strong"),
                io.Model.Input("weak"),
                Settings.Input("settings", optional=True, tooltip="Left out: the preset 'recommended'."),
                io.Conditioning.Input("weak_positive", optional=True, tooltip="Left out: that of the sampling node."),
                io.Conditioning.Input("weak_negative", optional=True, tooltip="Left out: that of the sampling node."),
                *_guidance_of_reflection(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        strong: Model,
        weak: Model,
        strong_cfg: float,
        weak_cfg: float,
        settings: Reflection | None = None,
        weak_positive: list | None = None,
        weak_negative: list | None = None,
    ) -> io.NodeOutput:
        """Return the strong model with a wrapper around its samplings."""
        weak = Weak(weak, weak_positive, weak_negative, weak_cfg, strong_cfg)
        return io.NodeOutput(with_weak(strong, weak, SETTINGS["recommended"] if settings is None else settings))


class W2SDSampler(io.ComfyNode):
    """A SAMPLER whose steps are another's, reflected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDSampler",
            display_name="W2SD Sampler",
            category=CATEGORY,
            description="Reflects the steps of a sampler. Needs a W2SD Guider.",
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler that makes the steps that count."),
                Settings.Input("settings", optional=True, tooltip="Left out: the preset 'recommended'."),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler: Any, settings: Reflection | None = None) -> io.NodeOutput:
        """Return the reflected sampler."""
        return io.NodeOutput(Reflecting(sampler, SETTINGS["recommended"] if settings is None else settings))


class W2SDPresets(io.ComfyNode):
    """Settings by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDPresets",
            display_name="W2SD Presets",
            category=CATEGORY,
            description="recommended: the first half of the steps, the weak prediction at the latents themselves. "
            "paper: all steps but the last, by the paper's inversion. fast: nothing is reflected, but the last half of "
            "the steps is pushed away from weak (AutoGuidance). off: as without W2SD, to compare with.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(SETTINGS),
                    default="recommended",
                    tooltip="Compare with 'off', and with more cfg or steps: at equal cost no preset was found "
                    "better than well tuned guidance, and 'recommended' is sometimes worse.",
                )
            ],
            outputs=[Settings.Output()],
        )

    @classmethod
    def validate_inputs(cls, preset: str = "off") -> bool | str:
        """Say what is wrong with a name that ComfyUI lets pass."""
        return preset in SETTINGS or f"preset must be one of {', '.join(SETTINGS)}; got {preset!r}"

    @classmethod
    def execute(cls, preset: str) -> io.NodeOutput:
        """Return the settings."""
        return io.NodeOutput(SETTINGS[preset])


class W2SDSettings(io.ComfyNode):
    """All settings of a reflection, and of AutoGuidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDSettings",
            display_name="W2SD Settings",
            category=CATEGORY,
            description="Which steps are reflected, how far and how; and which are pushed away from weak.",
            inputs=[
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="First reflected step, as a part of all."
                ),
                io.Float.Input(
                    "stop", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="Where they end; start: none."
                ),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.05, tooltip="1 is the paper's."),
                io.Combo.Input(
                    "inversion",
                    options=list(INVERSIONS),
                    default="current",
                    tooltip="Where the weak prediction is made. 'auto' is 'current' for flow matching (Wan, Flux), "
                    "which fares badly with 'paper', and 'paper' for others.",
                ),
                io.Int.Input("rounds", default=1, min=1, max=16, tooltip="Reflections at each reflected step."),
                io.Int.Input("iterations", default=2, min=1, max=16, tooltip="Of the inversion 'implicit'."),
                io.Int.Input("span", default=1, min=1, max=100, tooltip="Steps that a reflection goes down and back."),
                io.Combo.Input("reading", options=list(get_args(Reading)), default="epsilon"),
                io.Int.Input(
                    "reuse",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="The gap is measured at every so many-th step; above 1 it is refused with nodes that may "
                    "act at some noise levels only.",
                ),
                io.Combo.Input("carried", options=list(get_args(Carried)), default="held"),
                Schedule.Input("schedule", optional=True, tooltip="A strength for each noise level, times strength."),
                io.Float.Input(
                    "autoguidance",
                    default=0.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of AutoGuidance: the steps that count are pushed away from weak by so much of the "
                    "gap. It reflects nothing, and works with every sampler.",
                ),
                *(
                    io.Float.Input(
                        f"autoguidance_{name}",
                        default=default,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip=what,
                    )
                    for name, default, what in (
                        ("start", 0.5, "First step with AutoGuidance, as a part of all."),
                        ("stop", 1.0, "Where they end."),
                    )
                ),
                io.Combo.Input(
                    "autoguidance_gap",
                    options=["strong", "base"],
                    default="strong",
                    optional=True,
                    tooltip="Whose prediction weak's is taken from: strong's with strong_cfg, evaluated for it, or "
                    "that of the steps that count.",
                ),
            ],
            outputs=[Settings.Output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        start: float = 0.0,
        stop: float = 1.0,
        strength: float = 1.0,
        inversion: str = "current",
        reuse: int = 1,
        autoguidance: float = 0.0,
        autoguidance_start: float = 0.5,
        autoguidance_stop: float = 1.0,
    ) -> bool | str:
        """Say what is wrong with values that ComfyUI lets pass, before anything runs; linked ones it leaves out."""
        if inversion not in INVERSIONS:
            return f"inversion must be one of {', '.join(INVERSIONS)}; got {inversion!r}"
        try:
            Reflection(Window(start, stop), strength, autoguidance=autoguidance)
            Window(autoguidance_start, autoguidance_stop)
        except (TypeError, ValueError) as error:
            return str(error)
        return (
            not (autoguidance and reuse > 1) or "reuse must be 1 with autoguidance, whose gap is measured at every call"
        )

    @classmethod
    def execute(
        cls,
        start: float,
        stop: float,
        strength: float,
        schedule: StrengthSchedule | None = None,
        autoguidance_start: float = 0.5,
        autoguidance_stop: float = 1.0,
        autoguidance_gap: Literal["base", "strong"] = "strong",
        **settings: Any,
    ) -> io.NodeOutput:
        """Return the settings."""
        strengths: float | StrengthSchedule = strength
        if schedule is not None:
            strengths = StrengthSchedule(schedule.log_snr, tuple(strength * each for each in schedule.strength))
        reflected = Window(start, stop) if start < stop else 0
        pushed = Window(autoguidance_start, autoguidance_stop)
        chosen = {"autoguidance_steps": pushed, "autoguidance_gap": autoguidance_gap, **settings}
        return io.NodeOutput(Reflection(reflected, strengths, **chosen))


class W2SDStrengthSchedule(io.ComfyNode):
    """A strength for each noise level."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDStrengthSchedule",
            display_name="W2SD Strength Schedule",
            category=CATEGORY,
            description="Strengths at some noise levels, interpolated between them. The levels are log-SNRs, 2 ln(x0 / "
            "noise), rising: -10 is nearly noise, 0 half of each, 10 nearly clean.",
            inputs=[
                io.String.Input("log_snr", default="-4, 0, 4"),
                io.String.Input("strength", default="1, 1, 0", tooltip="One for each log-SNR; 0 reflects nothing."),
                io.String.Input(
                    "file",
                    default="",
                    optional=True,
                    tooltip="A schedule that w2sd-video calibrate wrote; it takes the place of both lists.",
                ),
            ],
            outputs=[Schedule.Output()],
        )

    @classmethod
    def execute(cls, log_snr: str, strength: str, file: str = "") -> io.NodeOutput:
        """Return the schedule."""
        if file.strip():
            return io.NodeOutput(StrengthSchedule.read(file.strip()))
        return io.NodeOutput(StrengthSchedule(_numbers("log_snr", log_snr), _numbers("strength", strength)))


class W2SDSkipLayers(io.ComfyNode):
    """A weak MODEL: the same network without some of its blocks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what goes in and out."""
        return io.Schema(
            node_id="W2SDSkipLayers",
            display_name="W2SD Skip Layers",
            category=CATEGORY,
            description="The same transformer without some of its blocks, as a weak model that takes no memory: Wan, "
            "LTX, HunyuanVideo, Flux, SD3, Qwen-Image, ... Not for UNets.",
            inputs=[
                io.Model.Input("model"),
                io.String.Input(
                    "double_blocks", default="9", tooltip="Numbers of blocks, from 0; Wan and LTX have these only."
                ),
                io.String.Input("single_blocks", default="", tooltip="Of Flux and HunyuanVideo."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Model, double_blocks: str, single_blocks: str) -> io.NodeOutput:
        """Return the model without these blocks."""
        return io.NodeOutput(
            without_blocks(model, _numbers("double_blocks", double_blocks), _numbers("single_blocks", single_blocks))
        )


class W2SDExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return their classes."""
        return list(NODE_CLASS_MAPPINGS.values())


async def comfy_entrypoint() -> W2SDExtension:
    """Return what ComfyUI asks a node package for."""
    return W2SDExtension()


NODE_CLASS_MAPPINGS: dict[str, type[io.ComfyNode]] = {
    "W2SDGuider": W2SDGuider,
    "W2SDModel": W2SDModel,
    "W2SDPresets": W2SDPresets,
    "W2SDSampler": W2SDSampler,
    "W2SDSettings": W2SDSettings,
    "W2SDSkipLayers": W2SDSkipLayers,
    "W2SDStrengthSchedule": W2SDStrengthSchedule,
}

NODE_DISPLAY_NAME_MAPPINGS = {name: node.define_schema().display_name for name, node in NODE_CLASS_MAPPINGS.items()}
