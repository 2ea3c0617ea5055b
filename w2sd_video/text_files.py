"""Text files that a user gives, JSON among them: read whole, strictly, and never without end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26
"""64 MiB: no text that is asked for is as long, and what has no end (/dev/zero) is refused and not read for ever."""


def read_text(path: str | Path) -> str:
    """Return the text of a file: UTF-8, with or without the mark that some editors put before it.

    Raises:
        ValueError: a file that cannot be read, is no text or longer than `MOST_BYTES`; the message is the reason alone.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from error
    if "\0" in text:
        raise ValueError("it is not text, for it holds null characters")
    return text


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Return what a JSON text says; a key that is there twice is refused.

    Args:
        text: the JSON.
        finite: whether NaN and infinities, which Python's JSON has beside the standard's, are refused too.

    Raises:
        ValueError: no JSON, or one that nests too deep.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant if finite else None
        )
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return mapping


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is there, which must be a finite number")
