"""A browser that looks at pages, and clips that say in their pixels which frame is which."""

import io
import os
import shutil

import numpy as np
from PIL import Image

BITS = 4
"""Frames are numbered in this many cells along their upper edge."""


def chromium():
    """Return the path of the browser: `CHROMIUM` if it is set, Debian's, or playwright's own (None) if it has one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def numbered_clip(frames, shade, size=64):
    """Return a clip of one shade of grey, uint8 (frames, size, size, 3), whose frames say their numbers."""
    clip = np.full((frames, size, size, 3), shade, np.uint8)
    for number in range(frames):
        for bit in range(BITS):
            cell = slice(bit * size // BITS, (bit + 1) * size // BITS)
            clip[number, : size // 4, cell] = 255 if number >> bit & 1 else 0
    return clip


def seen(page, selector):
    """Return what the elements of a selector show on the screen, all at one moment, each uint8 (height, width, 3)."""
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    parts = []
    for box in [element.bounding_box() for element in page.locator(selector).all()]:
        top, left = round(box["y"]), round(box["x"])
        part = picture[max(top, 0) : round(top + box["height"]), left : round(left + box["width"])]
        if top >= 0 and part.shape[0] == round(box["height"]):  # all of it is on the screen
            parts.append(part)
    return parts


def number_of(part):
    """Return which frame of a numbered clip is shown."""
    height, width = part.shape[:2]
    return sum(1 << bit for bit in range(BITS) if part[height // 8, round((bit + 0.5) * width / BITS)].mean() > 128)


def shade_of(part, x):
    """Return the shade of what is shown, at a fraction of its width and three quarters of the way down."""
    return float(part[3 * part.shape[0] // 4, int(x * part.shape[1])].mean())
