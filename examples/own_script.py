"""Reflection in a diffusers script: one ``with`` line around the call. Run: python examples/own_script.py"""

from pathlib import Path

import torch

import w2sd_video
from w2sd_video import Branch, reflection
from w2sd_video.backends import cogvideox
from w2sd_video.rendering.video import enlarge, to_uint8, write_video

# A miniature, so that the script runs anywhere; put your own checkpoints here.
folder = Path(w2sd_video.__file__).parent / "miniatures" / "weights" / "cogvideox"
pipe = cogvideox.load(folder, weights={"weak": folder / "transformer_weak"}, device="cpu")

with reflection(pipe, strong=Branch(guidance_scale=1.0), weak=Branch(guidance_scale=1.0, weights="weak")) as run:
    video = pipe(
        "a large green triangle moving up",
        guidance_scale=3.0,
        num_inference_steps=20,
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]

write_video(Path("own_script.mp4"), enlarge(to_uint8(video)), fps=8)
print(f"own_script.mp4: {run.reflected_steps} of {run.steps} steps reflected, network evaluations {run.nfe}")
