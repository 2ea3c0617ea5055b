"""Several gaps at once: strong is the better checkpoint with guidance, weak the worse one without.

Writes several_gaps.png: pictures of the PixArt miniature without reflection, reflected by the checkpoints alone, by
guidance alone, and by both, from the same noise; prints the network evaluations of each. Takes about ten seconds on one
CPU core. Run: python examples/several_gaps.py
"""

from pathlib import Path

import numpy as np
import torch

from w2sd_video import Branch, reflection
from w2sd_video.miniatures import CALL, load_pipeline, load_weak
from w2sd_video.rendering.sheets import contact_sheet
from w2sd_video.rendering.video import to_uint8, write_picture

PROMPTS = ["a red circle moving left", "a yellow circle moving right", "a large red triangle moving right"]


def main(out: Path = Path("several_gaps.png")) -> None:
    """Write the pictures, a row for each pair and a column for each prompt."""
    pipe = load_pipeline("pixart")
    second = load_weak(pipe)
    pairs = {
        "weights": (Branch(guidance_scale=1.0), Branch(guidance_scale=1.0, weights=second)),
        "guidance": (Branch(guidance_scale=2.0), Branch(guidance_scale=1.0)),
        "both": (Branch(guidance_scale=2.0), Branch(guidance_scale=1.0, weights=second)),
    }

    def sampled() -> np.ndarray:
        generators = [torch.Generator().manual_seed(0) for _ in PROMPTS]
        # Called with guidance, so that the pipeline encodes the empty prompt that a guided branch needs.
        call = CALL["pixart"] | {"guidance_scale": 2.0, "generator": generators, "output_type": "np"}
        return to_uint8(pipe(PROMPTS, **call).images)

    rows = {}
    for name, (strong, weak) in {"without": pairs["weights"], **pairs}.items():
        steps = 0 if name == "without" else None
        base = Branch(guidance_scale=1.0)
        with reflection(pipe, base=base, strong=strong, weak=weak, reflection_steps=steps) as run:
            rows[name] = sampled()
        print(f"{name}: network evaluations {run.nfe}")
    write_picture(out, contact_sheet(list(rows.values()), list(rows)))
    print(out)


if __name__ == "__main__":
    main()
