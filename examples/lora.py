"""One LoRA at two scales: strong has it at 0.8, weak at -1.5, so that reflection makes more of what the LoRA learnt.

The LoRA of the AnimateDiff miniature learnt comets, sprites with long bright trails. Writes lora.png, a row of frames
each: the LoRA at 0.8 without reflection (20 network evaluations) and with it (38), from the same noise. Takes about ten
seconds on one CPU core. Run: python examples/lora.py
"""

from pathlib import Path

import numpy as np
import torch

from w2sd_video import Branch, reflection
from w2sd_video.miniatures import CALL, WEIGHTS, load_pipeline
from w2sd_video.rendering.sheets import contact_sheet
from w2sd_video.rendering.video import to_uint8, write_picture


def main(out: Path = Path("lora.png")) -> None:
    """Write the frames without and with reflection."""
    pipe = load_pipeline("animatediff")
    pipe.load_lora_weights(WEIGHTS / "animatediff" / "lora_comet", adapter_name="comet")
    pipe.set_adapters("comet", 0.8)

    def sampled() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        call = CALL["animatediff"] | {"output_type": "np", "generator": generator}
        return to_uint8(pipe("a red circle moving left", **call).frames[0])

    plain = sampled()
    strong = Branch(guidance_scale=1.0, lora={"comet": 0.8})
    weak = Branch(guidance_scale=1.0, lora={"comet": -1.5})
    with reflection(pipe, strong=strong, weak=weak) as run:
        reflected = sampled()
    write_picture(out, contact_sheet([plain, reflected], ["without", "W2SD"]))
    print(f"{out}: network evaluations {run.nfe}")


if __name__ == "__main__":
    main()
