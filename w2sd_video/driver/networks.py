"""Networks in a reflected call: who uses them, and what stands in their place."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import ModelMixin
from torch import nn

from w2sd_video.driver.signatures import named_signature, uncompiled
from w2sd_video.driver.source import functions_of, is_foreign
from w2sd_video.gaps.swaps import swapped


class _Use:
    """Which thread's reflected call uses a network."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: int | None = None


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_USES_LOCK = threading.Lock()

EVALUATING = (nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__)
"""What is on the stack while a network is evaluated, its hooks among it."""
_SET = (bool, int, float, str)
_POLL = 0.002
"""Seconds between looks at what other threads do."""

WAITING_THREADS: set[int] = set()
"""Threads whose call waits for its user between evaluations (predictors), so that nobody is to wait for it."""


@contextmanager
def in_use(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Keep networks for one reflected call; a call of another thread that uses one of them waits for its end.

    Raises:
        ValueError: a reflected call of this very thread uses one of them, and would wait for itself; or a predictor.
    """
    kept = {id(network): network for network in map(uncompiled, networks)}
    with ExitStack() as stack:
        for _, network in sorted(kept.items()):  # all threads in one order, so that none waits for the other
            with _USES_LOCK:
                use = _USES.setdefault(network, _Use())
            if use.thread == threading.get_ident():
                raise ValueError(
                    f"a {type(network).__name__} is in use by a reflected call, and a call inside that one (of a "
                    "callback, or of the pipeline itself) would reflect with it too; make it before or after"
                )
            if use.thread in WAITING_THREADS:
                raise ValueError(
                    f"a {type(network).__name__} is in use by a predictor; close that before reflecting with it "
                    "(predict.close(), or the end of its block)"
                )
            stack.enter_context(use.lock)
            use.thread = threading.get_ident()
            stack.callback(setattr, use, "thread", None)
        yield


class _Switch:
    """What stands in a network's place; a copy of the network, made in a callback for example, is itself again."""

    def __init__(self, answer: Callable[..., Any], unswitched: Callable[..., Any]) -> None:
        self._answer = answer
        self.unswitched = unswitched

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.unswitched, memo)

    def __reduce__(self) -> Any:
        return copy.copy, (self.unswitched,)


@contextmanager
def in_place_of(network: nn.Module, answer: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Have ``answer(evaluate, ...)`` stand in for a network, and yield ``evaluate``, which is the network itself.

    A network that was compiled in place (``network.compile()``) compiles whatever stands in for its ``forward``: there
    the function takes the place of the compiled region as a whole.
    """
    compiled: Callable[..., Any] | None = vars(network).get("_compiled_call_impl")
    evaluate = compiled or network.forward
    switch = _Switch(partial(answer, evaluate), evaluate)
    switch.__signature__ = named_signature(network)  # type: ignore[attr-defined]
    with swapped([(network, {"forward" if compiled is None else "_compiled_call_impl": switch})]):
        _wait_for_evaluations_begun(network)
        yield evaluate


def _wait_for_evaluations_begun(network: nn.Module) -> None:
    """Wait until no other thread is in the midst of an evaluation that began before something stood in its place.

    What is changed in a network for the length of an evaluation would be changed for that one too.
    """
    while any(_is_evaluating(thread, network) for thread in _other_threads()):
        time.sleep(_POLL)


def _other_threads() -> set[int]:
    return sys._current_frames().keys() - WAITING_THREADS - {threading.get_ident()}


def _is_evaluating(thread: int, network: nn.Module) -> bool:
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code in EVALUATING and frame.f_locals.get("self") is network:
            return True
        frame = frame.f_back
    return False


def unswitched(network: nn.Module) -> Callable[..., Any]:
    """Return what evaluates a network itself, past a function that stands in its place."""
    return getattr(vars(network).get("_compiled_call_impl") or network.forward, "unswitched", network)


def mixes_rows(network: nn.Module) -> bool:
    """Return whether the rows of an evaluation may look at each other, so that none is to be evaluated alone.

    Those of networks of diffusers do not. A processor, a patch or a class of the user's in them may (StyleAligned,
    reference images), and those in pipelines of diffusers do (Text2Video-Zero's, of frames that are rows).
    """
    modules = list(network.modules())
    patches = [own_forward(module) for module in modules]
    classes = {base for module in modules for base in type(module).__mro__}
    if not _is_of_library(network):  # a network of the user's own, and none that was changed
        classes = {cls for cls in classes if not is_foreign(cls.__module__)}
    methods = [vars(cls)[name] for cls in classes for name in vars(cls).keys() - {"__init__"}]
    patches += [method for method in methods if isinstance(method, FunctionType)]
    return bool(foreign_processors(network) or functions_of(patches))


def _is_of_library(network: nn.Module) -> bool:
    """Return whether a network, or one that it holds, is of a class of diffusers, or derived from one."""
    return any(
        "forward" in vars(base) and issubclass(base, ModelMixin) and not is_foreign(base.__module__)
        for module in network.modules()
        for base in type(module).__mro__
    )


def own_forward(module: nn.Module) -> Any:
    """Return the forward that a module has of its own, past the function that stands in its place; or None."""
    forward = vars(module).get("forward")
    return getattr(forward, "unswitched", forward)


def processors_of(network: nn.Module) -> dict[str, Any]:
    """Return the attention processors of a network by the names of the modules that have them."""
    found = {name: getattr(module, "processor", None) for name, module in network.named_modules()}
    return {name: processor for name, processor in found.items() if processor is not None}


def settings_in(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what code sets on the modules of a network, by their names: processors, numbers and words."""
    found = {}
    for path, module in network.named_modules():
        settings = {name: value for name, value in vars(module).items() if type(value) in _SET}
        if (processor := getattr(module, "processor", None)) is not None:
            settings["processor"] = processor
        found[path] = settings
    return found


def foreign_processors(network: nn.Module) -> set[str]:
    """Return the classes of attention processors that are not those of diffusers' own networks."""
    kinds = {type(processor) for processor in processors_of(network).values()}
    return {
        kind.__name__
        for kind in kinds
        if is_foreign(kind.__module__) or kind.__module__.startswith("diffusers.pipelines.")
    }
