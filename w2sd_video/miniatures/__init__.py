"""Miniature models of each track, trained on a world whose every clip is known.

from w2sd_video.miniatures import CALL, load_pipeline

pipe = load_pipeline("cogvideox")
frames = pipe("a red circle moving left", **CALL["cogvideox"]).frames[0]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, UNet2DConditionModel, UNetMotionModel
from torch import nn

from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline

WEIGHTS = Path(__file__).parent / "weights"

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
}
"""What to call each track's pipeline with. All but DiT-MoE's take a prompt first, that one the numbers of classes."""


def load_pipeline(track: str) -> DiffusionPipeline:
    """The pipeline of a track, a key of CALL, with its strong model: float32 on the CPU, without progress bars."""
    kind = DiTMoEPipeline if track == "dit_moe" else DiffusionPipeline
    pipe = kind.from_pretrained(WEIGHTS / track, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_weak(pipe: DiffusionPipeline) -> nn.Module:
    """The weak denoiser for a pipeline that `load_pipeline` gave, ready to take its denoiser's place.

    For AnimateDiff, the weak spatial network under the pipeline's own motion layers. DiT-MoE has none: its weak model
    is its own network with other experts.
    """
    folder = Path(pipe.name_or_path)
    if hasattr(pipe, "motion_adapter"):
        spatial = UNet2DConditionModel.from_pretrained(folder / "unet_weak")
        return UNetMotionModel.from_unet2d(spatial, pipe.motion_adapter).eval()
    return type(pipe.transformer).from_pretrained(folder / "transformer_weak").eval()
