"""The files that a render writes: where they go, the clip or image itself, and its sidecar."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from w2sd_video.rendering.sheets import contact_sheet, enlarge, panel_boxes, side_by_side
from w2sd_video.rendering.video import write_picture, write_video
from w2sd_video.settings.identity import library_versions
from w2sd_video.settings.schema import BranchConfig, RenderConfig
from w2sd_video.writing import write_whole


def outputs(config: RenderConfig) -> list[Path]:
    """Return the path of each prompt's clip: the output itself, or out-00.mp4, out-01.mp4, … for several prompts."""
    path, count = Path(config.output or ("w2sd.png" if config.frames == 1 else "w2sd.mp4")), len(config.prompts)
    if count == 1:
        return [path]
    digits = max(2, len(str(count - 1)))
    return [path.with_name(f"{path.stem}-{number:0{digits}d}{path.suffix}") for number in range(count)]


def write_clips(
    path: Path,
    clips: dict[str, np.ndarray],
    fps: float,
    titles: Sequence[str] = (),
    caption: str = "",
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, tuple[int, int, int, int]]:
    """Write one clip, or several of one shape next to each other, each below its title.

    Args:
        path: the file or folder.
        clips: uint8 (frames, height, width, 3), by their labels.
        fps: frames a second.
        titles: what stands above each of several; their labels unless given.
        caption: what stands below several.
        about: plain data that goes into the file.

    Returns:
        Left, top, width and height of each of several clips in the file; nothing for one clip or a contact sheet.
    """
    titles, boxes = titles or list(clips), {}
    is_picture, is_image = path.suffix.lower() == ".png", all(len(clip) == 1 for clip in clips.values())
    if is_picture and not is_image:
        caption = caption if len(clips) > 1 else ""
        write_picture(path, contact_sheet(list(clips.values()), titles, caption=caption), about)
        return {}
    if len(clips) > 1:
        enlarged = [enlarge(clip) for clip in clips.values()]
        shown = side_by_side(enlarged, titles, caption=caption)
        boxes = dict(zip(clips, panel_boxes(len(clips), *enlarged[0].shape[1:3]), strict=True))
    else:
        (clip,) = clips.values()
        shown = enlarge(clip) if path.suffix else clip  # a folder holds the frames as the model made them
    if is_picture:
        write_picture(path, shown[0], about)
    else:
        write_video(path, shown, fps, about)
    return boxes


def titles_of(nfe: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return what stands above each clip: its label, and the network evaluations that it took."""
    return [f"{label}, {sum(counts.values())} NFE" for label, counts in nfe.items()]


def caption_of(config: RenderConfig) -> str:
    """Return what stands below the clips of a sample: its prompt and its seed."""
    return f"{config.prompts[0]} (seed {config.seed})"


def write_sample(
    path: Path,
    config: RenderConfig,
    clips: dict[str, np.ndarray],
    nfe: Mapping[str, Mapping[str, int]],
    seconds: float,
) -> dict[str, Any]:
    """Write the file of a sample, one clip or several side by side, and return its record (`record_of`)."""
    boxes = write_clips(path, clips, config.fps, titles_of(nfe), caption_of(config), about_sample(config, nfe))
    return record_of(config, nfe, seconds, next(iter(clips.values())).shape, boxes)


def about_sample(config: RenderConfig, nfe: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return what goes into the file of a sample: prompt, seed, network evaluations, settings and versions."""
    settings = plain(dataclasses.replace(config, output=None))
    sums = {label: sum(counts.values()) for label, counts in nfe.items()}
    return {
        "prompt": config.prompts[0],
        "seed": config.seed,
        "nfe": sums,
        "config": settings,
        "versions": versions(),
    }


def record_of(
    config: RenderConfig,
    nfe: Mapping[str, Mapping[str, int]],
    seconds: float,
    shape: tuple[int, ...],
    boxes: Mapping[str, tuple[int, int, int, int]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what is written beside an output: how it was made. The configuration renders it again.

    Args:
        config: of this one sample.
        nfe: network evaluations by label of the clip and by role.
        seconds: that the sample took.
        shape: of a clip, (frames, height, width, 3).
        boxes: where each clip is in the file, as `write_clips` returns it.
    """
    return {
        "config": plain(config),
        "prompt": config.prompts[0],
        "seed": config.seed,
        "nfe": {label: dict(counts) for label, counts in nfe.items()},
        "seconds": seconds,
        "frames": list(shape),
        "boxes": {label: list(box) for label, box in boxes.items()},
        "versions": versions(),
        "machine": machine(),
        "date": today(),
    }


def write_sidecar(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of an output beside it."""
    write_whole(Path(f"{path}.json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on."""
    return {"python": platform.python_version()} | library_versions()


def machine() -> str:
    """Return what samples are made on: the system, and its GPU or its number of cores."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return f"{platform.system()} {platform.machine()}, {device}"


def today() -> str:
    """Return the date and the time, of the zone without an offset, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def print_config(config: RenderConfig) -> None:
    """Print a configuration as YAML."""
    print(yaml.safe_dump(plain(config), sort_keys=False), end="")


def plain(config: RenderConfig | BranchConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as YAML and JSON can hold it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
