"""The files that a render writes: where they go, the clip or image itself, and its sidecar."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.rendering.video import contact_sheet, enlarge, side_by_side, write_picture, write_video, write_whole
from w2sd_video.settings.schema import RenderConfig


def outputs(config: RenderConfig) -> list[Path]:
    """Return the path of each prompt's clip: the output itself, or out-00.mp4, out-01.mp4, … for several prompts."""
    path, count = Path(config.output or ("w2sd.png" if config.frames == 1 else "w2sd.mp4")), len(config.prompts)
    if count == 1:
        return [path]
    digits = max(2, len(str(count - 1)))
    return [path.with_name(f"{path.stem}-{number:0{digits}d}{path.suffix}") for number in range(count)]


def write_clips(path: Path, clips: dict[str, np.ndarray], fps: float) -> None:
    """Write one clip, or several of one shape next to each other, each below its label."""
    is_picture, is_image = path.suffix.lower() == ".png", all(len(clip) == 1 for clip in clips.values())
    if is_picture and not is_image:
        return write_picture(path, contact_sheet(list(clips.values()), list(clips)))
    if len(clips) > 1:
        shown = side_by_side([enlarge(clip) for clip in clips.values()], list(clips))
    else:
        (clip,) = clips.values()
        shown = enlarge(clip) if path.suffix else clip  # a folder holds the frames as the model made them
    if is_picture:
        write_picture(path, shown[0])
    else:
        write_video(path, shown, fps)


def write_sidecar(
    path: Path, config: RenderConfig, nfe: dict[str, dict[str, int]], seconds: float, shape: tuple[int, ...]
) -> None:
    """Write beside an output how it was made: the configuration renders it again."""
    record = {
        "config": plain(config),
        "prompt": config.prompts[0],
        "seed": config.seed,
        "nfe": nfe,
        "seconds": seconds,
        "frames": list(shape),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("w2sd-video", "torch", "diffusers", "transformers")},
    }
    write_whole(Path(f"{path}.json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def plain(config: RenderConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as YAML and JSON can hold it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
