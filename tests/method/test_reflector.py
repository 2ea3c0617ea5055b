"""Reflection in a loop that somebody else has written: against `sample`, and what is refused."""

import copy

import diffusers
import pytest
import torch

from w2sd_video import Reflection, Reflector, Trajectory, sample


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def close(result, plain):
    assert (result - plain).norm() / plain.norm() < 1e-5


def flow_trajectory():
    return Trajectory.from_sigmas([1.0, 0.8, 0.5, 0.0], "flow", prediction_type="flow")


def linear(latents, step, role):
    return {"strong": 1.0, "weak": 0.9}[role] * latents


def test_a_reflector_and_euler_are_sample():
    trajectory, sigmas = flow_trajectory(), [1.0, 0.8, 0.5, 0.0]
    for settings in (
        Reflection(),
        Reflection(2, 0.5, rounds=2, inversion="current"),
        Reflection(inversion="implicit", reuse=2),
    ):
        reflector, latents = Reflector(linear, trajectory, settings), noise(2, 3)
        for i in range(3):
            latents = reflector(latents, i)
            latents = latents + (sigmas[i + 1] - sigmas[i]) * latents
        expected = sample(
            lambda x, sigma, role: 0.9 * x if role == "weak" else x,
            noise(2, 3),
            trajectory,
            **{
                name: getattr(settings, name)
                for name in ("reflection_steps", "strength", "rounds", "inversion", "reuse")
            },
        )
        close(latents, expected.latents)
        assert reflector.nfe == {role: expected.nfe[role] for role in ("strong", "weak")}


def test_a_reflector_is_float32_inside_and_leaves_other_steps_alone():
    reflector = Reflector(linear, flow_trajectory(), Reflection(1, inversion="current"))
    latents = noise(2, 3)
    assert reflector(latents, 1) is latents
    half = reflector(latents.half(), 0)
    assert half.dtype == torch.float16
    assert (half.float() - reflector(latents.half().float(), 0)).abs().max() < 1e-3  # once rounded


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: Reflector(None, flow_trajectory()), TypeError, "predict must be a function"),
        (lambda: Reflector(linear, [1.0, 0.0]), TypeError, "trajectory must be a Trajectory, got list"),
        (lambda: Reflector(linear, flow_trajectory(), 3), TypeError, "settings must be a Reflection, got int"),
        (lambda: Reflector(linear, flow_trajectory(), Reflection(9)), ValueError, "must be from 0 to 3"),
        (lambda: Reflector(linear, flow_trajectory(), Reflection(autoguidance=1.0)), ValueError, "belongs to the step"),
        (lambda: Reflector(linear, flow_trajectory())(noise(2), 3), ValueError, "a step must be from 0 to 2, got 3"),
        (lambda: Reflector(linear, flow_trajectory())([1.0], 0), TypeError, "latents must be a floating-point tensor"),
        (lambda: Reflector(linear, flow_trajectory())(noise(2) / 0, 0), ValueError, "before step 0 must be finite"),
        (
            lambda: Reflector(lambda *_: noise(3), flow_trajectory())(noise(2), 0),
            ValueError,
            "predict as 'strong' at step 0 changed the shape",
        ),
    ],
)
def test_what_a_reflector_cannot_take_is_refused(act, error, says):
    with pytest.raises(error, match=says):
        act()


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "resample"])
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(clip_sample=False),
        diffusers.EulerDiscreteScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.DPMSolverMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_loop_with_a_scheduler_of_diffusers_is_sample(scheduler, inversion):
    def network(latents, timestep, role):
        return torch.tanh(latents * {"strong": 1.2, "weak": 0.8, "base": 1.0}[role]) + torch.sin(timestep / 300)

    settings = {"reflection_steps": 3, "inversion": inversion}
    expected = sample(
        network,
        noise(1, 4, 3, 3),
        scheduler,
        num_inference_steps=5,
        **settings,
        generator=torch.Generator().manual_seed(1),
    )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(5)
    reflector = Reflector(
        lambda x, step, role: network(x, scheduler.timesteps[step], role),
        Trajectory(scheduler),
        Reflection(**settings),
        scheduler=scheduler,
        generator=torch.Generator().manual_seed(1),
    )
    latents = noise(1, 4, 3, 3)
    for i, timestep in enumerate(scheduler.timesteps):
        latents = reflector(latents, i)
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        latents = scheduler.step(network(scale(latents, timestep), timestep, "base"), timestep, latents)[0]
    close(latents, expected.latents)
