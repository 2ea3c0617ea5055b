"""Reflection in a script of your own: one ``with`` line around the call of a stock diffusers pipeline.

Strong is the model with guidance 3, weak the same model without guidance, so there is no second model to load. Writes
own_script.mp4: the clip without reflection (20 network evaluations) beside the reflected one (30), from the same noise.
Both are right; for a pair that repairs something look at two_checkpoints.py. Takes about ten seconds on one CPU core.
Run: python examples/own_script.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from w2sd_video import PRESETS, Branch, reflection
from w2sd_video.miniatures import WEIGHTS
from w2sd_video.rendering.sheets import enlarge, side_by_side
from w2sd_video.rendering.video import to_uint8, write_video


def main(out: Path = Path("own_script.mp4")) -> None:
    """Write the clip without and with reflection."""
    pipe = DiffusionPipeline.from_pretrained(WEIGHTS / "animatediff")  # a miniature; name your own checkpoint here

    def sampled() -> np.ndarray:
        frames = pipe(
            "a red circle moving left",
            guidance_scale=3.0,
            num_inference_steps=10,
            num_frames=8,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames[0]
        return enlarge(to_uint8(frames))

    plain = sampled()
    strong, weak = Branch(guidance_scale=3.0), Branch(guidance_scale=1.0)
    with reflection(pipe, strong=strong, weak=weak, **PRESETS["recommended"]) as run:
        reflected = sampled()
    write_video(out, side_by_side([plain, reflected], ["without", "with reflection"]), fps=8)
    print(f"{out}: {run.reflected_steps} of {run.steps} steps reflected, network evaluations {run.nfe}")


if __name__ == "__main__":
    main()
