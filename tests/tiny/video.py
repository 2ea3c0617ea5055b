"""Transformers that make clips."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny import parts, text
from tiny.parts import Built, randomise, ready
from tiny.text import TEXT_LENGTH, TEXT_WIDTH


def cogvideox(*, rotary: bool = False, patch_size_t: int | None = None, seed: int = 0) -> Built:
    """CogVideoX: latents (1, 3 frames, 4, 4, 4), v, zero terminal SNR.

    As 2B (sinusoidal positions, DDIM); `rotary` as 5B (rotary positions, DPM); `patch_size_t=2` with it as 1.5.
    """
    torch.manual_seed(seed)
    transformer = cogvideox_transformer(rotary=rotary, patch_size_t=patch_size_t)
    pipe = diffusers.CogVideoXPipeline(**_cogvideox(transformer, rotary))
    return ready(pipe), _call(num_frames=9)


def cogvideox_image_to_video(*, patch_size_t: int | None = None, seed: int = 0) -> Built:
    """CogVideoX-5B from an image, whose latents stand behind those of the clip; `patch_size_t=2` as 1.5."""
    torch.manual_seed(seed)
    changes: dict[str, Any] = {"in_channels": 8, "ofs_embed_dim": 16 if patch_size_t else None}
    if patch_size_t is None:
        changes["use_learned_positional_embeddings"] = True
    transformer = cogvideox_transformer(rotary=True, patch_size_t=patch_size_t, **changes)
    pipe = diffusers.CogVideoXImageToVideoPipeline(**_cogvideox(transformer, rotary=True))
    return ready(pipe), _call(num_frames=9, image=parts.picture(32))


def cogvideox_video_to_video(*, rotary: bool = False, seed: int = 0) -> Built:
    """CogVideoX from a clip of 9 frames noised to 0.8 of the way."""
    torch.manual_seed(seed)
    pipe = diffusers.CogVideoXVideoToVideoPipeline(**_cogvideox(cogvideox_transformer(rotary=rotary), rotary))
    return ready(pipe), _call(video=parts.clip_of(9, 32), strength=0.8)


def wan(*, two_stage: bool = False, expand_timesteps: bool = False, seed: int = 0) -> Built:
    """Wan: latents (1, 4, 3 frames, 4, 4), flow, guidance by two calls.

    `two_stage` as 2.2 A14B, with a transformer for high and one for low noise; `expand_timesteps` as 2.2 5B, whose
    every token has its timestep.
    """
    torch.manual_seed(seed)
    pipe = diffusers.WanPipeline(**_wan(two_stage=two_stage), expand_timesteps=expand_timesteps)
    return ready(pipe), _call(num_frames=9)


def wan_image_to_video(*, two_stage: bool = False, expand_timesteps: bool = False, seed: int = 0) -> Built:
    """Wan from an image: 2.1 with an image encoder, 2.2 A14B (`two_stage`), 2.2 5B (`expand_timesteps`)."""
    torch.manual_seed(seed)
    changes: dict[str, Any] = {} if expand_timesteps else {"in_channels": 4 + 4 + 4}
    components: dict[str, Any] = {}
    if not two_stage and not expand_timesteps:
        changes |= {"image_dim": TEXT_WIDTH, "added_kv_proj_dim": 24}
        components = {"image_encoder": text.clip_vision(projected=False), "image_processor": text.image_processor()}
    pipe = diffusers.WanImageToVideoPipeline(
        **_wan(two_stage=two_stage, **changes), **components, expand_timesteps=expand_timesteps
    )
    return ready(pipe), _call(num_frames=9, image=parts.picture(32))


def ltx(seed: int = 0) -> Built:
    """LTX: packed latents (1, 48 tokens, 4), flow, guidance in one batch."""
    torch.manual_seed(seed)
    tokens = text.t5_tokenizer()
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=ltx_vae(),
        text_encoder=text.t5(tokens),
        tokenizer=tokens,
        transformer=randomise(transformer, gain=2.0),
    )
    return ready(pipe), _call(num_frames=9)


def hunyuan_video(seed: int = 0) -> Built:
    """HunyuanVideo: latents (1, 4, 3 frames, 4, 4), flow, guidance as an embedded argument."""
    torch.manual_seed(seed)
    tokens, clip_tokens = text.t5_tokenizer(), text.clip_tokenizer()
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=text.language_model(tokens),
        tokenizer=tokens,
        text_encoder_2=text.clip(clip_tokens, length=77),
        tokenizer_2=clip_tokens,
        transformer=hunyuan_video_transformer(),
        vae=hunyuan_video_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    return ready(pipe), _call(num_frames=9, prompt_template={"template": "{}", "crop_start": 0})


def mochi(seed: int = 0) -> Built:
    """Mochi: latents (1, 4, 2 frames, 8, 8), the flow's negative and inverted sigmas, guidance in one batch."""
    torch.manual_seed(seed)
    tokens = text.t5_tokenizer()
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=4,
        max_sequence_length=TEXT_LENGTH,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    pipe = diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=randomise(vae),
        text_encoder=text.t5(tokens),
        tokenizer=tokens,
        transformer=randomise(transformer, gain=2.0),
    )
    return ready(pipe), _call(num_frames=7, height=64, width=64)


def latte(seed: int = 0) -> Built:
    """Latte: latents (1, 4, 2 frames, 8, 8), epsilon with learned variance, DDIM, guidance in one batch."""
    torch.manual_seed(seed)
    tokens = text.t5_tokenizer()
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=TEXT_WIDTH,
        video_length=2,
    )
    pipe = diffusers.LattePipeline(
        tokenizer=tokens,
        text_encoder=text.t5(tokens),
        vae=parts.image_vae(),
        transformer=randomise(transformer),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    call = _call(video_length=2, height=16, width=16, clean_caption=False)
    del call["max_sequence_length"]
    return ready(pipe), call


def cogvideox_transformer(
    *, rotary: bool = False, patch_size_t: int | None = None, seed: int | None = None, **changes: Any
) -> diffusers.CogVideoXTransformer3DModel:
    """CogVideoX's transformer over 3×4×4 latents; `changes` overrides its config."""
    if seed is not None:
        torch.manual_seed(seed)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": TEXT_WIDTH,
        "max_text_seq_length": TEXT_LENGTH,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "patch_size": 2,
        "patch_size_t": patch_size_t,
        "patch_bias": patch_size_t is None,
        "use_rotary_positional_embeddings": rotary,
    }
    return randomise(diffusers.CogVideoXTransformer3DModel(**config | changes), gain=2.0)


def cogvideox_vae() -> diffusers.AutoencoderKLCogVideoX:
    """Clips (n, 3, 9, 32, 32) to latents (n, 4, 3, 4, 4) and back; group norms fix its widths to multiples of 32."""
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=0,
        latent_channels=4,
        temporal_compression_ratio=4,
        sample_height=32,
        sample_width=32,
    )
    return randomise(vae)


def wan_transformer(**changes: Any) -> diffusers.WanTransformer3DModel:
    """Wan's transformer over 3×4×4 latents; `changes` overrides its config."""
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return randomise(diffusers.WanTransformer3DModel(**config | changes), gain=2.0)


def hunyuan_video_transformer(**changes: Any) -> diffusers.HunyuanVideoTransformer3DModel:
    """HunyuanVideo's transformer over 3×4×4 latents; `changes` overrides its config."""
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "guidance_embeds": True,
        "text_embed_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "rope_axes_dim": (2, 4, 4),
    }
    return randomise(diffusers.HunyuanVideoTransformer3DModel(**config | changes), gain=2.0)


def hunyuan_video_vae() -> diffusers.AutoencoderKLHunyuanVideo:
    """Clips (n, 3, 9, 32, 32) to latents (n, 4, 3, 4, 4) and back."""
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return randomise(vae)


def ltx_vae() -> diffusers.AutoencoderKLLTXVideo:
    """Clips (n, 3, 9, 32, 32) to latents (n, 4, 3, 4, 4) and back."""
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        patch_size=2,
        encoder_causal=True,
        decoder_causal=False,
    )
    return randomise(vae)


def _call(**changes: Any) -> dict[str, Any]:
    size = {"height": 32, "width": 32, "max_sequence_length": TEXT_LENGTH}
    return {"prompt": text.PROMPT, "num_inference_steps": 3, "guidance_scale": 3.0} | size | changes


def _cogvideox(transformer: diffusers.CogVideoXTransformer3DModel, rotary: bool) -> dict[str, Any]:
    tokens = text.t5_tokenizer()
    return {
        "tokenizer": tokens,
        "text_encoder": text.t5(tokens),
        "vae": cogvideox_vae(),
        "transformer": transformer,
        "scheduler": (diffusers.CogVideoXDPMScheduler if rotary else diffusers.CogVideoXDDIMScheduler)(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0 if rotary else 3.0,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
        ),
    }


def _wan(two_stage: bool, **changes: Any) -> dict[str, Any]:
    tokens = text.t5_tokenizer()
    return {
        "tokenizer": tokens,
        "text_encoder": text.t5(tokens, "UMT5"),
        "vae": parts.wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "transformer": wan_transformer(**changes),
        "transformer_2": wan_transformer(**changes) if two_stage else None,
        "boundary_ratio": 0.9 if two_stage else None,
    }
