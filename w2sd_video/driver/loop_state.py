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

    def remember(self) -> None:
        """Keep what the loop that is calling the scheduler knows now."""
        self._before = _copied(self._variables())

    def check(self) -> None:
        """Compare it with what was remembered at the same latents, for the same answers of the network.

        Raises:
            ValueError: something else; the message names it.
        """
        now = self._variables()
        kept = sorted(name for name, before in self._before.items() if name in now and not _same(before, now[name]))
        self._before = {}
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
            if frame.f_globals.get("__name__") not in _OURS:
                variables |= {name: value for name, value in frame.f_locals.items() if _is_data(value)}
            frame = None if frame.f_code is self._code else frame.f_back
        return variables


_OURS = ("w2sd_video.driver.loop_state", "w2sd_video.driver.walk", "w2sd_video.driver.signatures")
"""Modules whose functions stand between the loop and this file."""
_COPIED = 2**22
"""Elements of a tensor that is copied to be compared; a larger one that is written into in place is not noticed."""


def _is_data(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, torch.Generator, int, float, list, tuple, dict))


def _copied(value: Any) -> Any:
    """Return what a value is compared by later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if value.numel() <= _COPIED else value
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same(before: Any, now: Any) -> bool:
    """Return whether a value is still what was copied of it; what is no data is not looked at."""
    if isinstance(now, torch.Generator):
        return torch.equal(before, now.get_state())
    if isinstance(now, torch.Tensor):
        is_alike = isinstance(before, torch.Tensor) and before.shape == now.shape and before.dtype == now.dtype
        return is_alike and (before is now or bool(torch.isclose(before, now, rtol=0, atol=0, equal_nan=True).all()))
    if isinstance(now, Mapping):
        return (
            isinstance(before, Mapping)
            and before.keys() == now.keys()
            and all(_same(before[key], now[key]) for key in now)
        )
    if isinstance(now, (list, tuple)):
        return isinstance(before, list) and len(before) == len(now) and all(map(_same, before, now))
    if isinstance(now, float) and isinstance(before, float):
        return before == now or (math.isnan(before) and math.isnan(now))
    return before == now if isinstance(now, (int, float, str)) else True
