"""Miniature models of both tracks, trained on a world whose every clip is known.

from w2sd_video.miniatures import CALL, load_pipeline

pipe = load_pipeline("cogvideox")
frames = pipe("a red circle moving left", **CALL["cogvideox"]).frames[0]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline, UNet2DConditionModel, UNetMotionModel

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
}
"""What to call each track's pipeline with."""


def load_pipeline(track: str) -> DiffusionPipeline:
    """The pipeline of "animatediff" or "cogvideox" with its strong model, float32 on the CPU, without progress bars."""
    pipe = DiffusionPipeline.from_pretrained(WEIGHTS / track, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_weak(pipe: DiffusionPipeline) -> UNetMotionModel | CogVideoXTransformer3DModel:
    """The weak denoiser for a pipeline that `load_pipeline` gave, ready to take its denoiser's place.

    For AnimateDiff, the weak spatial network under the pipeline's own motion layers.
    """
    if hasattr(pipe, "motion_adapter"):
        spatial = UNet2DConditionModel.from_pretrained(WEIGHTS / "animatediff" / "unet_weak")
        return UNetMotionModel.from_unet2d(spatial, pipe.motion_adapter).eval()
    folder = WEIGHTS / "cogvideox" / "transformer_weak"
    return CogVideoXTransformer3DModel.from_pretrained(folder).eval()
