"""The strength of a gap and its intervals, against known answers."""

import math

import numpy as np
import pytest
import torch
from gaussians import gaussian, made

from w2sd_video.calibration.gap import calibrate as judge
from w2sd_video.calibration.moments import Moments


def test_the_strength_of_a_gap_along_the_truth_is_found():
    # Strong falls 10 % short of the ideal prediction, weak 30 %: half of the gap is missing.
    trajectory, found = gaussian(lambda ideal: 0.9 * ideal, lambda ideal: 0.7 * ideal)
    for level in found.levels:
        alpha, sigma = trajectory.level(level.step)
        explained = sigma**2 / (4 * alpha**2 + sigma**2)
        error = 0.1**2 * explained + (1 - explained)
        assert level.strength == pytest.approx(0.5, abs=0.1) and level.low < 0.5 < level.high
        assert level.verdict == "helps" and level.warranted == level.strength
        assert level.strong_error == pytest.approx(error, rel=0.05)
        assert level.weak_error == pytest.approx(0.3**2 * explained + (1 - explained), rel=0.05)
        assert level.gap == pytest.approx(0.2**2 * explained, rel=0.05)
        assert level.cosine == pytest.approx(0.1 * explained / math.sqrt(error * explained), rel=0.2)
        assert level.gain == pytest.approx(level.cosine**2)
        assert level.gain_at_one == pytest.approx(0, abs=0.1)  # as far beyond the truth as strong falls short of it
    assert found.window == (0, 1) and found.constant == pytest.approx(0.5, abs=0.1)
    assert found.gain > found.gain_at_one[0]
    value, low, high = found.gain_at_one
    assert low < value < high and value == pytest.approx(np.mean([level.gain_at_one for level in found.levels]))


def test_swapped_roles_point_the_wrong_way():
    _, found = gaussian(lambda ideal: 0.7 * ideal, lambda ideal: 0.9 * ideal)
    for level in found.levels:
        assert level.strength == pytest.approx(-1.5, abs=0.1) and level.verdict == "points the wrong way"
    assert found.window is None and set(found.schedule.strength) == {0.0}
    assert found.gain_at_one[2] < 0


def test_a_gap_across_the_truth_does_nothing():
    _, found = gaussian(lambda ideal: 0.9 * ideal, lambda ideal: 0.9 * ideal + 0.3 * torch.randn_like(ideal))
    assert [level.verdict for level in found.levels].count("does nothing") >= 3
    assert all(level.low < 0.05 and level.high > -0.05 for level in found.levels)


def test_a_clip_is_the_unit_of_the_interval_and_not_a_draw():
    rng = np.random.default_rng(0)
    values = np.ones(20), np.ones(20), rng.normal(1, 1, 20)
    found = judge(made(*values))
    once, often = found.levels[0], judge(made(*values, draws=50)).levels[0]
    assert (once.low, once.high) == pytest.approx((often.low, often.high))
    error = values[2].std() / math.sqrt(20)
    assert once.high - once.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    value, low, high = found.gain_at_one  # 2 product - 1
    assert (low, high) == pytest.approx((value - 2 * 1.96 * error, value + 2 * 1.96 * error), abs=error / 3)


def test_strengths_are_clipped_and_the_window_leaves_out_what_harms():
    moments = made(np.full(8, 10.0), np.ones(8), np.full(8, 1.0), levels=4)
    product = moments.product.copy()
    product[0], product[1] = -1.0, 9.0
    found = judge(Moments(moments.levels, moments.steps, 4, moments.error, moments.gap, product))
    assert found.schedule.strength == (0.0, 4.0, 1.0, 1.0)
    assert (found.window, found.constant) == ((0.25, 0.5), 4.0)


def test_the_window_and_its_strength_are_the_best_there_are():
    moments = made(np.full(8, 10.0), np.ones(8), np.ones(8), levels=4)
    moments.product[:] = np.array([-0.5, 0.4, 1.2, -0.1])[:, None, None]
    found = judge(moments)
    gains = {
        (start, stop, strength): sum(2 * strength * p - strength**2 for p in (-0.5, 0.4, 1.2, -0.1)[start:stop]) / 10
        for start in range(4)
        for stop in range(start + 1, 5)
        for strength in np.arange(0, 4, 0.05)
    }
    start, stop, strength = max(gains, key=gains.get)
    assert found.window == (start / 4, stop / 4) and found.constant == pytest.approx(strength)
    # Clips that are all alike leave no doubt, so the schedule has both good levels, each at its own strength.
    assert found.gain == pytest.approx((0.4**2 + 1.2**2) / 10 / 4)
    at_one = np.mean([2 * p - 1 for p in (-0.5, 0.4, 1.2, -0.1)]) / 10
    assert found.gain_at_one == pytest.approx((at_one,) * 3)


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        (made(np.ones(7), np.ones(7), np.ones(7)), "7 clips: at least 8 are needed"),
        (made(np.ones(8), np.zeros(8), np.zeros(8)), "strong and weak predict the same"),
        (made(np.full(8, np.nan), np.ones(8), np.ones(8)), "not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(moments, said):
    with pytest.raises(ValueError, match=said):
        judge(moments)
