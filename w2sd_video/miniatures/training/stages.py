"""The stages of the training, in the order they need each other, and what is written after which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2sd_video.miniatures.training import (
    export,
    train_animatediff,
    train_cogvideox,
    train_controlnet,
    train_dit_moe,
    train_lora,
    train_pixart,
    train_vae,
)
from w2sd_video.miniatures.training.fit import Budget
from w2sd_video.miniatures.training.train_judges import train_classifier, train_image_classifier


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
    "controlnet_edges": Stage("animatediff", train_controlnet.train_edges, 8),
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
