"""Tiny random pipelines of real diffusers classes: offline, on CPU, a few milliseconds a step.

Each builder returns `(pipe, call)`: `pipe(**call, generator=…, output_type="latent")` runs. Weights depend on `seed`
alone (it seeds torch), none is zero where a trained one is not, and every network is in `eval()`.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

Built = tuple[Any, dict[str, Any]]

TEXT_WIDTH = 16
TEXT_LENGTH = 16
WORDS = "a red green blue circle square triangle moving left right up down slowly over the sea of".split()
PROMPT = "a red circle moving left"


def animatediff(seed: int = 0) -> Built:
    """AnimateDiff on SD1.5's layout: latents (1, 4, 4 frames, 8, 8), epsilon, DDIM, guidance in one batch."""
    torch.manual_seed(seed)
    scheduler = diffusers.DDIMScheduler(**_STABLE | {"beta_schedule": "linear"}, clip_sample=False)
    pipe = diffusers.AnimateDiffPipeline(**_sd(), motion_adapter=motion_adapter(), scheduler=scheduler)
    return _ready(pipe), _call(num_frames=4, height=16, width=16)


def animatediff_sdxl(seed: int = 0) -> Built:
    """AnimateDiff on SDXL's layout, with two text encoders and time ids: latents (1, 4, 4 frames, 8, 8)."""
    torch.manual_seed(seed)
    scheduler = diffusers.DDIMScheduler(**_STABLE | {"beta_schedule": "linear"}, clip_sample=False)
    adapter = motion_adapter(use_motion_mid_block=False)
    pipe = diffusers.AnimateDiffSDXLPipeline(**_sdxl(), motion_adapter=adapter, scheduler=scheduler)
    return _ready(pipe), _call(num_frames=4, height=16, width=16)


def stable_diffusion(seed: int = 0) -> Built:
    """Stable Diffusion 1.5's layout: latents (1, 4, 8, 8), epsilon, DDIM."""
    torch.manual_seed(seed)
    scheduler = diffusers.DDIMScheduler(**_STABLE, clip_sample=False)
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionPipeline(**_sd(), scheduler=scheduler, **unchecked)
    return _ready(pipe), _call(height=16, width=16)


def stable_diffusion_xl(seed: int = 0) -> Built:
    """SDXL's layout: latents (1, 4, 8, 8), epsilon, Euler."""
    torch.manual_seed(seed)
    scheduler = diffusers.EulerDiscreteScheduler(**_STABLE)
    pipe = diffusers.StableDiffusionXLPipeline(**_sdxl(), scheduler=scheduler, add_watermarker=False)
    return _ready(pipe), _call(height=16, width=16)


def cogvideox(*, rotary: bool = False, patch_size_t: int | None = None, seed: int = 0) -> Built:
    """CogVideoX: latents (1, 3 frames, 4, 4, 4), v, zero terminal SNR.

    As 2B (sinusoidal positions, DDIM); `rotary` as 5B (rotary positions, DPM); `patch_size_t=2` with it as 1.5.
    """
    torch.manual_seed(seed)
    tokens = _t5_tokenizer()
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=tokens,
        text_encoder=_t5(tokens),
        vae=cogvideox_vae(),
        transformer=cogvideox_transformer(rotary=rotary, patch_size_t=patch_size_t),
        scheduler=(diffusers.CogVideoXDPMScheduler if rotary else diffusers.CogVideoXDDIMScheduler)(
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
    )
    size = {"num_frames": 9, "height": 32, "width": 32, "max_sequence_length": TEXT_LENGTH}
    return _ready(pipe), _call(**size)


def pixart(seed: int = 0) -> Built:
    """PixArt-α: latents (1, 4, 8, 8), epsilon with learned variance, DPM-Solver++."""
    torch.manual_seed(seed)
    tokens = _t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    randomise(transformer)
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=tokens,
        text_encoder=_t5(tokens),
        vae=image_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    text = {"clean_caption": False, "max_sequence_length": TEXT_LENGTH}
    return _ready(pipe), _call(height=16, width=16, use_resolution_binning=False, **text)


def dit(seed: int = 0) -> Built:
    """DiT: latents (1, 4, 8, 8), 1000 classes, epsilon with learned variance, DDIM.

    Its "prompt" is `class_labels`. The pipeline decodes whatever its `output_type`, to images (1, 16, 16, 3).
    """
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    randomise(transformer)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=image_vae(), scheduler=scheduler)
    return _ready(pipe), {"class_labels": [3], "guidance_scale": 3.0, "num_inference_steps": 3}


def wan(*, two_stage: bool = False, seed: int = 0) -> Built:
    """Wan: latents (1, 4, 3 frames, 4, 4), flow, guidance by two calls; `two_stage` as 2.2 with two transformers."""
    torch.manual_seed(seed)
    tokens = _t5_tokenizer()
    pipe = diffusers.WanPipeline(
        tokenizer=tokens,
        text_encoder=_t5(tokens, "UMT5"),
        vae=wan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer() if two_stage else None,
        boundary_ratio=0.9 if two_stage else None,
    )
    size = {"num_frames": 9, "height": 32, "width": 32, "max_sequence_length": TEXT_LENGTH}
    return _ready(pipe), _call(**size)


def flux(seed: int = 0) -> Built:
    """FLUX dev: packed latents (1, 16 tokens, 16), flow, guidance as an embedded argument."""
    torch.manual_seed(seed)
    clip_tokens, t5_tokens = _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    randomise(transformer, gain=2.0)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(),
        text_encoder=_clip(clip_tokens),
        tokenizer=clip_tokens,
        text_encoder_2=_t5(t5_tokens),
        tokenizer_2=t5_tokens,
        transformer=transformer,
    )
    return _ready(pipe), _call(height=16, width=16, max_sequence_length=TEXT_LENGTH)


BUILDERS = (animatediff, animatediff_sdxl, stable_diffusion, stable_diffusion_xl, cogvideox, pixart, dit, wan, flux)


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
        "cross_attention_dim": TEXT_WIDTH,
    }
    return randomise(diffusers.UNet2DConditionModel(**config | changes))


def unet_sdxl(seed: int | None = None, **changes: Any) -> diffusers.UNet2DConditionModel:
    """SDXL's UNet: pooled text and six time ids besides the tokens."""
    sdxl = {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + TEXT_WIDTH // 2,
    }
    return unet(seed, **sdxl | changes)


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


def image_vae() -> diffusers.AutoencoderKL:
    """Images (n, 3, 16, 16) to latents (n, 4, 8, 8) and back."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return randomise(vae)


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


def wan_vae() -> diffusers.AutoencoderKLWan:
    """Clips (n, 3, 9, 32, 32) to latents (n, 4, 3, 4, 4) and back."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return randomise(vae)


def randomise(module: Any, gain: float = 1.0) -> Any:
    """Fill zero-initialised matrices at random and scale all by `gain`: every input must reach the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return module.eval()


_STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def _sd() -> dict[str, Any]:
    tokens = _clip_tokenizer()
    return {"vae": image_vae(), "text_encoder": _clip(tokens), "tokenizer": tokens, "unet": unet()}


def _sdxl() -> dict[str, Any]:
    tokens, width = _clip_tokenizer(), TEXT_WIDTH // 2
    encoders = {"text_encoder": _clip(tokens, width), "text_encoder_2": _clip(tokens, width, projected=True)}
    return encoders | {"vae": image_vae(), "tokenizer": tokens, "tokenizer_2": _clip_tokenizer(), "unet": unet_sdxl()}


def _call(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 3.0} | changes


def _ready(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _wan_transformer() -> diffusers.WanTransformer3DModel:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return randomise(transformer, gain=2.0)


def _tokenizer(first: list[str], template: str, **special: str) -> transformers.PreTrainedTokenizerFast:
    """One token a word; `first` are the special tokens with ids 0, 1, …; unknown words share one token."""
    vocabulary = {word: i for i, word in enumerate([*first, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in first]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=TEXT_LENGTH, **special)


def _clip_tokenizer() -> transformers.PreTrainedTokenizerFast:
    start, end = "<start>", "<end>"
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return _tokenizer([start, end], f"{start} $A {end}", **names)


def _t5_tokenizer() -> transformers.PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _tokenizer(list(names.values()), "$A </s>", **names)


def _clip(tokens: transformers.PreTrainedTokenizerFast, width: int = TEXT_WIDTH, projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        # transformers initialises embeddings at 0.02: too small for words to be told from positions.
        initializer_factor=20.0,
    )
    return randomise((transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config))


def _t5(tokens: transformers.PreTrainedTokenizerFast, name: str = "T5") -> Any:
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    special = {"pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokens), **sizes, **special)
    return randomise(getattr(transformers, f"{name}EncoderModel")(config))
