"""Transformers that make images."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny import parts, text
from tiny.networks import network
from tiny.parts import Built, randomise, ready
from tiny.text import TEXT_LENGTH, TEXT_WIDTH


def pixart(*, sigma: bool = False, seed: int = 0) -> Built:
    """PixArt-α, or `sigma`: latents (1, 4, 8, 8), epsilon with learned variance, DPM-Solver++."""
    torch.manual_seed(seed)
    tokens = text.t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        **_SMALL_DIT, cross_attention_dim=16, caption_channels=TEXT_WIDTH, use_additional_conditions=False
    )
    randomise(transformer)
    pipe = (diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline)(
        tokenizer=tokens,
        text_encoder=text.t5(tokens),
        vae=parts.image_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    settings = {"clean_caption": False, "max_sequence_length": TEXT_LENGTH, "use_resolution_binning": False}
    return ready(pipe), _call(**settings)


def dit(seed: int = 0) -> Built:
    """DiT: latents (1, 4, 8, 8), 1000 classes, epsilon with learned variance, DDIM.

    Its "prompt" is `class_labels`. The pipeline decodes whatever its `output_type`, to images (1, 16, 16, 3).
    """
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(**_SMALL_DIT, num_embeds_ada_norm=1000)
    randomise(transformer)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=parts.image_vae(), scheduler=scheduler)
    return ready(pipe), {"class_labels": [3], "guidance_scale": 3.0, "num_inference_steps": 3}


def flux(seed: int = 0) -> Built:
    """FLUX dev: packed latents (1, 16 tokens, 16), flow, guidance as an embedded argument."""
    torch.manual_seed(seed)
    clip_tokens, t5_tokens = text.clip_tokenizer(), text.t5_tokenizer()
    transformer = randomise(network("FluxTransformer2DModel"), gain=2.0)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=parts.image_vae(shift_factor=0.0),
        text_encoder=text.clip(clip_tokens),
        tokenizer=clip_tokens,
        text_encoder_2=text.t5(t5_tokens),
        tokenizer_2=t5_tokens,
        transformer=transformer,
    )
    return ready(pipe), _call(max_sequence_length=TEXT_LENGTH)


def stable_diffusion_3(seed: int = 0) -> Built:
    """Stable Diffusion 3: latents (1, 4, 8, 8), flow, guidance in one batch, three text encoders."""
    torch.manual_seed(seed)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=8,
    )
    randomise(transformer)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=parts.image_vae(shift_factor=0.0),
        **_three_encoders(TEXT_WIDTH // 2),
    )
    return ready(pipe), _call(max_sequence_length=TEXT_LENGTH)


def sana(seed: int = 0) -> Built:
    """Sana: latents (1, 4, 16, 16), flow by DPM-Solver++, linear attention, a decoder as text encoder."""
    torch.manual_seed(seed)
    tokens = text.qwen_tokenizer()
    pipe = diffusers.SanaPipeline(
        tokenizer=tokens,
        text_encoder=text.language_model(tokens, "Gemma2"),
        vae=network("AutoencoderDC"),
        transformer=network("SanaTransformer2DModel"),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )
    settings = {"use_resolution_binning": False, "complex_human_instruction": None}
    return ready(pipe), _call(height=32, width=32, max_sequence_length=TEXT_LENGTH, **settings)


def hidream(seed: int = 0) -> Built:
    """HiDream-I1: latents (1, 4, 8, 8), flow, a mixture of 4 experts of which 2 answer, four text encoders."""
    torch.manual_seed(seed)
    tokens = text.t5_tokenizer()
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
        text_emb_dim=TEXT_WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=(0, 1),
    )
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.image_vae(shift_factor=0.0),
        text_encoder_4=text.language_model(tokens, head="ForCausalLM", attn_implementation="eager"),
        tokenizer_4=tokens,
        transformer=randomise(transformer, gain=1.5),
        **_three_encoders(TEXT_WIDTH // 2),
    )
    pipe.default_sample_size = 8  # the pipeline brings every picture to this area
    return ready(pipe), _call(max_sequence_length=TEXT_LENGTH)


def nucleus_moe(seed: int = 0) -> Built:
    """NucleusMoE-Image: packed latents (1, 16 tokens, 16), flow, experts that choose their tokens."""
    torch.manual_seed(seed)
    tokens = text.qwen_tokenizer()
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(2, 2, 4),
        dense_moe_strategy="all_moe",
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    for name, parameter in transformer.named_parameters():
        if ".experts." in name:  # diffusers leaves these as memory happens to be
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    pipe = diffusers.NucleusMoEImagePipeline(
        transformer=randomise(transformer, gain=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=parts.wan_vae("AutoencoderKLQwenImage"),
        text_encoder=text.vision_language_model(tokens),
        processor=tokens,
    )
    return ready(pipe), _call(height=64, width=64, return_index=-1, max_sequence_length=TEXT_LENGTH)


_SMALL_DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "norm_num_groups": 4,
}


def _call(**changes: Any) -> dict[str, Any]:
    call = {"prompt": text.PROMPT, "num_inference_steps": 3, "guidance_scale": 3.0, "height": 16, "width": 16}
    return call | changes


def _three_encoders(width: int) -> dict[str, Any]:
    """Two CLIP encoders whose pooled texts stand side by side, and T5."""
    tokens, t5_tokens = text.clip_tokenizer(), text.t5_tokenizer()
    return {
        "text_encoder": text.clip(tokens, width, projected=True),
        "tokenizer": tokens,
        "text_encoder_2": text.clip(tokens, width, projected=True),
        "tokenizer_2": tokens,
        "text_encoder_3": text.t5(t5_tokens),
        "tokenizer_3": t5_tokens,
    }
