"""What the tiny pipelines share: UNets, their side networks, autoencoders, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

Built = tuple[Any, dict[str, Any]]

STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def randomise(module: Any, gain: float = 1.0) -> Any:
    """Fill zero-initialised matrices at random and scale all by `gain`: every input must reach the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and parameter.numel() and not parameter.any():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return module.eval()


def ready(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(size: int = 16, seed: int = 0) -> Image.Image:
    """A square picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def clip_of(frames: int, size: int = 16) -> list[Image.Image]:
    """As many pictures, all different."""
    return [picture(size, seed) for seed in range(frames)]


def pixels(pictures: Any) -> np.ndarray:
    """Pictures, or lists of them, as one array."""
    return np.stack([pixels(one) if isinstance(one, list) else np.asarray(one) for one in pictures])


def unet(seed: int | None = None, **changes: Any) -> diffusers.UNet2DConditionModel:
    """SD1.5's UNet, two levels over 8×8 latents; `changes` overrides its config."""
    if seed is not None:
        torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return randomise(diffusers.UNet2DConditionModel(**config | changes))


SDXL_UNET: dict[str, Any] = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}


def unet_sdxl(seed: int | None = None, **changes: Any) -> diffusers.UNet2DConditionModel:
    """SDXL's UNet: pooled text and six time ids besides the tokens.

    Its predictions are small: Euler's large sigmas would make chaos of a random network's, in which two orders of the
    same additions part within four steps.
    """
    net = unet(seed, **SDXL_UNET | changes)
    with torch.no_grad():
        net.conv_out.weight.mul_(0.1)
    return net


def motion_adapter(seed: int | None = None, **changes: Any) -> diffusers.MotionAdapter:
    """The temporal layers for `unet` and `unet_sdxl`."""
    if seed is not None:
        torch.manual_seed(seed)
    config: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "motion_layers_per_block": 1,
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 4,
        "motion_max_seq_length": 16,
    }
    return randomise(diffusers.MotionAdapter(**config | changes))


def controlnet(unet: diffusers.UNet2DConditionModel) -> diffusers.ControlNetModel:
    """A ControlNet of a UNet's shape, for pictures of twice the size of the latents."""
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    return randomise(net)


def sparse_controlnet() -> diffusers.SparseControlNetModel:
    """SparseCtrl's network for the motion UNet of `unet`."""
    net = diffusers.SparseControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
        conditioning_embedding_out_channels=(4, 8),
        use_simplified_condition_embedding=False,
        conditioning_channels=3,
    )
    return randomise(net)


def image_vae(**changes: Any) -> diffusers.AutoencoderKL:
    """Images (n, 3, 16, 16) to latents (n, 4, 8, 8) and back."""
    config: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return randomise(diffusers.AutoencoderKL(**config | changes))


def wan_vae(name: str = "AutoencoderKLWan", **changes: Any) -> Any:
    """Clips (n, 3, 9, 32, 32) to latents (n, 4, 3, 4, 4) and back; QwenImage's is the same by another name."""
    vae = getattr(diffusers, name)(
        **{
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latents_mean": [0.0] * 4,
            "latents_std": [1.0] * 4,
        }
        | changes
    )
    return randomise(vae)


def save_ip_adapter(pipe: diffusers.DiffusionPipeline, file: Path) -> None:
    """Write the IP-Adapter of a pipeline as IP-Adapters are published."""
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    state = {f"image_proj.proj.{name}": value for name, value in projection.image_embeds.state_dict().items()}
    state |= {f"image_proj.norm.{name}": value for name, value in projection.norm.state_dict().items()}
    processors = [one for one in pipe.unet.attn_processors.values() if hasattr(one, "to_k_ip")]
    for number, one in enumerate(processors):
        for key in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{key}.weight"] = getattr(one, key)[0].weight
    save_file({name: value.clone() for name, value in state.items()}, file)
