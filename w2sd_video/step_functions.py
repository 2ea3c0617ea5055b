"""The operator: one reflection of a latent, from a strong step down and a weak step back up."""

from __future__ import annotations

from collections.abc import Callable

import torch

StepFunction = Callable[[torch.Tensor, object], torch.Tensor]


def reflect(
    step_fn_strong: StepFunction,
    step_fn_weak: StepFunction,
    latents: torch.Tensor,
    t: object,
    *,
    strength: float = 1.0,
    rounds: int = 1,
) -> torch.Tensor:
    """Move latents along the weak-to-strong gap (algorithm 1 of "Weak-to-Strong Diffusion with Reflection").

    One round is ``x' = step_fn_weak(step_fn_strong(x, t), t)``, and the result is ``x + strength * (x' - x)``.

    Args:
        step_fn_strong: ``(latents, t) -> latents`` one level less noisy, by the strong model.
        step_fn_weak: ``(latents, t) -> latents`` back at the level of ``t``, inverted by the weak model.
        latents: floating-point tensor of any shape, on any device, at the level of ``t``.
        t: passed on untouched to both functions.
        strength: scale of the displacement; 1 is the paper's, 0 returns the latents as they are.
        rounds: how many reflections follow each other, at least 1.

    Returns:
        Tensor like ``latents``, at the level of ``t``. Gradients are off unless ``latents`` require them.

    Raises:
        TypeError: latents that are not a floating-point tensor.
        ValueError: ``rounds`` below 1, or a step function that changed shape, dtype or device, or returned a
            non-finite value; the message names the function.
    """
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise TypeError(f"latents must be a floating-point tensor, got {kind}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        for _ in range(rounds):
            lower = _checked("step_fn_strong", step_fn_strong(latents, t), latents)
            inverted = _checked("step_fn_weak", step_fn_weak(lower, t), latents)
            latents = latents + strength * (inverted - latents)
    return latents


def _checked(name: str, result: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the result of a step function, or say what it did to the latents."""
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"{name} must return a tensor, got {type(result).__name__}")
    for what in ("shape", "dtype", "device"):
        before, after = getattr(latents, what), getattr(result, what)
        if before != after:
            raise ValueError(f"{name} changed the {what} of the latents from {before} to {after}; it must keep it")
    if not torch.isfinite(result).all():
        raise ValueError(f"{name} returned non-finite values (NaN or infinity)")
    return result
