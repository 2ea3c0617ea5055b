"""Tiny modular pipelines of diffusers, with the components of the stock pipelines of the same models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks

import tiny
from tiny import variants
from tiny.assembled import embeddings
from tiny.parts import Built, picture

WITHOUT_TEXT = {"prompt": None}


@dataclass(frozen=True)
class Family:
    """How a modular pipeline is made.

    Attributes:
        blocks: class of its blocks.
        stock: makes the pipeline whose components it shares.
        call: arguments of its call beside those of the stock one; None leaves one out.
        left_out: blocks that are left out: those that encode the text where there is no tiny encoder.
        components: in the place of the stock pipeline's.
    """

    blocks: str
    stock: Callable[[], Built]
    call: Callable[[], dict[str, Any]] = dict
    left_out: tuple[str, ...] = ()
    components: Callable[[], dict[str, Any]] = dict


def _qwen_text() -> dict[str, Any]:
    return WITHOUT_TEXT | embeddings("prompt_embeds", "prompt_embeds_mask")


def _hunyuan_text() -> dict[str, Any]:
    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    return WITHOUT_TEXT | embeddings(*names)


def _stock(name: str) -> Callable[[], Built]:
    return lambda: variants.build(name)


FAMILIES: dict[str, Family] = {
    "wan": Family("WanBlocks", tiny.wan),
    "wan 2.2": Family("Wan22Blocks", lambda: tiny.wan(two_stage=True)),
    "wan 2.2 image to video": Family("Wan22Image2VideoBlocks", lambda: tiny.wan_image_to_video(two_stage=True)),
    "wan image to video": Family("WanImage2VideoAutoBlocks", tiny.wan_image_to_video),
    "stable diffusion xl": Family("StableDiffusionXLAutoBlocks", tiny.stable_diffusion_xl),
    "stable diffusion 3": Family(
        "StableDiffusion3AutoBlocks", tiny.stable_diffusion_3, lambda: {"negative_prompt": "blue"}
    ),
    "stable diffusion xl image to image": Family(
        "StableDiffusionXLAutoBlocks",
        tiny.stable_diffusion_xl,
        lambda: {"image": picture(16), "strength": 0.75, "num_inference_steps": 4},
    ),
    "flux": Family("FluxAutoBlocks", tiny.flux),
    "flux kontext": Family("FluxKontextAutoBlocks", _stock("FluxKontextPipeline")),
    "flux 2": Family(
        "Flux2AutoBlocks",
        _stock("Flux2Pipeline"),
        lambda: WITHOUT_TEXT | embeddings("prompt_embeds"),
        ("text_encoder",),
    ),
    "flux 2 klein": Family("Flux2KleinBaseAutoBlocks", _stock("Flux2KleinPipeline")),
    "qwen image": Family("QwenImageAutoBlocks", _stock("QwenImagePipeline"), _qwen_text, ("text_encoder",)),
    "z image": Family("ZImageAutoBlocks", _stock("ZImagePipeline")),
    "ltx": Family("LTXAutoBlocks", tiny.ltx),
    "ltx image to video": Family("LTXAutoBlocks", tiny.ltx, lambda: {"image": picture(32)}),
    "hunyuan video 1.5": Family(
        "HunyuanVideo15AutoBlocks", _stock("HunyuanVideo15Pipeline"), _hunyuan_text, ("text_encoder",)
    ),
    "ernie image": Family(
        "ErnieImageAutoBlocks",
        _stock("ErnieImagePipeline"),
        lambda: WITHOUT_TEXT | embeddings("prompt_embeds"),
        ("prompt_enhancer", "text_encoder"),
    ),
}
"""The modular pipelines that can be made tiny."""


def modular(name: str, guider: Any = None, **changes: Any) -> Built:
    """Make a tiny modular pipeline, with guidance where it has a guider; `changes` are of its call."""
    family = FAMILIES[name]
    stock, call = family.stock()
    blocks = getattr(diffusers, family.blocks)()
    for block in family.left_out:
        blocks.sub_blocks.pop(block)
    pipe = blocks.init_pipeline()
    parts = stock.components | family.components()
    pipe.update_components(**{n: part for n, part in parts.items() if part is not None and n in pipe.components})
    guiders = [n for n in pipe.components if n.startswith("guider")]
    pipe.update_components(**{n: guider or diffusers.ClassifierFreeGuidance(guidance_scale=3.0) for n in guiders})
    _without_progress(pipe._blocks)
    inputs = {given.name for given in pipe.blocks.inputs}
    arguments = {**call, **family.call(), **changes}
    return pipe, {n: value for n, value in arguments.items() if n in inputs and value is not None}


def _without_progress(blocks: Any) -> None:
    for block in blocks.sub_blocks.values():
        if isinstance(block, LoopSequentialPipelineBlocks):
            block.set_progress_bar_config(disable=True)
        _without_progress(block)
