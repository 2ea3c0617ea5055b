"""Where along a sampling something is on: a part of the steps, or of the noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from w2sd_video.argument_checks import is_whole, real_number
from w2sd_video.strength import log_snr
from w2sd_video.trajectory import Level

Unit = Literal["steps", "log_snr"]


class Moment(NamedTuple):
    """A step of a sampling: its number from the noisiest, of how many, and the level that it starts from."""

    step: int
    total: int
    level: Level


@dataclass(frozen=True)
class Window:
    """A part of a sampling.

    Attributes:
        start: where it begins, the noisier end: a fraction of the steps, 0 to 1, or a log-SNR, 2 ln(alpha / sigma).
        stop: where it ends, of the same unit. Of fractions each end is rounded to whole steps, a half up: 0 to 0.5 of 5
            steps are the first 3. A step whose level is at a log-SNR of `start` belongs to it, one at `stop` does not.
        unit: "steps", or "log_snr", which means the same whatever the number of steps and the schedule.

    Raises:
        TypeError: an end that is no number.
        ValueError: an end that is out of range, or a stop before the start.
    """

    start: float
    stop: float
    unit: Unit = "steps"

    def __post_init__(self) -> None:
        """Refuse what is no window, and keep its ends as Python's own numbers."""
        if self.unit not in ("steps", "log_snr"):
            raise ValueError(f"the unit of a window must be 'steps' or 'log_snr', got {self.unit!r}")
        for end in ("start", "stop"):
            object.__setattr__(self, end, real_number(f"{end} of a window", getattr(self, end)))
        in_range = self.unit == "log_snr" or 0.0 <= self.start <= self.stop <= 1.0
        if not in_range or self.start > self.stop:
            raise ValueError(
                "a window of steps must be (start, stop) with 0 <= start <= stop <= 1, and one of log-SNRs with start "
                f"<= stop; got ({self.start}, {self.stop}) of {self.unit}"
            )

    def steps(self, total: int) -> range:
        """Return which of some steps may be in it, counted from the noisiest: all of them for a window of log-SNRs."""
        if self.unit == "log_snr":
            return range(total)
        return range(_half_up(self.start * total), _half_up(self.stop * total))

    def share_at(self, moment: Moment) -> float:
        """Return 1 at a moment that is in it, and 0 at any other."""
        return float(moment.step in self.steps(moment.total) and self.holds(moment.level))

    def holds(self, level: Level) -> bool:
        """Return whether a step of `steps` is in it, by the level that it starts from."""
        return self.unit == "steps" or self.start <= log_snr(level) < self.stop


Steps = int | tuple[float, float] | Window | None
"""Which steps: so many from the noisiest, a window of fractions or of log-SNRs, or the usual ones."""


def as_steps(name: str, steps: Any) -> int | Window | None:
    """Return which steps are meant, in Python's own numbers.

    Raises:
        TypeError: ends of a window that are no numbers.
        ValueError: a negative number, a fraction, or what is no window.
    """
    if isinstance(steps, Window) or steps is None:
        return steps
    if isinstance(steps, (tuple, list)):
        ends = [real_number(f"a window of {name}", end) for end in steps]
        if len(ends) != 2 or not 0.0 <= ends[0] <= ends[1] <= 1.0:
            raise ValueError(f"a window of {name} must be (start, stop) with 0 <= start <= stop <= 1, got {steps}")
        return Window(ends[0], ends[1])
    if not is_whole(steps) or steps < 0:
        raise ValueError(f"{name} must be a whole number from 0 or a window (start, stop), got {steps!r}")
    return int(steps)


def _half_up(number: float) -> int:
    """Round to the nearest whole number, half up: in decimals, where 0.145 of 100 is 14.5 and not a little less."""
    return math.floor(round(number, 9) + 0.5)
