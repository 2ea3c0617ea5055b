"""Where the modules of version 0.2 are now: importing one by its old name gives its names, and a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_TRAINING = ("data", "diffusion", "export", "fit", "models")
"""Modules of the miniatures that kept their names when they moved into a folder of the training."""
_TRACKS = ("animatediff", "cogvideox", "dit_moe", "lora", "pixart", "vae")
"""The same of those that begin with train_."""

MOVED: dict[str, tuple[str, ...]] = {
    "backends.motion": ("backends.motion_layers",),
    "clips": ("calibration.real_clips", "calibration.latents"),
    "config": ("settings.command_line", "settings.files"),
    "describe": ("settings.words",),
    "describe_calibration": ("calibration.report",),
    "gaps.control": ("driver.controlnet",),
    "ideal": ("calibration.ideal_prediction",),
    "metrics.loading": ("metrics.weights",),
    "miniatures.classifier": ("miniatures.judges",),
    "miniatures.train_classifier": ("miniatures.training.train_judges",),
    "miniatures.train_control": ("miniatures.training.train_controlnet",),
    "outputs": ("rendering.outputs",),
    "plan": ("settings.model_checks", "settings.evaluations", "settings.panels"),
    "probe": ("calibration.noised_clips", "calibration.moments"),
    "sources": ("settings.sources",),
    "video": ("rendering.video", "rendering.sheets", "writing"),
    **{f"miniatures.{name}": (f"miniatures.training.{name}",) for name in _TRAINING},
    **{f"miniatures.train_{name}": (f"miniatures.training.train_{name}",) for name in _TRACKS},
}
"""Modules that are gone, and those that hold what was in them."""

TAKEN_OUT: dict[str, tuple[str, ...]] = {
    "backends.attention": ("backends.split_attention",),
    "backends.loading": ("backends.loading",),
    "calibrate": ("calibration.pair",),
    "calibration": ("calibration.gap", "calibration.tilt", "calibration.resampling"),
    "evaluation.arms": ("evaluation.places",),
    "evaluation.plan": ("evaluation.work",),
    "evaluation.report": ("page.write",),
    "evaluation.samples": ("evaluation.splits", "evaluation.sample_files", "evaluation.laboratory"),
    "evaluate": ("evaluation.every_arm", "evaluation.measures"),
    "miniatures.train": ("miniatures.training.stages",),
    "render": (
        *("rendering.load", "rendering.sample", "rendering.call_arguments", "rendering.inputs", "rendering.prompts"),
        "messages",
    ),
    "rendering.video": ("writing",),
    "sampler": ("algorithm", "inversions"),
    "settings": ("settings.schema", "settings.evaluations", "settings.value_checks", "messages"),
}
"""Modules that are still there, and those that hold what is no longer in them."""

RENAMED = {
    "CommandLine": "Request",
    "ClipWalk": "Probe",
    "asked_by": "requests_of",
    "check_device": "pick_device",
    "key_of_setting": "key_of",
    "moments_of_clips": "probe",
    "plan_in_words": "describe",
}
"""The old name of what has another name now."""


def names_of(module: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``, which finds names that were in it in version 0.2."""

    def find(name: str) -> Any:
        old_module = module.removeprefix("w2sd_video.")
        if not name.startswith("_"):
            for new_module in TAKEN_OUT[old_module]:
                public_names = _public(new_module)
                if name in public_names:
                    _warn(f"{module}.{name}", f"w2sd_video.{new_module}")
                    return public_names[name]
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a specification for the old name of a module; None for any other."""
        is_moved = fullname.removeprefix("w2sd_video.") in MOVED and fullname.startswith("w2sd_video.")
        return spec_from_loader(fullname, self) if is_moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with the names that it had."""
        new_modules = MOVED[module.__name__.removeprefix("w2sd_video.")]
        _warn(module.__name__, " and ".join(f"w2sd_video.{new_module}" for new_module in new_modules))
        for new_module in new_modules:
            vars(module).update(_public(new_module))


def install() -> None:
    """Have Python ask for the old names where it finds no module of a name."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())


def _public(new_module: str) -> dict[str, Any]:
    """Return the public names of a module, the renamed ones under their old names too."""
    public_names = {
        name: value for name, value in vars(import_module(f"w2sd_video.{new_module}")).items() if name[0] != "_"
    }
    return public_names | {
        old_name: public_names[new_name] for new_name, old_name in RENAMED.items() if new_name in public_names
    }


def _warn(old_name: str, new_name: str) -> None:
    warnings.warn(f"{old_name} is in {new_name} now", DeprecationWarning, stacklevel=3)
