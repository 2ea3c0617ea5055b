"""A procedural world of scenes: two things, one above the other, each of its own colour, shape, size and motion.

"a red circle moving left above a small blue square moving up". Each attribute is bound to a thing by the words, so that
a model can have every attribute right and still give it to the wrong thing, as large models do. Each thing stays in its
half of a 64 x 64 frame, with a fading trail where it was 4, 8 and 12 frames ago: a still picture shows its direction
and its speed too. Everything is drawn in torch, many clips at once on any device, and follows from a seed of each clip.

Some pairs of a colour and a shape, `HELD_OUT`, are in no clip of `random_scenes`, which models are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from w2sd_video.miniatures.world import Attributes

SIZE = 64
"""Height and width of a frame in pixels."""
HALF = SIZE // 2
FRAMES = 16
"""Frames of a clip."""

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (232, 52, 48),
    "green": (52, 200, 84),
    "blue": (64, 104, 246),
    "yellow": (246, 214, 52),
    "purple": (196, 72, 226),
    "white": (236, 236, 236),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZES = {"small": (4.4, 5.2), "large": (7.2, 8.0)}
"""Size word to the range of half widths, in pixels."""
SPEEDS = {"slowly": (0.3, 0.45), "quickly": (0.75, 0.9)}
"""Speed word to the range of speeds, in pixels a frame."""
RELATIONS = ("above", "below")
ANYTHING = "something"
"""What a prompt says in a thing's place that it leaves open."""
BACKGROUND = (10, 10, 14)
TRAIL = ((4, 0.42), (8, 0.26), (12, 0.15))
"""The ghosts behind a thing: how many frames ago it was there, and their opacity."""
STYLES = ("filled", "hollow")
"""How things are drawn. No prompt speaks of it; a model is fine-tuned on the second."""
RIM = 2.2
"""Width in pixels of the line that a hollow thing is drawn by."""

HELD_OUT = (("red", "cross"), ("blue", "triangle"), ("yellow", "circle"), ("white", "square"))
"""Pairs of a colour and a shape that no training clip has; each colour and each shape is in others."""
HALF_OF_COLOURS = ("red", "green", "blue")
"""What a model knows that is trained on half of the colours."""

KINDS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "direction": tuple(DIRECTIONS),
    "size": tuple(SIZES),
    "speed": tuple(SPEEDS),
}
"""What is to be told of a thing, and the words for it."""
_OPTIONAL = ("size", "speed")
_FILLERS = ("a", "moving")
WORDS = (*_FILLERS, *SIZES, *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *RELATIONS, ANYTHING)
"""All that a prompt may hold."""

_WINDOW = 22
"""Pixels across what is drawn of a thing: twice the widest half width, and the softness of its edge."""
_NUMBERS = 24
"""Numbers drawn of a seed: what is said of a scene, and where its things are."""


@dataclass(frozen=True)
class Scene:
    """What a prompt says: the thing named first is `relation` the second; a thing of None is left to the seed."""

    first: Attributes
    second: Attributes | None
    relation: str = "above"

    @property
    def prompt(self) -> str:
        """The scene in plain words."""
        second = self.second.prompt if self.second else ANYTHING
        return f"{self.first.prompt} {self.relation} {second}"

    @property
    def upper(self) -> Attributes | None:
        """The thing in the upper half."""
        return self.first if self.relation == "above" else self.second

    @property
    def lower(self) -> Attributes | None:
        """The thing in the lower half."""
        return self.second if self.relation == "above" else self.first

    @property
    def is_held_out(self) -> bool:
        """Whether a thing is of a colour and shape that no training clip has together."""
        return any((thing.colour, thing.shape) in HELD_OUT for thing in (self.first, self.second) if thing)


def parse(prompt: str) -> Scene:
    """Read a prompt: a thing, "above" or "below", and another thing or "something".

    A thing is one colour, one shape, one direction, at most one size and one speed, in any order.

    Raises:
        ValueError: a word the world does not know, no or two relations, a kind of word given twice for a thing, or a
            thing without shape, colour or direction.
    """
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    for word in words:
        if word not in WORDS:
            raise ValueError(f"unknown word {word!r} in {prompt!r}; the world knows: {', '.join(WORDS)}")
    places = [place for place, word in enumerate(words) if word in RELATIONS]
    if len(places) != 1:
        raise ValueError(
            f"{prompt!r} names {len(places)} relations; it must name one of {', '.join(RELATIONS)} between two things"
        )
    before, after = words[: places[0]], words[places[0] + 1 :]
    second = None if ANYTHING in after else _thing(after, prompt)
    if ANYTHING in before or (second is None and set(after) != {ANYTHING}):
        raise ValueError(f"{prompt!r}: {ANYTHING!r} stands for the whole second thing, and for nothing else")
    return Scene(_thing(before, prompt), second, words[places[0]])


def _thing(words: Sequence[str], prompt: str) -> Attributes:
    word_of_kind: dict[str, str | None] = {}
    for kind, words_of_kind in KINDS.items():
        named = [word for word in words if word in words_of_kind]
        if len(named) > 1:
            raise ValueError(f"{prompt!r} names more than one {kind} of a thing: {', '.join(named)}")
        if not named and kind not in _OPTIONAL:
            raise ValueError(f"{prompt!r} names no {kind} of a thing; the world knows: {', '.join(words_of_kind)}")
        word_of_kind[kind] = named[0] if named else None
    return Attributes(**word_of_kind)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scenes:
    """Many scenes as numbers, on one device.

    Attributes:
        seen: (n, 2, 5) whole numbers: of the upper and the lower thing the place of its word in each of `KINDS`.
        named: (n, 2, 5) bool: whether the prompt says so.
        relation: (n,) the place in `RELATIONS` of the first thing's; 0 says that the upper thing is named first.
        seed: (n,) of each scene.
    """

    seen: Tensor
    named: Tensor
    relation: Tensor
    seed: Tensor

    def __len__(self) -> int:
        """How many scenes there are."""
        return len(self.seed)

    def __getitem__(self, rows: slice | Tensor) -> Scenes:
        """Some of the scenes."""
        return Scenes(self.seen[rows], self.named[rows], self.relation[rows], self.seed[rows])

    def prompts(self) -> list[str]:
        """What is said of each scene."""
        words = list(KINDS.values())
        prompts = []
        for seen, named, relation in zip(self.seen.tolist(), self.named.tolist(), self.relation.tolist(), strict=True):
            things = [
                Attributes(*(words[k][seen[half][k]] if named[half][k] else None for k in range(len(words))))  # type: ignore[arg-type]
                for half in range(2)
            ]
            prompts.append(Scene(things[relation], things[1 - relation], RELATIONS[relation]).prompt)
        return prompts


def random_scenes(seeds: Tensor, held_out: bool = False) -> Scenes:
    """Scenes of the training: things of different colours and shapes, half of sizes and speeds named.

    Args:
        seeds: (n,) int64; each gives the same scene in any batch and on any device.
        held_out: whether pairs of `HELD_OUT` may be among them, as for judges.
    """
    draw = _uniform(seeds)
    constants = _constants(seeds.device)
    pairs = constants.pairs_and_held_out if held_out else constants.pairs  # upper and lower: shape, colour
    looks = pairs[_integers(draw[:, 0], len(pairs))]
    direction = _integers(draw[:, 1:3], len(DIRECTIONS))
    size, speed = _integers(draw[:, 3:5], 2), _integers(draw[:, 5:7], 2)
    seen = torch.stack([looks[..., 0], looks[..., 1], direction, size, speed], -1)
    said = torch.ones_like(seen, dtype=torch.bool)
    said[..., 3], said[..., 4] = draw[:, 7:9] < 0.5, draw[:, 9:11] < 0.5
    return Scenes(seen, said, _integers(draw[:, 11], 2), seeds)


@dataclass(frozen=True)
class _Constants:
    """What scenes are drawn by, on one device: made anew for each batch, a GPU would be waited for."""

    pairs: Tensor
    pairs_and_held_out: Tensor
    sizes: Tensor
    speeds: Tensor
    directions: Tensor
    colours: Tensor
    background: Tensor
    extent: Tensor
    middle: Tensor
    ago: Tensor
    opacity: Tensor


@cache
def _constants(device: torch.device) -> _Constants:
    middle = (SIZE - 1) / 2
    values = (
        _pairs(False),
        _pairs(True),
        list(SIZES.values()),
        list(SPEEDS.values()),
        [(float(x), float(y)) for x, y in DIRECTIONS.values()],
        [[value / 127.5 - 1 for value in rgb] for rgb in COLOURS.values()],
        [value / 127.5 - 1 for value in BACKGROUND],
        [float(SIZE), float(HALF)],
        [[middle, (HALF - 1) / 2], [middle, HALF + (HALF - 1) / 2]],
        [0, *(frames_ago for frames_ago, _ in TRAIL)],
        [opacity for _, opacity in TRAIL],
    )
    return _Constants(*(torch.tensor(value, device=device) for value in values))


def _pairs(held_out: bool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """All (shape, colour) of an upper and a lower thing, without or with those that training clips do not have."""
    colours = tuple(COLOURS)
    looks = [
        (shape, colour)
        for shape, colour in product(range(len(SHAPES)), range(len(colours)))
        if held_out or (colours[colour], SHAPES[shape]) not in HELD_OUT
    ]
    return [(a, b) for a, b in product(looks, looks) if a[0] != b[0] and a[1] != b[1]]


def scenes_of(what: Sequence[str | Scene], seeds: Sequence[int]) -> Scenes:
    """Scenes that prompts ask for, on the CPU; what a prompt leaves open follows from its seed."""
    parsed = [parse(item) if isinstance(item, str) else item for item in what]
    seed = torch.tensor(list(seeds), dtype=torch.int64)
    if len(parsed) != len(seed):
        raise ValueError(f"{len(parsed)} prompts for {len(seed)} seeds; give one a clip")
    open_ = random_scenes(seed)
    seen, named = open_.seen, torch.zeros_like(open_.named)
    for row, scene in enumerate(parsed):
        for half, thing in enumerate((scene.upper, scene.lower)):
            for k, (kind, words) in enumerate(KINDS.items()):
                if thing is not None and (word := getattr(thing, kind)) is not None:
                    seen[row, half, k], named[row, half, k] = words.index(word), True
    relation = torch.tensor([RELATIONS.index(scene.relation) for scene in parsed])
    for row, scene in enumerate(parsed):
        if scene.second is None:
            _keep_apart(seen[row], RELATIONS.index(scene.relation))
    return Scenes(seen, named, relation, seed)


def _keep_apart(seen: Tensor, first: int) -> None:
    """Give a thing that is left open, the other one than `first`, another shape and colour than the named one has."""
    for k, words in ((0, SHAPES), (1, tuple(COLOURS))):
        if seen[0, k] == seen[1, k]:
            seen[1 - first, k] = (seen[first, k] + 1) % len(words)


def placed(scenes: Scenes, frames: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    """The exact motion of things: places in the middle of the clip, velocities and half widths.

    Returns:
        x and y of the centres (n, 2, 2) in pixels at the middle of the clip, velocities (n, 2, 2) in pixels a frame,
        and half widths (n, 2) in pixels.
    """
    device = scenes.seed.device
    draw = _uniform(scenes.seed)[:, 12:20]
    constants = _constants(device)
    low, high = constants.sizes[scenes.seen[..., 3]].unbind(-1)
    radius = low + (high - low) * draw[:, 0:2]
    low, high = constants.speeds[scenes.seen[..., 4]].unbind(-1)
    speed = low + (high - low) * draw[:, 2:4]
    along = constants.directions[scenes.seen[..., 2]]
    velocity = speed[..., None] * along
    reach = radius[..., None] + (frames - 1) / 2 * velocity.abs()
    slack = (constants.extent / 2 - 0.5 - reach).clamp(min=0)  # keeps a thing inside its half for the whole clip
    slack[..., 0] = slack[..., 0].clamp(max=14)
    offset = (2 * torch.stack([draw[:, 4:6], draw[:, 6:8]], -1) - 1) * slack
    return constants.middle + offset, velocity, radius


def draw(scenes: Scenes, frames: int = FRAMES, style: str = "filled", only: Tensor | None = None) -> Tensor:
    """Draw scenes as floats in [-1, 1], (n, frames, 3, 64, 64), on the device that they are on.

    Args:
        scenes: what to draw.
        frames: of each clip.
        style: one of `STYLES`.
        only: numbers of the frames to draw, of a clip of `frames`; all unless given.
    """
    device = scenes.seed.device
    times = (torch.arange(frames, device=device) if only is None else only) - (frames - 1) / 2
    body, trail = _light(scenes, frames, times, style)
    colour = _constants(device).colours[scenes.seen[..., 1]]
    pixels = _constants(device).background.view(1, 1, 3, 1, 1).expand(len(scenes), len(times), 3, SIZE, SIZE)
    for coverage in (trail, body):
        for half in range(2):
            target = colour[:, half].view(len(scenes), 1, 3, 1, 1)
            pixels = torch.lerp(pixels, target.expand_as(pixels), coverage[:, half, :, None])
    return pixels


def _light(scenes: Scenes, frames: int, times: Tensor, style: str) -> tuple[Tensor, Tensor]:
    """How much of each pixel the things cover, and their trails: (n, 2, times, 64, 64) in [0, 1] each.

    Only a window around each thing is worked out, and then put where it belongs.
    """
    device = times.device
    centre, velocity, radius = placed(scenes, frames)
    when = times - _constants(device).ago[:, None]  # ghosts, times
    at = centre[:, :, None, None] + when[..., None] * velocity[:, :, None, None]  # n, 2, ghosts, times, xy
    corner = at.floor() - _WINDOW // 2 + 1
    steps = torch.arange(_WINDOW, device=device)
    column = (corner[..., 0, None] + steps).long()
    row = (corner[..., 1, None] + steps).long()
    shape, size = (values[:, :, None, None, None, None] for values in (scenes.seen[..., 0], radius))
    distance = _distance(shape, (column - at[..., 0, None])[..., None, :], (row - at[..., 1, None])[..., :, None], size)
    if style == "hollow":
        distance = torch.maximum(distance, -distance - RIM)
    is_inside = ((column >= 0) & (column < SIZE))[..., None, :] & ((row >= 0) & (row < SIZE))[..., :, None]
    window = (0.5 - distance).clamp(0, 1) * is_inside
    pixel = row.clamp(0, SIZE - 1)[..., :, None] * SIZE + column.clamp(0, SIZE - 1)[..., None, :]
    ghosts = rearrange(
        window[:, :, 1:] * _constants(device).opacity.view(-1, 1, 1, 1),
        "n two ghosts times ... -> n two times (ghosts ...)",
    )
    ghost_pixels = rearrange(pixel[:, :, 1:], "n two ghosts times ... -> n two times (ghosts ...)")
    dark = torch.zeros(*window.shape[:2], len(times), SIZE * SIZE, device=device)
    trail = dark.scatter_reduce(-1, ghost_pixels, ghosts, "amax")
    body = dark.scatter_reduce(-1, pixel[:, :, 0].flatten(3), window[:, :, 0].flatten(3), "amax")
    return body.unflatten(-1, (SIZE, SIZE)), trail.unflatten(-1, (SIZE, SIZE))


def _distance(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels to the edge of shapes centred at the origin, negative inside."""
    across, along = x.abs(), y.abs()
    circle = torch.sqrt(x.square() + y.square()) - radius
    square = torch.maximum(across, along) - 0.88 * radius
    top, bottom, half = -1.1 * radius, 0.9 * radius, 1.15 * radius  # an upright triangle
    slope = half / (bottom - top)
    triangle = torch.maximum((across - (y - top) * slope) / torch.sqrt(1 + slope.square()), y - bottom)
    arm = 0.36 * radius
    cross = torch.minimum(torch.maximum(across - arm, along - radius), torch.maximum(across - radius, along - arm))
    return torch.where(shape < 2, torch.where(shape == 0, circle, square), torch.where(shape == 2, triangle, cross))


def to_pixels(x: Tensor) -> Tensor:
    """Floats in [-1, 1], (..., 3, 64, 64), to uint8 (..., 64, 64, 3)."""
    return ((rearrange(x, "... rgb height width -> ... height width rgb") + 1) * 127.5).round().clamp(0, 255).byte()


def clip(what: str | Scene, seed: int, frames: int = FRAMES, style: str = "filled") -> np.ndarray:
    """One clip of the world, uint8 (frames, 64, 64, 3). The same arguments always give the same pixels."""
    return clips([what], [seed], frames, style)[0]


def clips(what: Sequence[str | Scene], seeds: Sequence[int], frames: int = FRAMES, style: str = "filled") -> np.ndarray:
    """A batch of clips, uint8 (n, frames, 64, 64, 3); one seed a clip."""
    return to_pixels(draw(scenes_of(what, seeds), frames, style)).numpy()


@cache
def prompts(count: int = 512, seed: int = 0) -> tuple[str, ...]:
    """Distinct prompts to be tried; of each four the last has a colour and a shape that were held out of training."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        wants_held_out = len(made) % 4 == 3
        words = [[str(rng.choice(kind)) for kind in KINDS.values()] for _ in range(2)]
        things = [
            Attributes(
                shape, colour, direction, size if rng.random() < 0.5 else None, speed if rng.random() < 0.5 else None
            )
            for shape, colour, direction, size, speed in words
        ]
        scene = Scene(things[0], things[1], str(rng.choice(RELATIONS)))
        differ = things[0].colour != things[1].colour and things[0].shape != things[1].shape
        if differ and scene.is_held_out == wants_held_out:
            made[scene.prompt] = None
    return tuple(made)


def classes() -> list[str]:
    """What class-conditional models are asked for: shape, colour and direction of the upper thing, 96 of them."""
    looks = product(SHAPES, COLOURS, DIRECTIONS)
    return [Scene(Attributes(*look), None).prompt for look in looks]


def centres(pixels: np.ndarray) -> np.ndarray:
    """Where things are seen: clips (..., 64, 64, 3) to x and y of the upper and the lower one, (..., 2, 2)."""
    light = pixels.astype(float).max(-1)
    halves = np.stack([light[..., :HALF, :], light[..., HALF:, :]], -3)
    bright = halves > 0.72 * halves.max((-2, -1), keepdims=True)  # between a body and the brightest ghost
    area = bright.sum((-2, -1))
    y, x = np.mgrid[:HALF, :SIZE]
    places = np.stack([(bright * x).sum((-2, -1)) / area, (bright * y).sum((-2, -1)) / area], -1)
    places[..., 1, 1] += HALF
    return places


def motion_errors(pixels: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    """How far in pixels seen centres are from the nearest motion that the world could make of each prompt, (n,).

    The root mean square distance from a least-squares fit of a uniform motion in the direction of the prompt, at a
    speed that its word allows; the mean over the things that the prompt names.
    """
    time = np.arange(pixels.shape[1]) - (pixels.shape[1] - 1) / 2
    errors = []
    for seen, prompt in zip(centres(pixels), asked, strict=True):
        scene, of_clip = parse(prompt), []
        for half, thing in enumerate((scene.upper, scene.lower)):
            if thing is None:
                continue
            slowest, fastest = SPEEDS[thing.speed] if thing.speed else (SPEEDS["slowly"][0], SPEEDS["quickly"][1])
            offsets = seen[:, half] - seen[:, half].mean(0)
            along = np.array(DIRECTIONS[thing.direction], float)
            speed = np.clip(time @ offsets @ along / (time @ time), slowest, fastest)
            of_clip.append(np.sqrt(((offsets - speed * time[:, None] * along) ** 2).sum(1).mean()))
        errors.append(np.mean(of_clip))
    return np.array(errors)


def are_hollow(pixels: np.ndarray) -> np.ndarray:
    """Which clips (n, frames, 64, 64, 3) have a thing that is dark in its middle, (n,) bool, told without a network."""
    light = pixels.astype(float).max(-1)
    seen = centres(pixels).round().astype(int)
    n, frames = np.ogrid[: len(pixels), : pixels.shape[1]]
    found = np.zeros(len(pixels), bool)
    for half, rows in enumerate((slice(0, HALF), slice(HALF, SIZE))):
        brightest = light[:, :, rows].max((2, 3))
        middle = light[n, frames, seen[..., half, 1].clip(0, SIZE - 1), seen[..., half, 0].clip(0, SIZE - 1)]
        found |= (middle < 0.62 * brightest).mean(1) > 0.5
    return found


def _uniform(seeds: Tensor) -> Tensor:
    """Numbers in [0, 1) that each seed stands for, (n, `_NUMBERS`): splitmix64, the same on any device."""
    counter = torch.arange(1, _NUMBERS + 1, device=seeds.device)
    z = _mixed(seeds)[:, None] + counter * -7046029254386353131  # the golden ratio, as splitmix64 steps
    return (_shifted(_mixed(z), 40).float() / 2**24).clamp(max=1 - 2**-24)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift 64 bits to the right, filling with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _integers(uniform: Tensor, count: int) -> Tensor:
    return (uniform * count).long()
