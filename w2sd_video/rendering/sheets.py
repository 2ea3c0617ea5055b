"""Clips as people look at them, uint8 (frames, height, width, 3): enlarged, labelled, side by side, on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_INK, _PAPER = (235, 235, 235), (24, 24, 28)
"""Colours of labels and of what is between clips: light on dark, like the miniatures' frames."""


def enlarge(frames: np.ndarray, minimum: int = 256) -> np.ndarray:
    """Repeat pixels, by a whole factor and so without blur, until the shorter side has `minimum` pixels."""
    factor = max(1, -(-minimum // min(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(clips: Sequence[np.ndarray], labels: Sequence[str], gap: int = 8, caption: str = "") -> np.ndarray:
    """Put clips of one shape next to each other, each below its label: (frames, label + height + caption, widths, 3).

    Args:
        clips: any number of clips of one shape.
        labels: one a clip.
        gap: pixels between clips.
        caption: stands below them all, in as many lines as it needs; empty for none.
    """
    columns = []
    for clip, label in zip(clips, labels, strict=True):
        frames, height, width, _ = clip.shape
        title = _text(label, width, _title_height(height))
        columns += [np.concatenate([np.broadcast_to(title, (frames, *title.shape)), clip], axis=1)]
        columns += [_blank(frames, height + len(title), gap)]
    joined = np.concatenate(columns[:-1], axis=2)
    if not caption:
        return joined
    below = _caption(caption, joined.shape[2])
    return np.concatenate([joined, np.broadcast_to(below, (len(joined), *below.shape))], axis=1)


def panel_boxes(count: int, height: int, width: int, gap: int = 8) -> list[tuple[int, int, int, int]]:
    """Return where `side_by_side` puts clips of a height and a width: left, top, width and height of each."""
    return [(number * (width + gap), _title_height(height), width, height) for number in range(count)]


def contact_sheet(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    columns: int = 6,
    side: int = 128,
    gap: int = 4,
    caption: str = "",
) -> np.ndarray:
    """Lay clips out as one picture, a row each with its label in front: uint8 (height, width, 3).

    Args:
        clips: any number of clips of one shape.
        labels: one a clip.
        columns: most frames shown of each clip, the first among them, at one distance from each other.
        side: least length in pixels of the shorter side of a frame; small frames are enlarged to it.
        gap: pixels between frames.
        caption: stands below them all, in as many lines as it needs; empty for none.
    """
    label_width = max([side // 2, 72, *(_label_width(label) for label in labels)])
    rows = []
    for clip, label in zip(clips, labels, strict=True):
        distance = -(-(len(clip) - 1) // (columns - 1)) or 1
        frames = enlarge(clip[::distance], side)
        cells = [_text(label, label_width, frames.shape[1])]
        for frame in frames:
            cells += [_blank(1, frames.shape[1], gap)[0], frame]
        row = np.concatenate(cells, axis=1)
        rows += [row, _blank(1, gap, row.shape[1])[0]]
    sheet = np.concatenate(rows[:-1], axis=0)
    return np.concatenate([sheet, _caption(caption, sheet.shape[1])]) if caption else sheet


def _text(text: str, width: int, height: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, height), _PAPER)
    font = ImageFont.load_default(size=min(16, max(10, width // 8)))
    ImageDraw.Draw(picture).text((width // 2, height // 2), text, _INK, font=font, anchor="mm")
    return np.asarray(picture)


def _caption(text: str, width: int, size: int = 14) -> np.ndarray:
    """Return a text on as many lines of a width as it needs: uint8 (height, width, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width - size:
            lines[-1] = longer
        else:
            lines.append(word)
    picture = Image.new("RGB", (width, (len(lines) + 1) * (size + 4) // 2 * 2), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((size // 2, size // 2), "\n".join(lines).strip(), _INK, font=font, spacing=4)
    return np.asarray(picture)


def _title_height(height: int) -> int:
    return max(20, height // 12)


def _label_width(label: str) -> int:
    from PIL import ImageFont

    return math.ceil(ImageFont.load_default(size=16).getlength(label)) + 12


def _blank(frames: int, height: int, width: int) -> np.ndarray:
    return np.full((frames, height, width, 3), _PAPER, np.uint8)
