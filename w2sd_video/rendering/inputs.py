"""Pictures and videos that a pipeline is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.video import read_picture, read_video
from w2sd_video.settings.identity import Hashes, file_hash
from w2sd_video.settings.schema import RenderConfig

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
"""Endings of the files that are read as videos; all others are pictures."""


def read_inputs(config: RenderConfig) -> dict[str, Any]:
    """Read the pictures and videos that the pipeline is given: PIL images, and lists of them.

    Raises:
        ConfigError: one that is still to come, or that the ControlNet or the IP-Adapter lacks.
        VideoError: a file that is not there or cannot be decoded.
    """
    from PIL import Image

    given = config.inputs | config.call
    # What diffusers' pipelines call the picture of a ControlNet, and that of an IP-Adapter, before one is loaded.
    if config.model.controlnet and not {"image", "control_image", "conditioning_frames"} & set(given):
        raise ConfigError("inputs: a ControlNet needs its picture; add --inputs.image FILE (or --inputs.control_image)")
    if config.model.ip_adapter and not {"ip_adapter_image", "ip_adapter_image_embeds"} & set(given):
        raise ConfigError("inputs: an IP-Adapter needs a picture; add --inputs.ip_adapter_image FILE")
    read: dict[str, Any] = {}
    for name, path in input_files(config).items():
        if path.suffix.lower() in VIDEOS:
            read[name] = [Image.fromarray(frame) for frame in read_video(path)]
        else:
            read[name] = Image.fromarray(read_picture(path)[0])
    return read


def input_files(config: RenderConfig) -> dict[str, Path]:
    """Return the files of the inputs by the argument that each is.

    Raises:
        ConfigError: one that is still to come.
    """
    for name, path in config.inputs.items():
        if path is None:
            raise ConfigError(f"inputs.{name}: is needed by this configuration; add --inputs.{name} FILE")
    return {name: Path(str(path)) for name, path in config.inputs.items()}


def input_hashes(config: RenderConfig, hashes: Hashes) -> dict[str, str]:
    """Return the hash of each input's content; `hashes` as of `file_hash`.

    Raises:
        ConfigError: one that is still to come, or cannot be read.
    """
    return {name: file_hash(path, hashes) for name, path in input_files(config).items()}
