"""The tilt and the strength at which it vanishes, against Gaussians and straight lines."""

import math

import numpy as np
import pytest
import torch
from gaussians import four_levels, of_width

from w2sd_video.algorithm import drive
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import compare
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.trajectory import Level


@pytest.mark.parametrize(("strong", "weak"), [(1.5, 2.5), (1.5, 1.2), (0.7, 0.4), (0.7, 2.0)])
def test_the_tilt_is_that_of_gaussians(strong, weak):
    """Real clips have width 1: samples that are too wide come nearer to them by a weak model that is wider still."""
    trajectory = four_levels()

    def answer(request):
        return of_width(strong if request.role == "strong" else weak, trajectory.level(request.step)) * request.latents

    torch.manual_seed(0)
    data = torch.randn(400, 64), strong * torch.randn(400, 64)
    overall, levels = tilt(*(drive(compare(trajectory, one, 2, torch.randn_like), answer) for one in data))
    expected = []
    for level in map(trajectory.level, range(4)):
        one, other = of_width(strong, level), of_width(weak, level)
        error = 1 - 2 * one * level.sigma + one**2 * (level.alpha**2 + level.sigma**2)
        expected.append((other**2 - one**2) * level.alpha**2 * (1 - strong**2) / error)
    assert [found.value for found in levels] == pytest.approx(expected, rel=0.15, abs=0.01)
    assert overall.value == pytest.approx(np.mean(expected), rel=0.1)
    assert overall.low < np.mean(expected) < overall.high
    widths = [one.high - one.low for one in levels]
    assert all(one.low < one.value < one.high for one in levels) and overall.high - overall.low < np.mean(widths)
    helps = (weak > strong) == (strong > 1)
    assert overall.low > 0 if helps else overall.high < 0


def tilted(tilts, draws=2):
    """Moments of clips whose weak error exceeds strong's, which is 1, by what is given, (levels, clips)."""
    gap = np.repeat(np.array(tilts, float)[:, None], draws, 1)
    levels = tuple(Level(0.5, 0.8 - i / 10) for i in range(len(gap)))
    return Moments(levels, tuple(range(len(gap))), len(gap), np.ones_like(gap), gap, np.zeros_like(gap))


def test_the_strength_at_which_the_tilt_vanishes_is_on_a_straight_line():
    spread = np.random.default_rng(0).normal(0, 0.05, 40)
    spread -= spread.mean()
    real = tilted([[0.5] * 40, [0.8] * 40])
    alone, reflected = (tilted([0.5 - t + spread, 0.8 - t + spread]) for t in (0.3, 0.1))
    strength, levels, left = balance(real, alone, reflected)
    assert strength.value == pytest.approx(1.5) and levels == pytest.approx([1.5, 1.5])
    error = 1.96 * spread.std() / math.sqrt(40)
    assert (left.low, left.value, left.high) == pytest.approx((0.1 - error, 0.1, 0.1 + error), abs=error / 5)
    # The same captions are redrawn in both, so that the fall is 0.2 in each of them.
    assert (strength.low, strength.high) == pytest.approx((1.5 - error / 0.2, 1.5 + error / 0.2), abs=error)


@pytest.mark.parametrize(
    ("before", "after", "strength"), [(0.2, -0.2, 0.5), (-0.1, -0.3, -0.5), (0.1, 0.2, 4.0), (-0.1, 0.1, -1.0)]
)
def test_a_tilt_may_vanish_at_a_negative_strength_or_never(before, after, strength):
    real, alone, reflected = (tilted([[1 - t] * 8]) for t in (0.0, before, after))
    found, levels, _ = balance(real, alone, reflected)
    assert found.value == pytest.approx(strength) and levels == pytest.approx([max(strength, 0)])
