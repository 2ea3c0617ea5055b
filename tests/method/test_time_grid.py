"""Grids of timesteps: by their formula, in `sample` and in a pipeline, against timesteps that are given by hand."""

from itertools import pairwise

import diffusers
import pytest
import tiny
import torch
from pipelines_table import run

from w2sd_video import Branch, reflection, sample
from w2sd_video.reflection_settings import Reflection
from w2sd_video.time_grid import set_timesteps

STEPS = 5


def network(latents, timestep, role):
    return 0.3 * torch.tanh(latents) + 0.1 * torch.sin(timestep.to(latents) / 100)


def noise():
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("grid", [1.3, 2.0, 0.7])
@pytest.mark.parametrize("make", [diffusers.DPMSolverMultistepScheduler, diffusers.EulerDiscreteScheduler])
def test_a_grid_of_timesteps_is_its_formula(make, grid):
    timesteps = [round(1000 * (1 - i / STEPS) ** grid) - 1 for i in range(STEPS)]
    scheduler = make()
    latents = noise() * make().init_noise_sigma
    result = sample(network, latents, scheduler, num_inference_steps=STEPS, reflection_steps=0, grid=grid)
    other = make()
    other.set_timesteps(timesteps=timesteps)
    assert [int(t) for t in other.timesteps] == timesteps
    latents = noise() * make().init_noise_sigma
    for t in other.timesteps:
        latents = other.step(network(other.scale_model_input(latents, t), t, "base"), t, latents).prev_sample
    torch.testing.assert_close(result.latents, latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        diffusers.UniPCMultistepScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
    ],
)
def test_a_scheduler_that_takes_no_timesteps_walks_the_levels_of_one_that_does(make):
    settings = {"num_inference_steps": STEPS}
    other, scheduler = diffusers.DPMSolverMultistepScheduler(), make()
    set_timesteps(other, settings, 1.5)
    set_timesteps(scheduler, settings, 1.5)
    assert scheduler.timesteps.tolist() == other.timesteps.tolist() and len(scheduler.sigmas) == STEPS + 1
    torch.testing.assert_close(scheduler.sigmas, other.sigmas, rtol=1e-5, atol=1e-5)
    own = make()
    own.set_timesteps(**settings)
    assert scheduler.sigmas.dtype == own.sigmas.dtype and scheduler.timesteps.dtype == own.timesteps.dtype
    latents = noise()[..., None] * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(0)
    result = sample(
        network, latents, make(), num_inference_steps=STEPS, reflection_steps=0, grid=1.5, generator=generator
    )
    generator = {"generator": torch.Generator().manual_seed(0)} if "Ancestral" in make.__name__ else {}
    for t in scheduler.timesteps:
        prediction = network(scheduler.scale_model_input(latents, t), t, "base")
        latents = scheduler.step(prediction, t, latents, **generator).prev_sample
    torch.testing.assert_close(result.latents, latents)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("make", [diffusers.UniPCMultistepScheduler, diffusers.DPMSolverMultistepScheduler])
def test_solvers_of_flow_walk_the_grid_of_flow(make, shift):
    scheduler = make(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    set_timesteps(scheduler, {"num_inference_steps": STEPS}, 1.5)
    powers = (1 - torch.arange(STEPS) / STEPS) ** 1.5
    expected = shift * powers / (1 + (shift - 1) * powers)
    torch.testing.assert_close(scheduler.sigmas[:-1], expected, rtol=2e-3, atol=1e-3)  # the first is a little below 1
    assert float(scheduler.sigmas[0]) < 1 and float(scheduler.sigmas[-1]) == 0
    result = sample(network, noise()[..., None], scheduler, num_inference_steps=STEPS, reflection_steps=0, grid=1.5)
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_grid_of_flow_is_a_power_of_the_fractions_before_the_shift(shift):
    grid, sigmas = 1.5, [1 - i / STEPS for i in range(STEPS)]
    powers = [sigma**1.5 for sigma in sigmas]
    levels = [*(shift * s / (1 + (shift - 1) * s) for s in powers), 0.0]
    latents = noise()
    for sigma, lower in pairwise(levels):
        t = torch.tensor(1000 * sigma, dtype=torch.float32)
        latents = latents + (lower - sigma) * network(latents, t, "base")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    result = sample(network, noise(), scheduler, num_inference_steps=STEPS, reflection_steps=0, grid=grid)
    torch.testing.assert_close(result.latents, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [tiny.pixart, tiny.stable_diffusion, tiny.wan, tiny.flux])
def test_a_pipeline_is_given_the_grid(build):
    pipe, call = build()
    if "Flow" not in type(pipe.scheduler).__name__ and "flow" not in str(pipe.scheduler.config.get("prediction_type")):
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    call = {**call, "num_inference_steps": STEPS}
    seen = []
    step = type(pipe.scheduler).step

    def noted(self, model_output, timestep, *args, **kwargs):
        seen.append(float(timestep))
        return step(self, model_output, timestep, *args, **kwargs)

    pipe.scheduler.step = noted.__get__(pipe.scheduler)
    stock = run(pipe, call)
    stock_timesteps, seen[:] = list(seen), []
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0, grid=1.6):
        result = run(pipe, call)
    assert not torch.equal(result, stock)
    assert len(seen) == STEPS and seen != stock_timesteps
    dense, seen[:] = list(seen), []
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0, grid=1.001):
        run(pipe, call)
    assert all(now < before for now, before in zip(dense[1:], seen[1:], strict=True))  # denser at low noise
    seen.clear()
    assert torch.equal(run(pipe, call), stock) and seen == stock_timesteps


def test_what_takes_no_grid_says_so():
    with pytest.raises(ValueError, match="DDIMScheduler takes no timesteps of one's own"):
        sample(network, noise(), diffusers.DDIMScheduler(), num_inference_steps=STEPS, grid=1.3)
    with pytest.raises(ValueError, match="two of 100 steps at one timestep"):
        sample(network, noise(), diffusers.DPMSolverMultistepScheduler(), num_inference_steps=100, grid=4.0)
    with pytest.raises(ValueError, match="grid must be above 0"):
        Reflection(grid=0)
    pipe, call = tiny.pixart()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with (
        reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0, grid=1.3),
        pytest.raises(ValueError, match="the call has timesteps"),
    ):
        run(pipe, call | {"timesteps": [900, 500, 100]})
