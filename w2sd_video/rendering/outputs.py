"""The files that a render writes: where they go, the clip or image itself, and its sidecar."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from w2sd_video.rendering.video import (
    contact_sheet,
    enlarge,
    panel_boxes,
    side_by_side,
    write_picture,
    write_video,
)
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import write_whole


def outputs(config: RenderConfig) -> list[Path]:
    """Return the path of each prompt's clip: the output itself, or out-00.mp4, out-01.mp4, … for several prompts."""
    path, count = Path(config.output or ("w2sd.png" if config.frames == 1 else "w2sd.mp4")), len(config.prompts)
    if count == 1:
        return [path]
    digits = max(2, len(str(count - 1)))
    return [path.with_name(f"{path.stem}-{number:0{digits}d}{path.suffix}") for number in range(count)]


def write_clips(
    path: Path, clips: dict[str, np.ndarray], fps: float, titles: Sequence[str] = (), caption: str = ""
) -> dict[str, tuple[int, int, int, int]]:
    """Write one clip, or several of one shape next to each other, each below its title.

    Args:
        path: the file or folder.
        clips: uint8 (frames, height, width, 3), by their labels.
        fps: frames a second.
        titles: what stands above each of several; their labels unless given.
        caption: what stands below several.

    Returns:
        Left, top, width and height of each of several clips in the file; nothing for one clip or a contact sheet.
    """
    titles, boxes = titles or list(clips), {}
    is_picture, is_image = path.suffix.lower() == ".png", all(len(clip) == 1 for clip in clips.values())
    if is_picture and not is_image:
        caption = caption if len(clips) > 1 else ""
        write_picture(path, contact_sheet(list(clips.values()), titles, caption=caption))
        return {}
    if len(clips) > 1:
        enlarged = [enlarge(clip) for clip in clips.values()]
        shown = side_by_side(enlarged, titles, caption=caption)
        boxes = dict(zip(clips, panel_boxes(len(clips), *enlarged[0].shape[1:3]), strict=True))
    else:
        (clip,) = clips.values()
        shown = enlarge(clip) if path.suffix else clip  # a folder holds the frames as the model made them
    if is_picture:
        write_picture(path, shown[0])
    else:
        write_video(path, shown, fps)
    return boxes


def write_sidecar(
    path: Path,
    config: RenderConfig,
    nfe: dict[str, dict[str, int]],
    seconds: float,
    shape: tuple[int, ...],
    boxes: Mapping[str, tuple[int, int, int, int]] = MappingProxyType({}),
) -> None:
    """Write beside an output how it was made: the configuration renders it again.

    Args:
        path: the output.
        config: of this one sample.
        nfe: network evaluations by label of the clip and by role.
        seconds: that the sample took.
        shape: of a clip, (frames, height, width, 3).
        boxes: where each clip is in the file, as `write_clips` returns it.
    """
    record = {
        "config": plain(config),
        "prompt": config.prompts[0],
        "seed": config.seed,
        "nfe": nfe,
        "seconds": seconds,
        "frames": list(shape),
        "boxes": {label: list(box) for label, box in boxes.items()},
        "versions": versions(),
        "machine": machine(),
        "date": today(),
    }
    write_whole(Path(f"{path}.json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on."""
    names = ("w2sd-video", "torch", "diffusers", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def machine() -> str:
    """Return what samples are made on: the system, and its GPU or its number of cores."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return f"{platform.system()} {platform.machine()}, {device}"


def today() -> str:
    """Return the date and the time, of the zone without an offset, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def plain(config: RenderConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as YAML and JSON can hold it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
