"""Files that appear whole or not at all: they are written under a hidden name, and then renamed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

PART = ".part"
"""What the hidden name of an unfinished file or folder has behind the name that it is to get: ``.NAME.part…``."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, that appears whole or not at all; after an error nothing is left of it."""
    part = path.with_name(f".{path.name}{PART}-{uuid.uuid4().hex[:8]}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
