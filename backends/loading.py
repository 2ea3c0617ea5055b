"""What loading has in common: finding a checkpoint, comparing it before it is loaded, placing it in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import deprecation_utils
from safetensors import safe_open
from torch import nn

from w2sd_video._moved import names_of
from w2sd_video.backends import Second
from w2sd_video.backends.attention import check_attention, check_name

__getattr__ = names_of(__name__)

Source = str | Path
Config = dict[str, Any]
Memory = Literal["device", "offload", "sequential"]

# Later versions of diffusers warn of the old name, earlier ones do not know the new one.
_DTYPE = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"

TILE_ABOVE = 256
"""Pixels; a VAE made for larger frames than this decodes in tiles."""


def pipeline_index(pretrained: Source) -> Config:
    """Return what a checkpoint's `model_index.json` says, without loading a weight.

    Args:
        pretrained: folder written by `save_pretrained`, or hub id.

    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be reached.
        ValueError: not a diffusers pipeline.
    """
    folder = _folder(pretrained)
    if folder and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{str(pretrained)!r} has no model_index.json, so it is not a diffusers pipeline; "
            "pass a folder that save_pretrained wrote, or a hub id"
        )
    return _config(DiffusionPipeline, pretrained, None)


def pipeline_class(pretrained: Source, allowed: Collection[str]) -> str:
    """Return the class that a checkpoint's `model_index.json` names (see `pipeline_index`).

    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be reached.
        ValueError: not a diffusers pipeline, or none of the classes in `allowed`.
    """
    name = pipeline_index(pretrained)["_class_name"]
    if name not in allowed:
        raise ValueError(f"{str(pretrained)!r} is a {name}; this backend loads {', '.join(sorted(allowed))}")
    return name


def denoiser_config(source: Source, model: Any, subfolder: str, allowed: Collection[str]) -> tuple[Config, str | None]:
    """Return the config of a denoiser, every default filled in, and the subfolder where it is (None: at the top).

    Args:
        source: folder or hub id of a pipeline with the denoiser in `subfolder`, or of the denoiser alone.
        model: diffusers class whose defaults stand in for what an old config leaves out.
        subfolder: `unet` or `transformer`.
        allowed: names of the denoiser classes that the backend can use.

    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be reached.
        ValueError: no denoiser there, or one of another class.
    """
    found_at: str | None = subfolder
    folder = _folder(source)
    if folder:
        if (folder / "config.json").is_file():
            found_at = None
        elif not (folder / subfolder / "config.json").is_file():
            raise ValueError(
                f"{str(source)!r} holds no denoiser: it has neither a config.json nor a {subfolder}/config.json"
            )
        config = _config(model, source, found_at)
    else:
        try:
            config = _config(model, source, subfolder)
        except FileNotFoundError:
            found_at, config = None, _config(model, source, None)
    name = config.get("_class_name")
    if name not in allowed:
        raise ValueError(f"the denoiser in {str(source)!r} is a {name}; allowed are {', '.join(sorted(allowed))}")
    return filled(model, config), found_at


def load_part(model: Any, source: Source, dtype: torch.dtype, subfolder: str | None = None, **arguments: Any) -> Any:
    """Call `from_pretrained` of a model or pipeline class."""
    subfolder_argument = {} if subfolder is None else {"subfolder": subfolder}
    return model.from_pretrained(str(Path(source).expanduser()), **{_DTYPE: dtype}, **subfolder_argument, **arguments)


def load_file(model: Any, source: Source, dtype: torch.dtype, **arguments: Any) -> Any:
    """Call `from_single_file` of a model or pipeline class."""
    return model.from_single_file(str(Path(source).expanduser()), **{_DTYPE: dtype}, **arguments)


def is_single_file(source: Any) -> bool:
    """Return whether a source is a `.safetensors` file, and not a folder, a hub id or a module."""
    return isinstance(source, (str, Path)) and Path(source).suffix == ".safetensors"


def kind_of_file(source: Source) -> str:
    """Return the class of pipeline that a single-file checkpoint is for, from the names of its tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither SD1.5 nor SDXL in the original layout.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(source)!r}")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    # A file has no config: the first convolution of the original UNet tells it, and SDXL alone embeds sizes as labels.
    if "model.diffusion_model.input_blocks.0.0.weight" not in names:
        raise ValueError(f"{str(source)!r} is not an SD1.5 or SDXL checkpoint in the original layout")
    sdxl = "model.diffusion_model.label_emb.0.0.weight" in names
    return "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline"


def filled(model: Any, config: Mapping[str, Any]) -> Config:
    """Return a config with the defaults of the model's constructor for what it leaves out."""
    parameters = inspect.signature(model.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return defaults | dict(config)


def check_same(own: Mapping[str, Any], other: Mapping[str, Any], *, where: str) -> None:
    """Refuse a second denoiser of another shape, by comparing configs.

    Raises:
        ValueError: names the first value that differs, both ways.
    """
    for name, value in own.items():
        if other.get(name) != value:
            raise ValueError(
                f"{where} has {name}={other.get(name)}, but the pipeline's denoiser has {name}={value}; "
                "the two must be of the same architecture"
            )


def check_settings(
    device: str | torch.device,
    dtype: torch.dtype | None,
    memory: str,
    attention: str,
    *,
    native: torch.dtype | Callable[[], torch.dtype],
) -> tuple[torch.device, torch.dtype]:
    """Check the settings that all backends share, and return the device and the dtype to load for.

    Args:
        device: "auto" is the accelerator if there is one.
        dtype: None is float32 on the CPU, and `native` elsewhere.
        memory: one of `Memory`.
        attention: one of `w2sd_video.backends.attention.attention_names`.
        native: the dtype for an accelerator, or what reads it from a checkpoint's config.

    Raises:
        ValueError: a setting that does not exist, or that cannot be had here.
        ModuleNotFoundError: xformers is asked for and not installed.
    """
    target = check_device(device)
    check_memory(memory, target)
    check_name(attention)
    if dtype is None and target.type == "cpu":
        dtype = torch.float32
    elif dtype is None:
        dtype = native if isinstance(native, torch.dtype) else native()
    check_attention(attention, target, dtype)
    return target, dtype


def check_device(device: str | torch.device) -> torch.device:
    """Return the device, "auto" standing for the accelerator if there is one, else the CPU.

    Raises:
        ValueError: a device that this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).tolist()  # which "meta" cannot do
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {str(device)!r}: not available on this machine; use auto or cpu") from error
    return torch.device(device)


def check_memory(memory: str, device: torch.device) -> None:
    """Refuse a memory setting that does not exist, or that has no accelerator to offload from.

    Raises:
        ValueError: the message names the value and what is allowed.
    """
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}; got {memory!r}")
    if memory != "device" and device.type == "cpu":
        raise ValueError(f"memory={memory!r} offloads from an accelerator to the CPU, but the device is the CPU")


def place(pipe: Any, denoiser: str, seconds: Iterable[Second], device: torch.device, memory: Memory) -> None:
    """Put a pipeline and its second denoisers where the memory setting says.

    - `device`: everything stays on the device.
    - `offload`: each part is on the device while it works. Both denoisers work at every step, so they stay there
      together until another part is called: one transfer each a video, and memory for the two of them.
    - `sequential`: every layer comes to the device for its own call. Slow; for the least memory.
    """
    pairs = [second if isinstance(second, tuple) else (second,) for second in seconds]
    placed = [pair for modules in pairs for pair in zip((denoiser, f"{denoiser}_2"), modules, strict=False)]
    if memory == "device":
        pipe.to(device)
        for _, module in placed:
            module.to(device)
    elif memory == "offload":
        pipe.enable_model_cpu_offload(device=device)
        for name, module in placed:
            _offload_with(pipe, name, module, device)
    else:
        from accelerate import cpu_offload

        pipe.enable_sequential_cpu_offload(device=device)
        for _, module in placed:
            cpu_offload(module, device)


def _offload_with(pipe: Any, denoiser: str, second: nn.Module, device: torch.device) -> None:
    """Bring a second denoiser to the device at its first call, and take it away when another part is called.

    These are torch's own hooks, since diffusers takes accelerate's hooks off and on again at the end of each call.
    """

    def arrive(module: nn.Module, _: Any) -> None:
        module.to(device)

    def leave(module: nn.Module, _: Any) -> None:
        second.to("cpu")

    second.to("cpu")
    second.register_forward_pre_hook(arrive)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in (denoiser, "controlnet"):  # they work at every step together
            # A VAE is called by its encode and decode, which pass its own hooks by.
            parts: Iterable[Any] = (part.encoder, part.decoder) if name == "vae" else (part,)
            for called in parts:
                called.register_forward_pre_hook(leave)


def spare_memory(vae: Any) -> None:
    """Let a VAE decode one sample at a time, and in tiles where its frames are large; small ones decode whole.

    A VAE that has no such modes is left as it is.
    """
    if not hasattr(vae, "enable_slicing"):
        return
    vae.enable_slicing()
    size = vae.config.get("sample_height") or vae.config.get("sample_size") or 0
    if size > TILE_ABOVE:
        vae.enable_tiling()


def _folder(source: Source) -> Path | None:
    """Return the folder that the source names, None for a hub id, and refuse what can only be a missing folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    # A hub id is owner/name and nothing else, so that a mistyped path is not asked for on the hub.
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local or path.exists():
        raise FileNotFoundError(
            f"there is no folder {str(source)!r}; pass one that save_pretrained wrote, or a hub id like 'owner/name'"
        )
    return None


def _config(model: Any, source: Source, subfolder: str | None) -> Config:
    try:
        return dict(
            model.load_config(str(Path(source).expanduser()), **({"subfolder": subfolder} if subfolder else {}))
        )
    except OSError as error:
        if Path(source).expanduser().is_dir():
            raise ValueError(f"the config in {str(source)!r} cannot be read: {error}") from error
        raise FileNotFoundError(
            f"{str(source)!r} is neither a folder here nor a model on the hub that can be reached; pass a folder that "
            f"save_pretrained wrote, or a hub id (download it first if this machine is offline)"
        ) from error
