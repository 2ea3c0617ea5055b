"""Real clips with their captions: of a folder, or of the miniatures' world. An image is a clip of one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from w2sd_video.calibration.gap import FEWEST_CLIPS
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.inputs import VIDEOS
from w2sd_video.rendering.video import read_picture, read_video
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import index_of, is_class_conditional, world_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of the files that are read as images."""


@dataclass(frozen=True)
class Clip:
    """A clip that is read when it is needed.

    Attributes:
        name: of its file, or what it is.
        caption: the prompt that it goes with; of a class-conditional model the number or the name of a class.
        read: returns its frames, uint8 (frames, height, width, 3).
    """

    name: str
    caption: str
    read: Callable[[], np.ndarray]


def clips_of_folder(folder: Path, config: RenderConfig) -> list[Clip]:
    """Return the videos and images of a folder, in order of their names; a folder in it is a video's frames.

    The caption of `a.mp4`, `a.png` or the folder `a` is what `a.txt` says. Where no clip has one, the captions are the
    prompts of the configuration: one for all, or as many as there are clips.

    Raises:
        ConfigError: no such folder, no clips in it, or clips without a caption.
    """
    if not folder.is_dir():
        raise ConfigError(f"clips {folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in (*VIDEOS, *PICTURES))
    if not files:
        raise ConfigError(f"clips {folder}: holds no clips; known endings are {', '.join((*VIDEOS, *PICTURES))}")
    caption_files = [path.with_suffix(".txt") for path in files]
    missing = [text.name for text in caption_files if not text.is_file()]
    if not missing:
        captions = [_text_of(text) for text in caption_files]
    elif len(missing) == len(files) and len(config.prompts) in (1, len(files)):
        captions = config.prompts * (len(files) // len(config.prompts))
    elif len(missing) == len(files):
        raise ConfigError(
            f"clips {folder}: {len(files)} clips without captions, but {len(config.prompts)} prompts; write each "
            f"clip's caption into a file like {missing[0]}, or give one prompt for all"
        )
    else:
        raise ConfigError(f"clips {folder}: there is no {missing[0]}; write the clip's caption into it")
    return [Clip(str(path), caption, partial(_read, path)) for path, caption in zip(files, captions, strict=True)]


def clips_of_world(config: RenderConfig, count: int, seed: int) -> list[Clip]:
    """Return clips of the miniatures' world, with prompts in turn; they were in no training set but by chance."""
    prompts = known_prompts(config)
    order = np.random.default_rng(seed).permutation(len(prompts))
    first_seed = 3 * 10**6 + seed * 10**4  # above the seeds of samples, and clips of other seeds differ
    return real_clips(config, [prompts[order[k % len(prompts)]] for k in range(count)], first_seed)


def known_prompts(config: RenderConfig) -> list[str]:
    """Return what a miniature can be asked for: all prompts of the world, or the names of its classes."""
    from w2sd_video.miniatures import scenes, world

    if is_class_conditional(config.model):
        return list(index_of(config.model)["id2label"].values())
    return list(scenes.prompts()) if world_of(config.model) == "scenes" else world.prompts()


def real_clips(config: RenderConfig, prompts: Sequence[str], first_seed: int) -> list[Clip]:
    """Return a clip of the miniatures' world for each prompt, as the model should make it; with a LoRA in its style.

    The seeds follow from `first_seed`; those below a million belong to samples. Of Fashion-MNIST it is a picture of the
    test, of which there are a hundred a class.
    """
    from w2sd_video.miniatures import fashion, scenes, world

    frames, of_world = config.frames or 1, world_of(config.model)
    read: Callable[[str, int], np.ndarray]
    if of_world == "scenes":
        read = partial(_scene, scenes.STYLES[bool(config.model.lora)], frames)
    elif of_world == "fashion":
        read = fashion.picture
    else:
        read = partial(_sprite, world.COMET if config.model.lora else world.TRAIL, frames)
    return [
        Clip(f"{prompt} (seed {seed})", prompt, partial(read, prompt, seed))
        for seed, prompt in enumerate(prompts, first_seed)
    ]


def _scene(style: str, frames: int, prompt: str, seed: int) -> np.ndarray:
    from w2sd_video.miniatures import scenes

    return scenes.clip(prompt, seed, frames, style)


def _sprite(trail: tuple[tuple[float, float], ...], frames: int, prompt: str, seed: int) -> np.ndarray:
    from w2sd_video.miniatures import world

    return world.clip(prompt, seed, frames, trail)


def check_clips(clips: Sequence[Clip], config: RenderConfig) -> None:
    """Read every clip once, before any model is loaded, and refuse what cannot be used.

    Raises:
        ConfigError: fewer than 8 clips, or one of another size than the configuration's or the first clip's.
        VideoError: one that cannot be decoded.
    """
    if len(clips) < FEWEST_CLIPS:
        raise ConfigError(f"clips: {len(clips)} found; at least {FEWEST_CLIPS} are needed to tell a gap from chance")
    configured = (config.frames, config.height, config.width)
    first_shape = clips[0].read().shape[:3]
    wanted = frames, height, width = [size or read for size, read in zip(configured, first_shape, strict=True)]
    for clip in clips:
        if (shape := list(clip.read().shape[:3])) != wanted:
            raise ConfigError(
                f"clip {clip.name}: {_size(shape)}, but the model is asked for {_size(wanted)}; cut and scale the "
                f"clips first (ffmpeg -i IN -vf scale={width}:{height} -frames:v {frames} OUT), or set --frames, "
                "--height and --width"
            )


def _read(path: Path) -> np.ndarray:
    if not path.is_dir():
        return read_video(path) if path.suffix.lower() in VIDEOS else read_picture(path)
    pictures = sorted(picture for picture in path.iterdir() if picture.suffix.lower() in PICTURES)
    if not pictures:
        raise ConfigError(f"clip {path}: is a folder without pictures; known endings are {', '.join(PICTURES)}")
    frames = [read_picture(picture) for picture in pictures]
    if other_sizes := [
        picture.name for picture, frame in zip(pictures, frames, strict=True) if frame.shape != frames[0].shape
    ]:
        raise ConfigError(f"clip {path}: the frame {other_sizes[0]} is of another size than the first")
    return np.concatenate(frames)


def _text_of(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"caption {path}: cannot be read as text: {error}") from error


def _size(shape: Sequence[int]) -> str:
    frames, height, width = shape
    return f"{frames} frame(s) of {height} x {width} pixels"
