"""What a network keeps from evaluation to evaluation, which more evaluations than steps would change."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from w2sd_video.argument_checks import version_of
from w2sd_video.driver.comparing import state_of
from w2sd_video.driver.networks import own_forward
from w2sd_video.driver.source import functions_of, is_foreign, is_foreign_function, is_read

_NUMBERS = (bool, int, float, np.generic)
_PLAIN_NUMBERS = (int, float)
_LOOKS = 3
"""Evaluations before and after which a network is looked at."""
_OF_THE_WHOLE, _HOOK = "its forward", " hook "
"""Begin the names of what a wrapper of the whole network keeps, and end the path of what a hook keeps."""
_MOST = 20_000
"""Values that are looked at: more are no counters, but data."""
_MOST_ITEMS = 64
"""Items of a container that are looked at."""

Marks = dict[str, Any]
Modules = Sequence[tuple[str, nn.Module]]
"""A network's modules with their paths, the network itself first."""


class NetworkState:
    """What the networks of one call of a pipeline keep, and what stands around them: hooks, processors, patches.

    A reflection evaluates a network more often than the pipeline's own loop, in other roles, and not at all in the
    turns that only watch. What it keeps of evaluations (a counter, features, a random state) is then not what it would
    be. Something may be kept once, when it is first needed (positions), so what is refused has changed twice. A list
    that grows is a log; hooks that return nothing and write into nothing only look on; and a number that a wrapper of
    the network as a whole keeps is a count of its calls, as long as its code reads it nowhere but where it counts on.
    """

    def __init__(self) -> None:
        self._changed: WeakKeyDictionary[nn.Module, list[set[str]]] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[nn.Module, list[Marks]] = WeakKeyDictionary()
        self._changing: WeakSet[nn.Module] = WeakSet()

    def is_changed_by_hooks(self, network: nn.Module) -> bool:
        """Return whether a hook of the user's inside a network was seen to change something, rows as it likes."""
        return network in self._changing

    @contextmanager
    def evaluated(self, network: nn.Module) -> Iterator[None]:
        """Look at a network before and after each of its first three evaluations.

        Raises:
            ValueError: it keeps something of them; the message names it.
        """
        changed = self._changed.setdefault(network, [])
        if len(changed) == _LOOKS:
            yield
            return
        modules = list(network.named_modules())
        before = _around(modules)
        with _watched_hooks(modules) as acting:
            yield
        if functions_of(hook for name, hook in acting.items() if not name.startswith(_HOOK)):  # not of the whole
            self._changing.add(network)
        changed.append(_differing(before, _around(modules), acting, _forwards(network)))
        _check(changed)

    def seen(self, network: nn.Module) -> None:
        """Look at a network in the first three turns in which only what stands around it is run.

        Raises:
            ValueError: that keeps something of them; the message names it.
        """
        marks = self._seen.setdefault(network, [])
        if len(marks) < _LOOKS:
            marks.append(_around([("", network)]))
            _check([_differing(*pair, (), _forwards(network)) for pair in itertools.pairwise(marks)])


def _check(changed: list[set[str]]) -> None:
    """Refuse what changed twice."""
    times = Counter(itertools.chain(*changed))  # not twice in a row: token merging draws for pairs of rows only
    kept = sorted(name for name, count in times.items() if count > 1)
    if kept:
        raise ValueError(
            f"the network counts its evaluations or keeps something of them ({', '.join(kept[:3])}), as caches and "
            "prompt editing do, and a reflection makes more of them, so it cannot be reflected; take "
            "that off, or reflect no step (reflection_steps=0)"
        )


def _differing(before: Marks, after: Marks, acting: Collection[str], wrapper: Sequence[Any]) -> set[str]:
    """Return the names of what is there before and after, and not the same.

    Args:
        before: marks.
        after: later ones.
        acting: names of the hooks that do more than look on.
        wrapper: what is called as the whole network.
    """
    names = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    of_modules = {name for name in names if isinstance(after[name], dict)}
    for name in of_modules:
        names |= {f"{name}.{key}" for key in _differing(before[name], after[name], acting, wrapper)}
    return {name for name in names - of_modules if not _only_looks_on(name, after.get(name), acting, wrapper)}


def _only_looks_on(name: str, value: Any, acting: Collection[str], wrapper: Sequence[Any]) -> bool:
    """Return whether a value is a hook's that does nothing else, or a count of a wrapper of the whole network."""
    if name.startswith(_OF_THE_WHOLE):
        return isinstance(value, _NUMBERS) and not is_read(name, functions_of(wrapper))
    hook = name.partition(_HOOK)
    number = "".join(itertools.takewhile(str.isdigit, hook[2]))
    return bool(number) and f"{hook[0]}{_HOOK}{number}" not in acting


@contextmanager
def _watched_hooks(modules: Modules) -> Iterator[dict[str, Any]]:
    """Yield, by their names, the hooks that have returned something, or written into what they were given."""
    acting: dict[str, Any] = {}
    swapped: list[tuple[Any, int, Any]] = []
    for path, module in modules:
        for name, hooks, key in _hooks_of(path, module):
            swapped.append((hooks, key, hooks[key]))
            hooks[key] = partial(_noted, hooks[key], name, acting)
    try:
        yield acting
    finally:
        for hooks, key, hook in swapped:
            if key in hooks:  # a hook may take itself away
                hooks[key] = hook


def _noted(hook: Any, name: str, acting: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    versions = [version_of(tensor) for tensor in given]
    result = hook(*args, **kwargs)
    if result is not None or versions != [version_of(tensor) for tensor in given]:
        acting[name] = hook
    return result


def _hooks_of(path: str, module: nn.Module) -> Iterator[tuple[str, dict[int, Any], int]]:
    """Yield the hooks of a module: a name, and where each is."""
    number = 0
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in list(hooks):
            yield f"{path}{_HOOK}{number}", hooks, key
            number += 1


def _around(modules: Modules) -> Marks:
    """Return a mark of what some modules, their hooks, processors and patches can keep something in."""
    marks: Marks = {}
    whole = modules[0][1]
    # What these share with others, which are looked into before them, is the others'.
    pending: list[tuple[str, Any]] = [(_OF_THE_WHOLE, forward) for forward in _forwards(whole)]
    pending += [(name, hooks[key]) for path, module in modules for name, hooks, key in _hooks_of(path, module)]
    classes = {type(module): None for _, module in modules}
    for cls in classes:
        marks[cls.__name__] = {name: value for name, value in vars(cls).items() if type(value) in _PLAIN_NUMBERS}
        if cls is not type(whole):
            pending.append((f"{cls.__name__}.forward", cls.forward))
    for path, module in modules:
        attributes = vars(module)
        marks[path] = {name: value for name, value in attributes.items() if type(value) in _PLAIN_NUMBERS}
        if "processor" in attributes:
            pending.append((f"{path}.processor", attributes["processor"]))
        forward = own_forward(module)
        if module is not whole:
            pending.append((f"{path}.forward", forward))
        if is_foreign(type(module).__module__) or (isinstance(forward, FunctionType) and is_foreign_function(forward)):
            pending += [(f"{path}.{name}", value) for name, value in attributes.items() if name not in _OF_EVERY_MODULE]
    _look_into(pending, marks)
    return marks


def _forwards(network: nn.Module) -> tuple[Any, Any]:
    """Return what is called as a network: its class's forward, and one of its own."""
    return type(network).forward, own_forward(network)


_OF_EVERY_MODULE = {"forward", *vars(nn.Module())} - {"_buffers"}


def _look_into(pending: list[tuple[str, Any]], marks: Marks) -> None:
    """Mark values, and those that they lead to."""
    visited: set[int] = set()
    while pending and len(visited) < _MOST:
        name, value = pending.pop()
        if id(value) in visited and not isinstance(value, (*_NUMBERS, str)):
            continue
        visited.add(id(value))
        mark = _mark(value)
        if isinstance(value, (list, deque)) and name.startswith(_OF_THE_WHOLE):
            mark = len(value)  # which a wrapper may count by
        if mark is not None:
            marks[name] = mark
        pending += _parts(name, value)


def _mark(value: Any) -> Any:
    """Return what tells a value from what it is later; None where its parts tell."""
    if isinstance(value, (*_NUMBERS, str)):
        return value
    if isinstance(value, torch.Tensor):
        return _Tensor(value)
    if isinstance(value, torch.Generator):
        return state_of(value)
    if isinstance(value, np.ndarray):
        return hash(value.tobytes()) if value.size < _MOST else id(value)
    return repr(value) if isinstance(value, itertools.count) else None


class _Tensor:
    """A tensor as it is at a moment, told from another one or a later state without a look at its values."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._version = tensor, version_of(tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tensor) and (self._tensor is other._tensor and self._version == other._version)

    __hash__ = None  # type: ignore[assignment]


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the values that a value leads to, with their names."""
    if isinstance(value, Mapping):
        return [(f"{name}[{key!r}]", item) for key, item in itertools.islice(value.items(), _MOST_ITEMS)]
    if isinstance(value, (list, tuple, deque)):
        return [(f"{name}[{index}]", item) for index, item in enumerate(itertools.islice(value, _MOST_ITEMS))]
    if isinstance(value, partial):
        return [(name, value.func), (f"{name} args", value.args), (f"{name} keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [(name, value.__self__), (name, value.__func__)]
    if isinstance(value, FunctionType):
        return _parts_of_function(name, value) if is_foreign_function(value) else []
    if isinstance(value, SimpleNamespace):
        return _attributes(name, value)
    if isinstance(value, (nn.Module, type)) or not is_foreign(type(value).__module__):
        return []
    called = [(f"{name}.__call__", type(value).__call__)] if callable(value) else []
    return [*_attributes(name, value), *called]


def _parts_of_function(name: str, function: FunctionType) -> list[tuple[str, Any]]:
    code = function.__code__
    parts = [(f"{name}: {key}", function.__globals__[key]) for key in code.co_names if key in function.__globals__]
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f"{name}: {key}", cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    return [*parts, (f"{name} defaults", function.__defaults__), (f"{name} defaults", function.__kwdefaults__)]


def _attributes(name: str, value: Any) -> list[tuple[str, Any]]:
    return [(f"{name}.{key}", item) for key, item in getattr(value, "__dict__", {}).items()]
