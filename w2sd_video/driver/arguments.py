"""The arguments of a pipeline's call: what of them cannot be reflected, and what they are changed to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from w2sd_video.driver.parts import denoisers_of
from w2sd_video.driver.rehearsal import CallState


def check_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what a pipeline counts in turns of its loop, of which a reflected one has more than steps.

    Raises:
        ValueError: the argument, its value and what to do instead.
    """
    neutral = {
        "control_guidance_start": 0.0,
        "control_guidance_end": 1.0,
        "adapter_conditioning_factor": 1.0,
        "cfg_trunc_ratio": 1.0,
    }
    for name in ("denoising_start", "denoising_end", "skip_guidance_layers", *neutral):
        value = arguments.get(name)
        values = value if isinstance(value, (list, tuple)) and name in neutral else [value]
        if any(one is not None and one != neutral.get(name) for one in values):
            raise ValueError(
                f"{name}={value} cannot be reflected: the pipeline would count it in turns of the reflected loop; "
                "leave it at its default, or reflect no step (reflection_steps=0)"
            )
    denoiser, vae = denoisers_of(pipe)[0], getattr(pipe, "vae", None)
    channels = [
        getattr(part, "config", {}).get(key) for part, key in ((denoiser, "in_channels"), (vae, "latent_channels"))
    ]
    if arguments.get("mask_image") is not None and channels[0] == channels[1]:
        raise ValueError(
            f"{type(pipe).__name__} with this denoiser keeps the unmasked part by noising it anew in every turn, which "
            "cannot be reflected; use an inpainting checkpoint, or reflect no step (reflection_steps=0)"
        )


def with_text(arguments: Mapping[str, Any], prompt: Any, negative_prompt: Any, pipeline: str) -> dict[str, Any]:
    """Return the changes that give a pipeline another prompt, negative prompt, or both, one a sample."""
    own, embedded_own = arguments.get("prompt"), arguments.get("prompt_embeds")
    samples = len(own) if isinstance(own, list) else 1 if embedded_own is None else len(embedded_own)
    if prompt is not None and negative_prompt is None and arguments.get("negative_prompt_embeds") is not None:
        raise ValueError("a branch has a prompt, but the call has negative_prompt_embeds; pass negative_prompt as text")
    changed: dict[str, Any] = {}
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if text is None:
            continue
        if name not in arguments:
            raise ValueError(f"a branch has a {name}, but {pipeline} takes none")
        texts = [text] * samples if isinstance(text, str) else list(text)
        if len(texts) != samples:
            raise ValueError(f"a branch has {len(texts)} prompts, but the pipeline was called with {samples}")
        changed |= {other: None for other, value in arguments.items() if _belongs_to(name, other, value)}
        changed[name] = texts[0] if samples == 1 and not isinstance(own, list) else texts
    return changed


def _belongs_to(name: str, other: str, value: Any) -> bool:
    """Return whether an argument is a form of a prompt: embeddings, or the text for another encoder (``prompt_2``)."""
    if other.removeprefix(f"{name}_").isdigit():
        return value is not None
    embedded = (f"{name}_", f"pooled_{name}_", f"{name.replace('_prompt', '_pooled_prompt')}_")
    return other.startswith(embedded) and isinstance(value, torch.Tensor)


def count_steps_in_callback(arguments: Mapping[str, Any], state: CallState) -> dict[str, Any]:
    """Have the user's callback called once a call of the scheduler's own step, with the index of a stock loop."""
    callback = arguments.get("callback_on_step_end")
    if callback is None:
        return {}
    changes: dict[str, Any] = {}
    if hasattr(callback, "tensor_inputs"):
        changes["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs

    def on_step_end(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return callback(pipe, state.call, timestep, kwargs) if state.step_taken else {}

    return changes | {"callback_on_step_end": on_step_end}


def adapt_every_turn(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Have a T2I-Adapter act in every turn, of which there are more than the steps that its pipeline counts them by."""
    if arguments.get("adapter_conditioning_factor") == 1:
        return {"adapter_conditioning_factor": sys.maxsize}
    return {}
