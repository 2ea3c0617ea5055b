"""What is searched: settings of each operator, and the configurations that they make."""

import random
from dataclasses import replace

import numpy as np
import pytest

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.settings.value_checks import check
from w2sd_video.tuning.operators import (
    OPERATORS,
    Range,
    fitted,
    has_weak_model,
    operators_of,
    plain_of,
    values_in_words,
)

GRIDDED = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Solvers of the search that take a grid of timesteps; the DDIM of the miniatures does not."""


def config_of(name):
    return parse(["a red circle moving left", "--config", name]).config


def drawn(operator, chosen):
    """Return random values of an operator's settings."""
    values = {}
    for name, space in operator.space.items():
        if isinstance(space, Range) and space.step:
            steps = round((space.high - space.low) / space.step)
            values[name] = space.low + space.step * chosen.randint(0, steps)
        else:
            values[name] = chosen.uniform(space.low, space.high) if isinstance(space, Range) else chosen.choice(space)
    return values


def operator_of(name, config="miniature-pixart"):
    (operator,), _ = operators_of(config_of(config), (name,))
    return operator


@pytest.mark.parametrize("name", ["miniature-pixart", "miniature-dit-moe", "miniature-cogvideox", "wan22-experts"])
def test_every_setting_makes_a_configuration_that_makes_sense_within_the_budget(name):
    config, chosen = config_of(name), random.Random(0)
    operators, missing = operators_of(config)
    assert [operator.name for operator in operators] == list(OPERATORS) and missing == {}
    for operator in operators:
        made = [operator.at(drawn(operator, chosen), 16) for _ in range(12)]
        assert any(made), operator.name
        for setting in filter(None, made):
            check(setting)
            assert nfe_of(setting) <= 16
            assert nfe_of(replace(setting, steps=setting.steps + 1)) > 16 or setting.inversion == "explicit"


def test_what_is_tried_first_is_among_what_may_be_tried():
    for operator in operators_of(config_of("miniature-pixart"))[0]:
        for values in operator.first:
            for name, value in values.items():
                space = operator.space[name]
                assert space.low <= value <= space.high if isinstance(space, Range) else value in space


def test_values_reach_the_configuration():
    values = {"guidance_scale": 3.0, "guidance_start": 0.5, "guidance_length": 0.25, "solver": "DDIMScheduler"}
    guided = operator_of("guidance").made(values | {"grid": 1.5, "eta": 0.5})
    assert guided.base.guidance_scale == 3.0 and guided.base.windows == {"guidance_scale": (0.5, 0.75)}
    assert guided.call["eta"] == 0.5 and guided.grid == 1.0 and guided.solver is None, "DDIM takes no grid"
    other = operator_of("guidance").made(values | {"solver": "DPMSolverMultistepScheduler", "grid": 1.5, "eta": 0.5})
    assert other.grid == 1.5 and other.solver == "DPMSolverMultistepScheduler" and "eta" not in other.call
    other = operator_of("guidance").made(values | {"solver": "UniPCMultistepScheduler", "grid": 1.5, "eta": 0.5})
    assert other.grid == 1.5 and other.solver == "UniPCMultistepScheduler"


def test_each_operator_is_what_its_name_says():
    chosen = random.Random(1)
    made = {name: operator_of(name).made(drawn(operator_of(name), chosen)) for name in OPERATORS}
    assert made["none"].base.guidance_scale == 1.0 and made["none"].reflection_steps == 0
    assert made["AutoGuidance"].autoguidance > 0 and made["AutoGuidance"].weak.weights == "weak"
    assert made["skip-layer"].weak.skip_layers and made["skip-layer"].weak.weights is None
    z = made["Z-Sampling"]
    assert z.strong.guidance_scale > z.weak.guidance_scale and z.weak.weights is None
    assert made["Re-Sampling"].inversion == "resample" and made["Re-Sampling"].reuse == 1
    w2sd = made["W2SD"]
    assert (w2sd.strong.weights, w2sd.weak.weights) == (None, "weak") and isinstance(w2sd.reflection_steps, tuple)


@pytest.mark.parametrize("name", ["AutoGuidance", "skip-layer"])
def test_a_guided_gap_is_between_predictions_guided_alike(name):
    operator = operator_of(name)
    values = dict(operator.first[0]) | {"guidance_scale": 4.0, "guidance_start": 0.5, "guidance_length": 0.5}
    values |= {"solver": "DDIMScheduler", "grid": 1.0, "eta": 0.0, "gap": "guided"}
    config = operator.made(values)
    assert config.weak.guidance_scale == config.base.guidance_scale == 4.0 and config.autoguidance_gap == "base"
    assert config.weak.windows == config.base.windows == {"guidance_scale": (0.5, 1.0)}
    config = operator.made(values | {"gap": "unguided"})
    assert config.weak.guidance_scale == config.strong.guidance_scale == 1.0 and config.autoguidance_gap == "strong"


def test_a_solver_of_the_configuration_is_one_of_those_that_are_open():
    plain = replace(config_of("miniature-pixart"), solver="DPMSolverMultistepScheduler", grid=1.5)
    (operator,), _ = operators_of(plain, ("guidance",))
    assert operator.space["solver"] == ("DPMSolverMultistepScheduler", "DDIMScheduler", "UniPCMultistepScheduler")
    for solver in operator.space["solver"]:
        made = operator.made({"guidance_scale": 1.0, "solver": solver, "grid": 1.25, "eta": 0.5})
        assert (made.solver or "DDIMScheduler", made.grid) == (solver, 1.0 if solver == "DDIMScheduler" else 1.25)
        assert made.call.get("eta") == (0.5 if solver == "DDIMScheduler" else None)


def test_nothing_of_the_configurations_own_reflection_is_left():
    config = config_of("miniature-pixart")
    own = replace(config, autoguidance=1.0, autoguidance_gap="strong", reuse=3, rounds=2, span=2, carried="linear")
    for operator, plainly in zip(operators_of(own)[0], operators_of(config)[0], strict=True):
        values = drawn(operator, random.Random(2))
        assert operator.made(values) == plainly.made(values), operator.name


def test_a_pair_of_guidance_alone_has_no_w2sd_of_its_own():
    config = config_of("cogvideox-5b-guidance")
    assert not has_weak_model(config) and has_weak_model(config_of("miniature-pixart"))
    operators, missing = operators_of(config)
    assert not {"W2SD", "AutoGuidance"} & {operator.name for operator in operators}
    assert missing["W2SD"] == "strong and weak differ in guidance alone, so it is Z-Sampling"
    with pytest.raises(ConfigError, match="operators W2SD: strong and weak differ in guidance alone"):
        operators_of(config, ("W2SD",))


def test_the_explicit_inversion_leaves_the_last_step():
    config = replace(config_of("miniature-pixart"), inversion="explicit", reflection_steps=(0.5, 1.0))
    setting = fitted(config, 20)
    check(setting)
    assert setting.reflection_steps[1] == 1 - 1 / setting.steps and nfe_of(setting) <= 20


def test_plain_is_the_configuration_without_reflection_and_autoguidance():
    config = replace(config_of("miniature-animatediff"), autoguidance=1.0)
    plain = plain_of(config)
    assert plain.base == config.base and nfe_of(plain) == 2 * plain.steps


def test_words_leave_out_what_has_no_effect():
    values = {"guidance_scale": 1.0, "guidance_start": 0.5, "solver": "DDIMScheduler", "grid": 1.5, "eta": 0.25}
    assert values_in_words(values) == "guidance scale 1, solver DDIMScheduler, eta 0.25"


@pytest.mark.parametrize(
    "name", ["miniature-pixart", "miniature-dit-moe", "miniature-animatediff", "miniature-cogvideox"]
)
def test_every_solver_that_is_open_samples_and_where_it_takes_a_grid_on_that(name):
    (none,), _ = operators_of(config_of(name), ("none",))
    pipe = load(config_of(name))
    pipe.set_progress_bar_config(disable=True)
    for solver in none.space["solver"]:
        uniform, dense = (none.at({"solver": solver, "grid": grid, "eta": 0.0}, 4) for grid in (1.0, 1.75))
        (first,), _ = sample_clips(pipe, uniform, ["a red circle moving up"], [0])
        (second,), _ = sample_clips(pipe, dense, ["a red circle moving up"], [0])
        assert np.isfinite(first).all() and (first == second).all() == (solver not in GRIDDED)


def test_what_is_tried_first_of_reflection_is_the_default_inversion():
    first = operator_of("W2SD").first[0]
    assert first["inversion"] == "paper" and operator_of("W2SD").space["inversion"][0] == "paper"


def test_unknown_operators_are_refused():
    with pytest.raises(ConfigError, match="unknown operator 'W2S'; did you mean 'W2SD'"):
        operators_of(config_of("miniature-pixart"), ("W2S",))


@pytest.mark.parametrize("name", ["miniature-pixart", "miniature-dit-moe", "miniature-cogvideox"])
def test_noise_of_the_steps_is_open_where_scheduler_and_call_take_it(name):
    (none,), _ = operators_of(config_of(name), ("none",))
    assert ("eta" in none.space) == (name != "miniature-cogvideox")
