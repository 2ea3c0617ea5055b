"""AnimateDiff on SD1.5 and SDXL: a text-to-image UNet with layers for motion between its own."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from einops import repeat
from torch import nn

from w2sd_video.backends import register
from w2sd_video.backends.attention import check_class, set_attention
from w2sd_video.backends.loading import (
    Config,
    Memory,
    Source,
    check_same,
    check_settings,
    denoiser_config,
    filled,
    is_single_file,
    kind_of_file,
    load_file,
    load_part,
    pipeline_class,
    place,
    spare_memory,
)
from w2sd_video.backends.motion_layers import drop_motion, motion_config, same_motion, share_motion, with_motion
from w2sd_video.backends.prediction import Text, Words, guided_predictor, one_a_prompt
from w2sd_video.backends.split_attention import split_motion_attention
from w2sd_video.branch import Branch
from w2sd_video.sampler import Predict

Pipeline: TypeAlias = AnimateDiffPipeline | AnimateDiffSDXLPipeline

_STOCK = {"StableDiffusionPipeline": AnimateDiffPipeline, "StableDiffusionXLPipeline": AnimateDiffSDXLPipeline}
"""The pipelines of images that a motion adapter makes one of videos."""
_SAVED = {"AnimateDiffPipeline": AnimateDiffPipeline, "AnimateDiffSDXLPipeline": AnimateDiffSDXLPipeline}
"""The pipelines of videos that are loaded as they are."""
_ADAPTERS = {
    AnimateDiffPipeline: "guoyww/animatediff-motion-adapter-v1-5-3",
    AnimateDiffSDXLPipeline: "guoyww/animatediff-motion-adapter-sdxl-beta",
}
"""The motion adapter that is loaded where none is named: the authors' latest for each."""
_DENOISERS = ("UNet2DConditionModel", "UNetMotionModel")
"""The UNets that fit these pipelines, without motion layers and with them."""
_ARCHITECTURE = (
    "addition_embed_type in_channels out_channels block_out_channels layers_per_block num_attention_heads "
    "transformer_layers_per_block cross_attention_dim norm_num_groups use_linear_projection addition_time_embed_dim "
    "projection_class_embeddings_input_dim time_cond_proj_dim"
).split()
"""What decides the shapes of a UNet's weights and its heads, so that a second one is compared before it is loaded."""
# What the motion layers were trained with; stock SD and SDXL repositories say otherwise.
_SCHEDULE = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "linspace", "steps_offset": 1}


def load(
    pretrained: Source,
    *,
    motion_adapter: Source | MotionAdapter | None = None,
    weights: Mapping[str, Source | nn.Module] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "auto",
    memory: Memory = "device",
    attention: str = "sdpa",
    variant: str | None = None,
    config: Source | None = None,
) -> Pipeline:
    """Load an AnimateDiff pipeline, and second UNets that share everything else with it, motion layers included.

    Stock SD1.5 and SDXL checkpoints get the scheduler that the motion layers were trained for (DDIM, linear betas, no
    clipping of samples); a saved AnimateDiff pipeline keeps its own, without clipping.

    Args:
        pretrained: hub id, folder or single `.safetensors` file of an SD1.5 or SDXL checkpoint; or folder of a saved
            AnimateDiff pipeline.
        motion_adapter: hub id, folder or module (taken over, not copied); None is the saved pipeline's own, or the
            usual one for the checkpoint.
        weights: second UNets by name, for `Branch(weights=name)`: a hub id or folder (of a pipeline, or of the UNet
            alone), a single file, or a module. A UNet saved with motion layers of its own keeps them if they differ.
        dtype: None is float16, and float32 on the CPU.
        device: "auto" is the accelerator if there is one.
        memory: `device` keeps all on the device; `offload` moves text encoders, UNets and VAE there in turn, the UNets
            together; `sequential` moves layer by layer and is slow.
        attention: `sdpa` is torch's own, `xformers` needs CUDA and the extra of that name.
        variant: of the files of `pretrained`, `fp16` for example.
        config: hub id or folder with the configs of a single file; None lets diffusers find it on the hub.

    Returns:
        A stock `AnimateDiffPipeline` or `AnimateDiffSDXLPipeline`, its VAE set to save memory.

    Raises:
        FileNotFoundError: a checkpoint that is not there.
        ModuleNotFoundError: xformers is asked for and not installed.
        ValueError: a checkpoint of another class or shape, found before its weights are loaded; a setting that does not
            exist or cannot be had here.
    """
    target, dtype = check_settings(device, dtype, memory, attention, native=torch.float16)
    check_class(UNet2DConditionModel, {}, attention)
    weights = weights or {}
    if is_single_file(pretrained):
        pipe = _load_file(pretrained, motion_adapter, weights, dtype, config)
    else:
        pipe = _load_folder(pretrained, motion_adapter, weights, dtype, variant)
    spare_memory(pipe.vae)

    seconds = {name: _load_second(pipe.unet, source, dtype, config) for name, source in weights.items()}
    # The motion layers belong to the pipeline's UNet while things are placed: hooks of offloading must not double.
    adapter, pipe.motion_adapter = pipe.motion_adapter, None
    place(pipe, "unet", seconds.values(), target, memory)
    pipe.motion_adapter = adapter
    for model in (adapter, *seconds.values()):
        if model is not None:
            share_motion(model, pipe.unet)
    for unet in (pipe.unet, *seconds.values()):
        set_attention(unet, attention)
        split_motion_attention(unet, attention)
    for name, unet in seconds.items():
        register(pipe, name, unet)
    return pipe


def predictor(
    pipe: Pipeline,
    prompt: Words,
    *,
    strong: Branch,
    weak: Branch,
    base: Branch | None = None,
    negative_prompt: Words | None = None,
) -> Predict:
    """Return `predict(latents, timestep, role)` for `w2sd_video.sampler.sample` or a loop of one's own.

    Each prompt is encoded once, here. A prediction at a guidance scale of 1 evaluates only the conditional half, one at
    0 only the unconditional one. No gradients.

    Args:
        pipe: as `load` returns it.
        prompt: one for all samples, or one a sample.
        strong: setting of the prediction that reflection goes down by.
        weak: setting of the prediction that it comes back by.
        base: setting of the step that counts; None is the pipeline's own, guided by the default scale of its call.
        negative_prompt: text of the unconditional half; None is the pipeline's own choice.

    Returns:
        A function from latents (samples, channels, frames, height, width) as the network wants them, a timestep of the
        scheduler and a role ("base", "strong", "weak") to a prediction of the same shape and dtype.

    Raises:
        ValueError: weights or a LoRA that were not loaded; when called, a number of prompts that does not fit.
    """
    sdxl = isinstance(pipe, AnimateDiffSDXLPipeline)

    def encode(words: Words, negative: Words | None) -> tuple[Text, Text]:
        texts = [words] if isinstance(words, str) else list(words)
        with torch.no_grad():
            encoded = pipe.encode_prompt(
                prompt=texts,
                device=pipe._execution_device,
                do_classifier_free_guidance=True,
                negative_prompt=None if negative is None else one_a_prompt(negative, texts),
                **{"num_videos_per_prompt" if sdxl else "num_images_per_prompt": 1},
            )
        names = ("encoder_hidden_states", "text_embeds")
        # diffusers gives (conditional, unconditional) of the tokens, and for SDXL the same of the pooled text.
        conditional = dict(zip(names, encoded[0::2], strict=False))
        unconditional = dict(zip(names, encoded[1::2], strict=False))
        return unconditional, conditional

    def evaluate(module: nn.Module, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        frames = latents.shape[2]
        tokens = repeat(
            text["encoder_hidden_states"], "samples tokens width -> (samples frames) tokens width", frames=frames
        )
        added = _sdxl_conditions(pipe, latents, text["text_embeds"]) if sdxl else None
        return module(latents, timestep, tokens, added_cond_kwargs=added, return_dict=False)[0]

    branches = {"base": base or Branch(), "strong": strong, "weak": weak}
    return guided_predictor(pipe, pipe.unet, prompt, negative_prompt, branches, encode, evaluate)


def _sdxl_conditions(pipe: Any, latents: torch.Tensor, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what SDXL is told besides tokens: the pooled text, and that nothing was resized or cropped."""
    size = tuple(length * pipe.vae_scale_factor for length in latents.shape[-2:])
    width = pipe.text_encoder_2.config.projection_dim
    times = pipe._get_add_time_ids(size, (0, 0), size, pooled.dtype, text_encoder_projection_dim=width)
    return {"text_embeds": pooled, "time_ids": times.to(pooled.device).expand(len(pooled), -1)}


def _load_folder(
    pretrained: Source,
    motion_adapter: Source | MotionAdapter | None,
    weights: Mapping[str, Source | nn.Module],
    dtype: torch.dtype,
    variant: str | None,
) -> Pipeline:
    """Load the pipeline of a hub id or folder, once every config is known to fit."""
    class_name = pipeline_class(pretrained, {*_STOCK, *_SAVED})
    saved, family = class_name in _SAVED, (_STOCK | _SAVED)[class_name]
    if saved and motion_adapter is not None:
        raise ValueError(
            f"{str(pretrained)!r} is an AnimateDiff pipeline and has a motion adapter; leave motion_adapter out"
        )
    unet_config, _ = denoiser_config(pretrained, UNet2DConditionModel, "unet", _DENOISERS)
    _check_seconds(unet_config, weights)

    parts: dict[str, Any] = {}
    if unet_config["_class_name"] == "UNet2DConditionModel":
        adapter = _load_adapter(pretrained if saved else motion_adapter or _ADAPTERS[family], unet_config, dtype)
        parts = _animated(load_part(UNet2DConditionModel, pretrained, dtype, "unet", variant=variant), adapter)
    pipe = load_part(family, pretrained, dtype, variant=variant, **parts)
    if not saved:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **_SCHEDULE)
    elif pipe.scheduler.config.get("clip_sample"):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, clip_sample=False)
    if pipe.motion_adapter is not None and not parts:
        # A saved pipeline stores the motion layers twice; those in the UNet are the ones that run.
        drop_motion(pipe.motion_adapter)
    return pipe


def _load_file(
    pretrained: Source,
    motion_adapter: Source | MotionAdapter | None,
    weights: Mapping[str, Source | nn.Module],
    dtype: torch.dtype,
    config: Source | None,
) -> Pipeline:
    """Load the pipeline of a single-file checkpoint; diffusers finds its configs on the hub, or in `config`."""
    class_name = kind_of_file(pretrained)
    family = _STOCK[class_name]
    config_argument = {} if config is None else {"config": str(config)}
    stock = load_file(getattr(diffusers, class_name), pretrained, dtype, **config_argument)
    unet_config = filled(UNet2DConditionModel, stock.unet.config)
    _check_seconds(unet_config, weights)
    scheduler = DDIMScheduler.from_config(stock.scheduler.config, **_SCHEDULE)
    parts = _animated(stock.unet, _load_adapter(motion_adapter or _ADAPTERS[family], unet_config, dtype))
    parts = stock.components | parts | {"scheduler": scheduler}
    return family(**{name: part for name, part in parts.items() if name in signature(family).parameters})


def _animated(flat: UNet2DConditionModel, adapter: MotionAdapter) -> dict[str, Any]:
    """Return the parts of a pipeline whose UNet has the motion layers of the adapter."""
    unet = with_motion(flat, motion_config(flat, adapter))
    share_motion(unet, adapter)
    return {"unet": unet, "motion_adapter": adapter}


def _load_adapter(source: Source | MotionAdapter, unet_config: Config, dtype: torch.dtype) -> MotionAdapter:
    """Load a motion adapter, once its config is known to fit the UNet's."""
    if isinstance(source, MotionAdapter):
        config, subfolder = filled(MotionAdapter, source.config), None
    else:
        config, subfolder = denoiser_config(source, MotionAdapter, "motion_adapter", ("MotionAdapter",))
    if config["conv_in_channels"] is not None:
        raise ValueError("the motion adapter is one of PIA, which conditions on an image; pass one of AnimateDiff")
    for name, adapter_name in (
        ("block_out_channels", "block_out_channels"),
        ("layers_per_block", "motion_layers_per_block"),
    ):
        if _per_block(config[adapter_name]) != _per_block(unet_config[name]):
            raise ValueError(
                f"the motion adapter has {adapter_name}={config[adapter_name]}, but the UNet has "
                f"{name}={unet_config[name]}; pass a motion adapter that was made for this checkpoint"
            )
    if isinstance(source, MotionAdapter):
        return source.to(dtype).eval()  # its layers become the pipeline's
    return load_part(MotionAdapter, source, dtype, subfolder)


def _check_seconds(unet_config: Config, weights: Mapping[str, Source | nn.Module]) -> None:
    """Refuse second UNets of another architecture, before any weights are loaded."""
    for name, source in weights.items():
        where = f"weights[{name!r}]"
        if isinstance(source, nn.Module):
            if type(source).__name__ not in _DENOISERS:
                raise ValueError(f"{where} is a {type(source).__name__}; allowed are {', '.join(_DENOISERS)}")
            config = filled(type(source), dict(source.config))  # type: ignore[arg-type]
        elif is_single_file(source):
            sdxl = kind_of_file(source) == "StableDiffusionXLPipeline"
            if sdxl != (unet_config["addition_embed_type"] == "text_time"):
                kinds = ("SD1.5", "SDXL") if sdxl else ("SDXL", "SD1.5")
                raise ValueError(f"{where} is an {kinds[1]} checkpoint, but the pipeline's is an {kinds[0]} one")
            continue
        else:
            config, _ = denoiser_config(source, UNet2DConditionModel, "unet", _DENOISERS)
        check_same(_architecture(unet_config), _architecture(config), where=where)


def _load_second(
    unet: UNetMotionModel, source: Source | nn.Module, dtype: torch.dtype, config: Source | None
) -> UNetMotionModel:
    """Load a second UNet, the places of motion layers that it shares with the first left empty."""
    if isinstance(source, nn.Module):
        return source.eval() if isinstance(source, UNetMotionModel) else with_motion(source, unet.config)
    if is_single_file(source):
        config_arguments = {} if config is None else {"config": str(config), "subfolder": "unet"}
        flat = load_file(UNet2DConditionModel, source, dtype, **config_arguments)
        check_same(_architecture(unet.config), _architecture(flat.config), where=repr(str(source)))
        return with_motion(flat, unet.config)
    second_config, subfolder = denoiser_config(source, UNet2DConditionModel, "unet", _DENOISERS)
    if second_config["_class_name"] == "UNet2DConditionModel":
        return with_motion(load_part(UNet2DConditionModel, source, dtype, subfolder), unet.config)
    second = load_part(UNetMotionModel, source, dtype, subfolder)
    if same_motion(second, unet):
        drop_motion(second)
    return second


def _architecture(config: Mapping[str, Any]) -> Config:
    """Return what decides the shapes of a UNet's weights, written alike for UNets with motion layers and without."""
    config = {**config, "num_attention_heads": config.get("num_attention_heads") or config.get("attention_head_dim")}
    # CrossAttnDownBlockMotion is CrossAttnDownBlock2D with motion layers, and so on.
    kinds = {
        name: [kind.replace("Motion", "2D") for kind in config[name]] for name in ("down_block_types", "up_block_types")
    }
    return {name: _per_block(config.get(name)) for name in _ARCHITECTURE} | kinds


def _per_block(value: Any) -> Any:
    """Return a config's number, or its number for every block if they are all the same, or the list of them."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values[0] if all(number == values[0] for number in values) else values
