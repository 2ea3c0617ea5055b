"""Stable Diffusion and AnimateDiff, with their side networks and adapters."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from tiny import parts, text
from tiny.parts import STABLE, Built, ready

_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion(*, control: bool = False, ip_adapter: bool = False, seed: int = 0) -> Built:
    """Stable Diffusion 1.5's layout: latents (1, 4, 8, 8), epsilon, DDIM; on demand a ControlNet, an IP-Adapter."""
    torch.manual_seed(seed)
    components = _sd() | _UNCHECKED | {"scheduler": diffusers.DDIMScheduler(**STABLE, clip_sample=False)}
    call = _call(height=16, width=16)
    if control:
        components["controlnet"] = parts.controlnet(components["unet"])
        call["image"] = parts.picture()
        pipe = ready(diffusers.StableDiffusionControlNetPipeline(**components))
    else:
        pipe = ready(diffusers.StableDiffusionPipeline(**components))
    return pipe, call | (load_ip_adapter(pipe) if ip_adapter else {})


def stable_diffusion_xl(*, control: bool = False, ip_adapter: bool = False, seed: int = 0) -> Built:
    """SDXL's layout: latents (1, 4, 8, 8), epsilon, Euler; on demand a ControlNet, an IP-Adapter."""
    torch.manual_seed(seed)
    components = _sdxl() | {"scheduler": diffusers.EulerDiscreteScheduler(**STABLE), "add_watermarker": False}
    call = _call(height=16, width=16)
    if control:
        components["controlnet"] = parts.controlnet(components["unet"])
        call["image"] = parts.picture()
        pipe = ready(diffusers.StableDiffusionXLControlNetPipeline(**components))
    else:
        pipe = ready(diffusers.StableDiffusionXLPipeline(**components))
    return pipe, call | (load_ip_adapter(pipe) if ip_adapter else {})


def animatediff(*, ip_adapter: bool = False, seed: int = 0) -> Built:
    """AnimateDiff on SD1.5's layout: latents (1, 4, 4 frames, 8, 8), epsilon, DDIM, guidance in one batch."""
    torch.manual_seed(seed)
    pipe = ready(diffusers.AnimateDiffPipeline(**_animated()))
    return pipe, _call(num_frames=4, height=16, width=16) | (load_ip_adapter(pipe) if ip_adapter else {})


def animatediff_sdxl(seed: int = 0) -> Built:
    """AnimateDiff on SDXL's layout, with two text encoders and time ids: latents (1, 4, 4 frames, 8, 8)."""
    torch.manual_seed(seed)
    adapter = parts.motion_adapter(use_motion_mid_block=False)
    pipe = diffusers.AnimateDiffSDXLPipeline(**_sdxl(), motion_adapter=adapter, scheduler=_linear())
    return ready(pipe), _call(num_frames=4, height=16, width=16)


def animatediff_controlnet(seed: int = 0) -> Built:
    """AnimateDiff with a ControlNet that sees every frame."""
    torch.manual_seed(seed)
    components = _animated()
    pipe = diffusers.AnimateDiffControlNetPipeline(**components, controlnet=parts.controlnet(components["unet"]))
    return ready(pipe), _call(num_frames=4, height=16, width=16, conditioning_frames=parts.clip_of(4))


def animatediff_sparse_controlnet(seed: int = 0) -> Built:
    """AnimateDiff with SparseCtrl: a control of the first and the last frame."""
    torch.manual_seed(seed)
    pipe = diffusers.AnimateDiffSparseControlNetPipeline(**_animated(), controlnet=parts.sparse_controlnet())
    control = {"conditioning_frames": parts.clip_of(2), "controlnet_frame_indices": [0, 3]}
    return ready(pipe), _call(num_frames=4, height=16, width=16, **control)


def animatediff_video_to_video(*, control: bool = False, seed: int = 0) -> Built:
    """AnimateDiff from a clip of 4 frames noised to 0.8 of the way; on demand with a ControlNet."""
    torch.manual_seed(seed)
    components = _animated()
    call = _call(video=parts.clip_of(4), height=16, width=16, strength=0.8)
    if not control:
        return ready(diffusers.AnimateDiffVideoToVideoPipeline(**components)), call
    pipe = diffusers.AnimateDiffVideoToVideoControlNetPipeline(
        **components, controlnet=parts.controlnet(components["unet"])
    )
    return ready(pipe), call | {"conditioning_frames": parts.clip_of(4)}


def load_ip_adapter(pipe: Any) -> dict[str, Any]:
    """Load a random IP-Adapter from a file of the published format, and return what to call the pipeline with."""
    pipe.register_modules(image_encoder=text.clip_vision(), feature_extractor=text.image_processor())
    pipe.image_encoder.requires_grad_(False)
    width, tokens = pipe.unet.config.cross_attention_dim, 4
    state = {
        "image_proj.proj.weight": torch.randn(tokens * width, text.TEXT_WIDTH),
        "image_proj.proj.bias": torch.randn(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    cross = [name for name in pipe.unet.attn_processors if "attn2" in name and "motion_modules" not in name]
    for number, name in enumerate(cross):
        inner = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for key in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{key}.weight"] = torch.randn(inner, width) / width**0.5
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "ip-adapter.safetensors")
        pipe.load_ip_adapter(folder, subfolder="", weight_name="ip-adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    return {"ip_adapter_image": parts.picture(seed=1)}


def _call(**changes: Any) -> dict[str, Any]:
    return {"prompt": text.PROMPT, "num_inference_steps": 3, "guidance_scale": 3.0} | changes


def _linear() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(**STABLE | {"beta_schedule": "linear"}, clip_sample=False)


def _animated() -> dict[str, Any]:
    return _sd() | {"motion_adapter": parts.motion_adapter(), "scheduler": _linear()}


def _sd() -> dict[str, Any]:
    tokens = text.clip_tokenizer()
    return {"vae": parts.image_vae(), "text_encoder": text.clip(tokens), "tokenizer": tokens, "unet": parts.unet()}


def _sdxl() -> dict[str, Any]:
    tokens, width = text.clip_tokenizer(), text.TEXT_WIDTH // 2
    return {
        "text_encoder": text.clip(tokens, width),
        "text_encoder_2": text.clip(tokens, width, projected=True),
        "vae": parts.image_vae(),
        "tokenizer": tokens,
        "tokenizer_2": text.clip_tokenizer(),
        "unet": parts.unet_sdxl(),
    }
