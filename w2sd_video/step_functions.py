"""The operator: one reflection of a latent, from a strong step down and a weak step back up."""

from __future__ import annotations

from collections.abc import Callable

import torch

from w2sd_video.argument_checks import (
    check_callable,
    check_finite,
    check_latents,
    check_like,
    check_were_finite,
    real_number,
    whole_number,
)

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
        strength: scale of the displacement; 1 is the paper's, 0 returns the latents as they are, and calls nothing.
        rounds: how many reflections follow each other, at least 1.

    Returns:
        Tensor like ``latents``, at the level of ``t``. Gradients are off unless ``latents`` require them.

    Raises:
        TypeError: latents that are not a floating-point tensor, a setting that is no number, or no function.
        ValueError: latents that are not finite, before or after, ``strength`` that is not finite, ``rounds`` that are
            no whole number from 1, or a step function that changed shape, dtype or device, or returned a non-finite
            value; the message names the function.
    """
    check_latents(latents)
    check_finite("latents", latents)
    check_callable("step_fn_strong", step_fn_strong)
    check_callable("step_fn_weak", step_fn_weak)
    strength, rounds = real_number("strength", strength), whole_number("rounds", rounds, 1)

    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        for _ in range(rounds if strength else 0):
            lower = _checked("step_fn_strong", step_fn_strong(latents, t), latents)
            inverted = _checked("step_fn_weak", step_fn_weak(lower, t), latents)
            latents = latents + strength * (inverted - latents)
            check_finite("the reflected latents", latents)
    return latents


def _checked(name: str, result: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the result of a step function, or say what it did to the latents."""
    check_like(name, result, latents)
    check_were_finite([(name, torch.isfinite(result).all())])
    return result
