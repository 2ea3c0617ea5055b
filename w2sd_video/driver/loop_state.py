"""What a pipeline's loop keeps from turn to turn, which more turns than steps would change."""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch


class LoopState:
    """What a pipeline's loop knows, and hands on, while it takes a step: a turn that is repeated has to find it as it was.

    What a loop keeps by its turns (a counter of its own, the momentum of a guidance, a random draw) is in a variable of
    a method of its class, in an attribute of the pipeline, or in a random generator. A tensor or a generator that has
    changed is refused. A number may be a clock's and a list that has grown a log: they do no harm as long as what the
    loop hands on, to its networks and to ``scheduler.step``, does not depend on them.

    Args:
        pipe: the pipeline.
        entry: the code that calls its loop: variables from there on are looked at.
    """

    def __init__(self, pipe: Any, entry: CodeType) -> None:
        self._pipe = pipe
        self._entry = entry
        self._before: dict[str, Any] = {}
        self._handed_on: Any = None
        self._differing: list[tuple[str, bool | torch.Tensor]] = []
        self._depends: list[bool | torch.Tensor] = []
        self._harmless: set[str] = set()

    @property
    def keeps_records(self) -> bool:
        """Whether something was found changed that does no harm if nothing depends on it."""
        return bool(self._harmless)

    def remember(self, handed_on: Any) -> None:
        """Keep what the loop that is calling the scheduler knows now, and what it has handed on in this turn."""
        self._before, self._handed_on = _copied(self._variables()), _copied(handed_on)

    def compare(self, handed_on: Any) -> None:
        """Compare both with what was remembered at the same latents, for the same answers, without a wait."""
        now, before = self._variables(), self._before
        self._before = {}
        for name in before.keys() & now.keys():
            for flag, does_harm in _differences(before[name], now[name]):
                if does_harm:
                    self._differing.append((name, flag))
                elif flag:
                    self._harmless.add(name)
        self.compare_handed_on(handed_on)

    def compare_handed_on(self, handed_on: Any) -> None:
        """Compare what was handed on alone."""
        self._depends += [flag for flag, _ in _differences(self._handed_on, handed_on)]

    def check(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: something that was not as it had been; the message names it.
        """
        kept = {name for name, differs in self._differing if differs}
        if any(self._depends):
            kept |= self._harmless or {"something"}
        self._differing, self._depends = [], []
        if kept:
            raise ValueError(
                f"the pipeline's loop keeps {', '.join(sorted(kept))} from turn to turn, which a reflection's turns "
                "would change, so it cannot be reflected; keep it in a callback_on_step_end, which is called once a "
                "step, draw noise before the loop, or reflect no step (reflection_steps=0)"
            )

    def _variables(self) -> dict[str, Any]:
        """Return what the loop, and what it calls the scheduler through, have in variables; and what all draw from."""
        variables = dict(_random_states())
        variables |= {f"self.{name}": value for name, value in vars(self._pipe).items() if _is_data(value)}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._entry:
            if not frame.f_globals.get("__name__", "").startswith(_DRIVER):
                variables |= {name: value for name, value in frame.f_locals.items() if _is_data(value)}
            frame = frame.f_back
        return variables


_DRIVER = "w2sd_video.driver."
"""Begins the names of the modules whose functions stand between the loop and this file."""
_COPIED = 2**22
"""Elements of a tensor that is copied to be compared; a larger one that is written into in place is not noticed."""
_DATA = (torch.Tensor, np.ndarray, torch.Generator, int, float, str, np.generic, list, tuple, deque, dict)


def _is_data(value: Any) -> bool:
    return isinstance(value, _DATA)


def _random_states() -> Iterator[tuple[str, bytes]]:
    """Give the state of every generator that needs no name, all of them on the host."""
    yield "torch's global generator", _state_of(torch.default_generator)
    if torch.cuda.is_initialized():
        for device, generator in enumerate(torch.cuda.default_generators):
            yield f"the global generator of cuda:{device}", _state_of(generator)
    _, keys, *rest = np.random.get_state(legacy=True)
    yield "numpy.random", np.asarray(keys).tobytes() + repr(rest).encode()
    yield "random", repr(hash(random.getstate())).encode()


def _copied(value: Any) -> Any:
    """Return what a value is compared by later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if value.numel() <= _COPIED else value
    if isinstance(value, torch.Generator):
        return _state_of(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple, deque)) else value


def _state_of(generator: torch.Generator) -> bytes:
    """Return the state of a generator, which lies on the host whatever it draws for."""
    return generator.get_state().numpy().tobytes()


def _differences(before: Any, now: Any) -> list[tuple[bool | torch.Tensor, bool]]:
    """Return what is true where a value is no longer what was copied of it, and whether that does harm by itself.

    What is no data is not looked at.
    """
    if isinstance(now, torch.Generator):
        return [(before != _state_of(now), True)]
    if isinstance(now, bytes):
        return [(before != now, True)]
    if isinstance(now, torch.Tensor):
        if before is now:
            return []
        if not isinstance(before, torch.Tensor) or before.shape != now.shape or before.dtype != now.dtype:
            return [(True, True)]
        return [(((before != now) & ~((before != before) & (now != now))).any(), True)]
    if isinstance(now, np.ndarray):
        is_same = isinstance(before, np.ndarray) and (before.shape, before.dtype) == (now.shape, now.dtype)
        return [(not is_same or before.tobytes() != now.tobytes(), True)]
    if isinstance(now, Mapping):
        if not isinstance(before, Mapping):
            return [(True, True)]
        changed = [(before.keys() != now.keys(), not before.keys() <= now.keys())]
        return changed + [flag for key in before.keys() & now.keys() for flag in _differences(before[key], now[key])]
    if isinstance(now, (list, tuple, deque)):
        if not isinstance(before, list) or len(before) > len(now):
            return [(True, True)]
        changed = [(len(before) != len(now), False)]
        return changed + [flag for one, other in zip(before, now, strict=False) for flag in _differences(one, other)]
    if isinstance(now, float) and isinstance(before, float) and math.isnan(now) and math.isnan(before):
        return []
    return [(bool(before != now), False)] if isinstance(now, (int, float, str, np.generic)) else []
