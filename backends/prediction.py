"""Weak and strong predictions for a sampling loop of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from w2sd_video.backends import second_denoiser
from w2sd_video.branch import Branch
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.sampler import Predict

Text = dict[str, torch.Tensor]
"""What a denoiser is told of a prompt: its arguments by name, each with the prompts as first dimension."""
Encode = Callable[[str | Sequence[str]], tuple[Text, Text]]
Evaluate = Callable[[nn.Module, torch.Tensor, torch.Tensor, Text], torch.Tensor]


def guided_predictor(
    pipe: Any,
    denoiser: nn.Module,
    prompt: str | Sequence[str],
    branches: Mapping[str, Branch],
    encode: Encode,
    evaluate: Evaluate,
) -> Predict:
    """Return `predict(latents, timestep, role)` of a pipeline that is guided by two halves of one batch.

    Args:
        pipe: the pipeline.
        denoiser: its own denoiser, for branches without weights.
        prompt: one for all samples, or one a sample.
        branches: the setting of each role; a guidance scale left out is the default of the pipeline's call.
        encode: prompt to (unconditional, conditional) text; called once for each prompt.
        evaluate: `(module, latents, timestep, text) -> prediction`.

    Raises:
        ValueError: a branch names weights or a LoRA that were not loaded.
    """
    default = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    scales = {role: default if b.guidance_scale is None else b.guidance_scale for role, b in branches.items()}
    modules = {
        role: denoiser if branch.weights is None else second_denoiser(pipe, branch.weights)
        for role, branch in branches.items()
    }
    for role, branch in branches.items():
        check_loaded(branch.lora or {}, [modules[role]])
    swaps = {role: swaps_of(modules[role], branch) for role, branch in branches.items()}
    texts: dict[Any, tuple[Text, Text]] = {}
    text_of: dict[str, tuple[Text, Text]] = {}
    for role, branch in branches.items():
        words = prompt if branch.prompt is None else branch.prompt
        key = words if isinstance(words, str) else tuple(words)
        if key not in texts:
            texts[key] = encode(words)
        text_of[role] = texts[key]

    @torch.no_grad()
    def predict(latents: torch.Tensor, timestep: torch.Tensor, role: str) -> torch.Tensor:
        (unconditional, conditional), scale, module = text_of[role], scales[role], modules[role]
        samples = latents.to(next(iter(conditional.values())).dtype)
        with swapped(swaps[role]):
            if scale in (0, 1):
                text = _for_batch(conditional if scale == 1 else unconditional, len(samples))
                return evaluate(module, samples, timestep, text).to(latents.dtype)
            halves = [_for_batch(text, len(samples)) for text in (unconditional, conditional)]
            both = {name: torch.cat([half[name] for half in halves]) for name in conditional}
            prediction = evaluate(module, torch.cat([samples, samples]), timestep, both)
        without, with_text = prediction.float().chunk(2)
        return (without + scale * (with_text - without)).to(latents.dtype)

    return predict


def _for_batch(text: Text, size: int) -> Text:
    """Repeat the text of a single prompt for every sample.

    Raises:
        ValueError: several prompts, but not one a sample.
    """
    prompts = len(next(iter(text.values())))
    if prompts not in (1, size):
        raise ValueError(f"there are {prompts} prompts but {size} samples; pass one prompt, or one a sample")
    return {name: value.expand(size, *value.shape[1:]) for name, value in text.items()}
