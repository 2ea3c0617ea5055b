"""What the tiny pipelines of diffusers' many classes need beyond what their signatures ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.joyimage.image_processor import BUCKETS

import tiny
from tiny import parts, text, video
from tiny.assembled import assemble, embeddings, like
from tiny.networks import network
from tiny.parts import Built
from tiny.text import TEXT_WIDTH

LIKE: dict[str, Callable[[], Built] | None] = {
    "": None,
    "AnimateDiff": tiny.animatediff,
    "AnimateDiffControlNet": tiny.animatediff_controlnet,
    "AnimateDiffSDXL": tiny.animatediff_sdxl,
    "AnimateDiffSparseControlNet": tiny.animatediff_sparse_controlnet,
    "AnimateDiffVideoToVideo": tiny.animatediff_video_to_video,
    "AnimateDiffVideoToVideoControlNet": lambda: tiny.animatediff_video_to_video(control=True),
    "CogVideoX": tiny.cogvideox,
    "CogVideoXImageToVideo": tiny.cogvideox_image_to_video,
    "CogVideoXVideoToVideo": tiny.cogvideox_video_to_video,
    "CycleDiffusion": tiny.stable_diffusion,
    "DiTPipeline": tiny.dit,
    "Flux": tiny.flux,
    "Flux2": None,
    "HiDream": tiny.hidream,
    "HunyuanSkyreels": tiny.hunyuan_video,
    "HunyuanVideo": tiny.hunyuan_video,
    "HunyuanVideo15": None,
    "HunyuanVideoFramepack": None,
    "LEditsPPPipelineStableDiffusion": tiny.stable_diffusion,
    "LTX": tiny.ltx,
    "LTX2": None,
    "Latte": tiny.latte,
    "LatentConsistencyModel": tiny.stable_diffusion,
    "LucyEdit": tiny.wan,
    "Marigold": tiny.stable_diffusion,
    "Mochi": tiny.mochi,
    "NucleusMoE": tiny.nucleus_moe,
    "PIA": tiny.animatediff,
    "PixArt": tiny.pixart,
    "Sana": tiny.sana,
    "SanaImageToVideo": None,
    "SanaVideo": None,
    "SemanticStableDiffusion": tiny.stable_diffusion,
    "StableDiffusion": tiny.stable_diffusion,
    "StableDiffusion3": tiny.stable_diffusion_3,
    "StableDiffusionControlNet": lambda: tiny.stable_diffusion(control=True),
    "StableUnCLIP": None,
    "StableDiffusionXL": tiny.stable_diffusion_xl,
    "StableDiffusionXLControlNet": lambda: tiny.stable_diffusion_xl(control=True),
    "TextToVideoZeroPipeline": tiny.stable_diffusion,
    "TextToVideoZeroSDXL": tiny.stable_diffusion_xl,
    "VisualClozeGeneration": tiny.flux,
    "Wan": tiny.wan,
    "WanAnimate": None,
    "WanImageToVideo": tiny.wan_image_to_video,
    "WanVACE": None,
}
"""Beginnings of names of pipelines that share components with a tiny one; the longest counts."""


class Processor:
    """Stands in for a processor that is asked about its tokens only, the embeddings being given."""

    tokenizer = text.qwen_tokenizer()

    def apply_chat_template(self, messages: Any, **settings: Any) -> list[list[int]]:
        return [[0]]


class Unchecked:
    """Stands in for a safety checker that has to be downloaded."""

    def to(self, device: Any) -> Unchecked:
        return self

    def check_text_safety(self, prompt: Any) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos(**changes: Any) -> dict[str, Any]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    return {"size": 32, "safety_checker": Unchecked(), "scheduler": scheduler} | changes


def _qwen(**changes: Any) -> dict[str, Any]:
    call = embeddings("prompt_embeds", "prompt_embeds_mask") | {"true_cfg_scale": 3.0}
    return {"text_encoder": None, "tokenizer": None, "processor": None, "call": call} | changes


def _qwen_edit() -> dict[str, Any]:
    """Of images that are made a megapixel whatever they are: few tokens by levels more than the usual four."""
    return _qwen(
        size=128, vae=parts.wan_vae("AutoencoderKLQwenImage", dim_mult=[1] * 6, temperal_downsample=[False] * 5)
    )


def _kandinsky_5(**changes: Any) -> dict[str, Any]:
    call = embeddings("prompt_embeds_qwen", pooled=("prompt_embeds_clip",))
    call |= {f"{which}prompt_cu_seqlens": torch.tensor([0, 8], dtype=torch.int32) for which in ("", "negative_")}
    return {"text_encoder": None, "tokenizer": None, "call": call} | changes


def _hunyuan_video_15(**changes: Any) -> dict[str, Any]:
    call = embeddings("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    return {"size": 32, **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer_2")), "call": call} | changes


def _easy_animate(**changes: Any) -> dict[str, Any]:
    call = embeddings("prompt_embeds", "prompt_attention_mask")
    return _absent("text_encoder", "tokenizer") | {"size": 32, "call": call} | changes


def _easy_animate_inpainting() -> dict[str, Any]:
    settings = _easy_animate(transformer=network("EasyAnimateTransformer3DModel", in_channels=9))
    settings["vae"] = network("AutoencoderKLMagvit")
    settings["vae"].register_to_config(cache_mag_vae=False)  # as the config file of a trained one says
    mask = torch.zeros(1, 1, 9, 32, 32)
    mask[..., 16:] = 255
    settings["call"] |= {"video": torch.rand(1, 3, 9, 32, 32), "mask_video": mask}
    return settings


def _dream_lite() -> dict[str, Any]:
    tokens = text.qwen_tokenizer()
    return {
        "text_encoder": text.vision_language_model(tokens),
        "tokenizer": tokens,
        "processor": None,
        "call": {"image": None, "max_sequence_length": 64},
        "prepare": lambda pipe: setattr(pipe, "prompt_template_encode_generate_start_idx", 0),
    }


def _glm_image() -> dict[str, Any]:
    call = embeddings("prompt_embeds") | {"image": None, "prior_token_ids": torch.arange(16)[None]}
    absent = _absent("tokenizer", "processor", "text_encoder", "vision_language_encoder")
    return absent | {"call": call}


def _ideogram() -> dict[str, Any]:
    tokens = text.qwen_tokenizer()
    encoder = text.vision_language_model(tokens, head="Model", layers=36)
    call = {"guidance_schedule": None}
    return {"size": 32, "text_encoder": encoder, "tokenizer": tokens, "call": call}


def _joy_image() -> dict[str, Any]:
    def take_small(pipe: Any) -> None:
        BUCKETS[32] = [(32, 32)]
        pipe.vae_image_processor.register_to_config(basesize=32)

    call = embeddings("prompt_embeds", "prompt_embeds_mask")
    absent = _absent("text_encoder", "tokenizer", "processor")
    return absent | {"size": 32, "call": call, "prepare": take_small}


def _krea_2() -> dict[str, Any]:
    masks = {name: value.bool() for name, value in embeddings("prompt_embeds_mask").items()}
    call = masks | {which: torch.randn(1, 8, 2, TEXT_WIDTH) for which in ("prompt_embeds", "negative_prompt_embeds")}
    return _absent("text_encoder", "tokenizer") | {"size": 32, "call": call}


def _long_cat() -> dict[str, Any]:
    tokens = text.qwen_tokenizer()
    encoder = text.vision_language_model(tokens, "Qwen2_5_VL")
    return {
        "text_encoder": encoder,
        "tokenizer": tokens,
        "text_processor": None,
        "vae": parts.image_vae(shift_factor=0.0, latent_channels=16),
        "transformer": network("LongCatImageTransformer2DModel", in_channels=64),
        "call": {"enable_prompt_rewrite": False},
    }


def _visual_cloze() -> dict[str, Any]:
    transformer = network("FluxTransformer2DModel", in_channels=48, out_channels=16)
    picture = parts.picture(32)
    call = {"task_prompt": text.PROMPT, "content_prompt": text.PROMPT, "image": [[picture, picture], [picture, None]]}
    return {"transformer": transformer, "resolution": 32, "call": call}


def _hunyuan_dit() -> dict[str, Any]:
    tokens = text.t5_tokenizer()
    return {"text_encoder_2": text.t5(tokens), "tokenizer_2": tokens}


def _sana_sprint() -> dict[str, Any]:
    transformer = network("SanaTransformer2DModel", guidance_embeds=True)
    return {"transformer": transformer, "scheduler": diffusers.SCMScheduler(), "call": {"num_inference_steps": 2}}


def _wan_from_image() -> dict[str, Any]:
    transformer = network("SkyReelsV2Transformer3DModel", in_channels=12, image_dim=16, added_kv_proj_dim=24)
    return {"size": 32, "transformer": transformer}


def _absent(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names)


def _bria_fibo_2() -> dict[str, Any]:
    call = embeddings("prompt_embeds_mask")
    call |= {which: torch.randn(1, 2, 8, TEXT_WIDTH) for which in ("prompt_embeds", "negative_prompt_embeds")}
    return _absent("text_encoder", "processor") | {"size": 32, "call": call}


def _chroma_inpainting() -> dict[str, Any]:
    transformer = network("ChromaTransformer2DModel")
    transformer.register_to_config(guidance_embeds=False)  # as the config file of a trained one says
    return {"transformer": transformer, "call": {"true_cfg_scale": 3.0, "negative_prompt": "a blue square"}}


def _consis_id() -> dict[str, Any]:
    torch.manual_seed(2)
    return {"size": 32, "call": {"id_cond": torch.randn(1, 8), "id_vit_hidden": [torch.randn(1, 4, 8)]}}


def _cosmos_2_5(**changes: Any) -> dict[str, Any]:
    transformer = network("CosmosTransformer3DModel", in_channels=5, **changes)
    scheduler = diffusers.UniPCMultistepScheduler(
        use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200.0, sigma_min=0.01
    )
    call = embeddings("prompt_embeds") | {"image": None, "num_latent_conditional_frames": 1}
    return _absent("text_encoder", "tokenizer") | {
        "size": 32,
        "safety_checker": Unchecked(),
        "transformer": transformer,
        "scheduler": scheduler,
        "call": call,
    }


def _cosmos_2_5_transfer() -> dict[str, Any]:
    settings = _cosmos_2_5(controlnet_block_every_n=2)
    settings["call"] |= {"num_frames_per_chunk": 5}
    return settings


def _hunyuan_image(**changes: Any) -> dict[str, Any]:
    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    guiders = {which: diffusers.AdaptiveProjectedMixGuidance() for which in ("guider", "ocr_guider")}
    absent = _absent("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return absent | guiders | {"call": embeddings(*names)} | changes


def _hunyuan_image_refiner() -> dict[str, Any]:
    transformer = network(
        "HunyuanImageTransformer2DModel",
        in_channels=16,
        out_channels=8,
        text_embed_2_dim=None,
        guidance_embeds=True,
        patch_size=(1, 1, 1),
        rope_axes_dim=(2, 2, 4),
    )
    return _hunyuan_image(transformer=transformer, guider=None)


def _motif_video() -> dict[str, Any]:
    call = embeddings("prompt_embeds", "prompt_attention_mask")
    return _absent("text_encoder", "tokenizer", "feature_extractor") | {"size": 32, "call": call}


def _qwen_2_1() -> dict[str, Any]:
    settings = _qwen(size=64, processor=Processor())
    settings["call"] |= {"image": None}
    return settings


def _deep_floyd(**changes: Any) -> dict[str, Any]:
    not_checked = _absent("safety_checker", "feature_extractor", "watermarker") | {"requires_safety_checker": False}
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range")
    unet = parts.unet(**{"in_channels": 3, "out_channels": 6} | changes)
    return not_checked | {"scheduler": scheduler, "unet": unet, "call": {"output_type": "pt"}}


def _deep_floyd_upscaling() -> dict[str, Any]:
    return _deep_floyd(in_channels=6, class_embed_type="timestep")


def _kandinsky_2_2(**changes: Any) -> dict[str, Any]:
    config = {
        "out_channels": 8,
        "addition_embed_type": "image",
        "encoder_hid_dim_type": "image_proj",
        "encoder_hid_dim": TEXT_WIDTH,
    }
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range")
    torch.manual_seed(2)
    call = {which: torch.randn(1, TEXT_WIDTH) for which in ("image_embeds", "negative_image_embeds")}
    return {"unet": parts.unet(**config | changes), "scheduler": scheduler, "call": call}


def _kandinsky_2_2_controlled() -> dict[str, Any]:
    settings = _kandinsky_2_2(in_channels=8, addition_embed_type="image_hint")
    settings["call"] |= {"hint": torch.rand(1, 3, 64, 64), "output_type": "pt"}
    return settings


def _marigold(targets: int = 1, **changes: Any) -> dict[str, Any]:
    unet = parts.unet(in_channels=4 + 4 * targets, out_channels=4 * targets)
    defaults = {"default_denoising_steps": 4, "default_processing_resolution": 16}
    return {"unet": unet, "call": {"output_type": "pt"}} | defaults | changes


def _unclip() -> dict[str, Any]:
    unet = parts.unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * TEXT_WIDTH)
    tokens = text.clip_tokenizer()
    return {
        "unet": unet,
        "image_encoder": text.clip_vision(),
        "feature_extractor": text.image_processor(),
        "prior_scheduler": diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        "prior_tokenizer": tokens,
        "prior_text_encoder": text.clip(tokens, projected=True, length=77),
    }


def _united_control() -> dict[str, Any]:
    return {"controlnet": network("ControlNetUnionModel"), "call": {"control_mode": [1]}}


def _small_flux_2() -> dict[str, Any]:
    return {"size": 64, "call": {"text_encoder_out_layers": (1,)}}


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "AllegroPipeline": lambda: {"size": 32},
    "BriaFibo2Pipeline": _bria_fibo_2,
    "BriaFiboEditPipeline": lambda: {
        "size": 32,
        "transformer": network("BriaFiboTransformer2DModel", in_channels=4),
        "call": {"prompt": '{"edit_instruction": "red"}', "_auto_resize": False},
    },
    "BriaFiboPipeline": lambda: {"size": 32, "transformer": network("BriaFiboTransformer2DModel", in_channels=4)},
    "ChromaInpaintPipeline": _chroma_inpainting,
    "ChronoEditPipeline": lambda: {"size": 32, "call": {"num_frames": 5}},
    "CogVideoXFunControlPipeline": lambda: {"transformer": video.cogvideox_transformer(in_channels=8)},
    "CogView4Pipeline": lambda: {"text_encoder": None, "call": embeddings("prompt_embeds")},
    "CogView4ControlPipeline": lambda: {
        "text_encoder": None,
        "call": embeddings("prompt_embeds"),
        "transformer": network("CogView4Transformer2DModel", in_channels=8),
    },
    "ConsisIDPipeline": _consis_id,
    "Cosmos2TextToImagePipeline": _cosmos,
    "Cosmos2VideoToWorldPipeline": lambda: _cosmos(transformer=network("CosmosTransformer3DModel", in_channels=5)),
    "Cosmos2_5_PredictBasePipeline": _cosmos_2_5,
    "Cosmos2_5_TransferPipeline": _cosmos_2_5_transfer,
    "DreamLiteMobilePipeline": _dream_lite,
    "DreamLitePipeline": _dream_lite,
    "EasyAnimateInpaintPipeline": _easy_animate_inpainting,
    "EasyAnimatePipeline": _easy_animate,
    "ErnieImagePipeline": lambda: {
        "text_encoder": None,
        "call": {which: [torch.randn(8, 16)] for which in ("prompt_embeds", "negative_prompt_embeds")},
    },
    "Flux2KleinInpaintPipeline": _small_flux_2,
    "Flux2KleinKVPipeline": _small_flux_2,
    "Flux2KleinPipeline": _small_flux_2,
    "Flux2Pipeline": lambda: {"size": 64, "text_encoder": None, "tokenizer": None, "call": embeddings("prompt_embeds")},
    "FluxControlImg2ImgPipeline": lambda: {
        "transformer": network("FluxTransformer2DModel", in_channels=32, out_channels=16)
    },
    "FluxControlInpaintPipeline": lambda: {
        "transformer": network("FluxTransformer2DModel", in_channels=32, out_channels=16)
    },
    "FluxControlPipeline": lambda: {"transformer": network("FluxTransformer2DModel", in_channels=32, out_channels=16)},
    "FluxFillPipeline": lambda: {"transformer": network("FluxTransformer2DModel", in_channels=48, out_channels=16)},
    "FluxKontextInpaintPipeline": lambda: {"call": {"_auto_resize": False, "max_area": 256}},
    "FluxKontextPipeline": lambda: {"call": {"_auto_resize": False, "max_area": 256}},
    "GlmImagePipeline": _glm_image,
    "HunyuanSkyreelsImageToVideoPipeline": lambda: {"transformer": video.hunyuan_video_transformer(in_channels=8)},
    "HunyuanDiTControlNetPipeline": _hunyuan_dit,
    "HunyuanDiTPAGPipeline": _hunyuan_dit,
    "HunyuanDiTPipeline": _hunyuan_dit,
    "HunyuanImagePipeline": _hunyuan_image,
    "HunyuanImageRefinerPipeline": _hunyuan_image_refiner,
    "HunyuanVideo15ImageToVideoPipeline": _hunyuan_video_15,
    "HunyuanVideo15Pipeline": _hunyuan_video_15,
    "HunyuanVideoFramepackPipeline": lambda: {
        "size": 32,
        "text_encoder_2": text.clip(text.clip_tokenizer(), length=77),
        "call": {"prompt_template": {"template": "{}", "crop_start": 0}, "latent_window_size": 3},
    },
    "HunyuanVideoImageToVideoPipeline": lambda: {
        "text_encoder": None,
        "transformer": video.hunyuan_video_transformer(image_condition_type="token_replace"),
        "call": embeddings("prompt_embeds", "prompt_attention_mask", pooled=("pooled_prompt_embeds",)),
    },
    "Ideogram4Pipeline": _ideogram,
    "IFImg2ImgPipeline": _deep_floyd,
    "IFImg2ImgSuperResolutionPipeline": _deep_floyd_upscaling,
    "IFInpaintingPipeline": _deep_floyd,
    "IFInpaintingSuperResolutionPipeline": _deep_floyd_upscaling,
    "IFPipeline": _deep_floyd,
    "IFSuperResolutionPipeline": _deep_floyd_upscaling,
    "JoyImageEditPipeline": _joy_image,
    "KandinskyV22ControlnetImg2ImgPipeline": _kandinsky_2_2_controlled,
    "KandinskyV22ControlnetPipeline": _kandinsky_2_2_controlled,
    "KandinskyV22Img2ImgPipeline": _kandinsky_2_2,
    "KandinskyV22InpaintPipeline": lambda: _kandinsky_2_2(in_channels=9),
    "KandinskyV22Pipeline": _kandinsky_2_2,
    "Kandinsky5I2IPipeline": lambda: _kandinsky_5(
        size=32,
        vae=network("AutoencoderKL"),
        transformer=network("Kandinsky5Transformer3DModel", visual_cond=True),
        prepare=lambda pipe: setattr(pipe, "resolutions", [(32, 32)]),
    ),
    "Kandinsky5I2VPipeline": lambda: _kandinsky_5(
        size=32, frames=17, transformer=network("Kandinsky5Transformer3DModel", visual_cond=True)
    ),
    "Kandinsky5T2IPipeline": _kandinsky_5,
    "Kandinsky5T2VPipeline": lambda: _kandinsky_5(size=32),
    "Krea2Pipeline": _krea_2,
    "LEditsPPPipelineStableDiffusion": lambda: {
        "scheduler": diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        "prepare": lambda pipe: pipe.invert(parts.picture(32), num_inversion_steps=4),
        "call": {"editing_prompt": [text.PROMPT], "use_intersect_mask": False},
    },
    "LatentConsistencyModelImg2ImgPipeline": lambda: {"scheduler": diffusers.LCMScheduler()},
    "LatentConsistencyModelPipeline": lambda: {"scheduler": diffusers.LCMScheduler()},
    "LongCatImagePipeline": _long_cat,
    "LucyEditPipeline": lambda: {"transformer": video.wan_transformer(in_channels=8)},
    "MarigoldDepthPipeline": _marigold,
    "MarigoldIntrinsicsPipeline": lambda: _marigold(
        targets=2, target_properties={"target_names": ["albedo", "roughness"]}
    ),
    "MarigoldNormalsPipeline": _marigold,
    "OvisImagePipeline": lambda: {
        "prepare": lambda pipe: setattr(pipe, "user_prompt_begin_id", 0),
        "call": {"max_sequence_length": 64},
    },
    "PRXPipeline": lambda: (
        _absent("text_encoder", "tokenizer")
        | {"vae": parts.image_vae(), "call": embeddings("prompt_embeds", "prompt_attention_mask")}
    ),
    "PIAPipeline": lambda: {"unet": parts.unet(in_channels=9)},
    "MotifVideoImage2VideoPipeline": _motif_video,
    "MotifVideoPipeline": _motif_video,
    "QwenImage21Pipeline": _qwen_2_1,
    "QwenImageControlNetInpaintPipeline": lambda: _qwen(
        controlnet=network("QwenImageControlNetModel", extra_condition_channels=4)
    ),
    "QwenImageControlNetPipeline": _qwen,
    "QwenImageEditInpaintPipeline": _qwen_edit,
    "QwenImageEditPipeline": _qwen_edit,
    "QwenImageEditPlusPipeline": _qwen_edit,
    "QwenImageImg2ImgPipeline": _qwen,
    "QwenImageInpaintPipeline": _qwen,
    "QwenImageLayeredPipeline": _qwen,
    "QwenImagePipeline": _qwen,
    "SanaImageToVideoPipeline": lambda: {"size": 32, "vae": parts.wan_vae()},
    "SanaSprintImg2ImgPipeline": _sana_sprint,
    "SanaSprintPipeline": _sana_sprint,
    "SanaVideoPipeline": lambda: {"size": 32, "vae": parts.wan_vae()},
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": lambda: {"size": 32},
    "SkyReelsV2DiffusionForcingPipeline": lambda: {"size": 32},
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": lambda: {"size": 32},
    "SkyReelsV2ImageToVideoPipeline": _wan_from_image,
    "SkyReelsV2Pipeline": lambda: {"size": 32},
    "StableDiffusion3ControlNetInpaintingPipeline": lambda: {
        "controlnet": network("SD3ControlNetModel", extra_conditioning_channels=1)
    },
    "StableDiffusion3InpaintPipeline": lambda: {
        "transformer": network("SD3Transformer2DModel", in_channels=33, out_channels=16),
        "vae": parts.image_vae(shift_factor=0.0, latent_channels=16),
    },
    "StableDiffusionControlNetInpaintPipeline": lambda: {"unet": parts.unet(in_channels=9)},
    "StableDiffusionDepth2ImgPipeline": lambda: {
        "unet": parts.unet(in_channels=5),
        "depth_estimator": None,
        "call": {"depth_map": torch.rand(1, 16, 16)},
    },
    "StableDiffusionImageVariationPipeline": lambda: {
        "image_encoder": text.clip_vision(),
        "feature_extractor": text.image_processor(),
    },
    "StableDiffusionInpaintPipeline": lambda: {"unet": parts.unet(in_channels=9)},
    "StableDiffusionInstructPix2PixPipeline": lambda: {"unet": parts.unet(in_channels=8)},
    "StableDiffusionLatentUpscalePipeline": lambda: {
        "scheduler": diffusers.EulerDiscreteScheduler(),
        "unet": parts.unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + TEXT_WIDTH),
    },
    "StableDiffusionUpscalePipeline": lambda: {"unet": parts.unet(in_channels=7, num_class_embeds=1000)},
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _united_control,
    "StableDiffusionXLControlNetUnionInpaintPipeline": _united_control,
    "StableDiffusionXLControlNetUnionPipeline": _united_control,
    "StableDiffusionXLInpaintPipeline": lambda: {"unet": parts.unet_sdxl(in_channels=9)},
    "StableDiffusionXLInstructPix2PixPipeline": lambda: {"unet": parts.unet_sdxl(in_channels=8)},
    "StableVideoDiffusionPipeline": lambda: {"image_encoder": text.clip_vision(size=224)},
    "StableUnCLIPImg2ImgPipeline": _unclip,
    "StableUnCLIPPipeline": _unclip,
    "WanVACEPipeline": lambda: {"size": 32, "transformer": network("WanVACETransformer3DModel")},
    "VisualClozeGenerationPipeline": _visual_cloze,
    "WanAnimatePipeline": lambda: {"size": 32, "call": {"segment_frame_length": 5}},
    "ZImageControlNetInpaintPipeline": lambda: {
        "tokenizer": text.qwen_tokenizer(),
        "controlnet": network("ZImageControlNetModel", control_in_dim=9),
    },
    "ZImageControlNetPipeline": lambda: {"tokenizer": text.qwen_tokenizer()},
    "ZImageImg2ImgPipeline": lambda: {"tokenizer": text.qwen_tokenizer()},
    "ZImageInpaintPipeline": lambda: {"tokenizer": text.qwen_tokenizer()},
    "ZImagePipeline": lambda: {"tokenizer": text.qwen_tokenizer()},
}
"""Components and arguments of a pipeline that a signature does not tell."""


def build(name: str) -> Built:
    """Make a tiny pipeline of a class.

    Raises:
        LookupError: no tiny model for one of its components.
    """
    settings = SETTINGS.get(name, dict)()
    source = LIKE[max((start for start in LIKE if name.startswith(start)), key=len, default="")]
    return like(source, name, **settings) if source else assemble(name, **settings)
