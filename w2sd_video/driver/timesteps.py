"""Timesteps that a pipeline's loop goes through more often than it counts.

A reflected loop goes round once for every evaluation that the sampler asks for. What pipelines count by their loop
(windows of a ControlNet, guiders, the next timestep of an inpainted part) is meant in the scheduler's own calls.
So the timesteps that a pipeline is shown are the stock ones, in number, value and place: only going through them
repeats one as long as the walk is not done with its call, and ``enumerate`` gives all repetitions one index.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch

from w2sd_video.driver.signatures import layers_of

_zip = zip


class Timesteps(torch.Tensor):
    """A scheduler's timesteps. What is computed from them is a plain tensor, but a part of them is walked as they are.

    Attributes:
        calls: which of the scheduler's calls they are.
        walk: goes through the turns of these calls.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    calls: range
    walk: Callable[[range], Iterator[torch.Tensor]]

    @classmethod
    def shown(cls, timesteps: torch.Tensor, calls: range, walk: Callable[[range], Iterator[torch.Tensor]]) -> Timesteps:
        """Return the timesteps of some calls."""
        shown = timesteps.as_subclass(cls)
        shown.calls, shown.walk = calls, walk
        return shown

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return what a plain tensor would; a slice, as image-to-video makes, begins and ends the walk there."""
        part = self.as_subclass(torch.Tensor)[index]
        return Timesteps.shown(part, self.calls[index], self.walk) if isinstance(index, slice) else part

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the same timesteps elsewhere."""
        return Timesteps.shown(self.as_subclass(torch.Tensor).to(*args, **kwargs), self.calls, self.walk)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Go through the turns of these calls."""
        return self.walk(self.calls)


class _Latest(threading.local):
    index: int | None = None


_latest = _Latest()


def at_index(index: int, timestep: torch.Tensor) -> torch.Tensor:
    """Return a timestep that a loop is handed, and say which index it has in a stock loop."""
    _latest.index = index
    return timestep


def enumerate_calls(iterable: Iterable[Any], start: int = 0) -> Iterator[tuple[int, Any]]:
    """Do what ``enumerate`` does, but give timesteps the index that they have in a stock loop."""
    iterator, index = iter(iterable), -1
    while True:
        _latest.index = None
        try:
            item = next(iterator)
        except StopIteration:
            return
        index = index + 1 if _latest.index is None else _latest.index
        yield start + index, item


def zip_calls(*iterables: Iterable[Any], strict: bool = False) -> Iterator[tuple[Any, ...]]:
    """Do what ``zip`` does, but let what goes along with timesteps stay where it is as long as they are repeated."""
    walked = [number for number, iterable in enumerate(iterables) if isinstance(iterable, Timesteps)]
    if not walked:
        return _zip(*iterables, strict=strict)
    longest = max(walked, key=lambda number: len(iterables[number]))  # type: ignore[arg-type]
    return _along(iterables[longest], [*iterables[:longest], *iterables[longest + 1 :]], longest)


def _along(timesteps: Iterable[Any], others: list[Iterable[Any]], place: int) -> Iterator[tuple[Any, ...]]:
    iterator, index, items = iter(timesteps), None, ()
    going_along = [iter(other) for other in others]
    while True:
        _latest.index = None
        try:
            timestep = next(iterator)
            if index is None or _latest.index != index:
                index, items = _latest.index, tuple(map(next, going_along))
        except StopIteration:
            return
        if len(items) < len(others):  # map ends where one of them does
            return
        yield (*items[:place], timestep, *items[place:])


_COUNTING = {"enumerate": enumerate_calls, "zip": zip_calls}
"""What loops count their turns with, and what takes its place."""
_lock = threading.Lock()
_users: dict[int, int] = {}


@contextmanager
def counting_calls(cls: type) -> Iterator[None]:
    """Have the loops in the modules of a pipeline's class count by the scheduler's calls for a while."""
    namespaces = _namespaces(cls)
    with _lock:
        for name, namespace in namespaces.items():
            _users[name] = _users.get(name, 0) + 1
            namespace.update(_COUNTING)
    try:
        yield
    finally:
        with _lock:
            for name, namespace in namespaces.items():
                _users[name] -= 1
                if not _users[name]:
                    del _users[name]
                    for counting in _COUNTING:
                        del namespace[counting]


def _namespaces(cls: type) -> dict[int, dict[str, Any]]:
    """Return the globals of the methods of a class that call ``enumerate`` or ``zip``, in functions of theirs too."""
    found = {}
    for base in cls.__mro__:
        for attribute in vars(base).values():
            for function in filter(inspect.isfunction, layers_of(attribute)):
                if not _names_in(function.__code__).isdisjoint(_COUNTING):
                    namespace = function.__globals__
                    if all(namespace.get(name, counting) is counting for name, counting in _COUNTING.items()):
                        found[id(namespace)] = namespace
    return found


def _names_in(code: CodeType) -> set[str]:
    """Return the names that some code uses, and the functions that are made in it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(_names_in, inner))
