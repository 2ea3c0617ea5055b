"""What the one line of an error is made of."""

from __future__ import annotations

import difflib
import errno
import pickle
import textwrap
from collections.abc import Iterable, Iterator

OUT_OF_MEMORY = (
    "out of memory; set model.memory to offload or sequential, a smaller batch, fewer frames, a smaller height and "
    "width, or dtype bfloat16"
)
PICKLED = "it is pickled with more than tensors, and loading such a file could run code; convert it to .safetensors"
_NO_MEMORY = ("out of memory", "can't allocate memory")
NO_SPACE = "no space is left to write to; make room, or name an output on another disk"
_NO_SPACE_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ConfigError(ValueError):
    """Something asked for that cannot be done; the message is one line that names the value and what is allowed."""


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the known name that is nearest to an unknown one as a question, or else all that are known.

    Args:
        name: the unknown one.
        known: those that are known.
        otherwise: what is said where none is near, in place of all of them.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"known are {', '.join(known)}" if otherwise is None else otherwise


def first_line(error: BaseException) -> str:
    """Return what an error says in one line: of what many meet what to do, else its first line that is not empty."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if is_disk_full(error):
        return NO_SPACE
    if any(isinstance(cause, pickle.UnpicklingError) for cause in _with_causes(error)):
        return PICKLED
    if isinstance(error, OSError) and error.strerror:
        return reason_of(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    # A KeyError says its key, and no more.
    return f"{type(error).__name__}: {line}" if isinstance(error, LookupError) else line


def reason_of(error: Exception) -> str:
    """Return why a file could not be used: what the system says, with the name of the file where it has one."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{shortened(str(error.filename))}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return " ".join(str(error).split())


def shortened(name: str) -> str:
    """Return a name that fits a line."""
    return textwrap.shorten(name, 100, placeholder="…") if " " in name else name[:99] + "…" * (len(name) > 99)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was lacking, of the machine or of an accelerator."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _NO_MEMORY))
        for cause in _with_causes(error)
    )


def is_disk_full(error: BaseException) -> bool:
    """Return whether a file could not be written for want of space."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _NO_SPACE_NUMBERS)
        or "No space left on device" in str(cause)
        or NO_SPACE in str(cause)
        for cause in _with_causes(error)
    )


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that led to it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
