"""The table of systems that the suite in test_systems.py goes through: a new family is one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import tiny
import torch
from tiny.dit_moe import dit_moe

GUIDED = ("guidance", "prompt", "negative_prompt")
NETWORK = ("weights", "lora", "skip_layers", "perturbed_layers")
COMMON = (*GUIDED, *NETWORK)
CONTROL = ("control", "control_off")
IP_ADAPTER = ("ip_adapter", "ip_adapter_off")
ROUTING = ("experts_bottom", "experts_one")
IN_UNET = ("mid_block.attentions.0.transformer_blocks.0",)
IN_MOTION_UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "up_blocks.1.motion_modules.0.transformer_blocks.0",
)


def in_front(latents: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Put latents into every copy of them in a network's input; what is concatenated behind them stays."""
    if recorded.ndim == 4 and latents.ndim == 5:  # a ControlNet that sees frames as images
        latents = latents.transpose(1, 2).flatten(0, 1)
    latents = torch.cat([latents] * (len(recorded) // len(latents)))
    axes = [axis for axis in range(latents.ndim) if latents.shape[axis] != recorded.shape[axis]]
    result = recorded.clone()
    for axis in axes or [0]:
        result.narrow(axis, 0, latents.shape[axis]).copy_(latents)
    return result


def after_the_first_frame(latents: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Put latents behind a first frame that is the image itself (Wan 2.2 5B)."""
    return torch.cat([recorded[:, :, :1], latents[:, :, 1:]], dim=2)


def plain_guidance(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    return uncond + scale * (cond - uncond)


def guidance_of_the_same_norm(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """NucleusMoE brings its guided prediction to the norm of the conditional one, token by token."""
    guided = plain_guidance(cond, uncond, scale)
    return guided * cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class System:
    """One pipeline, and what a plain loop has to know of it.

    Attributes:
        build: makes the tiny pipeline, and the arguments to call it with.
        predicts: "epsilon", "velocity", "flow", or "inverted_flow" (from data to noise as sigma falls).
        guidance: "batch" (unconditional half first), "batch, conditional first", "calls" (conditional call first), or
            "embedded" as an argument of the network.
        gaps: fields of a branch that it supports, by the names in test_systems.py.
        sign: of the network's output in the pipeline's prediction.
        own_guidance: how the pipeline combines both predictions where no branch sets a scale.
        guidance_unit: what an embedded guidance is multiplied by.
        put: puts latents into a network's recorded input.
        conditioning: the part of a network's input that is an image it is conditioned on, if any.
        blocks: which blocks are left out or perturbed, by their names.
        rounding: relative error allowed to the order of additions; SDXL's Euler loses digits to its large sigmas.
    """

    build: Callable[[], tuple[Any, dict[str, Any]]]
    predicts: str
    guidance: str = "batch"
    gaps: tuple[str, ...] = COMMON
    sign: float = 1.0
    own_guidance: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] = plain_guidance
    guidance_unit: float = 1.0
    put: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = in_front
    conditioning: Callable[[torch.Tensor], torch.Tensor] | None = None
    blocks: tuple[str, ...] = ("transformer_blocks.1",)
    rounding: float = 1e-5


def _animatediff(build: Callable[[], Any], gaps: tuple[str, ...] = COMMON, **settings: Any) -> System:
    return System(build, "epsilon", gaps=gaps, blocks=IN_MOTION_UNET, **settings)


def _stable_diffusion(build: Callable[[], Any], *more: str, **settings: Any) -> System:
    return System(build, "epsilon", gaps=(*COMMON, *more), blocks=IN_UNET, **settings)


def _wan(*more: str, image: bool = False, **settings: Any) -> System:
    def build() -> tuple[Any, dict[str, Any]]:
        pipe, call = (tiny.wan_image_to_video if image else tiny.wan)(**settings)
        return pipe, call | ({"guidance_scale_2": 2.0} if "two_stage" in settings else {})

    put, conditioning = in_front, None
    if image and "expand_timesteps" in settings:
        put, conditioning = after_the_first_frame, lambda x: x[:, :, :1]
    elif image:
        conditioning = lambda x: x[:, 4:]  # noqa: E731
    gaps = (*COMMON, *more)
    return System(build, "flow", "calls", gaps, put=put, conditioning=conditioning, blocks=("blocks.1",))


def _cogvideox(build: Callable[..., Any], image: bool = False, **settings: Any) -> System:
    conditioning = (lambda x: x[:, :, 4:]) if image else None
    return System(lambda: build(**settings), "velocity", conditioning=conditioning)


SYSTEMS: dict[str, System] = {
    "animatediff": _animatediff(tiny.animatediff),
    "animatediff_sdxl": _animatediff(tiny.animatediff_sdxl, rounding=1e-4),
    "animatediff_ip_adapter": _animatediff(lambda: tiny.animatediff(ip_adapter=True), (*GUIDED, *IP_ADAPTER)),
    "animatediff_controlnet": _animatediff(tiny.animatediff_controlnet, (*COMMON, *CONTROL)),
    "animatediff_sparsectrl": _animatediff(tiny.animatediff_sparse_controlnet, (*COMMON, *CONTROL)),
    "animatediff_video_to_video": _animatediff(tiny.animatediff_video_to_video),
    "animatediff_video_to_video_controlnet": _animatediff(
        lambda: tiny.animatediff_video_to_video(control=True), (*GUIDED, *CONTROL)
    ),
    "cogvideox_2b": _cogvideox(tiny.cogvideox),
    "cogvideox_5b": _cogvideox(tiny.cogvideox, rotary=True),
    "cogvideox_1.5": _cogvideox(tiny.cogvideox, rotary=True, patch_size_t=2),
    "cogvideox_5b_image_to_video": _cogvideox(tiny.cogvideox_image_to_video, image=True),
    "cogvideox_1.5_image_to_video": _cogvideox(tiny.cogvideox_image_to_video, image=True, patch_size_t=2),
    "cogvideox_2b_video_to_video": _cogvideox(tiny.cogvideox_video_to_video),
    "cogvideox_5b_video_to_video": _cogvideox(tiny.cogvideox_video_to_video, rotary=True),
    "wan_2.1": _wan(),
    "wan_2.2_a14b": _wan("experts_high", "experts_low", two_stage=True),
    "wan_2.2_5b": _wan(expand_timesteps=True),
    "wan_2.1_image_to_video": _wan(image=True),
    "wan_2.2_a14b_image_to_video": _wan("experts_high", "experts_low", image=True, two_stage=True),
    "wan_2.2_5b_image_to_video": _wan(image=True, expand_timesteps=True),
    "ltx": System(tiny.ltx, "flow"),
    "hunyuan_video": System(
        tiny.hunyuan_video,
        "flow",
        "embedded",
        ("guidance", "prompt", *NETWORK),
        guidance_unit=1000.0,
        blocks=("transformer_blocks.0",),
    ),
    "mochi": System(tiny.mochi, "inverted_flow"),
    "latte": System(tiny.latte, "epsilon", blocks=("transformer_blocks.1", "temporal_transformer_blocks.1")),
    "stable_diffusion": _stable_diffusion(tiny.stable_diffusion),
    "stable_diffusion_controlnet": _stable_diffusion(lambda: tiny.stable_diffusion(control=True), *CONTROL),
    "stable_diffusion_ip_adapter": _stable_diffusion(lambda: tiny.stable_diffusion(ip_adapter=True), *IP_ADAPTER),
    "stable_diffusion_xl": _stable_diffusion(tiny.stable_diffusion_xl, rounding=1e-4),
    "stable_diffusion_xl_controlnet": _stable_diffusion(
        lambda: tiny.stable_diffusion_xl(control=True), *CONTROL, rounding=1e-4
    ),
    "stable_diffusion_xl_ip_adapter": _stable_diffusion(
        lambda: tiny.stable_diffusion_xl(ip_adapter=True), *IP_ADAPTER, rounding=1e-4
    ),
    "stable_diffusion_3": System(tiny.stable_diffusion_3, "flow"),
    "flux": System(tiny.flux, "flow", "embedded", ("guidance", "prompt", *NETWORK), blocks=("transformer_blocks.0",)),
    "sana": System(tiny.sana, "flow", gaps=(*GUIDED, "weights", "lora", "skip_layers")),  # its attention is linear
    "pixart_alpha": System(tiny.pixart, "epsilon"),
    "pixart_sigma": System(lambda: tiny.pixart(sigma=True), "epsilon"),
    "dit": System(tiny.dit, "epsilon", "batch, conditional first", ("guidance", *NETWORK)),
    "hidream_i1": System(tiny.hidream, "flow", gaps=(*COMMON, *ROUTING), sign=-1.0, blocks=("single_stream_blocks.0",)),
    "dit_moe": System(dit_moe, "epsilon", gaps=("guidance", *NETWORK, *ROUTING), blocks=("blocks.1",)),
    "dit_moe_rectified_flow": System(
        lambda: dit_moe(diffusers.FlowMatchEulerDiscreteScheduler()),
        "flow",
        gaps=("guidance", *NETWORK, *ROUTING),
        blocks=("blocks.1",),
    ),
    "nucleus_moe_image": System(
        tiny.nucleus_moe,
        "flow",
        "calls",
        ("prompt", "negative_prompt", "weights", "lora", "skip_layers", *ROUTING),  # its attention maps are not square
        sign=-1.0,
        own_guidance=guidance_of_the_same_norm,
    ),
}
