"""Judges of scenes: networks that tell each thing's shape, colour, direction, size and speed, of clips and of pictures.

Each half of a frame is judged by itself, so that an attribute counts only for the thing that it is bound to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from w2sd_video.miniatures import folder_of, folders
from w2sd_video.miniatures.scenes import FRAMES, HALF, KINDS, SIZE, Scene, parse
from w2sd_video.miniatures.world import Attributes

SEEN = tuple(range(0, FRAMES, 2))
"""Numbers of the frames of a clip that are looked at."""
_TIME = {1: [(1, 1, 0)] * 4, len(SEEN): [(2, 1, 0), (3, 2, 1), (3, 2, 1), (2, 1, 0)]}
"""Kernel, stride and padding along time, by the number of frames; all of them end in one frame."""
JUDGES = {True: "scenes_judge", False: "scenes_picture_judge"}
"""Folders of the judges of clips and of pictures."""
_AT_ONCE = 256


class SceneJudge(nn.Module):
    """Convolutions over half a clip, and a linear head for each of `KINDS` over their pooled features."""

    def __init__(self, frames: int = len(SEEN), width: int = 16) -> None:
        """`frames` is 8, or 1 for pictures; `width` is of the first layer; there are `16 * width` features a half."""
        super().__init__()
        self.frames, self.width = frames, width
        first, second, third, last = _TIME[frames]
        self.body = nn.Sequential(
            _convolution(3, width, first, 4, 2),  # 7 x 16 x 32, or 1 x 16 x 32 of a picture
            nn.GroupNorm(4, width),
            nn.SiLU(),
            _convolution(width, 2 * width, second, 4, 2),  # 4 x 8 x 16
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            _convolution(2 * width, 4 * width, third, 3, 1),  # 2 x 8 x 16
            nn.GroupNorm(4, 4 * width),
            nn.SiLU(),
            _convolution(4 * width, 8 * width, last, 3, 2),  # 1 x 4 x 8
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({kind: nn.Linear(16 * width, len(words)) for kind, words in KINDS.items()})

    def features(self, halves: Tensor) -> Tensor:
        """Halves of clips (n, frames, 3, 32, 64) in [-1, 1] to features (n, 16 * width)."""
        grid = self.body(rearrange(halves, "n frames rgb ... -> n rgb frames ...")).flatten(2)
        return torch.cat([grid.mean(-1), grid.amax(-1)], dim=1)

    def forward(self, halves: Tensor) -> dict[str, Tensor]:
        """The logits of every head."""
        found = self.features(halves)
        return {kind: head(found) for kind, head in self.heads.items()}

    def save_pretrained(self, folder: Path, **measured: float) -> None:
        """Write weights in half precision, and `config.json` with the accuracies `measured`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.half() for key, value in self.state_dict().items()}, folder / "model.safetensors")
        config = {"frames": self.frames, "width": self.width, "measured": measured}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _convolution(inside: int, outside: int, time: tuple[int, int, int], kernel: int, stride: int) -> nn.Conv3d:
    length, step, edge = time
    return nn.Conv3d(inside, outside, (length, kernel, kernel), stride=(step, stride, stride), padding=(edge, 1, 1))


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
    config = json.loads((folder / "config.json").read_text())
    model = SceneJudge(config["frames"], config["width"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval().requires_grad_(False)


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
    parts = [judge(halves_of(part)) for part in x.split(_AT_ONCE)]
    return {kind: torch.cat([part[kind] for part in parts]).unflatten(0, (-1, 2)) for kind in KINDS}


@torch.no_grad()
def features(clips: np.ndarray) -> np.ndarray:
    """Features (n, d) of clips uint8 (n, frames, 64, 64, 3): of both halves, one after the other."""
    x = _as_tensor(clips)
    judge = load_judge(x.shape[1] > 1)
    found = torch.cat([judge.features(halves_of(part)) for part in x.split(_AT_ONCE)])
    return rearrange(found, "(n halves) d -> n (halves d)", halves=2).numpy()


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
