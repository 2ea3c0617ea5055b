"""From checkpoints to the folders that `from_pretrained` loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DiffusionPipeline,
    ModelMixin,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, T5EncoderModel

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline
from w2sd_video.miniatures.saving import forget_origin, save_pipeline
from w2sd_video.miniatures.training.models import clip_tokenizer, cogvideox_scheduler, ddim_scheduler, t5_tokenizer
from w2sd_video.miniatures.world import prompts


def export_animatediff(out: Path, weights: Path) -> None:
    """Assemble `weights/animatediff`: a pipeline with the strong UNet, and the weak one in `unet_weak`."""
    pipe = AnimateDiffPipeline(
        vae=AutoencoderKL.from_pretrained(out / "image_vae"),
        text_encoder=CLIPTextModel.from_pretrained(out / "clip"),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel.from_pretrained(out / "unet_strong"),
        motion_adapter=MotionAdapter.from_pretrained(out / "motion_adapter"),
        scheduler=ddim_scheduler(),
    )
    _save(weights / "animatediff", pipe, unet_weak=UNet2DConditionModel.from_pretrained(out / "unet_weak"))


def export_lora(out: Path, weights: Path) -> None:
    """Copy `out/lora_comet` into the AnimateDiff pipeline's folder."""
    shutil.copytree(out / "lora_comet", weights / "animatediff" / "lora_comet", dirs_exist_ok=True)
    forget_origin(weights / "animatediff" / "lora_comet")


def export_controlnet(out: Path, weights: Path) -> None:
    """Write `out/controlnet_edges` into the AnimateDiff pipeline's folder."""
    folder = weights / "animatediff" / "controlnet_edges"
    ControlNetModel.from_pretrained(out / "controlnet_edges").to(torch.float16).save_pretrained(folder)
    forget_origin(folder)


def export_cogvideox(out: Path, weights: Path) -> None:
    """Assemble `weights/cogvideox`: a pipeline with the strong transformer, and the weak one in `transformer_weak`."""
    pipe = CogVideoXPipeline(
        vae=AutoencoderKLCogVideoX.from_pretrained(out / "video_vae"),
        text_encoder=T5EncoderModel.from_pretrained(out / "t5"),
        tokenizer=t5_tokenizer(),
        transformer=CogVideoXTransformer3DModel.from_pretrained(out / "transformer_strong"),
        scheduler=cogvideox_scheduler(),
    )
    weak = CogVideoXTransformer3DModel.from_pretrained(out / "transformer_weak")
    _save(weights / "cogvideox", pipe, transformer_weak=weak)


def export_pixart(out: Path, weights: Path) -> None:
    """Assemble `weights/pixart`: a pipeline with the strong transformer, and the weak one in `transformer_weak`."""
    pipe = PixArtAlphaPipeline(
        vae=AutoencoderKL.from_pretrained(out / "image_vae"),
        text_encoder=T5EncoderModel.from_pretrained(out / "t5"),
        tokenizer=t5_tokenizer(),
        transformer=PixArtTransformer2DModel.from_pretrained(out / "pixart_strong"),
        scheduler=ddim_scheduler(),
    )
    weak = PixArtTransformer2DModel.from_pretrained(out / "pixart_weak")
    _save(weights / "pixart", pipe, transformer_weak=weak)


def export_dit_moe(out: Path, weights: Path) -> None:
    """Assemble `weights/dit_moe`; its weak model is itself with other experts."""
    pipe = DiTMoEPipeline(
        transformer=DiTMoETransformer2DModel.from_pretrained(out / "dit_moe"),
        vae=AutoencoderKL.from_pretrained(out / "image_vae"),
        scheduler=ddim_scheduler(),
        id2label=dict(enumerate(prompts(sizes_and_speeds=False))),
    )
    _save(weights / "dit_moe", pipe)


def export_classifier(out: Path, weights: Path) -> None:
    """Copy `out/classifier` to `weights/classifier`."""
    shutil.copytree(out / "classifier", weights / "classifier", dirs_exist_ok=True)


def export_image_classifier(out: Path, weights: Path) -> None:
    """Copy `out/image_classifier` to `weights/image_classifier`."""
    shutil.copytree(out / "image_classifier", weights / "image_classifier", dirs_exist_ok=True)


def _save(folder: Path, pipe: DiffusionPipeline, **second_denoisers: ModelMixin) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    save_pipeline(folder, pipe, **second_denoisers)
    forget_origin(folder)
