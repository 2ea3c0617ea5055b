"""A solver that takes the place of the pipeline's scheduler for one configuration."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import tiny
import torch
from pipelines_table import run
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.driver.solvers import adds_noise, solver_of
from w2sd_video.messages import ConfigError
from w2sd_video.settings.schema import ModelConfig, RenderConfig
from w2sd_video.settings.value_checks import check
from w2sd_video.trajectory import Trajectory, known_schedulers


def test_a_solver_has_the_configuration_of_the_pipelines_own():
    pipe, _ = tiny.cogvideox()
    own = pipe.scheduler
    solver = solver_of(pipe, "DPMSolverMultistepScheduler")
    assert isinstance(solver, diffusers.DPMSolverMultistepScheduler) and pipe.scheduler is own
    assert solver.config.prediction_type == own.config.prediction_type
    assert solver_of(pipe, None) is own and solver_of(pipe, type(own).__name__) is own


def test_a_solver_of_flow_predictions_walks_the_levels_of_flow():
    pipe, _ = tiny.flux()
    solver = solver_of(pipe, "UniPCMultistepScheduler")
    assert Trajectory.predicts_flow(solver) and solver.config.use_flow_sigmas
    with pytest.raises(ValueError, match="steps no flow predictions"):
        solver_of(pipe, "DDIMScheduler")
    stable_diffusion, _ = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="steps flow predictions only"):
        solver_of(stable_diffusion, "FlowMatchEulerDiscreteScheduler")


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_solver_walks_the_noise_levels_of_the_pipelines_own_where_those_are_shifted(name):
    own = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    stock = getattr(diffusers, name).from_config(own.config)
    assert (stock.alphas_cumprod - own.alphas_cumprod).abs().max() > 0.1
    solver = solver_of(SimpleNamespace(scheduler=own), name)
    torch.testing.assert_close(solver.alphas_cumprod.double(), own.alphas_cumprod, rtol=0, atol=1e-6)
    for each in (own, solver):
        each.set_timesteps(6)
    ratios = [[level.sigma / level.alpha for level in Trajectory(each)._levels[1:]] for each in (own, solver)]
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-3)


def test_a_solver_of_flow_keeps_the_shift_whatever_it_is_called():
    pipe, _ = tiny.sana()
    assert pipe.scheduler.config.flow_shift == 3.0
    assert solver_of(pipe, "UniPCMultistepScheduler").config.flow_shift == 3.0
    assert solver_of(pipe, "FlowMatchEulerDiscreteScheduler").config.shift == 3.0
    pipe, _ = tiny.wan()
    assert solver_of(pipe, "UniPCMultistepScheduler").config.flow_shift == pipe.scheduler.config.shift == 7.0


FLOW = ("flux", "QwenImagePipeline", "ZImagePipeline", "CogView4Pipeline")


@pytest.mark.parametrize("solver", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("name", FLOW)
def test_a_solver_takes_what_the_call_of_a_pipeline_sets_its_levels_with(name, solver):
    """A shift by the size, levels in a list, or both with timesteps: it steps to where the pipeline's own does."""
    pipe, call = tiny.flux() if name == "flux" else build(name)
    pipe.set_progress_bar_config(disable=True)

    def at(steps, **settings):
        with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0, **settings):
            return run(pipe, {**call, "num_inference_steps": steps}).double()

    limit = at(100)
    error = float((at(40, solver=solver) - limit).norm() / limit.norm())
    assert error < 0.06 and type(pipe.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
    assert not torch.equal(at(4, solver=solver), at(4))


def test_levels_that_are_given_are_those_of_the_pipelines_own():
    pipe, _ = tiny.flux()
    own, solver = pipe.scheduler, solver_of(pipe, "DPMSolverMultistepScheduler")
    given = {"sigmas": [1.0, 0.7, 0.2], "mu": 0.5}
    own.set_timesteps(**given)
    solver.set_timesteps(**given, device="cpu")
    assert solver.sigmas.tolist() == pytest.approx([0.999, *own.sigmas[1:].tolist()])
    assert solver.timesteps.tolist() == own.timesteps.round().tolist() and "mu" not in solver.config
    stock = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    stock.set_timesteps(5)
    solver.set_timesteps(5, mu=0.5)
    assert torch.equal(solver.sigmas, stock.sigmas)


@pytest.mark.parametrize("name", ["StableDiffusion3Img2ImgPipeline", "FluxInpaintPipeline"])
def test_a_solver_without_what_a_pipeline_asks_of_its_scheduler_is_refused_before_anything_runs(name):
    pipe, _ = build(name)
    with pytest.raises(ValueError, match=f"UniPCMultistepScheduler: has no scale_noise, which {name} asks of its"):
        with reflection(pipe, strong=Branch(), weak=Branch(), solver="UniPCMultistepScheduler"):
            pytest.fail("begun")
    pipe, _ = build("WanVideoToVideoPipeline")  # which asks what there is
    assert solver_of(pipe, "DPMSolverMultistepScheduler")


def test_levels_that_a_solver_cannot_walk_are_refused():
    pipe, _ = tiny.mochi()
    with pytest.raises(ValueError, match="solver UniPCMultistepScheduler: this pipeline's network is told inverted"):
        solver_of(pipe, "UniPCMultistepScheduler")
    pipe = SimpleNamespace(scheduler=diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="solver LMSDiscreteScheduler: cannot begin without any signal"):
        solver_of(pipe, "LMSDiscreteScheduler")
    told_logarithms = {"timestep_type": "continuous", "use_karras_sigmas": True, "prediction_type": "v_prediction"}
    pipe = SimpleNamespace(
        scheduler=diffusers.EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0, **told_logarithms)
    )
    with pytest.raises(ValueError, match="solver DPMSolverMultistepScheduler: this pipeline's network is told the log"):
        solver_of(pipe, "DPMSolverMultistepScheduler")
    pipe, _ = tiny.wan()
    with pytest.raises(ValueError, match=r"solver DEISMultistepScheduler: ends .* before the noise is gone"):
        solver_of(pipe, "DEISMultistepScheduler")
    shifted = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
    pipe = SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shifted))
    with pytest.raises(ValueError, match="solver DPMSolverMultistepScheduler: has no dynamic shift of type 'linear'"):
        solver_of(pipe, "DPMSolverMultistepScheduler")
    assert solver_of(pipe, "UniPCMultistepScheduler").config.time_shift_type == "linear"


def test_an_unknown_solver_is_refused_before_anything_is_loaded():
    config = RenderConfig(["a"], ModelConfig(pretrained="x/y"), solver="DDIMSheduler")
    with pytest.raises(ConfigError, match="DDIMScheduler"):
        check(config)


@pytest.mark.parametrize("name", known_schedulers())
def test_an_eta_adds_noise_to_the_steps_of_those_that_are_named_alone(name):
    kind = getattr(diffusers, name)
    taken = inspect.signature(kind.step).parameters
    if "eta" not in taken:
        assert not adds_noise(kind)
        return
    latents, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).unbind()

    def stepped(eta):
        scheduler = kind()
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(4)
        given = {"model_output": prediction, "sample": latents, "timestep": scheduler.timesteps[1], "eta": eta}
        of_cogvideox = {"old_pred_original_sample": None, "timestep_back": None} if "timestep_back" in taken else {}
        return scheduler.step(**given, **of_cogvideox, generator=generator)[0]

    assert torch.equal(stepped(0.0), stepped(1.0)) != adds_noise(kind)
