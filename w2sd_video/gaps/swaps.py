"""Attributes of objects set for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Swap = tuple[Any, dict[str, Any]]
"""An object, and what some of its attributes are to be."""

_ABSENT = object()
"""Stands for an attribute that was not there, which None could not."""


@contextmanager
def swapped(swaps: Sequence[Swap]) -> Iterator[None]:
    """Set the attributes; what was there before comes back at the end, also after an exception.

    An attribute that somebody else has set in the meantime stays as they set it: offloading hooks are set anew at the
    end of a pipeline's call.
    """
    undo: list[tuple[dict[str, Any], str, Any, Any]] = []
    for target, attributes in swaps:
        target_attributes = target.__dict__
        for name, value in attributes.items():
            undo.append((target_attributes, name, target_attributes.get(name, _ABSENT), value))
            target_attributes[name] = value
    try:
        yield
    finally:
        for target_attributes, name, value_before, set_value in reversed(undo):
            if target_attributes.get(name) is not set_value:
                continue
            if value_before is _ABSENT:
                del target_attributes[name]
            else:
                target_attributes[name] = value_before


def scale_like(before: Any, scale: float) -> Any:
    """Return a scale in the form of the one before: one for each of several side networks, or a number."""
    return [scale] * len(before) if isinstance(before, (list, tuple)) else scale


@contextmanager
def attributes_put_back(owner: Any, always: bool = True) -> Iterator[None]:
    """Put the attributes of an object back at the end, or only after an exception."""
    before = {name: list(value) if isinstance(value, list) else value for name, value in vars(owner).items()}
    ended = False
    try:
        yield
        ended = True
    finally:
        if always or not ended:
            vars(owner).clear()
            vars(owner).update(before)
