"""Model families: how each is loaded, and how a second denoiser is kept beside a pipeline's own.

A backend (`animatediff`, `cogvideox`, `dit_moe`, and `pipeline` for all others) has a function `load`, which returns a
pipeline. For people with their own sampling loop `w2sd_video.predictor` takes a pipeline of any of them; the first two
have a `predictor` besides, of text alone, for latents of any size.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

DENOISERS = ("transformer", "transformer_2", "unet")
"""What pipelines call the network that denoises; two of them are the stages of a two-stage model."""

Second = nn.Module | tuple[nn.Module, nn.Module]

# Kept beside the pipelines, not on them: the user's pipeline gains no attribute, and nothing outlives it.
_SECONDS: WeakKeyDictionary[Any, dict[str, Second]] = WeakKeyDictionary()


def register(pipe: Any, name: str, module: Second) -> None:
    """Make a second denoiser known under a name, for `Branch(weights=name)` with this pipeline.

    Args:
        pipe: a diffusers pipeline; it is left as it is. `pipe.to(...)` does not move the second denoiser.
        name: any text but the empty one; a name registered before is given to the new module.
        module: takes and gives tensors of the same shapes as the pipeline's own denoiser; of a two-stage pipeline a
            pair of them, for high and for low noise.

    Raises:
        TypeError: the module is not a torch module, or the name not text.
        ValueError: the name is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a second denoiser must be text, got {name!r}")
    if not name:
        raise ValueError("the name of a second denoiser must not be empty")
    if not all(isinstance(part, nn.Module) for part in (module if isinstance(module, tuple) else (module,))):
        raise TypeError(f"the second denoiser {name!r} must be a torch module, got {type(module).__name__}")
    _SECONDS.setdefault(pipe, {})[name] = module


def second_denoiser(pipe: Any, weights: Second | str) -> Second:
    """Return what the `weights` of a branch mean: a module itself, or the one registered under a name.

    Raises:
        ValueError: nothing is registered under the name; the message lists the names there are.
    """
    if not isinstance(weights, str):
        return weights
    denoisers = registered(pipe)
    if weights not in denoisers:
        raise ValueError(
            f"no second denoiser named {weights!r} is loaded for this pipeline; loaded are "
            f"{', '.join(sorted(denoisers)) or 'none'} (a backend's load takes weights={{{weights!r}: checkpoint}})"
        )
    return denoisers[weights]


def registered(pipe: Any) -> dict[str, Second]:
    """Return the second denoisers of a pipeline by name; an empty dictionary where there are none."""
    return dict(_SECONDS.get(pipe, {}))
