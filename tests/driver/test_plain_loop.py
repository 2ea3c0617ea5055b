"""The plugin against a plain loop, for each layout of guidance."""

import copy

import diffusers
import pytest
import tiny
import torch
from plain_loop import (
    SCALES,
    STEPS,
    STRONG,
    WEAK,
    alphas_of,
    close,
    guided,
    noise_like,
    plain_loop,
    read_flow,
    read_noise,
    read_velocity,
    run,
)

from w2sd_video import reflection, sample


@torch.no_grad()
def test_animatediff_equals_the_plain_loop():
    pipe, call = tiny.animatediff()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)
    text, negative = pipe.encode_prompt(call["prompt"], "cpu", 1, True)

    def network(x, t, conditional):
        words = (text if conditional else negative).repeat_interleave(call["num_frames"], dim=0)
        return pipe.unet(x, t, encoder_hidden_states=words).sample

    plain = plain_loop(noise_like((1, 4, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper") as reflected:
        close(run(pipe, call), plain)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}


@torch.no_grad()
@pytest.mark.parametrize("rotary", [False, True])
def test_cogvideox_equals_the_plain_loop_with_both_its_schedulers(rotary):
    pipe, call = tiny.cogvideox(rotary=rotary)
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)
    assert levels[0][0] == 0.0, "zero terminal SNR: the first reflection is read as sample"
    text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)
    plain_loop.generator = torch.Generator().manual_seed(7)
    latents = torch.randn((1, 3, 4, 4, 4), generator=plain_loop.generator)
    positions = pipe._prepare_rotary_positional_embeddings(32, 32, 3, "cpu") if rotary else None

    def network(x, t, conditional):
        words = text if conditional else negative
        return pipe.transformer(x, words, t.expand(1), image_rotary_emb=positions).sample

    plain = plain_loop(latents, scheduler, levels, guided(network, SCALES), read_velocity(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper"):
        close(run(pipe, call), plain)


@torch.no_grad()
def test_pixart_equals_the_plain_loop_of_a_multistep_solver():
    pipe, call = tiny.pixart()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler = copy.deepcopy(pipe.scheduler)
    levels = [(1 / (1 + s**2) ** 0.5, s / (1 + s**2) ** 0.5) for s in map(float, scheduler.sigmas)]
    text, mask, negative, negative_mask = pipe.encode_prompt(
        call["prompt"], max_sequence_length=tiny.TEXT_LENGTH, clean_caption=False
    )

    def network(x, t, conditional):
        words, kept = (text, mask) if conditional else (negative, negative_mask)
        extra = {"resolution": None, "aspect_ratio": None}
        output = pipe.transformer(x, words, t.expand(1), added_cond_kwargs=extra, encoder_attention_mask=kept).sample
        return output.chunk(2, dim=1)[0]

    plain = plain_loop(noise_like((1, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper"):
        close(run(pipe, call), plain)


@torch.no_grad()
def test_dit_equals_the_plain_loop_though_its_conditional_half_comes_first():
    pipe, call = tiny.dit()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)

    def network(x, t, conditional):
        label = torch.tensor([3 if conditional else 1000])
        return pipe.transformer(x, timestep=t.expand(1), class_labels=label).sample[:, :4]

    plain = plain_loop(noise_like((1, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    seen = []
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper"):
        handle = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        run(pipe, call)
        handle.remove()
    close(seen[0] * pipe.vae.config.scaling_factor, plain)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("two_stage", [False, True])
def test_wan_equals_the_plain_loop_though_it_guides_by_two_calls(solver, two_stage):
    pipe, call = tiny.wan(two_stage=two_stage)
    if solver == "unipc":
        pipe.scheduler = diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=7.0
        )
    pipe.scheduler.set_timesteps(STEPS)
    scheduler = copy.deepcopy(pipe.scheduler)
    levels = [(1 - s, s) for s in map(float, scheduler.sigmas)]
    text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)

    def network(x, t, conditional):
        late = two_stage and t < 0.9 * 1000
        model = pipe.transformer_2 if late else pipe.transformer
        return model(x, t.expand(1), text if conditional else negative).sample

    plain = plain_loop(noise_like((1, 4, 3, 4, 4)), scheduler, levels, guided(network, SCALES), read_flow(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper") as reflected:
        close(run(pipe, call), plain)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}


@torch.no_grad()
@pytest.mark.parametrize("reflected", [2, 3, STEPS - 1])
@pytest.mark.parametrize("inversion", ["explicit", "implicit"])
def test_an_inversion_that_asks_the_next_stage_is_guided_as_there(inversion, reflected):
    pipe, call = tiny.wan(two_stage=True)
    scales = {"strong": (4.0, 4.0), "weak": (1.0, 1.0), "base": (3.0, 2.0)}
    text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)

    def predict(x, t, role):
        late = bool(t < 0.9 * 1000)
        model, scale = (pipe.transformer, pipe.transformer_2)[late], scales[role][late]
        cond = model(x, t.expand(1), text).sample
        return cond if scale == 1 else torch.lerp(model(x, t.expand(1), negative).sample, cond, scale)

    settings = {"inversion": inversion, "reflection_steps": reflected}
    scheduler = copy.deepcopy(pipe.scheduler)
    expected, _ = sample(predict, noise_like((1, 4, 3, 4, 4)), scheduler, num_inference_steps=STEPS, **settings)
    with reflection(pipe, strong=STRONG, weak=WEAK, **settings):
        close(run(pipe, call, guidance_scale=3.0, guidance_scale_2=2.0), expected)
