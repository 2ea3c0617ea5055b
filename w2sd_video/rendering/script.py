"""A script that makes the same frames: what a configuration does, as a few lines of Python to begin one's own from."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from w2sd_video.branch import Branch
from w2sd_video.rendering.call_arguments import call_arguments
from w2sd_video.rendering.inputs import VIDEOS
from w2sd_video.rendering.load import load_options
from w2sd_video.rendering.sample import reflection_arguments
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import locate


def script_of(pipe: Any, config: RenderConfig) -> str:
    """Return a script that loads a pipeline as `load` does, reflects it, and writes the clip of the first prompt.

    Args:
        pipe: as `load` returns it.
        config: of one sample.
    """
    from w2sd_video.plugin import reflection

    model = config.model
    given = call_arguments(pipe, config, config.prompts[:1], [config.seed])
    of_call = {name: repr(value) for name, value in given.items()}
    of_call["generator"] = f'[torch.Generator("cpu").manual_seed({config.seed})]'
    of_call |= {name: _input(str(path)) for name, path in config.inputs.items()}
    backend = import_module(f"w2sd_video.backends.{model.family}").load
    of_load = {"dtype": f"torch.{config.dtype}", **_but_defaults(backend, load_options(config))}
    of_reflection = _but_defaults(reflection, reflection_arguments(pipe, config))
    reads_videos = any(Path(str(path)).suffix.lower() in VIDEOS for path in config.inputs.values())
    makes_videos = "num_frames" in inspect.signature(type(pipe).__call__).parameters
    names = ["to_uint8", "write_video" if makes_videos else "write_picture", *(["read_video"] if reads_videos else [])]
    adapters = [
        f"pipe.load_lora_weights({locate(str(source))!r}, adapter_name={name!r})" for name, source in model.lora.items()
    ]
    write = (
        f'write_video("w2sd.mp4", to_uint8(result.frames[0]), fps={config.fps:g})'
        if makes_videos
        else 'write_picture("w2sd.png", to_uint8(result.images[0]))'
    )
    lines = [
        "import torch",
        *(["from PIL import Image"] if config.inputs else []),
        "",
        "from w2sd_video import Branch, reflection",
        f"from w2sd_video.backends.{model.family} import load",
        f"from w2sd_video.rendering.video import {', '.join(sorted(names))}",
        "",
        f"pipe = load({_arguments(of_load, repr(locate(model.pretrained)))})",
        *adapters,
        f"with reflection({_arguments(of_reflection, 'pipe')}):",
        f"    result = pipe({_arguments(of_call, indent=8)})",
        write,
    ]
    return "\n".join(lines) + "\n"


def _but_defaults(function: Any, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what the arguments of a function are written as, without those that say nothing."""
    parameters = inspect.signature(function).parameters
    return {
        name: _branch(value) if isinstance(value, Branch) else repr(value)
        for name, value in values.items()
        if value not in (parameters[name].default, None, {})
    }


def _arguments(values: Mapping[str, str], first: str = "", indent: int = 4) -> str:
    """Return arguments of a call, a line each, up to where its bracket closes."""
    lines = [*([first] if first else []), *(f"{name}={value}" for name, value in values.items())]
    return "\n".join(["", *(f"{' ' * indent}{line}," for line in lines), " " * (indent - 4)])


def _branch(branch: Branch) -> str:
    fields = {field.name: getattr(branch, field.name) for field in dataclasses.fields(branch)}
    return f"Branch({', '.join(f'{name}={value!r}' for name, value in fields.items() if value is not None)})"


def _input(path: str) -> str:
    """Return how a picture or a video of the inputs is read."""
    if Path(path).suffix.lower() in VIDEOS:
        return f"[Image.fromarray(frame) for frame in read_video({path!r})]"
    return f'Image.open({path!r}).convert("RGB")'
