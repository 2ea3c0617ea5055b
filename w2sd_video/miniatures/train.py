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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import (
    WEIGHTS,
    export,
    train_animatediff,
    train_cogvideox,
    train_control,
    train_dit_moe,
    train_lora,
    train_pixart,
    train_vae,
)
from .fit import Budget
from .train_classifier import train_classifier, train_image_classifier


@dataclass(frozen=True)
class Stage:
    """One training run: the `track` it belongs to, its function and its planned minutes."""

    track: str
    run: Callable[[Path, Budget], object]
    minutes: float


STAGES = {
    "classifier": Stage("classifier", train_classifier, 3),
    "image_classifier": Stage("image_classifier", train_image_classifier, 3),
    "image_vae": Stage("animatediff", train_vae.train_image_vae, 6),
    "unet_base": Stage("animatediff", train_animatediff.train_base, 9),
    "unet_strong": Stage("animatediff", train_animatediff.train_strong, 11),
    "unet_weak": Stage("animatediff", train_animatediff.train_weak, 1),
    "motion": Stage("animatediff", train_animatediff.train_motion, 36),
    "lora_comet": Stage("animatediff", train_lora.train_comet, 6),
    "controlnet_edges": Stage("animatediff", train_control.train_edges, 8),
    "video_vae": Stage("cogvideox", train_vae.train_video_vae, 17),
    "video_decoder": Stage("cogvideox", train_vae.train_video_decoder, 6),
    "transformer_weak": Stage("cogvideox", train_cogvideox.train_weak, 19),
    "transformer_strong": Stage("cogvideox", train_cogvideox.train_strong, 40),
    "transformer_details": Stage("cogvideox", train_cogvideox.train_details, 10),
    "pixart_weak": Stage("pixart", train_pixart.train_weak, 6),
    "pixart_strong": Stage("pixart", train_pixart.train_strong, 9),
    "dit_moe": Stage("dit_moe", train_dit_moe.train, 14),
}
EXPORTS = {
    "classifier": export.export_classifier,
    "image_classifier": export.export_image_classifier,
    "motion": export.export_animatediff,
    "lora_comet": export.export_lora,
    "controlnet_edges": export.export_controlnet,
    "transformer_details": export.export_cogvideox,
    "pixart_strong": export.export_pixart,
    "dit_moe": export.export_dit_moe,
}
"""After which stage what is written."""


def select(names: list[str]) -> list[str]:
    """The stages meant by `names`, which may be stages, tracks or "all", in the order they need each other.

    Raises:
        ValueError: a name that is none of these.
    """
    known = {"all", *STAGES, *(stage.track for stage in STAGES.values())}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"unknown stage {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return [name for name, stage in STAGES.items() if {"all", name, stage.track} & set(names)]


def run(name: str, out: Path, budget: Budget, weights: Path | None) -> None:
    """Run one stage, and write its track's final folder to `weights` if the track is complete with it."""
    out.mkdir(parents=True, exist_ok=True)
    STAGES[name].run(out, budget)
    if weights is not None and name in EXPORTS:
        EXPORTS[name](out, weights)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and encoded clips")
    parser.add_argument("--stage", nargs="+", default=["all"], help="stages, tracks, or all")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where finished pipelines go")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's planned minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    for name in select(args.stage):
        run(name, args.out, Budget(STAGES[name].minutes * args.scale), args.weights)


if __name__ == "__main__":
    main()
