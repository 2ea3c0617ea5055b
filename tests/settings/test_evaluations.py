"""Evaluations that are foretold without a model, against those that a real model counts."""

from dataclasses import replace

import pytest
import tiny

from w2sd_video.driver.solvers import solver_of
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import at_budget, evaluations, is_exact, nfe_of, reflected_steps
from w2sd_video.settings.panels import EQUAL_COST, panels
from w2sd_video.settings.schema import BranchConfig, ModelConfig
from w2sd_video.trajectory import known_schedulers
from w2sd_video.window import Window

RED = "a red circle moving left"


def configured(name, *words):
    return parse(["--config", name, RED, *words]).config


@pytest.fixture(scope="module")
def pixart():
    pipe = load(configured("miniature-pixart"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


WAYS = {
    "strong": {"reflection_steps": 0},
    "reflected": {"reflection_steps": (0.0, 0.5)},
    "all but the last": {"rounds": 2},
    "at strength 0": {"strength": 0.0, "rounds": 2},
    "reused": {"reuse": 2, "inversion": "current"},
    "spanning": {"span": 2, "reflection_steps": (0.0, 0.5)},
    "late gap": {"weak": BranchConfig(guidance_scale=1.0, weights="weak", windows={"weights": (0.5, 1.0)})},
    "late gap, reused": {
        "weak": BranchConfig(guidance_scale=1.0, weights="weak", windows={"weights": (0.5, 1.0)}),
        **{"reuse": 2, "inversion": "current"},
    },
    "late guidance, reused": {
        "strong": BranchConfig(guidance_scale=3.0, windows={"guidance_scale": (0.5, 1.0)}),
        **{"reuse": 4, "inversion": "current"},
    },
    "pushed, base guided late, reused": {
        "base": BranchConfig(guidance_scale=3.0, windows={"guidance_scale": (0.5, 1.0)}),
        "weak": BranchConfig(guidance_scale=1.0, weights="weak"),
        **{"reflection_steps": 0, "autoguidance": 1.0, "reuse": 4},
    },
    "Re-Sampling beside a late gap": {
        "weak": BranchConfig(guidance_scale=1.0, weights="weak", windows={"weights": (0.5, 1.0)}),
        **{"inversion": "resample", "reflection_steps": (0.0, 0.5)},
    },
    "pushed": {"reflection_steps": 0, "autoguidance": 1.0, "autoguidance_steps": (0.5, 1.0)},
    "late guidance": {
        "reflection_steps": (0.0, 0.5),
        "base": BranchConfig(guidance_scale=3.0, windows={"guidance_scale": (0.5, 1.0)}),
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", known_schedulers())
def test_evaluations_are_those_of_the_solver(pixart, solver, way):
    try:
        solver_of(pixart, solver)
    except (ValueError, ImportError) as error:
        pytest.skip(str(error))
    config = replace(configured("miniature-pixart"), solver=solver, steps=6, **WAYS[way])
    assert sample_clips(pixart, config, [RED], [0])[1] == evaluations(config)


@pytest.mark.parametrize("way", ["reused", "pushed and reused"])
def test_a_gap_is_measured_once_more_after_a_level_without_signal(way):
    """CogVideoX begins without signal, where a gap is read as the sample, and not as noise as at later steps."""
    ways = {"reused": {"inversion": "current"}, "pushed and reused": {"reflection_steps": 0, "autoguidance": 1.0}}
    config = replace(configured("miniature-cogvideox"), steps=6, reuse=3, **ways[way])
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    assert is_exact(config) and sample_clips(pipe, config, [RED], [0])[1] == evaluations(config)


def test_a_solver_counts_and_not_the_pipelines_own_scheduler():
    config = replace(configured("miniature-pixart"), reflection_steps=0, steps=6)
    assert nfe_of(config) == nfe_of(replace(config, solver="UniPCMultistepScheduler")) == 6
    assert nfe_of(replace(config, solver="HeunDiscreteScheduler")) == 11
    own = replace(config, model=replace(config.model, scheduler="PNDMScheduler"))
    assert nfe_of(replace(own, solver="UniPCMultistepScheduler")) == 6 < nfe_of(own)
    singlestep = replace(config, solver="DPMSolverSinglestepScheduler", reflection_steps=None)
    assert len(reflected_steps(singlestep)) < len(reflected_steps(replace(singlestep, solver=None)))


def fits(config, budget):
    try:
        return nfe_of(config) <= budget and (config.reflection_steps == 0 or len(reflected_steps(config)) > 0)
    except ValueError:  # fewer steps than are to be reflected
        return False


@pytest.mark.parametrize("solver", [None, "HeunDiscreteScheduler", "DPMSolverSinglestepScheduler"])
@pytest.mark.parametrize("window", [0, 3, (0.0, 0.5), (0.4, 0.6), (0.55, 0.7), None])
def test_a_budget_is_used_up_and_not_exceeded(window, solver):
    config = replace(configured("miniature-pixart"), solver=solver, reflection_steps=window)
    for budget in (4, 7, 10, 23, 60):
        fitting = at_budget(config, budget)
        numbers = range(1 if window == 0 else config.span + 1, budget + 1)
        by_hand = [one for steps in numbers if fits(one := replace(config, steps=steps), budget)]
        assert fitting == (by_hand[-1] if by_hand else None)


def test_many_steps_are_found_and_those_that_a_scheduler_cannot_take_are_not():
    config = replace(configured("miniature-pixart"), reflection_steps=0)
    assert at_budget(config, 700).steps == 700
    assert at_budget(config, 10**4).steps == 999, "DDIM's thousandth timestep does not exist"
    with pytest.raises(ConfigError, match="steps 1000: cannot be taken by DDIMScheduler"):
        evaluations(replace(config, steps=1000))


def test_at_strength_0_a_budget_is_all_for_the_steps():
    config = configured("miniature-pixart", "--strength", "0", "--span", "3")
    assert at_budget(config, 2).steps == 2 and at_budget(config, 13).steps == 13
    assert is_exact(config) and "W2SD" not in panels(config)


def test_strong_at_equal_cost_is_counted_with_the_solver(pixart):
    config = replace(configured("miniature-pixart"), solver="HeunDiscreteScheduler", compare=True, steps=6)
    clips = {label: sum(sample_clips(pixart, one, [RED], [0])[1].values()) for label, one in panels(config).items()}
    assert clips["W2SD"] - 2 <= clips[EQUAL_COST] <= clips["W2SD"]


def test_what_may_be_fewer_is_said_to_be_the_most():
    config = configured("miniature-pixart")
    assert is_exact(config) and is_exact(replace(config, reflection_steps=0, strength="levels.json"))
    assert not is_exact(replace(config, strength="levels.json"))
    assert not is_exact(replace(config, autoguidance="levels.json"))
    assert not is_exact(replace(config, base=replace(config.base, windows={"guidance_scale": "levels.json"})))
    assert not is_exact(replace(config, reflection_steps=Window(-2.0, 1.0, "log_snr")))
    assert not is_exact(replace(config, call={"strength": 0.5}))


@pytest.mark.parametrize("start", [-8.0, -2.0, 0.0, 2.0])
def test_a_gap_that_may_be_another_from_a_level_on_is_counted_as_often_as_it_may_be_measured(pixart, start):
    window = Window(start, 30.0, "log_snr")
    strong = BranchConfig(guidance_scale=3.0, windows={"guidance_scale": window})
    config = replace(configured("miniature-pixart"), steps=9, reuse=4, inversion="current", strong=strong)
    counted, foretold = sample_clips(pixart, config, [RED], [0])[1], evaluations(config)
    assert not is_exact(config) and all(counted[role] <= foretold[role] for role in counted)
    assert is_exact(replace(config, strong=BranchConfig(guidance_scale=3.0)))


def test_two_networks_may_measure_a_reused_gap_once_more(tmp_path):
    pipe, _ = tiny.wan(two_stage=True)
    pipe.save_pretrained(tmp_path)
    weak = BranchConfig(guidance_scale=1.0, skip_layers=[1])
    config = replace(configured("miniature-pixart"), base=BranchConfig(guidance_scale=1.0), weak=weak, steps=10)
    config = replace(config, model=ModelConfig(str(tmp_path)), inversion="current")
    reused = replace(config, reuse=4)
    assert is_exact(config) and not is_exact(reused)
    assert evaluations(reused)["weak"] == 3 + 1  # steps 0, 4 and 8, and the first of the second network
