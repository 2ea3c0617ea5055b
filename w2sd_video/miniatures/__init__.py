"""Miniature models of each track, trained on a world whose every clip is known.

from w2sd_video.miniatures import CALL, load_pipeline

pipe = load_pipeline("cogvideox")
frames = pipe("a red circle moving left", **CALL["cogvideox"]).frames[0]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"
"""What comes with the package."""
MORE_WEIGHTS = "W2SD_MINIATURES"
"""An environment variable: a folder of miniatures, as the training writes them, that go before the package's own."""

CALL: dict[str, dict[str, Any]] = {
    "animatediff": {"num_frames": 8, "height": 32, "width": 32, "num_inference_steps": 10, "guidance_scale": 3.0},
    "cogvideox": {
        "num_frames": 9,
        "height": 32,
        "width": 32,
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "max_sequence_length": 12,
    },
    "pixart": {
        "height": 32,
        "width": 32,
        "num_inference_steps": 10,
        "guidance_scale": 1.0,
        "max_sequence_length": 12,
        "clean_caption": False,
        "use_resolution_binning": False,
    },
    "dit_moe": {"num_inference_steps": 10, "guidance_scale": 1.5},
    "scenes_animatediff": {
        "num_frames": 16,
        "height": 64,
        "width": 64,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
    },
    "scenes_cogvideox": {
        "num_frames": 17,
        "height": 64,
        "width": 64,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "max_sequence_length": 18,
    },
    "scenes_wan": {
        "num_frames": 17,
        "height": 64,
        "width": 64,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "max_sequence_length": 18,
    },
    "scenes_pixart": {
        "height": 64,
        "width": 64,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "max_sequence_length": 18,
        "clean_caption": False,
        "use_resolution_binning": False,
    },
    "scenes_dit_moe": {"num_inference_steps": 20, "guidance_scale": 1.5},
    "fashion": {"num_inference_steps": 20, "guidance_scale": 2.0},
    "fashion_two": {"num_inference_steps": 20, "guidance_scale": 1.0},
}
"""What to call each track's pipeline with. Most take a prompt first; DiT-MoE's and those of fashion take the numbers of
classes."""


def folders() -> list[Path]:
    """Where miniatures are looked for: the folder that `MORE_WEIGHTS` names, and what comes with the package."""
    more = os.environ.get(MORE_WEIGHTS)
    return [*([Path(more).expanduser()] if more else []), WEIGHTS]


def folder_of(name: str) -> Path:
    """Return where a miniature or a judge lies.

    Raises:
        FileNotFoundError: it is not trained yet, or there is none of that name.
    """
    for folder in folders():
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(not_trained(name))


def not_trained(name: str) -> str:
    """Return what is said of a miniature or a judge whose weights are not there."""
    group = "fashion" if name.startswith("fashion") else "scenes"
    return (
        f"there are no weights of {name!r} in {' or '.join(map(str, folders()))}; "
        f"python -m w2sd_video.miniatures.train --out DIR --stage {group} trains them, and "
        f"{MORE_WEIGHTS}=FOLDER names the folder that its --assemble wrote"
    )


def load_pipeline(track: str) -> DiffusionPipeline:
    """The pipeline of a track, a key of CALL, with its strong model: float32 on the CPU, without progress bars.

    Raises:
        FileNotFoundError: weights that are not there, as those of a track that is not trained yet.
    """
    from diffusers import DiffusionPipeline

    from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline

    kind = DiTMoEPipeline if track.endswith("dit_moe") else DiffusionPipeline
    pipe = kind.from_pretrained(folder_of(track), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_weak(pipe: DiffusionPipeline) -> nn.Module:
    """The weak denoiser for a pipeline that `load_pipeline` gave, ready to take its denoiser's place.

    For AnimateDiff, the weak spatial network under the pipeline's own motion layers. DiT-MoE has none: its weak model
    is its own network with other experts.
    """
    from diffusers import UNet2DConditionModel, UNetMotionModel

    folder = Path(pipe.name_or_path)
    if hasattr(pipe, "motion_adapter"):
        spatial = UNet2DConditionModel.from_pretrained(folder / "unet_weak")
        return UNetMotionModel.from_unet2d(spatial, pipe.motion_adapter).eval()
    return type(pipe.transformer).from_pretrained(folder / "transformer_weak").eval()
