"""What a pipeline's loop keeps from turn to turn, which more turns than steps would change."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from w2sd_video.driver.comparing import copied, differences, state_of
from w2sd_video.driver.source import is_foreign


class LoopState:
    """What a pipeline's loop knows and hands on while it takes a step: a repeated turn has to find it as it was.

    What a loop keeps by its turns (a counter of its own, the momentum of a guidance, a random draw) is in a variable of
    a method of its class, in an attribute of the pipeline, or in a random generator. A tensor or a generator that has
    changed is refused. A number may be a clock's and a list that has grown a log: they do no harm as long as what the
    loop hands on, to its networks and to ``scheduler.step``, does not depend on them.

    Args:
        pipe: the pipeline.
        entry: the code that calls its loop: variables from there on are looked at.

    Attributes:
        depends_on: what it is said to keep where what it hands on is another and no variable shows why.
    """

    def __init__(self, pipe: Any, entry: CodeType) -> None:
        self.depends_on = "something that shows in no variable"
        self._pipe = pipe
        self._entry = entry
        self._before: dict[str, Any] = {}
        self._generators: dict[str, bytes] = {}
        self._drawn: list[str] = []
        self._handed_on: Any = None
        self._handed_on_first: Any = None
        self._differing: list[tuple[str, bool | torch.Tensor]] = []
        self._depends: list[bool | torch.Tensor] = []
        self._harmless: set[str] = set()

    @property
    def keeps_records(self) -> bool:
        """Whether something was found changed that does no harm if nothing depends on it."""
        return bool(self._harmless)

    def remember(self, handed_on: Any) -> None:
        """Keep what the loop that is calling the scheduler knows now, and what it has handed on in this turn."""
        self._before, self._handed_on = copied(self._variables()), copied(handed_on)
        self._generators = dict(_random_states())

    def begin(self, handed_on: Any) -> None:
        """Keep what the loop has handed on in its very first turn: a later one, at the same latents, does the same."""
        self._handed_on_first = copied(handed_on)

    def was_drawn_beside(self) -> bool:
        """Whether a generator that all threads share has moved since, by the loop's draws or by another thread's.

        They are looked at here alone, once a turn: between two looks another thread may draw.
        """
        self._drawn = [name for name, state in _random_states() if state != self._generators.get(name)]
        return bool(self._drawn)

    def compare(self, handed_on: Any) -> None:
        """Compare both with what was remembered at the same latents, for the same answers, without a wait."""
        now, before = self._variables(), self._before
        self._before = {}
        self._differing += [(name, True) for name in self._drawn]
        for name in before.keys() & now.keys():
            for flag, does_harm in differences(before[name], now[name]):
                if does_harm:
                    self._differing.append((name, flag))
                elif flag:
                    self._harmless.add(name)
        self.compare_handed_on(handed_on)
        if self._handed_on_first is not None:
            self._depends += [flag for flag, _ in differences(self._handed_on_first, handed_on)]
            self._handed_on_first = None

    def compare_handed_on(self, handed_on: Any) -> None:
        """Compare what was handed on alone."""
        self._depends += [flag for flag, _ in differences(self._handed_on, handed_on)]

    def check(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: something that was not as it had been; the message names it.
        """
        kept = {name for name, differs in self._differing if differs}
        if any(self._depends):
            kept |= self._harmless or {self.depends_on}
        self._differing, self._depends = [], []
        if kept:
            raise ValueError(
                f"the pipeline's loop keeps {', '.join(sorted(kept))} from turn to turn, which a reflection's turns "
                "would change, so it cannot be reflected; keep it in a callback_on_step_end, which is called once a "
                "step, draw noise before the loop, keep other threads from drawing meanwhile, or reflect no step "
                "(reflection_steps=0)"
            )

    def _variables(self) -> dict[str, Any]:
        """Return what the loop, and what it calls the scheduler through, have in variables."""
        variables: dict[str, Any] = {}
        for name, value in vars(self._pipe).items():
            variables |= self._data_in(f"self.{name}", value)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._entry:
            if not frame.f_globals.get("__name__", "").startswith(_DRIVER):
                for name, value in frame.f_locals.items():
                    variables |= self._data_in(name, value)
                if is_foreign(frame.f_globals.get("__name__")):
                    for name in frame.f_globals.keys() & set(frame.f_code.co_names):
                        variables |= self._data_in(name, frame.f_globals[name])
            frame = frame.f_back
        return variables

    def _data_in(self, name: str, value: Any, depth: int = 0) -> dict[str, Any]:
        """Return a value that is data, or the data in the attributes of an object of the user's."""
        data = {name: value} if isinstance(value, _DATA) else {}
        inner: dict[str, Any] = {}
        if isinstance(value, dict):
            inner = {f"{name}[{key!r}]": item for key, item in value.items() if not isinstance(item, _DATA)}
        elif isinstance(value, (list, tuple, deque)) and len(value) <= _MOST_ITEMS:
            inner = {f"{name}[{number}]": item for number, item in enumerate(value) if not isinstance(item, _DATA)}
        elif not data and self._is_of_the_user(value):
            inner = {f"{name}.{key}": item for key, item in getattr(value, "__dict__", {}).items()}
        for part, item in inner.items() if depth < _MOST_LEVELS else ():
            data |= self._data_in(part, item, depth + 1)
        return data

    def _is_of_the_user(self, value: Any) -> bool:
        is_part = value is self._pipe or isinstance(value, (type, nn.Module))
        return not is_part and is_foreign(type(value).__module__)


_DRIVER = "w2sd_video.driver."
"""Begins the names of the modules whose functions stand between the loop and this file."""
_MOST_LEVELS = 3
"""Objects in objects that are looked into."""
_MOST_ITEMS = 64
"""Items of a list that are looked into."""
_DATA = (torch.Tensor, np.ndarray, torch.Generator, int, float, str, np.generic, list, tuple, deque, dict)


def _random_states() -> Iterator[tuple[str, bytes]]:
    """Give the state of every generator that needs no name, all of them on the host."""
    yield "torch's global generator", state_of(torch.default_generator)
    if torch.cuda.is_initialized():
        for device, generator in enumerate(torch.cuda.default_generators):
            yield f"the global generator of cuda:{device}", state_of(generator)
    _, keys, *rest = np.random.get_state(legacy=True)
    yield "numpy.random", np.asarray(keys).tobytes() + repr(rest).encode()
    yield "random", repr(hash(random.getstate())).encode()
