"""How and where to reflect, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from w2sd_video.argument_checks import is_whole, real_number, whole_number
from w2sd_video.strength import Strength, StrengthSchedule
from w2sd_video.trajectory import Level

Role = Literal["base", "strong", "weak"]

WeakInversion = Literal["paper", "explicit", "current", "implicit"]

Inversion = Literal[WeakInversion, "resample", "resample-advanced"]


@dataclass(frozen=True)
class Reflection:
    """How and where to reflect.

    Attributes:
        reflection_steps: λ, the number of reflected steps counted from the noisiest; or a window (start, stop) of
            fractions of the steps, each end rounded to whole steps, a half up: (0, 0.5) of 5 steps are the first 3; or
            None for all steps but the last, as in the paper.
        strength: scale of the displacement; 1 is the paper's. A ``StrengthSchedule`` has one for each noise level, and
            where it is 0 there is no reflection.
        rounds: reflections that follow each other at each reflected step, at least 1.
        inversion: where the weak prediction is made. ``paper``: at x_{t-1} and timestep t; ``explicit``: at x_{t-1}
            and timestep t-1; ``current``: at x_t and t; ``implicit``: at the inverted latents and t, a fixed point.
            ``resample`` makes none and adds noise instead (Re-Sampling, section 3.1 of the paper);
            ``resample-advanced`` mirrors that noise where it is not similar to W2SD's displacement (algorithm 3).
        iterations: fixed-point iterations of ``implicit``, at least 1.
        span: how many steps a reflection goes down and back, in one move, the number of steps at most; 1 is the
            paper's. Where fewer are left, it goes to the last level.
        autoguidance: weight g of AutoGuidance on the steps that count, reflected or not: their prediction becomes
            ``base + g * (base - weak)``. W2SD equals it to first order; 0 leaves it out.

    Numbers of numpy are numbers, and kept as Python's own.

    Raises:
        TypeError: something else where a number must be.
        ValueError: a value out of range; the message names it and what is allowed.
    """

    reflection_steps: int | tuple[float, float] | None = None
    strength: Strength = 1.0
    rounds: int = 1
    inversion: Inversion = "paper"
    iterations: int = 2
    autoguidance: float = 0.0
    span: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range, and keep numbers as Python's own."""
        if self.inversion not in get_args(Inversion):
            raise ValueError(f"inversion must be one of {', '.join(get_args(Inversion))}; got {self.inversion!r}")
        for name in ("rounds", "iterations", "span"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        if not isinstance(self.strength, StrengthSchedule):
            object.__setattr__(self, "strength", real_number("strength", self.strength))
        object.__setattr__(self, "autoguidance", real_number("autoguidance", self.autoguidance))
        object.__setattr__(self, "reflection_steps", _count_or_window(self.reflection_steps))

    @property
    def roles(self) -> set[Role]:
        """The roles that are evaluated."""
        roles: set[Role] = {"base"}
        if self.reflection_steps != 0:
            roles |= {"strong", "weak"}
        if self.autoguidance:
            roles.add("weak")
        return roles

    @property
    def is_on(self) -> bool:
        """Whether there is anything but the steps of the stock loop."""
        return self.roles != {"base"}

    def strength_at(self, level: Level) -> float:
        """Return the strength of a reflection at a noise level."""
        return self.strength.at(level) if isinstance(self.strength, StrengthSchedule) else self.strength

    def reflects_at(self, level: Level) -> bool:
        """Return whether there is a reflection at the level of a step that is among the reflected ones."""
        return not isinstance(self.strength, StrengthSchedule) or self.strength.at(level) != 0.0

    def steps(self, total: int) -> range:
        """Return the reflected steps among ``total``, counted from the noisiest.

        Raises:
            ValueError: more reflected steps than steps, a span of more, or a last step that this inversion cannot
                reflect.
        """
        whole_number("the number of steps", total, 0)
        if self.reflection_steps is None:
            reflected = range(max(total - 1, 0))
        elif isinstance(self.reflection_steps, int):
            if self.reflection_steps > total:
                raise ValueError(
                    f"reflection_steps must be from 0 to {total}, the number of steps; got {self.reflection_steps}"
                )
            reflected = range(self.reflection_steps)
        else:
            start, stop = self.reflection_steps
            reflected = range(_half_up(start * total), _half_up(stop * total))
        if len(reflected) and self.span > total:
            raise ValueError(f"span must be from 1 to {total}, the number of steps; got {self.span}")
        most = total - self.span
        if self.inversion == "explicit" and len(reflected) and reflected[-1] >= most:
            raise ValueError(
                f"inversion 'explicit' asks for a prediction at the level below, which the last of {total} steps does "
                f"not have; reflect at most {max(most, 0)} steps"
            )
        return reflected


def _count_or_window(steps: Any) -> int | tuple[float, float] | None:
    """Return reflection_steps in Python's own numbers, or refuse it."""
    if isinstance(steps, (tuple, list)):
        window = tuple(real_number("a window of reflection_steps", end) for end in steps)
        if len(window) != 2 or not 0.0 <= window[0] <= window[1] <= 1.0:
            raise ValueError(
                f"a window of reflection_steps must be (start, stop) with 0 <= start <= stop <= 1, got {steps}"
            )
        return window[0], window[1]
    if steps is not None and (not is_whole(steps) or steps < 0):
        raise ValueError(f"reflection_steps must be a whole number from 0 or a window (start, stop), got {steps!r}")
    return None if steps is None else int(steps)


def _half_up(number: float) -> int:
    """Round to the nearest whole number, half up: in decimals, where 0.145 of 100 is 14.5 and not a little less."""
    return math.floor(round(number, 9) + 0.5)
