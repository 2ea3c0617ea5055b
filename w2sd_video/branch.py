"""What differs between the base, the strong and the weak setting of a model, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from torch import nn


@dataclass(frozen=True)
class Branch:
    """One setting of the model. A field left out means "as the pipeline has it"; several fields make a cumulative gap.

    Attributes:
        guidance_scale: w of classifier-free guidance, ``uncond + w * (cond - uncond)``; any real number. At 1 no
            unconditional half is evaluated, at 0 no conditional one. Guidance-distilled models are told it instead.
        weights: a second denoiser: a module, or the name under which a backend loaded one.
        lora: scale of each LoRA adapter by its name, negative ones too; adapters not named keep their scale.
        prompt: text that takes the place of the prompt of the call: one for all samples, or one a sample.

    Raises:
        TypeError: a field of another type.
        ValueError: a number that is not finite.
    """

    guidance_scale: float | None = None
    weights: nn.Module | str | None = None
    lora: Mapping[str, float] | None = None
    prompt: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no pipeline could use."""
        if self.guidance_scale is not None:
            _check_number("guidance_scale", self.guidance_scale)
        if self.weights is not None and not isinstance(self.weights, (nn.Module, str)):
            raise TypeError(f"weights must be a module or the name of one, got {type(self.weights).__name__}")
        if self.lora is not None:
            if not isinstance(self.lora, Mapping):
                raise TypeError(f"lora must map adapter names to scales, got {self.lora!r}")
            for name, scale in self.lora.items():
                _check_number(f"lora[{name!r}]", scale)
        if self.prompt is not None:
            texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"prompt must be text, or one text a sample; got {self.prompt!r}")

    def described(self) -> str:
        """Return the fields that are set, for a person."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = [f"{name}={_short(value)}" for name, value in values.items() if value is not None]
        return ", ".join(parts) or "as the pipeline has it"

    def same_but_guidance(self, other: Branch) -> bool:
        """Return whether two branches differ in nothing but their guidance scale."""
        return (self.weights, self.lora, self.prompt) == (other.weights, other.lora, other.prompt)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)
