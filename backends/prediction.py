"""Weak and strong predictions for a sampling loop of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn

from w2sd_video.backends import second_denoiser
from w2sd_video.branch import STAGES, Branch
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.gaps.lora import check_loaded
from w2sd_video.guidance import guided
from w2sd_video.sampler import Predict

Text = dict[str, torch.Tensor]
"""What a denoiser is told of a prompt: its arguments by name, each with the prompts as first dimension."""
Words = str | Sequence[str]
Encode = Callable[[Words, Words | None], tuple[Text, Text]]
Evaluate = Callable[[nn.Module, torch.Tensor, torch.Tensor, Text], torch.Tensor]


def guided_predictor(
    pipe: Any,
    denoiser: nn.Module,
    prompt: Words,
    negative_prompt: Words | None,
    branches: Mapping[str, Branch],
    encode: Encode,
    evaluate: Evaluate,
) -> Predict:
    """Return `predict(latents, timestep, role)` of a pipeline that is guided by two halves of one batch.

    Args:
        pipe: the pipeline.
        denoiser: its own denoiser, for branches without weights.
        prompt: one for all samples, or one a sample.
        negative_prompt: the same for the unconditional half; None is the pipeline's own choice.
        branches: the setting of each role; a guidance scale left out is the default of the pipeline's call.
        encode: prompt and negative prompt to (unconditional, conditional) text; called once for each pair of them.
        evaluate: `(module, latents, timestep, text) -> prediction`.

    Raises:
        ValueError: a branch names weights or a LoRA that were not loaded, or is for a pipeline of another kind: with
            two stages or a ControlNet.
    """
    default_scale = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    scales: dict[str, float] = {}
    modules: dict[str, nn.Module] = {}
    for role, branch in branches.items():
        scale = default_scale if branch.guidance_scale is None else branch.guidance_scale
        module = denoiser if branch.weights is None else second_denoiser(pipe, branch.weights)
        if isinstance(scale, (tuple, list)) or isinstance(module, tuple) or branch.experts in STAGES:
            raise ValueError(
                f"the {role} branch is one of a two-stage model, but {type(pipe).__name__} has one denoiser"
            )
        if branch.control_scale is not None:
            raise ValueError(f"the {role} branch has a control_scale, but {type(pipe).__name__} has no ControlNet")
        check_loaded(branch.lora or {}, [module])
        scales[role], modules[role] = scale, module
    swaps = {role: swaps_of(modules[role], branch) for role, branch in branches.items()}
    texts: dict[Any, tuple[Text, Text]] = {}
    text_of: dict[str, tuple[Text, Text]] = {}
    for role, branch in branches.items():
        words = prompt if branch.prompt is None else branch.prompt
        negative = negative_prompt if branch.negative_prompt is None else branch.negative_prompt
        key = tuple(text if text is None or isinstance(text, str) else tuple(text) for text in (words, negative))
        if key not in texts:
            texts[key] = encode(words, negative)
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
            both_halves = {name: torch.cat([half[name] for half in halves]) for name in conditional}
            prediction = evaluate(module, torch.cat([samples, samples]), timestep, both_halves)
        uncond, cond = rearrange(prediction.float(), "(halves samples) ... -> halves samples ...", halves=2)
        return guided(cond, uncond, scale).to(latents.dtype)

    return predict


def one_a_prompt(negative_prompt: Words, prompts: Sequence[str]) -> list[str]:
    """Return a negative prompt for each prompt.

    Raises:
        ValueError: several negative prompts, but not one a prompt.
    """
    texts = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
    if len(texts) != len(prompts):
        raise ValueError(
            f"there are {len(texts)} negative prompts but {len(prompts)} prompts; pass one, or one a prompt"
        )
    return texts


def _for_batch(text: Text, size: int) -> Text:
    """Repeat the text of a single prompt for every sample.

    Raises:
        ValueError: several prompts, but not one a sample.
    """
    prompts = len(next(iter(text.values())))
    if prompts not in (1, size):
        raise ValueError(f"there are {prompts} prompts but {size} samples; pass one prompt, or one a sample")
    return {name: value.expand(size, *value.shape[1:]) for name, value in text.items()}
