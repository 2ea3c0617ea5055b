"""What samples cost, told from what a few steps took."""

import pytest

from w2sd_video.rendering.step_cost import StepCost, _parts, measured_cost
from w2sd_video.settings.command_line import parse


@pytest.mark.parametrize(
    ("evaluation", "rest", "seconds", "nfe"),
    [
        (0.1, 0.5, 1.55, 10),
        (0.1, 0.5, 0.4, 0),
        (1e-9, 0.5, 1.0, 10**4),
        (1e-320, 0.0, 1e6, 10**4),
        (0.1, 0.5, 0.5, 0),
    ],
)
def test_seconds_allow_so_many_evaluations(evaluation, rest, seconds, nfe):
    assert StepCost(evaluation, rest, 0.0, 0).nfe_in(seconds) == nfe


@pytest.mark.parametrize(
    ("short", "long", "parts"),
    [
        ((0.75, 2), (1.25, 6), (0.125, 0.5)),
        ((0.75, 2), (0.75, 6), (0.125, 0.0)),  # noise that hides the evaluations: all counts as evaluations
        ((0.75, 2), (0.6, 6), (0.1, 0.0)),
        ((0.2, 2), (1.2, 6), (0.2, 0.0)),  # and noise that leaves less than nothing beside them
    ],
)
def test_evaluations_are_never_taken_for_free(short, long, parts):
    assert _parts(short, long) == pytest.approx(parts)


def test_a_model_is_measured():
    cost = measured_cost(parse(["--config", "miniature-pixart", "a red circle moving left"]).config, batch=2)
    assert cost.evaluation > 0 and cost.rest >= 0 and cost.loading > 0 and cost.memory > 0
    assert 1 <= cost.nfe_in(cost.rest + 100.5 * cost.evaluation) <= 101
