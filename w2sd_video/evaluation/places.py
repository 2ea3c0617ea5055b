"""Where, how often, with which steps and how much noise an arm does what it does: the same places for every arm."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from w2sd_video.driver.solvers import ADDING_NOISE
from w2sd_video.settings.schema import RenderConfig, stage_scales
from w2sd_video.settings.sources import index_of, is_told_guidance, scheduler_of

Settings = dict[str, RenderConfig]
"""Configurations by what they are called, their number of steps left open."""

SETTINGS, EVERYWHERE = 6, 3
"""Of each arm: settings that are tried at all steps and late, and how many, the first ones, at every place."""


@dataclass(frozen=True)
class Place:
    """Where, how often, with which steps and how much noise an arm does what it does: the same for every arm.

    Attributes:
        window: of the steps; all that is added to the strong model's own prediction, its guidance too, is on in it.
        eta: noise of each step of DDIM.
        reuse: a gap is measured at every so many steps.
        is_second_order: whether DPM-Solver++ of second order takes the steps, in place of DDIM.
        grid: exponent of the timesteps' spacing.
    """

    window: tuple[float, float] | None = None
    eta: float = 0.0
    reuse: int = 1
    is_second_order: bool = False
    grid: float = 1.0


EARLY, MIDDLE, LATE = (0.0, 0.5), (0.25, 0.75), (0.5, 1.0)
"""Windows of the steps."""
PLACES = {
    "": Place(),
    "late": Place(LATE),
    "early": Place(EARLY),
    "middle": Place(MIDDLE),
    "eta 1": Place(eta=1.0),
    "late, eta 1": Place(LATE, eta=1.0),
    "late, reuse 2": Place(LATE, reuse=2),
    "late, 2M": Place(LATE, is_second_order=True),
    "late, 2M, grid 1.3": Place(LATE, is_second_order=True, grid=1.3),
}
"""The places by what they are called; the first two are those of all settings."""
_FIRST_ORDER = ("DDIMScheduler", "DDPMScheduler")
"""Schedulers whose noise levels a second-order solver has too, by their configuration."""


def is_guided(config: RenderConfig) -> bool:
    """Return whether base is guided, in any stage."""
    return max(stage_scales(config.base.guidance_scale)) > 1


def at_places(settings: Settings, reusing: Settings | None = None) -> Settings:
    """Return settings at the places of an arm, each once, but for those that they cannot have.

    Args:
        settings: those of the arm, those that matter most first.
        reusing: how those are written that reuse a gap, where that is otherwise.
    """
    found: Settings = {}
    for number, (name, setting) in enumerate(settings.items()):
        for label, place in list(PLACES.items())[: len(PLACES) if number < EVERYWHERE else 2]:
            one = setting if place.reuse == 1 or reusing is None else reusing.get(name)
            if one is None or (placed := _at_place(one, place)) is None or placed in found.values():
                continue
            found[f"{name}, {label}" if label else name] = placed
    return found


def _at_place(config: RenderConfig, place: Place) -> RenderConfig | None:
    """Return a configuration at a place; None where it has no such thing: noise of the steps, or a gap to reuse."""
    if place.eta and not takes_eta(config):
        return None
    if place.reuse > 1 and config.inversion.startswith("resample") and config.reflection_steps != 0:
        return None
    if place.is_second_order and scheduler_of(config.model) not in _FIRST_ORDER:
        return None
    if place.is_second_order:
        call = {name: value for name, value in config.call.items() if name != "eta"}  # its steps add no noise
        config = replace(config, solver="DPMSolverMultistepScheduler", grid=place.grid, call=call)
    if place.eta:
        config = replace(config, call={**config.call, "eta": place.eta})
    if place.reuse > 1:
        config = replace(config, reuse=place.reuse)
    if place.window is None:
        return config
    if config.reflection_steps != 0:
        config = replace(config, reflection_steps=place.window)
    if config.autoguidance:
        config = replace(config, autoguidance_steps=place.window)
    if is_guided(config) and not is_told_guidance(config.model):
        windows = {**(config.base.windows or {}), "guidance_scale": place.window}
        config = replace(config, base=replace(config.base, windows=windows))
    return config


def takes_eta(config: RenderConfig, solver: str | None = None) -> bool:
    """Return whether a pipeline, known before it is loaded, hands noise of the steps to a scheduler that adds it.

    Args:
        config: the configuration.
        solver: class of the scheduler; its own unless given.
    """
    import diffusers

    from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline

    of_diffusers = getattr(diffusers, index_of(config.model).get("_class_name", ""), None)
    pipeline: Any = DiTMoEPipeline if config.model.family == "dit_moe" else of_diffusers
    takes_it = pipeline is not None and "eta" in inspect.signature(pipeline.__call__).parameters
    return takes_it and (solver or config.solver or scheduler_of(config.model)) in ADDING_NOISE
