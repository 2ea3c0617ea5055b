"""Predictors: a pipeline's own loop, asked for one prediction after another by a loop outside."""

import copy
import gc
import threading

import pytest
import tiny
import torch
from helpers import state
from plain_loop import STEPS, SYSTEMS, close, plain_loop, read_flow, run
from tiny.dit_moe import dit_moe
from tiny.variants import build as built

from w2sd_video import Branch, predictor, reflection, sample
from w2sd_video.backends import register

BRANCHES = {"strong": Branch(guidance_scale=4.0), "weak": Branch(guidance_scale=2.0)}


def call_of(call, generator=None):
    """The arguments of `run`."""
    generator = torch.Generator().manual_seed(7) if generator is None else generator
    return {**call, "num_inference_steps": STEPS, "generator": generator, "output_type": "latent"}


@pytest.mark.parametrize(
    "settings",
    [
        {"reflection_steps": 0},
        {},
        {"inversion": "explicit", "reflection_steps": 1},
        {"inversion": "current", "reuse": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "dit"])
def test_sample_with_a_predictor_is_the_pipeline_reflected(system, settings):
    pipe, call = SYSTEMS[system]()
    branches = {**BRANCHES, "weak": Branch(guidance_scale=2.0, prompt="a sea")} if system != "flux" else BRANCHES
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    generator = torch.Generator().manual_seed(7)
    with predictor(pipe, **branches, **call_of(call, generator)) as predict:
        result = sample(predict, predict.latents, predict.scheduler, **settings, generator=generator)
    assert torch.equal(result.latents, expected)
    rows = reflected.nfe["base"] // STEPS
    assert reflected.nfe == {role: rows * calls for role, calls in result.nfe.items()}


@pytest.mark.parametrize("build", [tiny.dit, dit_moe])
def test_pipelines_of_classes(build):
    """They decode whatever their output type, so what is compared are the latents that are decoded."""
    pipe, call = build()
    decoded, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda latents, *a, **k: (decoded.append(latents), decode(latents, *a, **k))[1]
    arguments = {**call_of(call), "output_type": "np"}
    with reflection(pipe, **BRANCHES):
        pipe(**{**arguments, "generator": torch.Generator().manual_seed(7)})
    with predictor(pipe, **BRANCHES, **arguments) as predict:
        latents = sample(predict, predict.latents, predict.scheduler).latents
    close(latents[:1] / pipe.vae.config.scaling_factor, decoded[0])


def test_a_loop_of_ones_own_with_a_scheduler_of_diffusers():
    pipe, call = tiny.wan()
    with reflection(pipe, **BRANCHES, inversion="paper"):
        expected = run(pipe, call)
    with predictor(pipe, **BRANCHES, **call_of(call)) as predict:
        levels = [(1 - float(sigma), float(sigma)) for sigma in predict.scheduler.sigmas]
        close(plain_loop(predict.latents, predict.scheduler, levels, predict, read_flow(levels)), expected)


def test_a_pipeline_that_reads_its_latents_before_they_are_scaled_too():
    pipe, call = built("StableDiffusionLatentUpscalePipeline")
    with reflection(pipe, **BRANCHES, inversion="current"):
        expected = run(pipe, call)
    with predictor(pipe, **BRANCHES, **call_of(call)) as predict:
        close(sample(predict, predict.latents, predict.scheduler, inversion="current").latents, expected)


def test_a_call_that_begins_at_a_later_timestep():
    pipe, call = tiny.cogvideox_video_to_video()
    with reflection(pipe, **BRANCHES, reflection_steps=2):
        expected = run(pipe, call)
    with predictor(pipe, **BRANCHES, **call_of(call)) as predict:
        assert predict.begin == 1
        settings = {"begin": predict.begin, "reflection_steps": 2}
        assert torch.equal(sample(predict, predict.latents, predict.scheduler, **settings).latents, expected)
        with pytest.raises(ValueError, match="none of those that the pipeline's call goes through"):
            sample(predict, predict.latents, predict.scheduler)
        with pytest.raises(ValueError, match="begin must be from 0 to 4, got 5"):
            sample(predict, predict.latents, predict.scheduler, begin=5)


def test_a_second_denoiser_by_its_name():
    pipe, call = tiny.cogvideox()
    register(pipe, "other", tiny.cogvideox(seed=5)[0].transformer)
    branches = {"strong": Branch(), "weak": Branch(weights="other")}
    with reflection(pipe, **branches):
        expected = run(pipe, call)
    with predictor(pipe, **branches, **call_of(call)) as predict:
        assert torch.equal(sample(predict, predict.latents, predict.scheduler).latents, expected)


def test_the_pipeline_is_stock_meanwhile_and_afterwards():
    pipe, call = tiny.wan()
    stock, before, scheduler = run(pipe, call), state(pipe), copy.deepcopy(vars(pipe.scheduler))
    with predictor(pipe, **BRANCHES, **call_of(call)) as predict:
        assert threading.active_count() > 1
        first = predict(predict.latents, predict.scheduler.timesteps[0], "strong")
        assert torch.equal(run(pipe, call), stock)
        assert torch.equal(predict(predict.latents, predict.scheduler.timesteps[0], "strong"), first)
        with pytest.raises(ValueError, match="is in use by a predictor; close that before reflecting"):
            reflection(pipe, **BRANCHES).__enter__()
    assert state(pipe) == before
    assert vars(pipe.scheduler).keys() == scheduler.keys()
    with pytest.raises(RuntimeError, match="the predictor is closed"):
        predict(predict.latents, predict.scheduler.timesteps[0], "strong")
    with reflection(pipe, **BRANCHES):
        run(pipe, call)


def test_a_new_predictor_closes_the_one_before_and_one_that_is_dropped_ends():
    pipe, call = tiny.wan()
    run(pipe, call)
    before = state(pipe)
    one = predictor(pipe, **BRANCHES, **call_of(call))
    other = predictor(pipe, **BRANCHES, **call_of(call))
    with pytest.raises(RuntimeError, match="another one of its pipeline was made"):
        one(one.latents, one.scheduler.timesteps[0], "base")
    other(other.latents, other.scheduler.timesteps[-1], "base")
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("predictor of")]
    del one, other
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert state(pipe) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_goes_wrong_in_the_network_is_raised_to_the_one_who_asked(error):
    pipe, call = tiny.wan()
    run(pipe, call)
    before, calls = state(pipe), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise error("broken")

    predict = predictor(pipe, **BRANCHES, **call_of(call))
    hook = pipe.transformer.proj_out.register_forward_hook(fail)
    with pytest.raises(error, match="broken"):
        sample(predict, predict.latents, predict.scheduler)
    hook.remove()
    predict.close()
    assert state(pipe) == before
    run(pipe, call)


def test_bad_input_is_one_clear_error():
    pipe, call = tiny.wan()
    with predictor(pipe, **BRANCHES, **call_of(call)) as predict:
        latents, timestep = predict.latents, predict.scheduler.timesteps[0]
        with pytest.raises(
            ValueError, match="timestep 123 is none of those that the pipeline's call goes through: 1000"
        ):
            predict(latents, torch.tensor(123.0), "base")
        with pytest.raises(
            ValueError, match=r"must have the shape that the pipeline's call has, \(1, 4, 3, 4, 4\), got"
        ):
            predict(latents[:, :, 1:], timestep, "base")
        with pytest.raises(ValueError, match="role must be base, strong or weak, got 'best'"):
            predict(latents, timestep, "best")
        with pytest.raises(TypeError, match="latents must be a floating-point tensor"):
            predict(latents.long(), timestep, "base")
        assert predict(latents.double(), timestep, "base").dtype == torch.float64
    with pytest.raises(TypeError, match="weak must be a Branch"):
        predictor(pipe, strong=Branch(), weak=1.0, **call)
    with pytest.raises(TypeError, match="pipe must be a pipeline that was loaded"):
        predictor(None, **BRANCHES)
    with pytest.raises(ValueError, match="has a control_scale"):
        predictor(pipe, strong=Branch(), weak=Branch(control_scale=0.5), **call_of(call))
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        predictor(pipe, **BRANCHES, **call_of(call), colour="red")
    with pytest.raises(ValueError, match="evaluates no unconditional prompt"):
        with predictor(pipe, **BRANCHES, **{**call_of(call), "guidance_scale": 1.0}) as predict:
            predict(predict.latents, predict.scheduler.timesteps[0], "strong")
    with reflection(pipe, **BRANCHES), pytest.raises(ValueError, match="end that block before making a predictor"):
        predictor(pipe, **BRANCHES, **call_of(call))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predictor of")]
