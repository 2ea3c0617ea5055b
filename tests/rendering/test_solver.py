"""A solver that takes the place of the pipeline's scheduler for one configuration."""

import diffusers
import pytest
import tiny

from w2sd_video.rendering.sample import solver_of
from w2sd_video.settings.schema import ConfigError, ModelConfig, RenderConfig
from w2sd_video.settings.value_checks import check
from w2sd_video.trajectory import Trajectory


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


def test_an_unknown_solver_is_refused_before_anything_is_loaded():
    config = RenderConfig(["a"], ModelConfig(pretrained="x/y"), solver="DDIMSheduler")
    with pytest.raises(ConfigError, match="DDIMScheduler"):
        check(config)
