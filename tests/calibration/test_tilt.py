"""The tilt and the strength at which it vanishes, against Gaussians and straight lines."""

import math

import diffusers
import numpy as np
import pytest
import torch
from gaussians import four_levels, of_width

from w2sd_video import Trajectory, Window, sample
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


STEPS = 10
SHARES = {"truth": 0.5, "strong": 0.7, "weak": 0.9}
"""Of the right one of two peaks, at -1 and 1 with a spread of 0.3."""


def exact(name, latents, level):
    """The noise that an exact model of a mixture predicts."""
    variance = (0.3 * level.alpha) ** 2 + level.sigma**2
    odds = math.log(SHARES[name] / (1 - SHARES[name]))
    peak = torch.tanh(level.alpha * latents / variance + odds / 2)
    return level.sigma / variance * (latents - level.alpha * peak)


def points(name, count, seed):
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(count, 1, generator=generator) < SHARES[name]
    return torch.where(right, 1.0, -1.0) + 0.3 * torch.randn(count, 1, generator=generator)


@pytest.mark.parametrize("window", [(0.5, 1.0), (0.25, 0.75), None])
def test_the_balanced_strength_is_near_the_best_in_its_window(window):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(scheduler)
    level_at = {int(t): trajectory.level(i) for i, t in enumerate(scheduler.timesteps)}

    def sampled(seed, **settings):
        def predict(latents, timestep, role):
            return exact("weak" if role == "weak" else "strong", latents, level_at[int(timestep)])

        noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(seed))
        settings = {"reflection_steps": window, "inversion": "current"} | settings
        return sample(predict, noise, scheduler, num_inference_steps=STEPS, **settings).latents

    def moments(clips):
        generator = torch.Generator().manual_seed(5)
        comparing = compare(trajectory, clips, 1, lambda like: torch.randn(like.shape, generator=generator))
        return drive(comparing, lambda asked: exact(asked.role, asked.latents, trajectory.level(asked.step)))

    real = moments(points("truth", 4000, 1))
    alone, reflected = moments(sampled(2, reflection_steps=0)), moments(sampled(2))
    within = real.within(None if window is None else Window(*window))
    found, levels, _ = balance(real, alone, reflected, within=within)
    true = points("truth", 4000, 3).sort(0).values

    def distance(strength):
        return float((sampled(4, strength=strength).sort(0).values - true).abs().mean())

    best = min(distance(strength) for strength in np.arange(0.0, 4.01, 0.25))
    unreflected = distance(0.0)
    assert unreflected - distance(found.value) > 0.8 * (unreflected - best) > 0  # most of what a search finds
    if window:
        inside = [Window(*window).steps(STEPS).start <= i < Window(*window).steps(STEPS).stop for i in range(STEPS)]
        assert [strength > 0 for strength in levels] == inside


def test_a_window_without_a_level_is_refused():
    real = tilted([[0.1] * 8, [0.2] * 8])
    assert real.within(Window(0.0, 0.5)).tolist() == [True, False]
    with pytest.raises(ValueError, match="holds none of the 2 levels"):
        real.within(Window(0.0, 0.2))


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
