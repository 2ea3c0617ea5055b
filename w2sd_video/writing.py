"""Files that appear whole or not at all: they are written under a hidden name, and then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PART = ".part"
"""What the hidden name of an unfinished file or folder has behind the name that it is to get: ``.NAME.part…``."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, that appears whole or not at all; after an error nothing is left of it."""
    with whole(path) as part:
        part.write_bytes(text.encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by their names as .npz, whole or not at all."""
    import numpy as np

    with whole(path) as part, part.open("wb") as file:
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


def keys_in(folder: Path) -> Iterator[str]:
    """Yield the keys that the .npz files of a folder were made with; of what is damaged none."""
    for file in folder.glob("*.npz"):
        if (arrays := read_arrays(file)) is not None:
            yield str(arrays.get("key", ""))


def remove_unfinished(folder: Path) -> None:
    """Remove what a run that was killed had not finished in a folder."""
    for item in folder.glob(f".*{PART}*"):
        shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which gets its name when that is done; after an error nothing is left of it."""
    part = path.with_name(f".{path.name}{PART}-{uuid.uuid4().hex[:8]}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
