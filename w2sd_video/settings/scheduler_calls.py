"""How many predictions a configuration's scheduler takes at each of its steps, asked of the scheduler itself."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from itertools import pairwise

from w2sd_video.levels import Steps
from w2sd_video.messages import ConfigError, first_line
from w2sd_video.scheduler_levels import known_schedulers, steps_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import read_json, scheduler_of


def calls_of_steps(config: RenderConfig) -> tuple[int, ...]:
    """Return the predictions that the scheduler is given at each step of the trajectory.

    Heun takes two a step but for the last, PNDM two at its first, and a singlestep solver makes one step of two or
    three predictions. One that is not known, as that of a model that is not on this machine, counts as one a step.

    Raises:
        ConfigError: a number of steps that the scheduler cannot take.
    """
    return calls_by_steps(config)(config.steps)


def calls_by_steps(config: RenderConfig) -> Callable[[int], tuple[int, ...]]:
    """Return `calls_of_steps` of a configuration as a function of the number of steps; its files are read once."""
    return functools.partial(_calls, *_scheduler(config))


def without_signal_by_steps(config: RenderConfig) -> Callable[[int], bool]:
    """Return a function of the number of steps: whether the first level is noise alone (flow, zero terminal SNR)."""
    return functools.partial(_begins_without_signal, *_scheduler(config))


def _scheduler(config: RenderConfig) -> tuple[str, str]:
    settings = read_json(config.model.pretrained, "scheduler/scheduler_config.json")
    return config.solver or scheduler_of(config.model), json.dumps(settings, sort_keys=True)


def _calls(name: str, settings: str, steps: int) -> tuple[int, ...]:
    known = _steps(name, settings, steps)
    return (
        (1,) * steps
        if known is None
        else tuple(after - call for call, after in pairwise([*known.calls, len(known.timesteps)]))
    )


def _begins_without_signal(name: str, settings: str, steps: int) -> bool:
    known = _steps(name, settings, steps)
    return known is not None and known.levels[0].alpha == 0.0


@functools.cache
def _steps(name: str, settings: str, steps: int) -> Steps | None:
    """Return the steps of a scheduler; None of one that is not known."""
    if name not in known_schedulers():
        return None
    import diffusers

    config = json.loads(settings)
    if "use_dynamic_shifting" in config:  # by the size of the latents, which moves levels and leaves their number
        config["use_dynamic_shifting"] = False
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(steps)
        return steps_of(scheduler)
    except Exception as error:  # whatever a foreign scheduler raises
        raise ConfigError(f"steps {steps}: cannot be taken by {name}: {first_line(error)}") from error
