"""Clips as arrays, uint8 (frames, height, width, 3): read, and written whole or not at all.

An image is a clip of one frame.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from w2sd_video._moved import names_of
from w2sd_video.argument_checks import check_frames, real_number
from w2sd_video.messages import NO_SPACE, reason_of, shortened
from w2sd_video.writing import PART

__getattr__ = names_of(__name__)


SUFFIXES = {
    ".mp4": "an H.264 video",
    ".webm": "a VP9 video",
    ".gif": "an animation",
    ".webp": "an animation, or an image",
    ".png": "an image, or a contact sheet",
    "": "a folder of .png frames",
}
"""What each ending of an output's name stands for."""

MOST_FPS = 1000
"""Frames a second, beyond what any player shows."""

LONGEST_NAME = 220
"""Bytes: file systems take 255, of which what is written beside an output adds some."""

_H264 = ("-codec:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-preset", "slow", "-movflags", "+faststart")
"""Near to lossless, for small clips of flat colours; and readable from its beginning, for web pages."""
_VP9 = ("-codec:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-crf", "18", "-b:v", "0", "-row-mt", "1")
"""The same, in a format without patents."""
_BITEXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact")
"""No time and no random number in the file."""
_MOST_FPS_OF_GIF = 50
"""Browsers show faster frames a tenth of a second each."""
_COLOURS = "-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_primaries bt709 -color_trc bt709"
"""Converts to BT.709 and says so: without it players guess the matrix by the size, and small clips shift in hue."""


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


def read_video(path: str | Path) -> np.ndarray:
    """Read all frames of a video file: uint8 (frames, height, width, 3).

    Raises:
        VideoError: no such file, or one that holds no video that can be decoded.
    """
    import decord

    _check_is_file(path, "video")
    try:
        with _silent_decoders():
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

    _check_is_file(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))[None]
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(f"{path}: has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises of a damaged file, by its format
        raise VideoError(f"{path}: not a picture that can be decoded, or a damaged one") from error


def _check_is_file(path: str | Path, what: str) -> None:
    """Refuse, with what the system says, a path that cannot be read."""
    try:
        if not Path(path).is_file():
            raise VideoError(
                f"{shortened(str(path))}: {'is a folder, no' if Path(path).is_dir() else 'no such'} {what} file"
            )
        with Path(path).open("rb"):
            pass
    except VideoError:
        raise
    except (OSError, ValueError) as error:
        raise VideoError(f"{shortened(str(path))}: cannot be read: {getattr(error, 'strerror', error)}") from error


@contextmanager
def _silent_decoders() -> Iterator[None]:
    """Keep to one side what ffmpeg's libraries print on the process's stderr themselves, past Python's."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_name(path: Path) -> None:
    """Refuse an output whose name no file can have, or none of those that are written beside it (VideoError)."""
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise VideoError(f"output {shortened(path.name)}: is too long a name; at most {LONGEST_NAME} bytes")
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise VideoError(f"output {shortened(str(path))}: cannot be written: {reason_of(error)}") from error


def check_output(path: str | Path) -> None:
    """Make sure that an output can be written there, before any work is done for it.

    Raises:
        VideoError: an ending other than those in `SUFFIXES`, no folder to write into, or no permission to.
    """
    path = Path(path)
    check_name(path)
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


def write_video(
    path: str | Path, frames: np.ndarray, fps: float = 8, about: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write frames, uint8 (frames, height, width, 3), as the ending of the path says; no ending is a folder of .png.

    The file, or folder, appears when it is complete and replaces an earlier one; after an error nothing has changed.

    Args:
        path: of the file or folder.
        frames: at least one.
        fps: frames a second; a .gif holds at most 50, and a warning is given above.
        about: plain data that goes into the file as JSON: a comment in a video or a .gif, a description in a picture.

    Raises:
        TypeError: frames that are not uint8, or a rate that is no number.
        ValueError: frames of another shape, a rate out of range.
        OSError: a file that cannot be written, for want of space for example.
    """
    path = Path(path)
    check_frames("frames", frames, ("frames", "height", "width"))
    if not 0 < real_number("fps", fps) <= MOST_FPS:
        raise ValueError(f"fps must be above 0 and at most {MOST_FPS}, got {fps}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}{PART}-") as scratch:
        part = Path(scratch) / path.name
        _WRITERS.get(path.suffix.lower(), _write_folder)(part, frames, fps, about)
        _replace(path, part, Path(scratch) / "earlier")


def write_picture(path: str | Path, picture: np.ndarray, about: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write one picture, uint8 (height, width, 3), whole or not at all; `about` as of `write_video`."""
    path = Path(path)
    check_frames("picture", picture, ("height", "width"))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}{PART}-") as scratch:
        part = Path(scratch) / path.name
        _save_picture(part, picture, about)
        os.replace(part, path)


def about_of(path: str | Path) -> dict[str, Any]:
    """Return the data that `write_video` or `write_picture` put into a file; nothing for a file that has none.

    Raises:
        VideoError: a file that cannot be read.
    """
    path = Path(path)
    try:
        text = _comment_of_video(path) if path.suffix.lower() in (".mp4", ".webm") else _comment_of_picture(path)
        data = json.loads(text)
    except (OSError, RuntimeError) as error:
        raise VideoError(f"{path}: cannot be read as a picture or a video") from error
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _replace(path: Path, part: Path, earlier: Path) -> None:
    if not path.is_dir():
        return os.replace(part, path)
    os.replace(path, earlier)  # a folder that holds files cannot be replaced in one move
    try:
        os.replace(part, path)
    except OSError:
        os.replace(earlier, path)
        raise


def _write_mp4(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    _encode(path, frames, fps, [*_H264, *_COLOURS.split(), *_tags(about)])


def _write_webm(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    _encode(path, frames, fps, [*_VP9, *_COLOURS.split(), *_tags(about)])


def _encode(path: Path, frames: np.ndarray, fps: float, options: Sequence[str]) -> None:
    """Have ffmpeg write a file, and look at how it ended: imageio does not, and leaves what a full disk has cut off.

    Raises:
        VideoError: ffmpeg failed; the message has its own last line.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 halves the colours
    height, width = even.shape[1:3]
    raw = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        str(Fraction(fps).limit_denominator()),
    ]
    command = [get_ffmpeg_exe(), "-y", "-v", "error", *raw, "-i", "-", *options, *_BITEXACT, str(path)]
    ended = subprocess.run(command, input=np.ascontiguousarray(even).tobytes(), capture_output=True, check=False)
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
        reason = NO_SPACE if any("No space left" in line for line in said) else f"ffmpeg: {said[-1].strip()}"
        raise VideoError(f"{path.name}: the video could not be written: {reason}")


def _write_gif(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    from PIL import Image

    if fps > _MOST_FPS_OF_GIF:
        warnings.warn(
            f"{path.name}: a .gif holds at most {_MOST_FPS_OF_GIF} frames a second, not {fps:g}", stacklevel=3
        )
        fps = _MOST_FPS_OF_GIF
    ends = [round(100 * number / fps) for number in range(len(frames) + 1)]  # a .gif counts in 1/100 s
    durations = [10 * (end - begin) for begin, end in itertools.pairwise(ends)]
    first, *rest = [Image.fromarray(frame) for frame in frames]
    comment: dict[str, Any] = {"comment": _json_of(about).encode()} if about else {}
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, **comment)


def _write_webp(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    from PIL import Image

    ends = [round(1000 * number / fps) for number in range(len(frames) + 1)]
    durations = [end - begin for begin, end in itertools.pairwise(ends)]
    first, *rest = [Image.fromarray(frame) for frame in frames]
    settings: dict[str, Any] = {"quality": 95, "method": 4, "exif": _exif(about)}
    if rest:
        settings |= {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    first.save(path, **settings)


def _write_folder(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    path.mkdir()
    for index, frame in enumerate(frames):
        _save_picture(path / f"frame-{index:04d}.png", frame, about)


_WRITERS = {".mp4": _write_mp4, ".webm": _write_webm, ".gif": _write_gif, ".webp": _write_webp}
"""How a clip is written by the ending of its file."""


def _save_picture(path: Path, picture: np.ndarray, about: Mapping[str, Any]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.fromarray(picture)
    if path.suffix.lower() != ".png":
        return image.save(path, quality=95, exif=_exif(about))
    info = PngInfo()
    if about:
        info.add_itxt("Description", _json_of(about))
    image.save(path, pnginfo=info)


def _json_of(about: Mapping[str, Any]) -> str:
    return json.dumps(about, ensure_ascii=False)


def _tags(about: Mapping[str, Any]) -> list[str]:
    """Return ffmpeg's options for a comment, and for a title that players show."""
    title = ["-metadata", f"title={about['prompt']}"] if "prompt" in about else []
    return [*title, "-metadata", f"comment={_json_of(about)}"] if about else []


def _exif(about: Mapping[str, Any]) -> bytes:
    """Return what says it in a picture of cameras' kind; its texts are ASCII."""
    from PIL import Image
    from PIL.ExifTags import Base

    exif = Image.Exif()
    if about:
        exif[Base.ImageDescription] = json.dumps(about)
    return exif.tobytes() if about else b""


def _comment_of_video(path: Path) -> str:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise VideoError(f"{path}: cannot be read as a video")
    # A value goes on in the next line after a backslash, which stands before each special character too.
    logical = re.split(r"(?<!\\)\n", done.stdout.decode())
    comment = next((line for line in logical if line.lower().startswith("comment=")), "comment=")
    return re.sub(r"\\(.)", r"\1", comment.partition("=")[2], flags=re.DOTALL)


def _comment_of_picture(path: Path) -> str:
    from PIL import Image
    from PIL.ExifTags import Base

    with Image.open(path) as picture:
        comment = picture.info.get("comment", b"")
        text = getattr(picture, "text", {}).get("Description") or picture.getexif().get(Base.ImageDescription)
        return text or (comment.decode(errors="replace") if isinstance(comment, bytes) else comment)
