"""Files that appear whole or not at all: they are written under a hidden name, and then renamed."""

from __future__ import annotations

import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PART = ".part"
"""What the hidden name of an unfinished file or folder has behind the name that it is to get: ``.NAME.part…``."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, that appears whole or not at all; after an error nothing is left of it."""
    with _whole(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by their names as .npz, whole or not at all."""
    import numpy as np

    with _whole(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return what an .npz file holds; None if it is not there, empty, cut off or damaged otherwise."""
    import numpy as np

    damages = (OSError, ValueError, EOFError, KeyError, AttributeError, NotImplementedError, zlib.error)
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (*damages, zipfile.BadZipFile):
        return None


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write into, which gets its name when all is written; after an error nothing is left of it."""
    part = path.with_name(f".{path.name}{PART}-{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
