"""What `auto` is: the paper's inversion, but `current` on flow, where the paper's warns with its number."""

import warnings

import diffusers
import pytest
import tiny
import torch

from w2sd_video import Branch, Reflection, Trajectory, reflection, sample
from w2sd_video.reflection_settings import _warn_of_paper_on_flow

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
PAPER = {
    "noise": diffusers.DDIMScheduler(),
    "velocity": diffusers.DDIMScheduler(prediction_type="v_prediction"),
    "Euler": diffusers.EulerDiscreteScheduler(),
    "sigmas": Trajectory.from_sigmas([8.0, 2.0, 0.5, 0.0], "variance_exploding", prediction_type="sample"),
}
CURRENT = {
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(),
    "inverted flow": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "2M": diffusers.DPMSolverMultistepScheduler(**FLOW),
    "sigmas of flow": Trajectory.from_sigmas([1.0, 0.7, 0.3, 0.0], "flow", prediction_type="sample"),
}


def network(latents, timestep, role):
    return (0.5 if role == "weak" else 0.8) * torch.tanh(latents + 1e-3 * timestep)


def sampled(scheduler, **settings):
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    steps = None if isinstance(scheduler, Trajectory) else 3
    return sample(network, noise, scheduler, num_inference_steps=steps, **settings).latents


@pytest.fixture(autouse=True)
def not_warned():
    _warn_of_paper_on_flow.cache_clear()
    yield
    _warn_of_paper_on_flow.cache_clear()


@pytest.mark.filterwarnings("ignore:inversion='paper'")
@pytest.mark.parametrize("name", [*PAPER, *CURRENT])
def test_auto_is_the_inversion_of_the_levels(name):
    scheduler, expected, other = (PAPER | CURRENT)[name], "paper", "current"
    if name in CURRENT:
        expected, other = other, expected
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        auto = sampled(scheduler)
    assert torch.equal(auto, sampled(scheduler, inversion=expected))
    assert not torch.equal(auto, sampled(scheduler, inversion=other))


def test_the_papers_inversion_on_flow_warns_once_with_its_number():
    with pytest.warns(UserWarning, match="196 %, 118 % and 67 % of a true displacement at 4, 10, 20") as warned:
        sampled(CURRENT["flow"], inversion="paper")
        sampled(CURRENT["2M"], inversion="paper")
    assert len([each for each in warned if "inversion=" in str(each.message)]) == 1


@pytest.mark.parametrize(("name", "settings"), [("flow", {"reflection_steps": 0}), ("flow", {"inversion": "explicit"})])
def test_what_does_not_reflect_so_does_not_warn(name, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sampled(CURRENT[name], **({"inversion": "paper"} | settings | {"autoguidance": 1.0}))
        sampled(PAPER["noise"], inversion="paper")


def test_a_pipeline_of_flow_shares_the_evaluations_of_a_guidance_gap():
    pipe, call = tiny.stable_diffusion_3()
    with reflection(pipe, strong=Branch(guidance_scale=3.0), weak=Branch(guidance_scale=1.0)) as run:
        pipe(**{**call, "num_inference_steps": 3})
    assert run.nfe["strong"] == 2 * 2 and run.nfe["weak"] == 0


def test_the_settings_say_what_auto_is_on_a_trajectory():
    scheduler = CURRENT["flow"]
    scheduler.set_timesteps(4)
    settings = Reflection(strength=0.3)
    assert settings.inversion == "auto" and settings.on(Trajectory(scheduler)) == Reflection(
        strength=0.3, inversion="current"
    )
