"""Weak-to-Strong Diffusion: a sampler plugin for diffusers pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from w2sd_video import _moved

if TYPE_CHECKING:
    from w2sd_video.branch import Branch
    from w2sd_video.inversions import Request, reflect_step
    from w2sd_video.levels import Level
    from w2sd_video.loops import Reflector
    from w2sd_video.plugin import Run, reflection
    from w2sd_video.predictors import Predictor, predictor
    from w2sd_video.presets import PRESETS
    from w2sd_video.reflection_settings import Reflection
    from w2sd_video.rendering.settings_file import load_settings
    from w2sd_video.sampler import Sampled, sample
    from w2sd_video.scheduler_levels import known_schedulers
    from w2sd_video.step_functions import reflect
    from w2sd_video.strength import StrengthSchedule
    from w2sd_video.trajectory import Trajectory
    from w2sd_video.window import Window

__version__ = "0.3.0"

__all__ = [
    "PRESETS",
    "Branch",
    "Level",
    "Predictor",
    "Reflection",
    "Reflector",
    "Request",
    "Run",
    "Sampled",
    "StrengthSchedule",
    "Trajectory",
    "Window",
    "known_schedulers",
    "load_settings",
    "predictor",
    "reflect",
    "reflect_step",
    "reflection",
    "sample",
]

_MODULES = {
    "Branch": "branch",
    "Level": "levels",
    "PRESETS": "presets",
    "Predictor": "predictors",
    "Reflection": "reflection_settings",
    "Reflector": "loops",
    "Request": "inversions",
    "Run": "plugin",
    "Sampled": "sampler",
    "StrengthSchedule": "strength",
    "Trajectory": "trajectory",
    "Window": "window",
    "known_schedulers": "scheduler_levels",
    "load_settings": "rendering.settings_file",
    "predictor": "predictors",
    "reflect": "step_functions",
    "reflect_step": "inversions",
    "reflection": "plugin",
    "sample": "sampler",
}
"""Where each public name lives: loaded when it is first used, for torch takes seconds to import."""

_moved.install()


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
