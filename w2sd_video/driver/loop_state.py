"""What a pipeline's loop keeps from turn to turn, which more turns than steps would change."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch


class LoopState:
    """What a pipeline's loop knows while it takes a step: a turn that is repeated has to find it as it was.

    What a loop keeps by its turns (a counter of its own, the momentum of a guidance, a random draw) is in a variable of
    a method of its class, or in an attribute of the pipeline.

    Args:
        pipe: the pipeline.
        loop: the function that has the loop.
    """

    def __init__(self, pipe: Any, loop: Callable[..., Any]) -> None:
        self._pipe = pipe
        self._code = inspect.unwrap(loop).__code__
        self._before: dict[str, Any] = {}
        self._differing: list[tuple[str, bool | torch.Tensor]] = []

    def remember(self) -> None:
        """Keep what the loop that is calling the scheduler knows now."""
        self._before = _copied(self._variables())

    def compare(self) -> None:
        """Compare it with what was remembered at the same latents, for the same answers, without a wait."""
        now, before = self._variables(), self._before
        self._before = {}
        self._differing += [
            (name, flag) for name, kept in before.items() if name in now for flag in _differences(kept, now[name])
        ]

    def check(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: something that was not as it had been; the message names it.
        """
        kept = sorted({name for name, differs in self._differing if differs})
        self._differing = []
        if kept:
            raise ValueError(
                f"the pipeline's loop keeps {', '.join(kept)} from turn to turn, which a reflection's turns would "
                "change, so it cannot be reflected; reflect no step (reflection_steps=0)"
            )

    def _variables(self) -> dict[str, Any]:
        """Return what the loop, and what it calls the scheduler through, have in variables."""
        variables = {f"self.{name}": value for name, value in vars(self._pipe).items() if _is_data(value)}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if not frame.f_globals.get("__name__", "").startswith(_DRIVER):
                variables |= {name: value for name, value in frame.f_locals.items() if _is_data(value)}
            frame = None if frame.f_code is self._code else frame.f_back
        return variables


_DRIVER = "w2sd_video.driver."
"""Begins the names of the modules whose functions stand between the loop and this file."""
_COPIED = 2**22
"""Elements of a tensor that is copied to be compared; a larger one that is written into in place is not noticed."""


def _is_data(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, torch.Generator, int, float, list, tuple, dict))


def _copied(value: Any) -> Any:
    """Return what a value is compared by later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if value.numel() <= _COPIED else value
    if isinstance(value, torch.Generator):
        return _state_of(value)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _state_of(generator: torch.Generator) -> bytes:
    """Return the state of a generator, which lies on the host whatever it draws for."""
    return generator.get_state().numpy().tobytes()


def _differences(before: Any, now: Any) -> list[bool | torch.Tensor]:
    """Return what is true where a value is no longer what was copied of it; what is no data is not looked at."""
    if isinstance(now, torch.Generator):
        return [before != _state_of(now)]
    if isinstance(now, torch.Tensor):
        if before is now:
            return []
        if not isinstance(before, torch.Tensor) or before.shape != now.shape or before.dtype != now.dtype:
            return [True]
        return [((before != now) & ~((before != before) & (now != now))).any()]
    if isinstance(now, Mapping):
        if not isinstance(before, Mapping) or before.keys() != now.keys():
            return [True]
        return [flag for key in now for flag in _differences(before[key], now[key])]
    if isinstance(now, (list, tuple)):
        if not isinstance(before, list) or len(before) != len(now):
            return [True]
        return [flag for one, other in zip(before, now, strict=True) for flag in _differences(one, other)]
    if isinstance(now, float) and isinstance(before, float) and math.isnan(now) and math.isnan(before):
        return []
    return [bool(before != now)] if isinstance(now, (int, float, str)) else []
