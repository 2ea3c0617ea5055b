"""CogVideoX (2B, 5B, 1.5): text to video by a transformer over space, time and text at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import nn

from w2sd_video.backends import register
from w2sd_video.backends.attention import set_attention
from w2sd_video.backends.loading import (
    Config,
    Memory,
    Source,
    check_same,
    check_settings,
    denoiser_config,
    filled,
    load_part,
    pipeline_class,
    place,
    spare_memory,
)
from w2sd_video.backends.prediction import Text, Words, guided_predictor, one_a_prompt
from w2sd_video.branch import Branch
from w2sd_video.sampler import Predict

_DENOISERS = ("CogVideoXTransformer3DModel",)
"""The class that a second transformer has to be of."""
_ARCHITECTURE = (
    "num_layers num_attention_heads attention_head_dim in_channels out_channels patch_size patch_size_t patch_bias "
    "time_embed_dim ofs_embed_dim text_embed_dim max_text_seq_length temporal_compression_ratio "
    "use_rotary_positional_embeddings use_learned_positional_embeddings"
).split()
"""What decides the shapes of the weights and the meaning of the tokens; sizes of the samples may differ."""


def load(
    pretrained: Source,
    *,
    weights: Mapping[str, Source | nn.Module] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "auto",
    memory: Memory = "device",
    attention: str = "sdpa",
    variant: str | None = None,
) -> CogVideoXPipeline:
    """Load a CogVideoX pipeline, and second transformers that share everything else with it.

    Args:
        pretrained: hub id or folder, `THUDM/CogVideoX-5b` for example.
        weights: second transformers by name, for `Branch(weights=name)`: a hub id or folder (of a pipeline, or of the
            transformer alone), or a module. Text encoder, VAE and tokenizer are not loaded again.
        dtype: None takes what the checkpoint was trained in (float16 for 2B, bfloat16 for the later ones), and on the
            CPU float32.
        device: "auto" is the accelerator if there is one.
        memory: `device` keeps all on the device; `offload` moves text encoder, transformers and VAE there in turn, the
            transformers together; `sequential` moves layer by layer and is slow.
        attention: `sdpa` is torch's own, `xformers`, `flash`, `sage` and others those of diffusers' dispatcher (see
            `w2sd_video.backends.attention.attention_names`).
        variant: of the files of `pretrained`, `fp16` for example.

    Returns:
        A stock `CogVideoXPipeline`, its VAE set to save memory.

    Raises:
        FileNotFoundError: a checkpoint that is not there.
        ValueError: a checkpoint of another class or shape, found before any weight is loaded; a setting that does not
            exist or cannot be had here.
        ModuleNotFoundError: xformers is asked for and not installed.
    """
    target, dtype = check_settings(device, dtype, memory, attention, native=partial(_native_dtype, pretrained))
    pipeline_class(pretrained, {"CogVideoXPipeline"})
    transformer_config, _ = denoiser_config(pretrained, CogVideoXTransformer3DModel, "transformer", _DENOISERS)
    subfolders = {name: _check_second(transformer_config, name, source) for name, source in (weights or {}).items()}

    pipe = load_part(CogVideoXPipeline, pretrained, dtype, variant=variant)
    spare_memory(pipe.vae)
    seconds = {}
    for name, source in (weights or {}).items():
        if isinstance(source, nn.Module):
            seconds[name] = source.eval()
        else:
            seconds[name] = load_part(CogVideoXTransformer3DModel, source, dtype, subfolders[name])
    for transformer in (pipe.transformer, *seconds.values()):
        set_attention(transformer, attention)
    place(pipe, "transformer", seconds.values(), target, memory)
    for name, module in seconds.items():
        register(pipe, name, module)
    return pipe


def predictor(
    pipe: CogVideoXPipeline,
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
        negative_prompt: text of the unconditional half.

    Returns:
        A function from latents (samples, frames, channels, height, width), a timestep of the scheduler and a role
        ("base", "strong", "weak") to a v prediction of the same shape and dtype.

    Raises:
        ValueError: weights or a LoRA that were not loaded; when called, a number of prompts that does not fit.
    """

    def encode(words: Words, negative: Words | None) -> tuple[Text, Text]:
        length = pipe.transformer.config.max_text_seq_length
        texts = [words] if isinstance(words, str) else list(words)
        with torch.no_grad():
            conditional, unconditional = pipe.encode_prompt(
                texts, one_a_prompt(negative or "", texts), True, max_sequence_length=length
            )
        return {"encoder_hidden_states": unconditional}, {"encoder_hidden_states": conditional}

    def evaluate(module: nn.Module, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        _, frames, _, height, width = latents.shape
        rotary = None
        if pipe.transformer.config.use_rotary_positional_embeddings:
            scale = pipe.vae_scale_factor_spatial
            rotary = pipe._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, latents.device)
        times = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        return module(latents, timestep=times, image_rotary_emb=rotary, return_dict=False, **text)[0]

    branches = {"base": base or Branch(), "strong": strong, "weak": weak}
    return guided_predictor(pipe, pipe.transformer, prompt, negative_prompt, branches, encode, evaluate)


def _check_second(transformer_config: Config, name: str, source: Source | nn.Module) -> str | None:
    """Refuse a second transformer of another architecture; return the subfolder of its checkpoint."""
    if isinstance(source, nn.Module):
        if not isinstance(source, CogVideoXTransformer3DModel):
            raise ValueError(f"weights[{name!r}] is a {type(source).__name__}; allowed are {', '.join(_DENOISERS)}")
        config, subfolder = filled(CogVideoXTransformer3DModel, source.config), None
    else:
        config, subfolder = denoiser_config(source, CogVideoXTransformer3DModel, "transformer", _DENOISERS)
    check_same(_architecture(transformer_config), _architecture(config), where=f"weights[{name!r}]")
    return subfolder


def _architecture(config: Mapping[str, Any]) -> Config:
    return {name: config.get(name) for name in _ARCHITECTURE}


def _native_dtype(pretrained: Source) -> torch.dtype:
    """Return what the checkpoint was trained in: 2B, the only one without rotary positions, is the float16 one."""
    config, _ = denoiser_config(pretrained, CogVideoXTransformer3DModel, "transformer", _DENOISERS)
    return torch.bfloat16 if config["use_rotary_positional_embeddings"] else torch.float16
