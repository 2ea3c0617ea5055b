"""A tiny DiT-MoE, which is no class of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from tiny.parts import Built, image_vae, randomise, ready
from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_experts": 4,
    "num_classes": 10,
}


def dit_moe_transformer(seed: int = 0, **changes: Any) -> DiTMoETransformer2DModel:
    """Two blocks of four experts over 16 tokens, with learned variance; `changes` overrides its config."""
    torch.manual_seed(seed)
    return randomise(DiTMoETransformer2DModel(**CONFIG | changes), gain=1.5)


def dit_moe(scheduler: Any = None, seed: int = 0, **changes: Any) -> Built:
    """DiT-MoE: latents (samples, 4, 8, 8), ten classes of which two have names, DDIM unless told otherwise."""
    transformer = dit_moe_transformer(seed, **changes)
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    names = {0: "red circle, disc", 1: "blue square"}
    pipe = DiTMoEPipeline(transformer=transformer, vae=image_vae(), scheduler=scheduler, id2label=names)
    return ready(pipe), {"class_labels": [3], "guidance_scale": 3.0, "num_inference_steps": 3}
