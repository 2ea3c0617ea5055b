"""How and where to reflect, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

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
            fractions of the steps; or None for all steps but the last, as in the paper.
        strength: scale of the displacement; 1 is the paper's. A ``StrengthSchedule`` has one for each noise level, and
            where it is 0 there is no reflection.
        rounds: reflections that follow each other at each reflected step, at least 1.
        inversion: where the weak prediction is made. ``paper``: at x_{t-1} and timestep t; ``explicit``: at x_{t-1}
            and timestep t-1; ``current``: at x_t and t; ``implicit``: at the inverted latents and t, a fixed point.
            ``resample`` makes none and adds noise instead (Re-Sampling, section 3.1 of the paper);
            ``resample-advanced`` mirrors that noise where it is not similar to W2SD's displacement (algorithm 3).
        iterations: fixed-point iterations of ``implicit``, at least 1.
        span: how many steps a reflection goes down and back, in one move; 1 is the paper's.
        autoguidance: weight g of AutoGuidance on the steps that count, reflected or not: their prediction becomes
            ``base + g * (base - weak)``. W2SD equals it to first order; 0 leaves it out.

    Raises:
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
        """Refuse values out of range."""
        if self.inversion not in get_args(Inversion):
            raise ValueError(f"inversion must be one of {', '.join(get_args(Inversion))}; got {self.inversion!r}")
        for name in ("rounds", "iterations", "span"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("strength", "autoguidance"):
            number = getattr(self, name)
            if not isinstance(number, StrengthSchedule) and not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number}")
        steps = self.reflection_steps
        if isinstance(steps, (tuple, list)):
            if len(steps) != 2 or not 0.0 <= steps[0] <= steps[1] <= 1.0:
                raise ValueError(
                    f"a window of reflection_steps must be (start, stop) with 0 <= start <= stop <= 1, got {steps}"
                )
        elif steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise ValueError(f"reflection_steps must be a whole number from 0 or a window (start, stop), got {steps!r}")

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
            ValueError: more reflected steps than steps, or a last step that this inversion cannot reflect.
        """
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
            reflected = range(round(start * total), round(stop * total))
        most = total - self.span
        if self.inversion == "explicit" and len(reflected) and reflected[-1] >= most:
            raise ValueError(
                f"inversion 'explicit' asks for a prediction at the level below, which the last of {total} steps does "
                f"not have; reflect at most {max(most, 0)} steps"
            )
        return reflected
