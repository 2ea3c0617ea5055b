"""DiT-MoE (S, B, XL, G): images of ImageNet's classes by a diffusion transformer of experts.

The paper's gap of experts: ``Branch(experts="top")`` against ``Branch(experts="bottom")``.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import nn

from w2sd_video.backends import register
from w2sd_video.backends.attention import set_attention
from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline
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

SIZES: dict[str, Config] = {
    "S/2-8E2A": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64, "num_experts": 8},
    "S/2-16E2A": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64, "num_experts": 16},
    "B/2-8E2A": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64, "num_experts": 8},
    "XL/2-8E2A": {
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_experts": 8,
        "qk_norm": True,
    },
    "G/2-16E2A": {
        "num_layers": 40,
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "num_experts": 16,
        "qk_norm": True,
    },
}
"""The published sizes: what differs from the model's defaults (256 pixels, 1000 classes, two experts a token)."""

RECTIFIED_FLOW = ("XL/2-8E2A", "G/2-16E2A")
"""The sizes published as rectified flow; the others predict epsilon for DDPM's linear schedule."""

VAE = "stabilityai/sd-vae-ft-mse"
"""The VAE that all of them were trained with."""

_DENOISERS = ("DiTMoETransformer2DModel",)
"""The class that a second transformer has to be of."""
_SUFFIXES = (".pt", ".pth", ".safetensors")
"""Endings of a published checkpoint or of the same converted, which tell it from a folder or a hub id."""
_SHOWN = 4
"""So many keys of a state dict are listed in a message, which hundreds would drown."""


def load(
    pretrained: Source,
    *,
    weights: Mapping[str, Source | nn.Module] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "auto",
    memory: Memory = "device",
    attention: str = "sdpa",
    variant: str | None = None,
    size: str | None = None,
    rectified_flow: bool | None = None,
    vae: Source = VAE,
) -> DiTMoEPipeline:
    """Load a DiT-MoE pipeline, and second transformers that share everything else with it.

    Args:
        pretrained: a published checkpoint (`dit_moe_s_8E2A.pt`, or the same as `.safetensors`), or a folder that
            `save_pretrained` wrote or its hub id.
        weights: second transformers by name, for `Branch(weights=name)`: a checkpoint file, a hub id or folder (of a
            pipeline, or of the transformer alone), or a module.
        dtype: None is float16 on an accelerator and float32 on the CPU.
        device: "auto" is the accelerator if there is one.
        memory: `device` keeps all on the device; `offload` moves transformers and VAE there in turn; `sequential` moves
            layer by layer and is slow.
        attention: `sdpa` is torch's own, `xformers`, `flash`, `sage` and others those of diffusers' dispatcher (see
            `w2sd_video.backends.attention.attention_names`).
        variant: of the files of a folder or hub id, `fp16` for example.
        size: of a checkpoint file, one of `SIZES`; None takes the published size that fits.
        rectified_flow: how the network of a checkpoint file was trained; None is as that size was published.
        vae: of a checkpoint file, a folder or hub id.

    Returns:
        A `DiTMoEPipeline`, with DDIM or the flow-matching Euler scheduler.

    Raises:
        FileNotFoundError: a checkpoint that is not there.
        ValueError: a checkpoint of another class or shape, one that holds more than tensors; a setting that does
            not exist or cannot be had here.
        ModuleNotFoundError: xformers is asked for and not installed.
    """
    target, dtype = check_settings(device, dtype, memory, attention, native=torch.float16)
    if size is not None and size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    if _is_file(pretrained):
        decoder = _load_vae(vae, dtype)
        transformer = load_checkpoint(pretrained, dtype, size=size, rectified_flow=rectified_flow)
        pipe = DiTMoEPipeline(
            transformer=transformer,
            vae=decoder,
            scheduler=published_scheduler(rectified_flow=transformer.config.timestep_scale != 1),
        )
    else:
        if (size, rectified_flow) != (None, None):
            raise ValueError("size and rectified_flow are for checkpoint files; a folder or hub id says both itself")
        pipeline_class(pretrained, {"DiTMoEPipeline"})
        pipe = load_part(DiTMoEPipeline, pretrained, dtype, variant=variant)
    seconds = {name: _load_second(pipe, name, source, dtype) for name, source in (weights or {}).items()}
    spare_memory(pipe.vae)
    for transformer in (pipe.transformer, *seconds.values()):
        set_attention(transformer, attention)
    place(pipe, "transformer", seconds.values(), target, memory)
    for name, module in seconds.items():
        register(pipe, name, module)
    return pipe


def load_checkpoint(
    path: Source,
    dtype: torch.dtype = torch.float32,
    *,
    size: str | None = None,
    rectified_flow: bool | None = None,
) -> DiTMoETransformer2DModel:
    """Load a published checkpoint, in eval mode on the CPU.

    Args:
        path: a `.pt`, `.pth` or `.safetensors` file. Of a training checkpoint the moving average is taken. Only tensors
            and plain values are read, never code.
        dtype: of the parameters.
        size: one of `SIZES`; None takes the one that fits.
        rectified_flow: whether the network was trained for times from 0 to 1; None is as that size was published.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds more than tensors, or keys or shapes that are not those of the size.
    """
    state = _read(Path(path).expanduser())
    size = check_state_dict(state, size, str(path))
    is_flow = size in RECTIFIED_FLOW if rectified_flow is None else rectified_flow
    with torch.device("meta"):
        # Rectified flow was trained on times from 0 to 1, where diffusers counts from 0 to 1000.
        model = DiTMoETransformer2DModel(**SIZES[size], timestep_scale=0.001 if is_flow else 1.0)
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return model.eval()


def published_scheduler(rectified_flow: bool) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of the published networks: rectified flow, or DDIM over the schedule they learned."""
    if rectified_flow:
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)


def check_state_dict(state: Mapping[str, torch.Tensor], size: str | None, name: str) -> str:
    """Return the size that a state dict has, after comparing every key and shape with it.

    Args:
        state: tensors by name.
        size: the size wanted; None for whichever fits.
        name: of the checkpoint, for the message.

    Raises:
        ValueError: names what is missing, extra or misshapen, and the size that fits, if one does.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    fitting = next((candidate for candidate in SIZES if shapes_of(candidate) == shapes), None)
    if fitting is not None and size in (None, fitting):
        return fitting
    if fitting is not None:
        advice = f"it is a {fitting}; pass size={fitting!r}, or none"
    else:
        advice = f"it is none of {', '.join(SIZES)}"
    closest = size or min(SIZES, key=lambda candidate: len(shapes_of(candidate).items() ^ shapes.items()))
    expected_shapes = shapes_of(closest)
    differences = {
        "missing": sorted(expected_shapes.keys() - shapes.keys()),
        "extra": sorted(shapes.keys() - expected_shapes.keys()),
        "misshapen": [
            f"{key} {shapes[key]} instead of {expected_shapes[key]}"
            for key in sorted(expected_shapes.keys() & shapes.keys())
            if expected_shapes[key] != shapes[key]
        ],
    }
    parts = "; ".join(f"{kind}: {_some(items)}" for kind, items in differences.items() if items)
    raise ValueError(f"{name!r} does not fit DiT-MoE-{closest}: {advice}. Compared with that size, {parts}")


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a published size by its name, without allocating any."""
    with torch.device("meta"):
        model = DiTMoETransformer2DModel(**SIZES[size])
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _is_file(source: Source) -> bool:
    return str(source).endswith(_SUFFIXES)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        # Training checkpoints hold the arguments of their training, a plain container of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a checkpoint of tensors: {error}") from error
    for key in (
        "ema",
        "model",
    ):  # training checkpoints hold both; the moving average goes before the weights themselves
        if isinstance(state, Mapping) and key in state:
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} holds no state dict, neither by itself nor under 'ema' or 'model'")
    return dict(state)


def _load_vae(source: Source, dtype: torch.dtype) -> AutoencoderKL:
    try:
        return load_part(AutoencoderKL, source, dtype)
    except OSError as error:
        raise FileNotFoundError(
            f"vae={str(source)!r} is neither a folder of an AutoencoderKL nor one on the hub that can be reached; "
            f"download {VAE} and pass its folder"
        ) from error


def _load_second(pipe: DiTMoEPipeline, name: str, source: Source | nn.Module, dtype: torch.dtype) -> nn.Module:
    """Load a second transformer, refusing another architecture before its weights are read."""
    where, architecture = f"weights[{name!r}]", _architecture(pipe.transformer.config)
    if isinstance(source, nn.Module):
        if not isinstance(source, DiTMoETransformer2DModel):
            raise ValueError(f"{where} is a {type(source).__name__}; allowed are {', '.join(_DENOISERS)}")
        check_same(architecture, _architecture(source.config), where=where)
        return source.eval()
    if _is_file(source):
        second = load_checkpoint(source, dtype, rectified_flow=pipe.transformer.config.timestep_scale != 1)
        check_same(architecture, _architecture(second.config), where=where)
        return second
    config, subfolder = denoiser_config(source, DiTMoETransformer2DModel, "transformer", _DENOISERS)
    check_same(architecture, _architecture(config), where=where)
    return load_part(DiTMoETransformer2DModel, source, dtype, subfolder)


def _architecture(config: Mapping[str, Any]) -> Config:
    values = filled(DiTMoETransformer2DModel, config)
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _some(items: list[str]) -> str:
    """List a few of many."""
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
