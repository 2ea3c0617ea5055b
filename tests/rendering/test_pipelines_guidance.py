"""Base at the scale of the call is the pipeline's own: as a stock call, whatever the pipeline's rule of guidance."""

import inspect

import diffusers
import numpy as np
import pytest
import tiny
import torch
from helpers import NOTHING
from tiny.variants import build

from w2sd_video.rendering.call_arguments import base_is_pipelines, call_arguments
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.rendering.video import to_uint8
from w2sd_video.settings.evaluations import evaluations
from w2sd_video.settings.schema import BranchConfig, ModelConfig, RenderConfig

PROMPTS, SEEDS = ["a red circle", "a blue square"], [3, 4]


def rescaled():
    pipe, call = tiny.stable_diffusion()
    return pipe, call | {"guidance_rescale": 0.7}


def dynamic():
    pipe, call = tiny.cogvideox()
    return pipe, call | {"use_dynamic_cfg": True}


def qwen():
    """Return a pipeline with embeddings in the place of its text encoder, which has no tiny form."""
    pipe, call = build("QwenImagePipeline")
    embeds = {name.removeprefix("negative_"): call.pop(name) for name in list(call) if "prompt_embeds" in name}

    def encode_prompt(prompt=None, **others):
        generator = torch.Generator().manual_seed(len(prompt[0]))
        prompt_embeds = embeds["prompt_embeds"].repeat(len(prompt), 1, 1)
        mask = embeds["prompt_embeds_mask"]
        noise = torch.randn(prompt_embeds.shape, generator=generator)
        return prompt_embeds + noise, None if mask is None else mask.repeat(len(prompt), 1)

    pipe.encode_prompt = encode_prompt
    return pipe, call | {"negative_prompt": ["worse", "worst"]}


# how a pipeline is made, w, and what it is called with for it
PIPELINES = {
    "stable_diffusion": (tiny.stable_diffusion, {"guidance_scale": 3.0}),
    "guidance_rescale": (rescaled, {"guidance_scale": 3.0}),
    "use_dynamic_cfg": (dynamic, {"guidance_scale": 3.0}),
    "nucleus_moe": (tiny.nucleus_moe, {"guidance_scale": 3.0}),
    "Lumina2": (lambda: build("Lumina2Pipeline"), {"guidance_scale": 3.0}),
    "Z-Image": (lambda: build("ZImagePipeline"), {"guidance_scale": 2.0}),
    "Cosmos 2": (lambda: build("Cosmos2TextToImagePipeline"), {"guidance_scale": 2.0}),
    "two stages": (lambda: tiny.wan(two_stage=True), {"guidance_scale": 3.0}),
    "flux": (tiny.flux, {"guidance_scale": 3.0}),
    "Qwen-Image": (qwen, {"guidance_scale": 3.0, "true_cfg_scale": 3.0}),
}


def made(name, tmp_path, **changes):
    """Return a tiny pipeline, its configuration with w = 3, and what of its call is not the configuration's."""
    pipe, call = PIPELINES[name][0]()
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    sizes = {"height": call.get("height"), "width": call.get("width"), "frames": call.get("num_frames")}
    ours = {"prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "true_cfg_scale"}
    rest = {key: value for key, value in call.items() if key in known and key not in {*ours, "output_type"}}
    guided = {"base": BranchConfig(3.0), "reflection_steps": 0, "steps": 3}
    config = RenderConfig(**{"model": ModelConfig(pretrained=str(tmp_path)), "call": rest} | sizes | guided | changes)
    return pipe, config


def stock(pipe, config, **scales):
    sizes = {"height": config.height, "width": config.width, "num_frames": config.frames}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    arguments = {key: value for key, value in sizes.items() if value is not None}
    arguments |= {"num_inference_steps": config.steps, "output_type": "np", "generator": generators}
    result = pipe(prompt=PROMPTS, **arguments, **config.call, **scales)
    return to_uint8(result.images[:, None] if hasattr(result, "images") else result.frames)


@pytest.mark.parametrize("name", PIPELINES)
def test_base_is_a_stock_call(name, tmp_path):
    pipe, config = made(name, tmp_path)
    clips, nfe = sample_clips(pipe, config, PROMPTS, SEEDS)
    assert np.array_equal(clips, stock(pipe, config, **PIPELINES[name][1]))
    if name != "Z-Image":  # whose lists of latents the driver counts as one row
        assert nfe["base"] == config.steps * (1 if name == "flux" else 2)
    other = PIPELINES[name][1] | {"guidance_scale": 6.0}
    other |= {"true_cfg_scale": 6.0} if "true_cfg_scale" in other else {}
    assert not np.array_equal(clips, stock(pipe, config, **other))


@pytest.mark.parametrize("name", ["guidance_rescale", "two stages"])
def test_base_is_a_stock_call_beside_a_reflection_that_does_nothing(name, tmp_path):
    pipe, config = made(name, tmp_path, reflection_steps=2, weak=BranchConfig(1.0), strength=NOTHING, inversion="paper")
    clips, nfe = sample_clips(pipe, config, PROMPTS, SEEDS)
    assert np.array_equal(clips, stock(pipe, config, **PIPELINES[name][1]))
    assert nfe == evaluations(config)


@pytest.mark.parametrize("name", ["guidance_rescale", "use_dynamic_cfg", "nucleus_moe"])
def test_strong_and_weak_without_a_scale_are_guided_as_base_is(name, tmp_path):
    """Without a gap "current" displaces nothing, nor does AutoGuidance push, if all follow one rule."""
    pipe, config = made(name, tmp_path, reflection_steps=2, inversion="current", autoguidance=2.0)
    clips, _ = sample_clips(pipe, config, PROMPTS, SEEDS)
    difference = clips.astype(int) - stock(pipe, config, **PIPELINES[name][1])
    assert np.abs(difference).max() <= 1  # a rescaled prediction beside one that is not differs by far more


@pytest.mark.parametrize("name", ["stable_diffusion", "Z-Image", "Cosmos 2", "Qwen-Image"])
def test_without_guidance_a_pipeline_evaluates_one_half(name, tmp_path):
    pipe, config = made(name, tmp_path, base=BranchConfig(1.0))
    clips, nfe = sample_clips(pipe, config, PROMPTS, SEEDS)
    assert nfe["base"] == config.steps == evaluations(config)["base"]
    off = {key: number - 2.0 for key, number in PIPELINES[name][1].items()}
    assert np.array_equal(clips, stock(pipe, config, **off))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"base": BranchConfig((3.0, 2.0))}, False),
        ({"base": BranchConfig(0.5)}, False),
        ({"base": BranchConfig(1.0), "reflection_steps": 1, "strong": BranchConfig(2.0)}, False),
        ({"base": BranchConfig(1.0), "reflection_steps": 1}, True),
        ({"call": {"guidance_scale_2": 2.0}}, False),
    ],
)
def test_base_has_a_scale_of_its_own_where_the_call_has_another(changes, expected, tmp_path):
    pipe, config = made("two stages", tmp_path, **changes)
    assert base_is_pipelines(pipe, config) is expected


def test_a_scale_that_the_pipeline_would_ignore_is_not_left_to_it(tmp_path):
    pipe, config = made("Qwen-Image", tmp_path)
    assert call_arguments(pipe, config, PROMPTS, SEEDS)["true_cfg_scale"] == 3.0 and base_is_pipelines(pipe, config)
    config.call["true_cfg_scale"] = 2.0
    assert call_arguments(pipe, config, PROMPTS, SEEDS)["true_cfg_scale"] == 2.0 and not base_is_pipelines(pipe, config)
    del config.call["true_cfg_scale"], config.call["negative_prompt"]
    assert not base_is_pipelines(pipe, config)

    pipe, config = made("stable_diffusion", tmp_path)
    pipe.register_to_config(is_distilled=True)
    assert not base_is_pipelines(pipe, config)


def test_only_pipelines_that_there_are_count_from_0():
    from w2sd_video.rendering.call_arguments import _COUNT_FROM_0

    for start in _COUNT_FROM_0:
        assert any(name.startswith(start) and name.endswith("Pipeline") for name in dir(diffusers)), start
