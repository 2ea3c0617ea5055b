"""What of a configuration makes no sense whatever the model.

What makes no sense in a script either, `Branch` and `Reflection` refuse themselves.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from w2sd_video.branch import STAGES, Branch
from w2sd_video.command_parser import BLANK
from w2sd_video.messages import ConfigError, suggest
from w2sd_video.reflection_settings import Reflection
from w2sd_video.settings.schema import (
    FAMILY_OPTIONS,
    OF_A_REFLECTION,
    ROLES,
    BranchConfig,
    ModelConfig,
    RenderConfig,
    stage_scales,
)
from w2sd_video.strength import StrengthSchedule

_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1000),
    "rounds": (1, 100),
    "iterations": (1, 100),
    "span": (1, 1000),
    "reuse": (1, 1000),
    "grid": (0.2, 5),
    "height": (8, 4096),
    "width": (8, 4096),
    "frames": (1, 1024),
    "fps": (0.1, 120),
    "seed": (0, 2**62),
}
"""From the least that has a meaning to far beyond what is of use, so that a slip of the keyboard is refused."""

_SCALES = (-100, 100)
"""The range of guidance and of all scales of a branch, for the same reason."""

_STRENGTHS = (-10, 10)
"""The range of a strength, also of each in a file."""

_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that pipelines run on."""

_OWN_ARGUMENTS = {
    *("prompt", "class_labels", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
    *("generator", "output_type", "num_videos_per_prompt", "num_images_per_prompt", "return_dict", "latents"),
}
"""Arguments of pipelines that this package gives itself, or on which it relies as they are."""


def check(config: RenderConfig) -> None:
    """Check everything that can be checked without a model.

    Raises:
        ConfigError: the first value that is out of range or does not fit the others.
    """
    _check_leaves("", dataclasses.asdict(config))
    for name, (low, high) in _RANGES.items():
        check_range(name, getattr(config, name), low, high)
    if config.base.guidance_scale is None:
        raise ConfigError("base.guidance_scale: is needed; 1 switches guidance off")
    if not config.model.pretrained:
        raise ConfigError("model.pretrained: is needed; the hub id or folder of a pipeline")
    for name, family in FAMILY_OPTIONS.items():
        if getattr(config.model, name) and config.model.family != family:
            raise ConfigError(f"model.{name}: is for the family {family}, but model.family is {config.model.family}")
    _check_attention(config.model.attention)
    _check_device(config.device)
    for name, count in config.model.parameters.items():
        if count <= 0:
            raise ConfigError(f"model.parameters.{name} {count}: must be above 0, in millions")
    if not isinstance(config.prompts, list):
        raise ConfigError(f"prompts: must be a list of texts, not {config.prompts!r}")
    if not config.prompts:
        raise ConfigError("prompts: none given; write one after the command, or name a file of them with --prompts")
    for prompt in config.prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"prompts: {prompt!r} is not a text")
    for role in ROLES:
        _check_branch(role, getattr(config, role), config.model)
    _check_reflection(config)
    _check_solver(config.solver)
    for name in config.call:
        if name in _OWN_ARGUMENTS:
            raise ConfigError(f"call.{name}: is set by its own option, and cannot be set here")
    for name in config.inputs:
        if name in _OWN_ARGUMENTS or name in config.call:
            raise ConfigError(f"inputs.{name}: is set elsewhere, and cannot be set here")
    _check_names("", dataclasses.asdict(config))


def _check_leaves(name: str, value: Any) -> None:
    """Refuse, wherever it stands, a number that is not finite, and a text that no file and no terminal can hold."""
    if isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            _check_leaves(f"{name}.{key}" if name else str(key), entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} {value}: must be a finite number")
    elif isinstance(value, str) and ("\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value)):
        raise ConfigError(f"{name} {value!r}: is not text, for it holds a null character or bytes that are not UTF-8")
    elif isinstance(value, str) and name.startswith("call.") and _is_not_finite(value):
        raise ConfigError(f"{name} {value}: must be a finite number")


def _check_names(name: str, value: Any) -> None:
    """Refuse a blank, wherever it stands, but for texts that a network reads: to it they say something."""
    if isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if name or key != "call":
                _check_names(f"{name}.{key}" if name else str(key), entry)
    elif isinstance(value, str) and not value.strip() and not name.endswith("prompt"):
        raise ConfigError(f"{name}: {BLANK}")


def _is_not_finite(text: str) -> bool:
    return text.lower().lstrip("+-.") in ("nan", "inf", "infinity")


def _check_device(name: str) -> None:
    """Refuse what is the name of no device that computes; whether this machine has it is another question."""
    try:
        device = None if name == "auto" else torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device and (device.type not in _DEVICES or (device.type in ("cpu", "mps") and device.index)):
        raise ConfigError(f"device {name!r}: is no device; use auto, cpu, cuda, a number of these like cuda:1, or mps")


def _check_attention(name: str) -> None:
    if name != "sdpa":  # the other names are diffusers', which takes its time to import
        from w2sd_video.backends.attention import check_name

        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(f"model.attention: {error}") from error


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number that is out of range (ConfigError); one that is not given is in it."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} {value}: must be from {low} to {high}")


def _check_branch(role: str, branch: BranchConfig, model: ModelConfig) -> None:
    for scale in stage_scales(branch.guidance_scale):
        check_range(f"{role}.guidance_scale", scale, *_SCALES)
    for name in ("control_scale", "ip_adapter_scale"):
        check_range(f"{role}.{name}", getattr(branch, name), *_SCALES)
    if model.family != "pipeline" and (len(stage_scales(branch.guidance_scale)) == 2 or branch.experts in STAGES):
        raise ConfigError(
            f"{role}: two stages (a pair of guidance scales, experts high, low) need model.family pipeline"
        )
    windows = {
        name: _schedule(f"{role}.windows.{name}", window) if isinstance(window, str) else window
        for name, window in (branch.windows or {}).items()
    }
    try:
        Branch(**vars(branch) | {"windows": windows})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{role}: {error}") from error
    if branch.ip_adapter_scale is not None and not model.ip_adapter:
        raise ConfigError(f"{role}.ip_adapter_scale: a branch with no IP-Adapter loaded; name it in model.ip_adapter")
    if branch.weights is not None and branch.weights not in model.weights:
        known = ", ".join(model.weights) or "there are none"
        raise ConfigError(f"{role}.weights {branch.weights!r}: not among model.weights ({known})")
    for name, scale in (branch.lora or {}).items():
        if name not in model.lora:
            raise ConfigError(
                f"{role}.lora {name!r}: not among model.lora ({', '.join(model.lora) or 'there are none'})"
            )
        check_range(f"{role}.lora.{name}", scale, *_SCALES)


def _check_reflection(config: RenderConfig) -> None:
    for name in ("reflection_steps", "autoguidance_steps"):
        where = getattr(config, name)
        if isinstance(where, int) and not 0 <= where <= config.steps:
            raise ConfigError(f"{name} {where}: must be from 0 to {config.steps}, the number of steps")
    if config.span > config.steps:
        raise ConfigError(f"span {config.span}: must be from 1 to {config.steps}, the number of steps")
    settings = {name: getattr(config, name) for name in OF_A_REFLECTION}
    for name in ("strength", "autoguidance"):
        if isinstance(settings[name], str):
            settings[name] = _schedule(name, settings[name])
        else:
            check_range(name, settings[name], *_STRENGTHS)
    try:
        Reflection(**settings).steps(config.steps)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _check_solver(name: str | None) -> None:
    from w2sd_video.trajectory import known_schedulers

    if name is not None and name not in known_schedulers():
        raise ConfigError(f"solver {name!r}: is no scheduler that is known; {suggest(name, known_schedulers())}")


def _schedule(setting: str, name: str) -> StrengthSchedule:
    """Return the strengths of a file."""
    low, high = _STRENGTHS
    if _is_not_finite(name):
        raise ConfigError(f"{setting} {name}: must be from {low} to {high}, or the name of a file")
    try:
        schedule = StrengthSchedule.read(name)
    except ValueError as error:
        raise ConfigError(f"{error}; give a number from {low} to {high}, or a file that calibrate wrote") from error
    for strength in schedule.strength:
        if not low <= strength <= high:
            raise ConfigError(f"{setting} {name}: holds {strength:g}; each must be from {low} to {high}")
    return schedule
