"""A procedural world of moving sprites, each described exactly by a prompt.

A coloured shape crosses a near-black frame in one of four directions and draws a fading trail behind it, so that even a
still image shows where it is going. Everything about a clip is known: its attributes, its seed and the position of the
sprite in every frame. That makes prompt adherence and motion measurable instead of guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SIZE = 32
"""Height and width of a frame in pixels."""

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (235, 50, 50), "green": (50, 205, 80), "blue": (60, 100, 245), "yellow": (245, 215, 50)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZES = {"small": (4.4, 5.0), "large": (6.0, 6.6)}
"""Size word to the range of half widths, in pixels."""
SPEEDS = {"slowly": (0.6, 0.9), "quickly": (1.7, 2.1)}
"""Speed word to the range of speeds, in pixels a frame."""

BACKGROUND = (10, 10, 14)
Trail = tuple[tuple[float, float], ...]
"""The ghosts behind a sprite: distance in pixels, opacity."""
TRAIL: Trail = ((3.0, 0.42), (6.0, 0.25), (9.0, 0.12))
COMET: Trail = ((3.0, 0.8), (6.0, 0.7), (9.0, 0.6), (12.0, 0.5), (15.0, 0.4))
"""A style of its own: a long, bright trail. No prompt speaks of it; a LoRA learns it."""

_FILLERS = ("a", "moving")
"""Words of every prompt, which say nothing."""
WORDS = (*_FILLERS, *SIZES, *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS)
"""Every word a prompt may hold."""


@dataclass(frozen=True)
class Attributes:
    """What a prompt says. A size or speed of None is left to the seed."""

    shape: str
    colour: str
    direction: str
    size: str | None = None
    speed: str | None = None

    @property
    def prompt(self) -> str:
        """The attributes in plain words, for example "a small red circle moving left quickly"."""
        words = ("a", self.size, self.colour, self.shape, "moving", self.direction, self.speed)
        return " ".join(word for word in words if word)


def all_attributes() -> list[Attributes]:
    """All 432 combinations, sizes and speeds left open included."""
    table = product(SHAPES, COLOURS, DIRECTIONS, (None, *SIZES), (None, *SPEEDS))
    return [Attributes(*row) for row in table]


def prompts(sizes_and_speeds: bool = True) -> list[str]:
    """All 432 distinct prompts, or the 48 that name neither size nor speed."""
    return [a.prompt for a in all_attributes() if sizes_and_speeds or (a.size is None and a.speed is None)]


def parse(prompt: str) -> Attributes:
    """Read a prompt: one colour, one shape, one direction, and at most one size and one speed, in any order.

    Raises:
        ValueError: a word the world does not know, a kind of word given twice, or no shape, colour or direction.
    """
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    for word in words:
        if word not in WORDS:
            raise ValueError(f"unknown word {word!r} in {prompt!r}; the world knows: {', '.join(WORDS)}")
    kinds = {"shape": SHAPES, "colour": COLOURS, "direction": DIRECTIONS, "size": SIZES, "speed": SPEEDS}
    word_of_kind: dict[str, str | None] = {}
    for kind, words_of_kind in kinds.items():
        named = [word for word in words if word in words_of_kind]
        if len(named) > 1:
            raise ValueError(f"{prompt!r} names more than one {kind}: {', '.join(named)}")
        if not named and kind in ("shape", "colour", "direction"):
            raise ValueError(f"{prompt!r} names no {kind}; the world knows: {', '.join(words_of_kind)}")
        word_of_kind[kind] = named[0] if named else None
    return Attributes(**word_of_kind)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Motion:
    """Where a sprite is: `positions` (frames, 2) as x, y of its centre in pixels, and its half width `radius`."""

    positions: np.ndarray
    radius: float


def speeds(word: str | None) -> tuple[float, float]:
    """The range of speeds of a word, in pixels a frame; without a word, of all there are."""
    return SPEEDS[word] if word else (SPEEDS["slowly"][0], SPEEDS["quickly"][1])


def motion(what: str | Attributes, seed: int, frames: int = 8) -> Motion:
    """The exact motion of the sprite that `clip` with the same arguments draws."""
    attributes = parse(what) if isinstance(what, str) else what
    rng = np.random.default_rng(seed)
    radius = rng.uniform(*SIZES.get(attributes.size or "", (SIZES["small"][0], SIZES["large"][1])))
    speed = rng.uniform(*speeds(attributes.speed))
    along = np.array(DIRECTIONS[attributes.direction], dtype=np.float64)
    offsets = (np.arange(frames) - (frames - 1) / 2) * speed
    slack = np.where(along != 0, SIZE / 2 - radius - offsets[-1], SIZE / 2 - radius - 2)  # keeps the sprite inside
    centre = (SIZE - 1) / 2 + rng.uniform(-1, 1, size=2) * np.clip(slack, 0, 6)
    return Motion(centre + offsets[:, None] * along, float(radius))


def draw(attributes: Attributes, moving: Motion, trail: Trail = TRAIL) -> np.ndarray:
    """Draw a sprite on its way and the `trail` behind it, uint8 (frames, 32, 32, 3)."""
    along = np.array(DIRECTIONS[attributes.direction], dtype=np.float64)
    distance, opacity = np.array(((0.0, 1.0), *trail)).T
    centres = moving.positions[:, None] - distance[:, None] * along  # frames, ghosts, 2
    axis = np.arange(SIZE)
    x = axis[None, None, None, :] - centres[..., 0, None, None]
    y = axis[None, None, :, None] - centres[..., 1, None, None]
    coverage = np.clip(0.5 - _distance(attributes.shape, x, y, moving.radius), 0, 1)
    light = (coverage * opacity[:, None, None]).max(1)[..., None]
    background, colour = np.array(BACKGROUND), np.array(COLOURS[attributes.colour])
    return np.round(background + light * (colour - background)).astype(np.uint8)


def clip(what: str | Attributes, seed: int, frames: int = 8, trail: Trail = TRAIL) -> np.ndarray:
    """One clip of the world, uint8 (frames, 32, 32, 3). The same arguments always give the same pixels."""
    attributes = parse(what) if isinstance(what, str) else what
    return draw(attributes, motion(attributes, seed, frames), trail)


def clips(what: Sequence[str | Attributes], seeds: Sequence[int], frames: int = 8, trail: Trail = TRAIL) -> np.ndarray:
    """A batch of clips, uint8 (n, frames, 32, 32, 3); one seed a clip."""
    return np.stack([clip(prompt, seed, frames, trail) for prompt, seed in zip(what, seeds, strict=True)])


def bright(pixels: np.ndarray) -> np.ndarray:
    """Where the sprites are, without their trails: clips (..., 32, 32, 3) to bool (..., 32, 32)."""
    light = pixels.max(-1)  # 0.7 lies between the sprite and the brightest ghost of TRAIL, 0.42
    return light > 0.7 * light.max((-2, -1), keepdims=True)


def edges(pixels: np.ndarray) -> np.ndarray:
    """The outlines of the sprites as a ControlNet is given them, a pixel wide and white on black; uint8, same shape."""
    sprite = bright(pixels)
    padded = np.pad(sprite, [(0, 0)] * (sprite.ndim - 2) + [(1, 1)] * 2)
    around = (padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    outline = sprite & ~np.logical_and.reduce(around)
    return np.repeat(255 * outline[..., None].astype(np.uint8), 3, axis=-1)


def centres(pixels: np.ndarray) -> np.ndarray:
    """Where the sprites are seen: clips (..., 32, 32, 3) to x and y of their centres in pixels, (..., 2)."""
    sprite = bright(pixels)
    y, x = np.mgrid[:SIZE, :SIZE]
    area = sprite.sum((-2, -1))
    return np.stack([(sprite * x).sum((-2, -1)) / area, (sprite * y).sum((-2, -1)) / area], -1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the edge of a shape centred at the origin, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    top, bottom, half = -1.1 * radius, 0.9 * radius, 1.15 * radius  # an upright triangle
    slope = half / (bottom - top)
    side = (np.abs(x) - (y - top) * slope) / np.hypot(1, slope)
    return np.maximum(side, y - bottom)
