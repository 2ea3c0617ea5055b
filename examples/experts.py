"""A mixture of experts over itself: strong sends each token to the best two of eight experts, weak to the worst two.

Writes experts.png: classes of the DiT-MoE miniature without reflection (20 network evaluations) and with it (56), from
the same noise. Of the three pictures two get better and one gets worse: the circle is rounder and the square yellow
instead of orange, but the green triangle turns bluish. Takes about ten seconds on one CPU core.
Run: python examples/experts.py
"""

from pathlib import Path

import numpy as np
import torch

from w2sd_video import Branch, reflection
from w2sd_video.miniatures import CALL, load_pipeline
from w2sd_video.rendering.sheets import contact_sheet
from w2sd_video.rendering.video import to_uint8, write_picture

CLASSES = ["a red circle moving left", "a green triangle moving down", "a yellow square moving right"]


def main(out: Path = Path("experts.png")) -> None:
    """Write the pictures without and with reflection, a column for each class."""
    pipe = load_pipeline("dit_moe")

    def sampled() -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(CLASSES))]
        labels = [pipe.labels[name] for name in CLASSES]
        return to_uint8(pipe(labels, generator=generators, output_type="np", **CALL["dit_moe"]).images)

    plain = sampled()
    with reflection(pipe, strong=Branch(experts="top"), weak=Branch(experts="bottom")) as run:
        reflected = sampled()
    write_picture(out, contact_sheet([plain, reflected], ["without", "W2SD"]))
    print(f"{out}: network evaluations {run.nfe}")


if __name__ == "__main__":
    main()
