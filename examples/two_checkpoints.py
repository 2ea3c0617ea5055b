"""Two checkpoints of one model, the second sharing text encoder, VAE and scheduler with the first.

Draws four prompts, a column each, by the weak model, by the strong one, and by W2SD, all from the noise of seed 0 and
with 28 network evaluations (NFE) an image: 28 steps of one model, or 10 steps of which 9 are reflected. Takes about ten
seconds on one CPU core. Run: python examples/two_checkpoints.py --out two_checkpoints.png
"""

from pathlib import Path

import jsonargparse
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

from w2sd_video import Branch, reflection
from w2sd_video.backends import pipeline
from w2sd_video.miniatures import CALL, WEIGHTS

PROMPTS = [f"a red circle moving {direction}" for direction in ("left", "right", "up", "down")]
STRONG, WEAK = Branch(), Branch(weights="weak")


def main(out: Path = Path("two_checkpoints.png")) -> dict[str, int]:
    """Write the picture, and return the network evaluations an image of each row.

    Args:
        out: the picture.
    """
    folder = WEIGHTS / "pixart"
    pipe = pipeline.load(folder, weights={"weak": folder / "transformer_weak"}, device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def sampled(base: Branch, steps: int, reflection_steps: int) -> tuple[np.ndarray, int]:
        call = CALL["pixart"] | {"num_inference_steps": steps, "output_type": "np"}
        generators = [torch.Generator().manual_seed(0) for _ in PROMPTS]
        with reflection(pipe, base=base, strong=STRONG, weak=WEAK, reflection_steps=reflection_steps) as run:
            return pipe(PROMPTS, generator=generators, **call).images, sum(run.nfe.values())

    rows = {
        "weak": sampled(WEAK, steps=28, reflection_steps=0),
        "strong": sampled(STRONG, steps=28, reflection_steps=0),
        "W2SD": sampled(STRONG, steps=10, reflection_steps=9),
    }
    matplotlib.use("agg")
    figure, axes = plt.subplots(len(rows), len(PROMPTS), figsize=(7.6, 6.0), layout="constrained")
    for (name, (images, nfe)), row in zip(rows.items(), axes, strict=True):
        row[0].set_ylabel(f"{name}, {nfe} NFE", fontsize=12)
        for image, axis in zip(images, row, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for prompt, axis in zip(PROMPTS, axes[0], strict=True):
        axis.set_title(prompt.replace(" moving", "\nmoving"), fontsize=10)
    figure.savefig(out, dpi=100)
    plt.close(figure)
    print(f"{out}: network evaluations an image, from the upper row: {', '.join(str(nfe) for _, nfe in rows.values())}")
    return {name: nfe for name, (_, nfe) in rows.items()}


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
