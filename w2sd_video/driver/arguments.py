"""The arguments of a pipeline's call, and what they are changed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from w2sd_video.driver.rehearsal import CallState
from w2sd_video.inversions import Draw
from w2sd_video.sampler import drawing_from


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


def check_no_own_timesteps(arguments: Mapping[str, Any], grid: float) -> None:
    """Refuse a grid beside timesteps of the user's own (ValueError)."""
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            raise ValueError(f"grid={grid:g} spaces the timesteps, but the call has {name}; leave one of them out")


def _belongs_to(name: str, other: str, value: Any) -> bool:
    """Return whether an argument is a form of a prompt: embeddings, or the text for another encoder (``prompt_2``)."""
    if other.removeprefix(f"{name}_").isdigit():
        return value is not None
    embedded = (f"{name}_", f"pooled_{name}_", f"{name.replace('_prompt', '_pooled_prompt')}_")
    parts = value if isinstance(value, (list, tuple)) and value else [value]  # a list of samples (Z-Image)
    return other.startswith(embedded) and all(isinstance(part, torch.Tensor) for part in parts)


def drawing_as(generator: torch.Generator | list[torch.Generator] | None) -> Draw:
    """Return a function that draws noise like latents, from the generators of a call: one for each of its samples.

    Some pipelines step more rows than samples: both halves of guidance (DiT) or every frame (TextToVideoSD).
    """
    draw = drawing_from(generator)
    has_twice: bool | None = None  # each sample, found at the first draw: to compare again would wait on the device

    def draw_rows(like: torch.Tensor) -> torch.Tensor:
        nonlocal has_twice
        samples = len(generator) if isinstance(generator, (list, tuple)) else len(like)
        if samples == len(like):
            return draw(like)
        if has_twice is None:
            has_twice = len(like) == 2 * samples and torch.equal(like[:samples], like[samples:])
        if has_twice:
            return torch.cat([draw(like[:samples])] * 2)
        return draw(like.unflatten(0, (samples, -1))).flatten(0, 1)

    return draw_rows


def call_back_after_steps(arguments: Mapping[str, Any], state: CallState) -> dict[str, Any]:
    """Have the user's callbacks, new and old, called after the scheduler's own steps only, not after every turn."""
    callback, old_callback = arguments.get("callback_on_step_end"), arguments.get("callback")
    changes: dict[str, Any] = {}
    if callback is not None:
        if hasattr(callback, "tensor_inputs"):
            changes["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        changes["callback_on_step_end"] = lambda *shown: callback(*shown) if state.step_taken else {}
    if callable(old_callback):
        changes["callback"] = lambda *shown: old_callback(*shown) if state.step_taken else None
    return changes
