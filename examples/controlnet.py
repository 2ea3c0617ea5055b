"""With a ControlNet over without: strong is told outlines, weak is not, so that reflection follows them more closely.

The outlines are of a clip that the miniatures' world draws. Writes controlnet.png, a row of frames each: the outlines,
a clip at a control scale of 0.1 without reflection (20 network evaluations of the UNet) and with it (38), from the same
noise. A control scale of 1 follows the outlines at no further cost; try that first with a model of your own. Takes
about ten seconds on one CPU core. Run: python examples/controlnet.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from w2sd_video import Branch, reflection
from w2sd_video.backends import pipeline
from w2sd_video.miniatures import CALL, WEIGHTS, world
from w2sd_video.rendering.sheets import contact_sheet
from w2sd_video.rendering.video import to_uint8, write_picture

PROMPT = "a red circle moving left"


def main(out: Path = Path("controlnet.png")) -> None:
    """Write the outlines, and the frames without and with reflection."""
    folder = WEIGHTS / "animatediff"
    pipe = pipeline.load(folder, controlnet=folder / "controlnet_edges", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    outlines = world.edges(world.clip(PROMPT, seed=0))

    def sampled() -> np.ndarray:
        frames = pipe(
            PROMPT,
            conditioning_frames=[Image.fromarray(frame) for frame in outlines],
            controlnet_conditioning_scale=0.1,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **CALL["animatediff"],
        ).frames[0]
        return to_uint8(frames)

    plain = sampled()
    strong = Branch(guidance_scale=1.0, control_scale=1.0)
    weak = Branch(guidance_scale=1.0, control_scale=0.0)
    with reflection(pipe, strong=strong, weak=weak) as run:
        reflected = sampled()
    write_picture(out, contact_sheet([outlines, plain, reflected], ["outlines", "without", "W2SD"]))
    print(f"{out}: network evaluations {run.nfe}")


if __name__ == "__main__":
    main()
