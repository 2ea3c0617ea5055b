"""What is searched: operators, each with the settings that are open, and the configuration that values of them make.

Every operator has the same freedom in where it acts, in guidance beside it, in solver, grid and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from w2sd_video.driver.solvers import ADDING_NOISE
from w2sd_video.evaluation.arms import without_a_block
from w2sd_video.evaluation.places import takes_eta
from w2sd_video.messages import ConfigError, suggest
from w2sd_video.reflection_settings import Inversion
from w2sd_video.settings.evaluations import at_budget, inversion_of, nfe_of
from w2sd_video.settings.panels import weak_panel
from w2sd_video.settings.schema import BranchConfig, RenderConfig, without_reflection
from w2sd_video.settings.sources import is_told_guidance, read_json, scheduler_of
from w2sd_video.time_grid import takes_grid


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both in it; of a `step`, or else spread by their logarithm."""

    low: float
    high: float
    step: float | None = None


Open = Range | tuple[Any, ...]
"""Which values a setting may have: a range, or one of several."""
Values = Mapping[str, Any]
"""A value for each open setting."""


@dataclass(frozen=True)
class Operator:
    """A way to sample.

    Attributes:
        name: of it.
        space: its open settings by name.
        made: returns the configuration that values of them make, its number of steps left as it is.
        first: values that are tried before any are searched for: what the studies of this package found good.
    """

    name: str
    space: Mapping[str, Open]
    made: Callable[[Values], RenderConfig]
    first: tuple[dict[str, Any], ...] = field(default=())

    def at(self, values: Values, nfe: int) -> RenderConfig | None:
        """Return the configuration of values with as many steps as a budget allows; None if there are none."""
        return fitted(self.made(values), nfe)


OPERATORS = ("none", "guidance", "AutoGuidance", "skip-layer", "Z-Sampling", "Re-Sampling", "W2SD")
"""Every operator: none is the strong model without guidance."""
_WEIGHT, _STRENGTH, _REUSE = Range(0.25, 4.0), Range(0.25, 2.0), (1, 2, 3)
_SCALE, _SCALE_BESIDE = Range(1.25, 8.0), Range(1.0, 6.0, 0.5)
"""Guidance as the operator, and beside another one, where 1 is none."""
_START, _LENGTH = Range(0.0, 0.75, 0.125), Range(0.25, 1.0, 0.125)
_MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
_LATE, _EVERYWHERE = (0.5, 0.5), (0.0, 1.0)
"""Windows by their start and their length."""
_GUIDANCE_BESIDE: dict[str, Open] = {
    "guidance_scale": _SCALE_BESIDE,
    "guidance_start": _START,
    "guidance_length": _LENGTH,
}


def operators_of(config: RenderConfig, names: tuple[str, ...] = OPERATORS) -> tuple[list[Operator], dict[str, str]]:
    """Return the operators that a pair can have, and why it cannot have the others.

    Args:
        config: the configuration, whose own reflection is left out.
        names: of the operators that are asked for.

    Raises:
        ConfigError: an unknown name, or none that this pair can have.
    """
    for name in names:
        if name not in OPERATORS:
            raise ConfigError(f"unknown operator {name!r}; {suggest(name, OPERATORS)}")
    plain = plain_of(config)
    missing: dict[str, str] = {}
    if not has_weak_model(config):
        reason = "strong and weak differ in guidance alone"
        missing |= {"AutoGuidance": f"{reason}, so it is guidance", "W2SD": f"{reason}, so it is Z-Sampling"}
    operators = [_MAKERS[name](plain) for name in OPERATORS if name in names and name not in missing]
    if not operators:
        raise ConfigError("; ".join(f"operators {name}: {missing[name]}" for name in names))
    return operators, {name: reason for name, reason in missing.items() if name in names}


def plain_of(config: RenderConfig) -> RenderConfig:
    """Return a configuration without its reflection and AutoGuidance, and not in a comparison."""
    return replace(without_reflection(config), compare=False)


def has_weak_model(config: RenderConfig) -> bool:
    """Return whether strong and weak differ in more than guidance."""
    weak = replace(weak_panel(config), guidance_scale=config.base.guidance_scale, windows=config.base.windows)
    return weak != config.base


def fitted(config: RenderConfig, nfe: int) -> RenderConfig | None:
    """Return a configuration with as many steps as a budget allows; None if there are none.

    The explicit inversion cannot reflect the last step: its window ends before.
    """
    within = at_budget(config, nfe)
    if within is None or within.inversion != "explicit" or not isinstance(within.reflection_steps, tuple):
        return within
    start, stop = within.reflection_steps
    last = 1 - 1 / within.steps
    within = replace(within, reflection_steps=(min(start, last), min(stop, last)))
    return within if nfe_of(within) > nfe_of(plain_of(within)) else None


def values_in_words(values: Values) -> str:
    """Return values as a person reads them, without those that the others leave without effect."""
    said = [name for name in values if not _is_idle(name, values)]
    return ", ".join(f"{name.replace('_', ' ')} {_short(values[name])}" for name in said) or "as it is"


def _is_idle(name: str, values: Values) -> bool:
    if name in ("guidance_start", "guidance_length", "gap"):
        return values["guidance_scale"] == 1.0
    if name == "grid":
        return not _takes_grid(values["solver"])
    return name == "eta" and values["solver"] not in ADDING_NOISE


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _none(plain: RenderConfig) -> Operator:
    unguided = _guided(plain, 1.0)
    return Operator("none", _stepping(plain), lambda values: _stepped(unguided, values), ({},))


def _guidance(plain: RenderConfig) -> Operator:
    space = {"guidance_scale": _SCALE, **({} if is_told_guidance(plain.model) else _window("guidance"))}

    def made(values: Values) -> RenderConfig:
        return _stepped(_with_guidance(plain, values), values)

    first = tuple(_windowed("guidance", window) | {"guidance_scale": 3.0} for window in (_EVERYWHERE, _LATE))
    return _operator("guidance", plain, space, made, first)


def _autoguidance(plain: RenderConfig) -> Operator:
    def made(values: Values) -> RenderConfig:
        return _pushed(plain, values, weak_panel)

    return _operator("AutoGuidance", plain, _pushing(plain), made, _FIRST_PUSHED)


def _skip_layers(plain: RenderConfig) -> Operator:
    blocks = tuple(without_a_block(plain))
    space = {"layers": blocks, **_pushing(plain)}

    def made(values: Values) -> RenderConfig:
        return _pushed(plain, values, lambda config: without_a_block(config)[values["layers"]])

    first = tuple({"layers": blocks[0]} | values for values in _FIRST_PUSHED)
    return _operator("skip-layer", plain, space, made, first)


def _z_sampling(plain: RenderConfig) -> Operator:
    space = {"guidance_scale": Range(1.5, 6.0, 0.5), "low_scale": (0.0, 1.0), **_reflecting(plain)}

    def made(values: Values) -> RenderConfig:
        config = _with_guidance(plain, values)
        high = replace(plain.base, guidance_scale=values["guidance_scale"])
        gap = replace(config, strong=high, weak=replace(high, guidance_scale=values["low_scale"]))
        return _stepped(_reflected(gap, values), values)

    first = tuple(values | {"guidance_scale": 3.0, "low_scale": 1.0} for values in _first_reflected(plain))
    return _operator("Z-Sampling", plain, space, made, first)


def _resampling(plain: RenderConfig) -> Operator:
    space: dict[str, Open] = {**_window(""), "rounds": (1, 2), **_beside(plain)}

    def made(values: Values) -> RenderConfig:
        config = _with_guidance(plain, values)
        window, rounds = _window_of(values, ""), values["rounds"]
        config = replace(config, inversion="resample", reuse=1, reflection_steps=window, rounds=rounds)
        return _stepped(replace(config, strong=config.base, weak=weak_panel(config)), values)

    first = tuple(_windowed("", window) | {"rounds": 1} for window in (_EVERYWHERE, _LATE))
    return _operator("Re-Sampling", plain, space, made, first)


def _w2sd(plain: RenderConfig) -> Operator:
    scales_agree = plain.strong.guidance_scale == plain.weak.guidance_scale
    space: dict[str, Open] = {**_reflecting(plain), **_beside(plain)}
    space |= {"gap": ("unguided", "guided")} if scales_agree else {}

    def made(values: Values) -> RenderConfig:
        config = _with_guidance(plain, values)
        if scales_agree:
            scale = values["guidance_scale"] if values["gap"] == "guided" else 1.0
            branches = {role: replace(getattr(plain, role), guidance_scale=scale) for role in ("strong", "weak")}
            config = replace(config, **branches)
        return _stepped(_reflected(config, values), values)

    first = tuple(values | ({"gap": "unguided"} if scales_agree else {}) for values in _first_reflected(plain))
    return _operator("W2SD", plain, space, made, first)


_MAKERS: dict[str, Callable[[RenderConfig], Operator]] = {
    "none": _none,
    "guidance": _guidance,
    "AutoGuidance": _autoguidance,
    "skip-layer": _skip_layers,
    "Z-Sampling": _z_sampling,
    "Re-Sampling": _resampling,
    "W2SD": _w2sd,
}


def _operator(
    name: str,
    plain: RenderConfig,
    space: Mapping[str, Open],
    made: Callable[[Values], RenderConfig],
    first: tuple[dict[str, Any], ...],
) -> Operator:
    """Return an operator with what is open for all of them; of its first values only those that are open."""
    whole = {**space, **_stepping(plain)}
    known = tuple({setting: value for setting, value in values.items() if setting in whole} for values in first)
    return Operator(name, whole, made, known)


def _window(of: str) -> dict[str, Open]:
    return {_named(of, "start"): _START, _named(of, "length"): _LENGTH}


def _windowed(of: str, window: tuple[float, float]) -> dict[str, Any]:
    return {_named(of, "start"): window[0], _named(of, "length"): window[1]}


def _window_of(values: Values, of: str) -> tuple[float, float]:
    start = float(values[_named(of, "start")])
    return start, min(1.0, start + float(values[_named(of, "length")]))


def _named(of: str, end: str) -> str:
    return f"{of}_{end}" if of else end


def _beside(plain: RenderConfig) -> dict[str, Open]:
    return {"guidance_scale": _SCALE_BESIDE} if is_told_guidance(plain.model) else _GUIDANCE_BESIDE


def _pushing(plain: RenderConfig) -> dict[str, Open]:
    gap: dict[str, Open] = {"gap": ("unguided", "guided")}
    return {"weight": _WEIGHT, **_window(""), "reuse": _REUSE, **_beside(plain), **gap}


def _reflecting(plain: RenderConfig) -> dict[str, Open]:
    readings = ("epsilon", "sample") if _prediction(plain) == "epsilon" else ("epsilon", "sample", "native")
    inversions = tuple(dict.fromkeys((_default_inversion(plain), "current", "paper", "implicit", "explicit")))
    return {"inversion": inversions, "reading": readings, "strength": _STRENGTH, **_window(""), "reuse": _REUSE}


_UNGUIDED: dict[str, Any] = {"guidance_scale": 1.0, "guidance_start": 0.0, "guidance_length": 1.0, "reuse": 1}
_FIRST_PUSHED: tuple[dict[str, Any], ...] = tuple(
    _UNGUIDED | {"weight": 1.0, "gap": "unguided"} | _windowed("", window) for window in (_EVERYWHERE, _LATE)
)


def _first_reflected(plain: RenderConfig) -> tuple[dict[str, Any], ...]:
    reflected = _UNGUIDED | {"reading": "epsilon", "strength": 1.0}
    places = ((_default_inversion(plain), _EVERYWHERE), ("current", (0.25, 0.5)))
    return tuple(reflected | {"inversion": inversion} | _windowed("", window) for inversion, window in places)


def _default_inversion(plain: RenderConfig) -> Inversion:
    """Return what ``auto`` is for a pipeline; ``auto`` itself of one that is not on this machine."""
    return inversion_of(replace(plain, inversion="auto"))


def _pushed(plain: RenderConfig, values: Values, weak_of: Callable[[RenderConfig], BranchConfig]) -> RenderConfig:
    """Return AutoGuidance: with an unguided gap what strong and weak predict without guidance is compared."""
    config = _with_guidance(plain, values)
    weak, window = weak_of(config), _window_of(values, "")
    config = replace(config, autoguidance=values["weight"], autoguidance_steps=window, reuse=values["reuse"], weak=weak)
    if values["gap"] == "unguided":
        strong, weak = (replace(branch, guidance_scale=1.0, windows=None) for branch in (plain.base, weak))
        config = replace(config, autoguidance_gap="strong", strong=strong, weak=weak)
    return _stepped(config, values)


def _reflected(config: RenderConfig, values: Values) -> RenderConfig:
    settings = {name: values[name] for name in ("inversion", "reading", "strength", "reuse")}
    return replace(config, reflection_steps=_window_of(values, ""), **settings)


def _with_guidance(plain: RenderConfig, values: Values) -> RenderConfig:
    """Return base at a guidance scale, in a window where it has one."""
    guided = _guided(plain, values["guidance_scale"])
    if "guidance_start" not in values or values["guidance_scale"] == 1.0:
        return guided
    windows = {**(guided.base.windows or {}), "guidance_scale": _window_of(values, "guidance")}
    return replace(guided, base=replace(guided.base, windows=windows))


def _guided(plain: RenderConfig, scale: float) -> RenderConfig:
    windows = {name: window for name, window in (plain.base.windows or {}).items() if name != "guidance_scale"}
    return replace(plain, base=replace(plain.base, guidance_scale=scale, windows=windows or None))


def _stepping(plain: RenderConfig) -> dict[str, Open]:
    """Return what is open in the step itself: solver, grid, and noise, as far as scheduler and pipeline take them."""
    scheduler = scheduler_of(plain.model)
    if not scheduler:
        return {}
    solvers = dict.fromkeys((plain.solver or scheduler, scheduler, *_MULTISTEP))
    space: dict[str, Open] = {"solver": tuple(solvers), "grid": Range(1.0, 1.75, 0.25)}
    if any(takes_eta(plain, solver) for solver in solvers):
        space["eta"] = Range(0.0, 1.0, 0.25)
    return space


def _stepped(config: RenderConfig, values: Values) -> RenderConfig:
    """Return a configuration with a solver, a grid where that takes one, and noise where that adds any."""
    if "solver" not in values:
        return config
    solver = values["solver"]
    config = replace(config, solver=None if solver == scheduler_of(config.model) else solver)
    config = replace(config, grid=values["grid"] if _takes_grid(solver) else 1.0)
    call = {name: value for name, value in config.call.items() if name != "eta"}
    if "eta" in values and solver in ADDING_NOISE:
        call["eta"] = values["eta"]
    return replace(config, call=call)


def _takes_grid(solver: str) -> bool:
    """Return whether a scheduler, by the name of its class, can be set on a grid of timesteps."""
    import diffusers

    kind = getattr(diffusers, solver, None)
    return kind is not None and takes_grid(kind, is_flow="FlowMatch" in solver)


def _prediction(config: RenderConfig) -> str:
    scheduler = read_json(config.model.pretrained, "scheduler/scheduler_config.json")
    return str(scheduler.get("prediction_type", ""))
