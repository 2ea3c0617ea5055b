"""Clips as arrays, uint8 (frames, height, width, 3): read, enlarged, labelled, and written whole or not at all.

An image is a clip of one frame.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2sd_video.writing import write_whole as write_whole  # where it was before

SUFFIXES = {
    ".mp4": "an H.264 video",
    ".gif": "an animation",
    ".png": "an image, or a contact sheet",
    "": "a folder of .png frames",
}
"""What each ending of an output's name stands for."""

_H264 = ("-crf", "12", "-preset", "slow", "-movflags", "+faststart")
"""Near to lossless, for small clips of flat colours; and readable from its beginning, for web pages."""
_COLOURS = "-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_primaries bt709 -color_trc bt709"
"""Converts to BT.709 and says so: without it players guess the matrix by the size, and small clips shift in hue."""
_INK, _PAPER = (235, 235, 235), (24, 24, 28)
"""Colours of labels and of what is between clips: light on dark, like the miniatures' frames."""


class VideoError(OSError):
    """A file that cannot be read as a video, or a place where none can be written."""


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Turn frames in [0, 1], as pipelines return them, into uint8.

    Raises:
        ValueError: a value that is not finite: the sampling diverged.
    """
    if not np.isfinite(frames).all():
        raise ValueError("the sampling diverged: the frames hold values that are not finite; lower strength or rounds")
    return np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8)


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


def read_video(path: str | Path) -> np.ndarray:
    """Read all frames of a video file: uint8 (frames, height, width, 3).

    Raises:
        VideoError: no such file, or one that holds no video that can be decoded.
    """
    import decord

    if not Path(path).is_file():
        raise VideoError(f"{path}: no such video file")
    try:
        reader = decord.VideoReader(str(path))
        return reader.get_batch(range(len(reader))).asnumpy()
    except (decord.DECORDError, IndexError, RuntimeError) as error:
        raise VideoError(
            f"{path}: not a video that can be decoded, or a damaged one; of those narrower than 200 pixels decord "
            "cannot decode some, which must be enlarged"
        ) from error


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as a clip of one frame: uint8 (1, height, width, 3).

    Raises:
        VideoError: no such file, or none that can be decoded.
    """
    from PIL import Image

    if not Path(path).is_file():
        raise VideoError(f"{path}: no such picture file")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))[None]
    except OSError as error:
        raise VideoError(f"{path}: not a picture that can be decoded, or a damaged one") from error


def check_output(path: str | Path) -> None:
    """Make sure that an output can be written there, before any work is done for it.

    Raises:
        VideoError: an ending other than those in `SUFFIXES`, no folder to write into, or no permission to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(f"{suffix or 'no ending'} ({what})" for suffix, what in SUFFIXES.items())
        raise VideoError(f"output {path}: unknown ending {path.suffix!r}; use {known}")
    if path.suffix and path.is_dir():
        raise VideoError(f"output {path}: is a folder; name a file, or a folder without the ending {path.suffix}")
    if not path.suffix and path.exists():
        if not path.is_dir():
            raise VideoError(f"output {path}: is a file, but a name without ending means a folder; add .mp4 or .gif")
        # Only a folder of this kind is replaced; frame-0000.png and so on are what _write_folder writes.
        if foreign := next((item.name for item in path.iterdir() if not item.match("frame-*.png")), None):
            raise VideoError(f"output {path}: holds other files ({foreign}); name a new or an empty folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        hint = "" if path.parent.exists() else f"; create it first: mkdir -p {path.parent}"
        raise VideoError(f"output {path}: cannot write into {path.parent}: {error.strerror}{hint}") from error


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """Write frames, uint8 (frames, height, width, 3), as the ending of the path says: .mp4, .gif, or a folder of .png.

    The file, or folder, appears when it is complete and replaces an earlier one; after an error nothing has changed.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        part = Path(scratch) / path.name
        if path.suffix.lower() == ".mp4":
            _write_mp4(part, frames, fps)
        elif path.suffix.lower() == ".gif":
            _write_gif(part, frames, fps)
        else:
            _write_folder(part, frames)
        _replace(path, part, Path(scratch) / "earlier")


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write one picture, uint8 (height, width, 3), whole or not at all."""
    from PIL import Image

    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        Image.fromarray(picture).save(Path(scratch) / path.name)
        os.replace(Path(scratch) / path.name, path)


def _replace(path: Path, part: Path, earlier: Path) -> None:
    if not path.is_dir():
        return os.replace(part, path)
    os.replace(path, earlier)  # a folder that holds files cannot be replaced in one move
    try:
        os.replace(part, path)
    except OSError:
        os.replace(earlier, path)
        raise


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio.v3 as iio

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 halves the colours
    options = [*_H264, *_COLOURS.split()]
    iio.imwrite(
        path,
        even,
        plugin="FFMPEG",
        fps=fps,
        codec="libx264",
        pixelformat="yuv420p",
        macro_block_size=2,
        quality=None,
        output_params=options,
    )


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio.v3 as iio

    iio.imwrite(path, frames, plugin="pillow", duration=1000 / fps, loop=0)


def _write_folder(path: Path, frames: np.ndarray) -> None:
    from PIL import Image

    path.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame-{index:04d}.png")


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
