"""What strong and weak predict of noised clips: the pipeline's own loop against networks called directly."""

import numpy as np
import pytest
import tiny
import torch
from helpers import state

from w2sd_video import Branch
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import moments_of_clips

SEEDS = (5, 6)


def probed(pipe, call, shape, strong, weak, draws=2, **changes):
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    arguments = call | {"prompt": ["a cat", "a dog"]} | changes
    return clips, moments_of_clips(pipe, arguments, clips, strong=strong, weak=weak, seeds=SEEDS, draws=draws)


def noise_of(shape, levels, draws):
    """The noise of every level and draw, each clip's from its own generator."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return [
        [torch.stack([torch.randn(shape[1:], generator=one) for one in generators]) for _ in range(draws)]
        for _ in range(levels)
    ]


def moments_of(noise, strong, weak):
    products = [(noise - strong) ** 2, (strong - weak) ** 2, (noise - strong) * (strong - weak)]
    return [product.double().flatten(1).mean(1).numpy() for product in products]


def assert_same(moments, expected):
    """`expected` is (levels, draws, [error, gap, product], clips)."""
    error, gap, product = np.moveaxis(np.array(expected), 2, 0)
    for found, wanted in ((moments.error, error), (moments.gap, gap), (moments.product, product)):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_guided_predictions_are_those_of_the_network():
    pipe, call = tiny.stable_diffusion()
    before, shape = state(pipe), (2, 4, 8, 8)
    clips, found = probed(pipe, call, shape, Branch(guidance_scale=4.0), Branch(guidance_scale=0.5))
    assert state(pipe) == before
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    text, empty = (pipe.text_encoder(_tokens(pipe, texts))[0] for texts in (["a cat", "a dog"], ["", ""]))
    expected = []
    for timestep, noises in zip(scheduler.timesteps, noise_of(shape, len(scheduler.timesteps), 2), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        rows = []
        for noise in noises:
            latents = product.sqrt() * clips + (1 - product).sqrt() * noise
            cond, uncond = (pipe.unet(latents, timestep, states).sample for states in (text, empty))
            rows.append(moments_of(noise, uncond + 4.0 * (cond - uncond), uncond + 0.5 * (cond - uncond)))
        expected.append(rows)
    assert found.steps == tuple(range(len(expected))) and found.total == len(expected)
    assert_same(found, expected)


def _tokens(pipe, texts):
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids


@torch.no_grad()
def test_velocities_are_read_as_noise_and_the_level_without_signal_is_left_out():
    pipe, call = tiny.cogvideox()
    second = tiny.cogvideox_transformer(seed=3)
    shape = (2, 3, 4, 4, 4)
    clips, found = probed(pipe, call, shape, Branch(), Branch(weights=second), draws=1, guidance_scale=1.0)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    length = call.get("max_sequence_length", 226)
    text, _ = pipe.encode_prompt(["a cat", "a dog"], None, False, max_sequence_length=length)
    assert scheduler.alphas_cumprod[scheduler.timesteps[0]] == 0 and found.steps == (1, 2) and found.total == 3
    expected = []
    for timestep, (noise,) in zip(scheduler.timesteps[1:], noise_of(shape, 2, 1), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        latents = alpha * clips + sigma * noise
        velocities = [network(latents, text, timestep.expand(2)).sample for network in (pipe.transformer, second)]
        expected.append([moments_of(noise, *(sigma * latents + alpha * velocity for velocity in velocities))])
    assert_same(found, expected)


@torch.no_grad()
def test_flows_are_read_as_noise():
    pipe, call = tiny.wan()
    shape = (2, 4, 3, 4, 4)
    clips, found = probed(pipe, call, shape, Branch(guidance_scale=3.0), Branch(guidance_scale=1.0), draws=1)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    text, empty = pipe.encode_prompt(
        ["a cat", "a dog"], ["", ""], True, max_sequence_length=call.get("max_sequence_length", 512)
    )
    expected = []
    for i, (noise,) in zip(found.steps, noise_of(shape, len(found.steps), 1), strict=True):
        sigma, timestep = scheduler.sigmas[i], scheduler.timesteps[i].expand(2)
        latents = (1 - sigma) * clips + sigma * noise
        cond, uncond = (pipe.transformer(latents, timestep, states).sample for states in (text, empty))
        flows = uncond + 3.0 * (cond - uncond), cond
        expected.append([moments_of(noise, *(latents + (1 - sigma) * flow for flow in flows))])
    assert_same(found, expected)


@torch.no_grad()
def test_a_pipeline_that_steps_both_halves_of_guidance_is_given_both():
    pipe, call = tiny.dit()
    clips = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": [1, 2]}
    found = moments_of_clips(
        pipe, call | labels, clips, strong=Branch(guidance_scale=3.0), weak=Branch(guidance_scale=1.0), seeds=SEEDS
    )
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    none, expected = torch.full((2,), pipe.transformer.config.num_embeds_ada_norm), []
    for timestep, (noise,) in zip(scheduler.timesteps, noise_of(clips.shape, len(scheduler.timesteps), 1), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        latents = product.sqrt() * clips + (1 - product).sqrt() * noise
        outputs = (
            pipe.transformer(latents, timestep=timestep.expand(2), class_labels=label).sample[:, :4]
            for label in (torch.tensor([1, 2]), none)
        )
        cond, uncond = outputs
        expected.append([moments_of(noise, uncond + 3.0 * (cond - uncond), cond)])
    assert_same(found, expected)


def test_a_clip_s_noise_is_its_own_whatever_it_is_evaluated_with():
    pipe, call = tiny.pixart()
    clips, together = probed(pipe, call, (2, 4, 8, 8), Branch(), Branch(guidance_scale=1.0))
    alone = [
        moments_of_clips(
            pipe,
            call | {"prompt": [text]},
            clips[k : k + 1],
            strong=Branch(),
            weak=Branch(guidance_scale=1.0),
            seeds=SEEDS[k : k + 1],
            draws=2,
        )
        for k, text in enumerate(("a cat", "a dog"))
    ]
    np.testing.assert_allclose(Moments.joined(alone).product, together.product, rtol=1e-3, atol=1e-7)


def test_clips_of_another_shape_are_refused_and_the_pipeline_is_left_as_it_was():
    pipe, call = tiny.stable_diffusion()
    before = state(pipe)
    with pytest.raises(ValueError, match=r"have the shape \(2, 4, 6, 6\), the pipeline's own have \(2, 4, 8, 8\)"):
        probed(pipe, call, (2, 4, 6, 6), Branch(), Branch(guidance_scale=1.0))
    assert state(pipe) == before
