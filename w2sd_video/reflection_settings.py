"""How and where to reflect, as plain data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Literal, get_args

from w2sd_video.argument_checks import real_number, whole_number
from w2sd_video.levels import Level
from w2sd_video.reuse import Carried
from w2sd_video.strength import Strength, StrengthSchedule
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Steps, Window, as_steps

Role = Literal["base", "strong", "weak"]

WeakInversion = Literal["paper", "explicit", "current", "implicit"]

Inversion = Literal["auto", WeakInversion, "resample", "resample-advanced"]

Reading = Literal["epsilon", "sample", "native"]


@dataclass(frozen=True)
class Reflection:
    """How and where to reflect.

    Attributes:
        reflection_steps: λ, the number of reflected steps counted from the noisiest; or a window (start, stop) of
            fractions of the steps, each end rounded to whole steps, a half up: (0, 0.5) of 5 steps are the first 3; or
            a `Window`, of log-SNRs for example; or None for all steps but the last, as in the paper.
        strength: scale of the displacement; 1 is the paper's, and right for no pair in particular (`calibrate`). A
            ``StrengthSchedule`` has one for each noise level. Where it is 0 there is no reflection, and nothing is
            evaluated for one.
        rounds: reflections that follow each other at each reflected step, at least 1.
        inversion: where the weak prediction is made. ``paper``: at x_{t-1} and timestep t; ``explicit``: at x_{t-1}
            and timestep t-1; ``current``: at x_t and t; ``implicit``: at the inverted latents and t, a fixed point.
            ``auto`` is ``current`` on the levels of flow matching, where the paper's moves latents far without any gap,
            and ``paper`` on others. ``resample`` makes none and adds noise instead (Re-Sampling, section 3.1 of the
            paper); ``resample-advanced`` mirrors that noise where it is not similar to W2SD's displacement (algorithm
            3).
        iterations: fixed-point iterations of ``implicit``, at least 1.
        span: how many steps a reflection goes down and back, in one move, the number of steps at most; 1 is the
            paper's. Where fewer are left, it goes to the last level.
        autoguidance: weight g of AutoGuidance on the steps that count, reflected or not: their prediction becomes
            ``base + g * (base - weak)``. W2SD equals it to first order; 0 leaves it out. A ``StrengthSchedule`` has one
            for each noise level.
        autoguidance_steps: where it acts, like `reflection_steps`; None for all steps.
        autoguidance_gap: whose prediction weak's is taken from: "base", or "strong", which makes it ``base + g *
            (strong - weak)``. With strong and weak at a guidance scale of 1 under a guided base it takes three rows of
            a network and not four.
        reading: in which parametrisation a gap is taken: as noise, "epsilon" (of latents without signal as the sample),
            as the denoised "sample" (of a step that ends without noise, which no sample leads back from, as noise), or
            "native", as the network predicts. For a noise-predicting network the first and the last are one.
        reuse: k: the gap is measured at every k-th step that wants it, at the last of them, and at a change of stage;
            between them it is carried on, and costs nothing.
        carried: how: "held", or "linear", as it went between the last two measurements.
        grid: ρ, above 0: exponent of a spacing of the timesteps that is denser at low noise above 1 (`time_grid`); 1
            leaves the timesteps to the scheduler.

    Numbers of numpy are numbers, and kept as Python's own.

    Raises:
        TypeError: something else where a number must be.
        ValueError: a value out of range; the message names it and what is allowed.
    """

    reflection_steps: Steps = None
    strength: Strength = 1.0
    _: KW_ONLY
    rounds: int = 1
    inversion: Inversion = "auto"
    iterations: int = 2
    autoguidance: Strength = 0.0
    span: int = 1
    reading: Reading = "epsilon"
    reuse: int = 1
    carried: Carried = "held"
    autoguidance_steps: Steps = None
    autoguidance_gap: Literal["base", "strong"] = "base"
    grid: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range, and keep numbers as Python's own."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("rounds", "iterations", "span", "reuse"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        for name in ("strength", "autoguidance"):
            if not isinstance(getattr(self, name), StrengthSchedule):
                object.__setattr__(self, name, real_number(name, getattr(self, name)))
        object.__setattr__(self, "grid", real_number("grid", self.grid))
        if self.grid <= 0:
            raise ValueError(f"grid must be above 0, got {self.grid}")
        for name in ("reflection_steps", "autoguidance_steps"):
            object.__setattr__(self, name, as_steps(name, getattr(self, name)))
        if self.reuse > 1 and self.inversion.startswith("resample"):
            raise ValueError(f"reuse={self.reuse}: inversion {self.inversion!r} has no gap to reuse; leave it at 1")

    def on(self, trajectory: Trajectory) -> Reflection:
        """Return the settings with the inversion that ``auto`` is on a trajectory; warn of the paper's on flow."""
        if self.inversion == "auto":
            return replace(self, inversion=default_inversion(trajectory.is_flow))
        if self.inversion == "paper" and trajectory.is_flow and self.reflects:
            _warn_of_paper_on_flow()
        return self

    @property
    def roles(self) -> set[Role]:
        """The roles that are evaluated."""
        roles: set[Role] = {"base"}
        if self.reflects:
            roles |= {"strong", "weak"}
        if self.autoguidance and self.autoguidance_steps != 0:
            roles |= {"weak", self.autoguidance_gap}
        return roles

    @property
    def reflects(self) -> bool:
        """Whether there may be a reflection: there are steps for it, and its displacement is not nothing."""
        return self.reflection_steps != 0 and self.strength != 0.0

    @property
    def is_on(self) -> bool:
        """Whether there is anything but the steps of the stock loop."""
        return self.roles != {"base"}

    def strength_at(self, level: Level) -> float:
        """Return the strength of a reflection at a noise level."""
        return self.strength.at(level) if isinstance(self.strength, StrengthSchedule) else self.strength

    def autoguidance_at(self, level: Level) -> float:
        """Return the weight of AutoGuidance at a noise level, wherever it is on."""
        return self.autoguidance.at(level) if isinstance(self.autoguidance, StrengthSchedule) else self.autoguidance

    def reflects_at(self, level: Level) -> bool:
        """Return whether there is a reflection at the level of a step that is among the reflected ones."""
        window = self.reflection_steps
        in_window = not isinstance(window, Window) or window.holds(level)
        return in_window and (not isinstance(self.strength, StrengthSchedule) or self.strength.at(level) != 0.0)

    def reading_at(self, trajectory: Trajectory, i: int) -> str:
        """Return the parametrisation in which a gap is taken at a step."""
        if self.reading == "native":
            return trajectory.prediction_type
        if self.reading == "sample" and trajectory.level_below(i, self.span).sigma > 0.0:
            return "sample"
        return trajectory.score_reading(i)

    def steps(self, total: int, below: int = 0) -> range:
        """Return the reflected steps among ``total``, counted from the noisiest.

        Steps ``below`` them, which are left to others, make none of them the last one of all.

        Of a window of log-SNRs and of a strength for each noise level they are those that may be: see `reflects_at`.

        Raises:
            ValueError: more reflected steps than steps, a span of more, or a last step that is reflected in any case
                and that this inversion cannot reflect.
        """
        whole_number("the number of steps", total, 0)
        reflected = range(total if below else max(total - 1, 0))
        if self.reflection_steps is not None:
            reflected = _among("reflection_steps", self.reflection_steps, total)
        if not self.reflects:
            return range(0)
        if len(reflected) and self.span > total + below:
            raise ValueError(f"span must be from 1 to {total + below}, the number of steps; got {self.span}")
        if not self.is_by_level:
            self.check_levels_below(reflected, total + below)
        return reflected

    @property
    def is_by_level(self) -> bool:
        """Whether the levels say too which steps are reflected."""
        window = self.reflection_steps
        return isinstance(self.strength, StrengthSchedule) or (isinstance(window, Window) and window.unit == "log_snr")

    def check_levels_below(self, reflected: Sequence[int], total: int) -> None:
        """Refuse reflected steps, of so many, below which this inversion has no level to ask at (ValueError)."""
        most = total - self.span
        if self.inversion == "explicit" and len(reflected) and reflected[-1] >= most:
            raise ValueError(
                f"inversion 'explicit' asks for a prediction at the level below, which the last of {total} steps does "
                f"not have; reflect at most {max(most, 0)} steps"
            )

    def pushed_steps(self, total: int) -> range:
        """Return the steps among ``total`` at which AutoGuidance may be on, counted from the noisiest.

        Raises:
            ValueError: more than there are.
        """
        if not self.autoguidance:
            return range(0)
        if self.autoguidance_steps is None:
            return range(total)
        return _among("autoguidance_steps", self.autoguidance_steps, total)

    def pushes_at(self, level: Level) -> bool:
        """Return whether AutoGuidance is on at the level of a step that is among the pushed ones."""
        window = self.autoguidance_steps
        return (not isinstance(window, Window) or window.holds(level)) and self.autoguidance_at(level) != 0.0


def default_inversion(is_flow: bool) -> WeakInversion:
    """Return what ``auto`` is on the levels of flow matching, or on others."""
    return "current" if is_flow else "paper"


@cache
def _warn_of_paper_on_flow() -> None:
    """Warn, once, of what the paper's inversion does on flow (examples/studies/zero_gap.py and readings.py)."""
    warnings.warn(
        "inversion='paper' on a flow-matching model: even where strong and weak are one it moves the latents, by "
        "311 %, 196 %, 118 % and 67 % of a true displacement at 4, 10, 20 and 50 steps (means of six exact pairs, "
        "docs/studies/exact-pairs.md); inversion='current' does not, at the same cost",
        stacklevel=2,
    )


_CHOICES = {
    "inversion": get_args(Inversion),
    "reading": get_args(Reading),
    "carried": get_args(Carried),
    "autoguidance_gap": ("base", "strong"),
}


def _among(name: str, steps: Steps, total: int) -> range:
    if isinstance(steps, Window):
        return steps.steps(total)
    assert isinstance(steps, int)
    if steps > total:
        raise ValueError(f"{name} must be from 0 to {total}, the number of steps; got {steps}")
    return range(steps)
