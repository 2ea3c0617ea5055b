"""What samples cost, told from what a few steps took."""

import pytest

from w2sd_video.rendering.step_cost import StepCost


@pytest.mark.parametrize(
    ("evaluation", "rest", "seconds", "nfe"),
    [
        (0.1, 0.5, 1.55, 10),
        (0.1, -0.2, 1.05, 10),  # chance of the measurement: no time beside the evaluations
        (0.1, 0.5, 0.4, 0),
        (0.0, 0.5, 1.0, 10**4),  # evaluations that are too fast to be measured
        (1e-320, 0.0, 1e6, 10**4),
        (0.0, 0.5, 0.5, 0),
    ],
)
def test_seconds_allow_so_many_evaluations(evaluation, rest, seconds, nfe):
    assert StepCost(evaluation, rest, 0.0, 0).nfe_in(seconds) == nfe
