"""Judges of scenes: networks that tell each thing's shape, colour, direction, size and speed, of clips and of pictures.

Each half of a frame is judged by itself, so that an attribute counts only for the thing that it is bound to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from w2sd_video.miniatures import folder_of, folders
from w2sd_video.miniatures.asked_once import asked_once
from w2sd_video.miniatures.judge_network import JudgeNetwork
from w2sd_video.miniatures.scenes import FRAMES, HALF, KINDS, SIZE, Scene, parse
from w2sd_video.miniatures.world import Attributes

SEEN = tuple(range(0, FRAMES, 2))
"""Numbers of the frames of a clip that are looked at."""
JUDGES = {True: "scenes_judge", False: "scenes_picture_judge"}
"""Folders of the judges of clips and of pictures."""
_AT_ONCE = 256


class SceneJudge(JudgeNetwork):
    """The network with the heads of scenes, which looks at half a clip at a time."""

    HEADS = KINDS


def halves_of(x: Tensor) -> Tensor:
    """Clips (n, frames, 3, 64, 64) to their upper and lower halves in turn, (2 n, frames, 3, 32, 64)."""
    return rearrange(x, "n frames rgb (halves height) width -> (n halves) frames rgb height width", height=HALF)


def is_trained(of_clips: bool) -> bool:
    """Return whether the judge of clips, or of pictures, has weights here."""
    return any((folder / JUDGES[of_clips]).is_dir() for folder in folders())


@cache
def load_judge(of_clips: bool, weights: Path | None = None) -> SceneJudge:
    """The trained judge of clips or of pictures, in float32 on the CPU.

    Raises:
        FileNotFoundError: it is not trained yet; the message says how.
    """
    folder = folder_of(JUDGES[of_clips]) if weights is None else weights / JUDGES[of_clips]
    return SceneJudge.from_pretrained(folder)


def _as_tensor(clips: np.ndarray) -> Tensor:
    """Clips uint8 (n, frames, 64, 64, 3) as the judges want them: (n, 8 or 1, 3, 64, 64) in [-1, 1]."""
    if clips.ndim != 5 or clips.shape[2:] != (SIZE, SIZE, 3) or not (clips.shape[1] == 1 or clips.shape[1] >= FRAMES):
        raise ValueError(
            f"want clips of at least {FRAMES} frames or single pictures, (n, frames, {SIZE}, {SIZE}, 3), "
            f"got {clips.shape}"
        )
    looked_at = clips if clips.shape[1] == 1 else clips[:, SEEN]
    x = torch.from_numpy(np.ascontiguousarray(looked_at))
    return rearrange(x, "n frames height width rgb -> n frames rgb height width").float() / 127.5 - 1


@torch.no_grad()
def logits(clips: np.ndarray) -> dict[str, Tensor]:
    """The logits (n, 2, words) of every kind for the upper and the lower thing of clips uint8 (n, frames, 64, 64, 3).

    Raises:
        ValueError: another shape.
        FileNotFoundError: the judge is not trained yet.
    """
    x = _as_tensor(clips)
    judge = load_judge(x.shape[1] > 1)
    heads = judge.logits_of(_features_of_halves(judge, x))
    return {kind: heads[kind].unflatten(0, (-1, 2)) for kind in KINDS}


def features(clips: np.ndarray) -> np.ndarray:
    """Features (n, d) of clips uint8 (n, frames, 64, 64, 3): of both halves, one after the other."""
    x = _as_tensor(clips)
    found = _features_of_halves(load_judge(x.shape[1] > 1), x)
    return rearrange(found, "(n halves) d -> n (halves d)", halves=2).numpy()


@asked_once
@torch.no_grad()
def _features_of_halves(judge: SceneJudge, x: Tensor) -> Tensor:
    """Features (2 n, d) of the halves in turn."""
    return torch.cat([judge.features(halves_of(part)) for part in x.split(_AT_ONCE)])


def labels_of(scenes: Sequence[Scene]) -> Tensor:
    """The right answers, (n, 2, 5): of the upper and the lower thing for each of `KINDS`; -1 where a prompt is open."""
    return torch.tensor(
        [[_labels_of_thing(thing) for thing in (scene.upper, scene.lower)] for scene in scenes], dtype=torch.long
    )


def _labels_of_thing(thing: Attributes | None) -> list[int]:
    words = [getattr(thing, kind, None) for kind in KINDS]
    return [-1 if word is None else KINDS[kind].index(word) for kind, word in zip(KINDS, words, strict=True)]


def right(clips: np.ndarray, prompts: Sequence[str]) -> Tensor:
    """What of each prompt is so, (n, 2, 5) bool; what a prompt leaves open is right."""
    wanted = labels_of([parse(prompt) for prompt in prompts])
    seen = torch.stack([head.argmax(-1) for head in logits(clips).values()], -1)
    return (seen == wanted) | (wanted < 0)


def swapped(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Which clips give an attribute that is asked for to the wrong thing, (n,) bool: a mistake of binding.

    A kind counts where the prompt wants the two things to differ in it and each has what the other should have.
    """
    wanted = labels_of([parse(prompt) for prompt in prompts])
    seen = torch.stack([head.argmax(-1) for head in logits(clips).values()], -1)
    differ = (wanted[:, 0] != wanted[:, 1]) & (wanted >= 0).all(1)
    return (differ & (seen == wanted.flip(1)).all(1)).any(-1).numpy()


def adherence(clips: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    """Shares of things with the shape, colour, direction, size and speed of their prompts, of clips with all: "joint".

    "swapped" is the share with a mistake of binding.
    """
    are_right = right(clips, prompts)
    named = labels_of([parse(prompt) for prompt in prompts]) >= 0
    shares = {
        kind: are_right[..., k][named[..., k]].float().mean().item() if named[..., k].any() else float("nan")
        for k, kind in enumerate(KINDS)
    }
    joint = are_right.flatten(1).all(1).float().mean().item()
    return {**shares, "joint": joint, "swapped": float(swapped(clips, prompts).mean())}


def log_likelihood(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Logarithm of the probability that the judge gives to all that the prompts say, (n,)."""
    wanted = labels_of([parse(prompt) for prompt in prompts])
    total = torch.zeros(len(wanted), dtype=torch.float64)
    for k, head in enumerate(logits(clips).values()):
        of_label = head.double().log_softmax(-1).gather(-1, wanted[..., k, None].clamp(min=0))[..., 0]
        total += torch.where(wanted[..., k] >= 0, of_label, 0).sum(1)
    return total.numpy()


def softened(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur each clip (n, frames, 3, height, width) by its own chance and add noise, as models' samples are."""
    n, device = len(x), x.device
    frames = x.flatten(0, 1)
    blurred = functional.avg_pool2d(functional.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1).view_as(x)
    share = torch.rand(n, 1, 1, 1, 1, generator=generator, device=device)
    noise = 0.1 * torch.rand(n, 1, 1, 1, 1, generator=generator, device=device)
    return torch.lerp(x, blurred, share) + noise * torch.randn(x.shape, generator=generator, device=device)
