"""A strength of the reflection for every noise level, in a file that serves any number of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.argument_checks import real_number
from w2sd_video.levels import Level
from w2sd_video.messages import shortened
from w2sd_video.text_files import parse_json, read_text


def log_snr(level: Level) -> float:
    """Return the logarithm of (alpha / sigma)², the signal-to-noise ratio; infinite at either end.

    Raises:
        ValueError: no level, or one with a negative scale or NaN.
    """
    if not (isinstance(level, Level) and level.alpha >= 0 and level.sigma >= 0 and level.alpha + level.sigma > 0):
        raise ValueError(f"a level must be a Level of alpha and sigma from 0, not both 0, got {level!r}")
    if level.alpha == 0.0 or level.sigma == 0.0:
        return -math.inf if level.alpha == 0.0 else math.inf
    return 2 * math.log(level.alpha / level.sigma)


@dataclass(frozen=True)
class StrengthSchedule:
    """Strengths at some noise levels, interpolated in log-SNR between them and constant beyond them.

    Attributes:
        log_snr: of the levels, rising: from the noisiest to the cleanest.
        strength: at each of them; 0 reflects nothing there, and a negative one moves towards the weak model.

    Raises:
        TypeError: something else where a number must be.
        ValueError: no levels, not as many strengths, levels that do not rise, or numbers that are not finite.
    """

    log_snr: tuple[float, ...]
    strength: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        for name in ("log_snr", "strength"):
            if not isinstance(getattr(self, name), Iterable):
                raise TypeError(f"{name} of a strength schedule must be numbers in order, got {getattr(self, name)!r}")
            numbers = tuple(float(real_number(f"{name} of a strength schedule", x)) for x in getattr(self, name))
            object.__setattr__(self, name, numbers)
        levels, strengths = len(self.log_snr), len(self.strength)
        if levels == 0 or levels != strengths:
            raise ValueError(f"a strength schedule needs a strength for each log-SNR, got {strengths} for {levels}")
        if any(after <= before for before, after in pairwise(self.log_snr)):
            raise ValueError(f"the log-SNRs of a strength schedule must rise, got {list(self.log_snr)}")

    def at(self, level: Level) -> float:
        """Return the strength at a level."""
        return float(np.interp(log_snr(level), self.log_snr, self.strength))

    @classmethod
    def read(cls, path: str | Path) -> StrengthSchedule:
        """Read a schedule from a JSON file with the keys ``log_snr`` and ``strength``; other keys are left alone.

        Raises:
            ValueError: a file that is not there or is no schedule; the message names it.
        """
        try:
            text = read_text(path)
        except ValueError as error:
            raise ValueError(f"strength {shortened(str(path))!r}: cannot be read: {error}") from error
        where = f"strength {str(path)!r}: is no strength schedule:"
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{where} it is not JSON: {error}") from error
        lists: list[Any] = [data.get(name) for name in ("log_snr", "strength")] if isinstance(data, dict) else []
        if not lists or not all(isinstance(numbers, list) for numbers in lists):
            raise ValueError(f"{where} it needs the lists log_snr and strength")
        try:
            return cls(*(tuple(numbers) for numbers in lists))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} {error}") from error

    def plain(self) -> dict[str, list[float]]:
        """Return the schedule as JSON can hold it."""
        return {name: list(values) for name, values in asdict(self).items()}


Strength = float | StrengthSchedule


def as_strength(strength: float | str | Path | StrengthSchedule) -> Strength:
    """Return a strength, read from a file where it is the name of one."""
    return StrengthSchedule.read(strength) if isinstance(strength, (str, Path)) else strength
