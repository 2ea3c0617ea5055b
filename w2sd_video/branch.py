"""What differs between the base, the strong and the weak setting of a model, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from torch import nn

from w2sd_video.argument_checks import is_whole, real_number
from w2sd_video.strength import StrengthSchedule
from w2sd_video.window import Moment, Window, as_steps

STAGES = ("high", "low")
"""The denoisers of a two-stage model, by the noise that they work on; the first steps are the high one's."""


@dataclass(frozen=True)
class Branch:
    """One setting of the model. A field left out means "as the pipeline has it"; several fields make a cumulative gap.

    Numbers of numpy are numbers; they are kept as Python's own, and lists as tuples.

    Attributes:
        guidance_scale: w of classifier-free guidance, ``uncond + w * (cond - uncond)``; any real number. At 1 no
            unconditional half is evaluated, at 0 no conditional one. Guidance-distilled models are told it instead.
            A pair is for the high and the low noise stage of a two-stage model.
        weights: a second denoiser: a module, or the name under which a backend loaded one; of a two-stage model a pair
            of modules, or the name of a pair.
        lora: scale of each LoRA adapter by its name, negative ones too; adapters not named keep their scale.
        prompt: text that takes the place of the prompt of the call: one for all samples, or one a sample.
        negative_prompt: the same for the negative prompt; the pipeline must be called with guidance.
        experts: which experts of a mixture a token is sent to: "top" or "bottom", or how many, at least 1. Of a
            two-stage model "high" or "low", the denoiser that does all steps.
        control_scale: conditioning scale of every ControlNet; at 0 none is evaluated.
        ip_adapter_scale: scale of every IP-Adapter; at 0 its attention is not evaluated.
        skip_layers: blocks that are left out: their numbers in order of execution (negative ones from the end), or
            their names as submodules of the denoiser.
        perturbed_layers: blocks whose self-attention map is the identity, named in the same way.
        windows: where along the sampling a field is on, by its name: a window of the steps (start, stop) in fractions,
            or a `Window`, of log-SNRs for example. Elsewhere the field is as the pipeline has it, and the guidance
            scale is 1, at which no unconditional half is evaluated. For the guidance scale it may be a
            ``StrengthSchedule`` too, a share of w - 1 for each noise level.

    Raises:
        TypeError: a field of another type.
        ValueError: a number that is not finite, experts that are none of these, or no layers in a list of them.
    """

    guidance_scale: float | tuple[float, float] | None = None
    weights: nn.Module | str | tuple[nn.Module, nn.Module] | None = None
    lora: Mapping[str, float] | None = None
    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    experts: int | str | None = None
    control_scale: float | None = None
    ip_adapter_scale: float | None = None
    skip_layers: Sequence[int | str] | None = None
    perturbed_layers: Sequence[int | str] | None = None
    windows: Mapping[str, Window | tuple[float, float] | StrengthSchedule] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no pipeline could use, and keep the others as plain numbers, tuples and dictionaries."""
        scales = tuple(_number("guidance_scale", scale) for scale in _one_or_pair(self.guidance_scale))
        self._keep("guidance_scale", scales if len(scales) == 2 else scales[0])
        for module in _one_or_pair(self.weights):
            is_pair = module is not self.weights
            if module is not None and not isinstance(module, nn.Module if is_pair else (nn.Module, str)):
                allowed = (
                    "a pair of weights must be of modules" if is_pair else "weights must be a module or the name of one"
                )
                raise TypeError(f"{allowed}, got {type(module).__name__}")
        if self.weights == "":
            raise ValueError("weights must not be empty; leave it out for the pipeline's own")
        if self.lora is not None:
            if not isinstance(self.lora, Mapping) or not all(isinstance(name, str) for name in self.lora):
                raise TypeError(f"lora must map adapter names to scales, got {self.lora!r}")
            self._keep("lora", {name: _number(f"lora[{name!r}]", scale) for name, scale in self.lora.items()})
        for name in ("prompt", "negative_prompt"):
            self._keep(name, _text(name, getattr(self, name)))
        self._keep("experts", _experts(self.experts))
        for name in ("control_scale", "ip_adapter_scale"):
            self._keep(name, _number(name, getattr(self, name)))
        for name in ("skip_layers", "perturbed_layers"):
            self._keep(name, _layers(name, getattr(self, name)))
        self._keep("windows", self._windows())

    def _windows(self) -> dict[str, Window | StrengthSchedule] | None:
        """Return the window of each field that has one, as a window or a schedule."""
        if self.windows is None:
            return None
        if not isinstance(self.windows, Mapping):
            raise TypeError(f"windows must map names of fields to windows, got {self.windows!r}")
        windows: dict[str, Window | StrengthSchedule] = {}
        for name, window in self.windows.items():
            if (
                name == "windows"
                or getattr(self, str(name), None) is None
                or name not in {field.name for field in fields(self)}
            ):
                raise ValueError(f"windows has {name!r}, which is no field that this branch sets")
            if isinstance(window, StrengthSchedule):
                if name != "guidance_scale":
                    raise ValueError(f"windows[{name!r}] is a schedule, which only guidance_scale can have")
                windows[name] = window
                continue
            within = as_steps(f"windows[{name!r}]", window)
            if not isinstance(within, Window):
                raise ValueError(f"windows[{name!r}] must be a window (start, stop) of the steps, got {window!r}")
            windows[name] = within
        return windows

    def at(self, moment: Moment) -> Branch:
        """Return the setting at a moment of the sampling: what is off there is left out, guidance at a scale of 1."""
        if not self.windows:
            return self
        changes: dict[str, Any] = {"windows": None}
        for name in self.windows:
            share = self.share_at(name, moment)
            if name == "guidance_scale":
                scales = tuple(1 + share * (scale - 1) for scale in _one_or_pair(self.guidance_scale))
                changes[name] = scales if len(scales) == 2 else scales[0]
            elif not share:
                changes[name] = None
        return replace(self, **changes)

    def share_at(self, name: str, moment: Moment) -> float:
        """Return how much of a field there is at a moment: 1 in its window and 0 elsewhere, or as a schedule says."""
        window = (self.windows or {}).get(name)
        assert not isinstance(window, tuple)  # kept as a window
        if window is None:
            return 1.0
        return window.at(moment.level) if isinstance(window, StrengthSchedule) else window.share_at(moment)

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def text(self) -> tuple[object, object] | None:
        """The prompt and the negative prompt as something that can be looked up; None if neither is set."""
        texts = (self.prompt, self.negative_prompt)
        return None if texts == (None, None) else texts

    def same_but_guidance(self, other: Branch) -> bool:
        """Return whether two branches differ in nothing but their guidance scale; a mixture takes its top experts."""
        alike: dict[str, Any] = {"guidance_scale": None, "windows": None}
        if {self.experts, other.experts} == {None, "top"}:
            alike["experts"] = None
        return replace(self, **alike) == replace(other, **alike)


def steps_without_gap(strong: Branch, weak: Branch, moments: Mapping[int, Moment]) -> frozenset[int]:
    """Return the steps at which windows leave two branches alike, of some whose moments are given.

    Where neither has a window there are none: a gap that is nothing everywhere was asked for.
    """
    if not (strong.windows or weak.windows):
        return frozenset()
    return frozenset(step for step, moment in moments.items() if strong.at(moment) == weak.at(moment))


def steps_of_switches(branch: Branch, moments: Mapping[int, Moment]) -> frozenset[int]:
    """Return the steps at which something of a branch is on that was off at the step before, or the other way round.

    A schedule is off where its share is 0; a guidance scale of 1 is so everywhere.
    """
    is_unguided = all(scale == 1 for scale in _one_or_pair(branch.guidance_scale))
    names = [name for name in branch.windows or {} if not (name == "guidance_scale" and is_unguided)]
    on = {step: [bool(branch.share_at(name, moments[step])) for name in names] for step in moments}
    return frozenset(step for before, step in pairwise(sorted(on)) if on[before] != on[step])


def _one_or_pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)


def _number(name: str, value: object) -> int | float | None:
    return None if value is None else real_number(name, value)


def _text(name: str, value: object) -> str | tuple[str, ...] | None:
    """Return one text, or one a sample."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} must be text, or one text a sample; got {value!r}")
    if not value:
        raise ValueError(f"{name} must be text, or one text a sample; got none")
    return tuple(value)


def _experts(value: Any) -> int | str | None:
    known = ("top", "bottom", *STAGES)
    if value is None or (isinstance(value, str) and value in known):
        return value
    if not isinstance(value, str) and not is_whole(value):
        raise TypeError(f"experts must be {', '.join(known)} or a number, got {value!r}")
    if isinstance(value, str) or value < 1:
        raise ValueError(f"experts must be {', '.join(known)} or a number of at least 1, got {value!r}")
    return int(value)


def _layers(name: str, value: object) -> tuple[int | str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of block numbers or names, got {value!r}")
    if not_layers := [layer for layer in value if not is_whole(layer) and not isinstance(layer, str)]:
        raise TypeError(f"{name} must hold block numbers or names, got {not_layers[0]!r}")
    if not value:
        raise ValueError(f"{name} is empty; name at least one block, or leave it out")
    return tuple(block if isinstance(block, str) else int(block) for block in value)


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)
