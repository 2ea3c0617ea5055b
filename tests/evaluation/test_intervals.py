"""How often intervals hold what they should, simulated: the truth is known, and drawn from again and again."""

import numpy as np
import pytest

from w2sd_video.evaluation.samples import Samples
from w2sd_video.evaluation.statistics import Figure, Real, mean, measured, share
from w2sd_video.metrics import Distance
from w2sd_video.metrics.frechet import frechet_distance

SEEDS = 3
"""Samples a prompt."""


def drawn_share(rng, prompts, likely, alike):
    """Draw whether each of 3 samples a prompt is so; where they are alike, each prompt has a chance of its own."""
    spread = 1 / alike - 1 if alike else 0
    chances = rng.beta(likely * spread, (1 - likely) * spread, prompts) if alike else np.full(prompts, likely)
    return (rng.random((prompts, SEEDS)) < chances[:, None]).astype(float).ravel()


def coverage(draw, truth, times):
    """Return how often an interval holds the truth."""
    found = [draw() for _ in range(times)]
    return np.mean([one.low <= truth <= one.high for one in found])


@pytest.mark.parametrize("prompts", [3, 10, 30, 171])
@pytest.mark.parametrize("likely", [0.5, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("alike", [0.0, 0.5])
def test_the_interval_of_a_share_holds_it(prompts, likely, alike):
    rng, of_prompt = np.random.default_rng(0), np.repeat(np.arange(prompts), SEEDS)
    held = coverage(lambda: share(drawn_share(rng, prompts, likely, alike), of_prompt, prompts), likely, 200)
    assert held >= 0.9


@pytest.mark.parametrize("prompts", [10, 30, 171])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_of_a_mean_holds_it(prompts, skewed):
    rng, of_prompt = np.random.default_rng(0), np.repeat(np.arange(prompts), SEEDS)
    draw = (lambda size: rng.exponential(1, size) - 1) if skewed else (lambda size: rng.normal(0, 1, size))

    def of_samples():
        return mean((draw((prompts, 1)) + draw((prompts, SEEDS))).ravel() + 5, of_prompt, prompts)

    assert coverage(of_samples, 5, 300) >= 0.9


@pytest.mark.parametrize("likely, rival", [(0.5, 0.6), (0.95, 0.99), (0.99, 0.99)])
def test_the_interval_of_a_difference_of_shares_holds_it(likely, rival):
    rng, prompts = np.random.default_rng(0), 30
    of_prompt = np.repeat(np.arange(prompts), SEEDS)

    def difference():
        luck = rng.random(prompts * SEEDS)  # the same for both, as noise is
        one, other = (share((luck < chance).astype(float), of_prompt, prompts) for chance in (likely, rival))
        return one - other

    assert coverage(difference, likely - rival, 300) >= 0.93


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_a_distance_holds_what_new_samples_give_on_average(shift):
    rng, prompts, width = np.random.default_rng(0), 20, 6
    metric = Distance("d", False, lambda clips: clips, frechet_distance)
    of_prompt, of_real = np.repeat(np.arange(prompts), SEEDS), np.tile(np.arange(prompts), 8)

    def features():
        own = rng.normal(0, 0.7, (prompts, 1, width)) + rng.normal(0, 0.7, (prompts, SEEDS, width)) + shift
        return own.reshape(-1, width), rng.normal(0, 1, (len(of_real), width))

    def distance():
        own, real = features()
        count = len(own)
        samples = Samples(of_prompt, np.arange(count), np.ones(count), np.full(count, ""), {}, {"d": own})
        return measured(metric, samples, Real(real, of_real), prompts)

    truth = np.mean([frechet_distance(*features()) for _ in range(300)])
    found = [distance() for _ in range(40)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.9
    assert all(one.low >= 0 for one in found)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_all_or_none_has_an_interval_within_0_and_1(value):
    found = share(np.full(30, value), np.repeat(np.arange(10), 3), 10)
    assert found.value == value and 0 <= found.low <= found.high <= 1
    assert 0.2 < found.high - found.low < 0.5, "ten prompts that are all so do not tell that all are"
    nearly = share(np.array([1 - value, *[value] * 29]), np.repeat(np.arange(10), 3), 10)
    assert 0 <= nearly.low < nearly.value < nearly.high <= 1
    apart = found - found
    assert apart.value == 0 and -1 < apart.low < 0 < apart.high < 1


def test_a_share_of_one_prompt_and_a_mean_of_one():
    found = share(np.ones(3), np.zeros(3, int), 1)
    assert found.low < 0.3 and found.high == 1
    found = mean(np.array([1.0, 2.0, 3.0]), np.zeros(3, int), 1)
    assert found.value == 2 and np.isnan([found.low, found.high]).all(), "one prompt tells nothing of others"
    nothing = share(np.array([np.nan]), np.zeros(1, int), 1)
    assert isinstance(nothing, Figure) and np.isnan(nothing.numbers).all()


def test_wilsons_interval_is_that_of_the_textbook():
    """Of independent samples, one a prompt: 1 of 10, with Student's quantile of 9 degrees in the normal's place."""
    found = share(np.array([1.0] + [0.0] * 9), np.arange(10), 10)
    t, n, p = 2.2621571628, 10, 0.1
    middle, half = (p + t**2 / 2 / n) / (1 + t**2 / n), t / (1 + t**2 / n) * (p * (1 - p) / n + t**2 / 4 / n**2) ** 0.5
    assert [found.low, found.high] == pytest.approx([middle - half, middle + half])
