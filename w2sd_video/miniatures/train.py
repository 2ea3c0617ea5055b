"""Train the miniatures: `python -m w2sd_video.miniatures.train --out DIR [--stage NAME ...] [--scale X]`.

Stages, in the order they need each other, with their planned minutes on one CPU core:

    classifier          3   judge of shape, colour and direction, on true clips           seed 8
    image_classifier    3   the same on single pictures                                   seed 14
    animatediff         image_vae 6, unet_base 9, unet_strong 11, unet_weak 1, motion 36  seeds 1, 3, 4, 9, 5
                        lora_comet 6, controlnet_edges 8                                  seeds 19, 21
    cogvideox           video_vae 17, video_decoder 6, transformer_weak 19,
                        transformer_strong 40, transformer_details 10                     seeds 2, 10, 6, 7, 13
    pixart              pixart_weak 6, pixart_strong 9                                    seeds 16, 17
    dit_moe             14                                                                seed 18

A stage reads what earlier ones left in DIR, keeps a checkpoint there each minute and resumes from it. `--stage` takes
stages, a whole track by its name, or `all`. The first two tracks do not need each other and train side by side in two
processes with `--threads 1`; pixart takes its autoencoder from animatediff and its text encoder from cogvideox, dit_moe
its autoencoder and its pictures from these. When a pipeline or a part of it is complete, it is written to `--weights`,
in half precision. Lengths are planned in minutes, so two runs agree in their seeds and data but not in their number of
steps.

The weights that come with the package were made while the stages settled, on a busy machine, in so many steps:
classifier 822, image_vae 1162, unet_base 2329 (new tokens and text encoder after 920), unet_strong 1980, unet_weak 300,
motion 1727 (with the base in the weak UNet's place), video_vae 1779, video_decoder 718, transformer_weak 1680,
transformer_strong 6255 (with two restarts of the learning rate), transformer_details 190, image_classifier 8196,
lora_comet 417, controlnet_edges 2851, pixart_weak 1578 (in three pieces), pixart_strong 3213 (in three pieces),
dit_moe 8277 (in three pieces).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from w2sd_video._moved import names_of
from w2sd_video.command_parser import OneLineParser
from w2sd_video.miniatures import WEIGHTS
from w2sd_video.miniatures.training.fit import Budget
from w2sd_video.miniatures.training.stages import STAGES, run, select
from w2sd_video.rendering.command_errors import errors_in_one_line

__getattr__ = names_of("w2sd_video.miniatures.train")  # a command is named __main__ when it runs


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = OneLineParser(
        "miniatures.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and encoded clips")
    parser.add_argument("--stage", nargs="+", default=["all"], help="stages, tracks, or all")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where finished pipelines go")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's planned minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    if not 0 < args.scale <= 1000:
        parser.error(f"--scale {args.scale}: must be above 0 and at most 1000")
    if not 1 <= args.threads <= 1024:
        parser.error(f"--threads {args.threads}: must be from 1 to 1024")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    try:
        names = select(args.stage)
    except ValueError as error:
        parser.error(str(error))
    with errors_in_one_line("miniatures.train"):
        for name in names:
            run(name, args.out, Budget(STAGES[name].minutes * args.scale), args.weights)


if __name__ == "__main__":
    main()
