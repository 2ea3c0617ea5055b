"""How often intervals hold what they should, simulated: the truth is known, and drawn from again and again."""

from functools import partial

import numpy as np
import pytest

from w2sd_video.evaluation.statistics import Figure, Real, distance_of_set, holm, mean, share, value_of_set
from w2sd_video.metrics import load_metric
from w2sd_video.metrics.distances import distance, kernel_distance_metric
from w2sd_video.metrics.frechet import frechet_distance, frechet_principal

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


WIDTHS = 2.0 ** -np.arange(6)
"""Standard deviations of features: some axes are principal."""
SHIFTED, NARROW = "shifted", "narrow"


def _as_they_are(clips):
    return clips


DISTANCES = {
    "frechet": distance("d", frechet_distance, _as_they_are, "d"),
    "principal": distance("d", partial(frechet_principal, number=2), _as_they_are, "d"),
    "kid": kernel_distance_metric("d", _as_they_are, "d"),
    "precision": load_metric("precision"),
    "recall": load_metric("recall"),
}


def drawn_sets(rng, prompts, how="same"):
    """Draw features of 3 samples and 6 real clips a prompt, alike where they are of one prompt."""
    centre = rng.normal(0, 0.7, (prompts, 1, 6))
    samples, real = (centre + rng.normal(0, 0.7, (prompts, count, 6)) for count in (SEEDS, 6))
    samples = samples + (how == SHIFTED) if how != NARROW else 0.6 * samples
    return (samples * WIDTHS).reshape(-1, 6), (real * WIDTHS).reshape(-1, 6)


def figures_and_values(metric, how, prompts, times, more):
    """Return figures of sets that were drawn, and the numbers of these and of more sets."""
    rng, of_samples, of_real = np.random.default_rng(1), *(np.repeat(np.arange(prompts), k) for k in (SEEDS, 6))
    drawn = [drawn_sets(rng, prompts, how) for _ in range(times + more)]
    sets = [(metric, own, of_samples, Real(real, of_real), prompts) for own, real in drawn]
    values = [value_of_set(*each) for each in sets[times:]]
    return [distance_of_set(*each) for each in sets[:times]], values


@pytest.mark.parametrize("how", ["same", SHIFTED, NARROW])
@pytest.mark.parametrize("name", DISTANCES)
def test_the_interval_of_a_distance_holds_what_new_samples_give_on_average(name, how):
    times = {"frechet": 80, "principal": 80, "kid": 100}.get(name, 40)
    found, values = figures_and_values(DISTANCES[name], how, 40, times, 300)
    held = np.mean([one.low <= np.mean(values) <= one.high for one in found])
    assert held >= 0.85
    width = np.mean([one.high - one.low for one in found]) / (2 * 2.093 * np.std(values))
    widest = {"frechet": 1.1, "principal": 1.2, "kid": 1.6}.get(name, 2.5 if np.mean(values) < 0.98 else np.inf)
    assert 0.7 < width < widest, "by the standard error; of a share near 1 it cannot be known"
    assert name == "kid" or all(one.low >= 0 for one in found)
    assert name not in ("precision", "recall") or all(one.high <= 1 for one in found)


@pytest.mark.parametrize("name", ["frechet", "kid"])
def test_two_arms_of_one_distribution_differ_by_chance_as_often_as_they_should(name):
    rng, prompts, wrong = np.random.default_rng(2), 30, []
    of_samples, of_real = (np.repeat(np.arange(prompts), k) for k in (SEEDS, 6))
    for _ in range(60):
        own, real = drawn_sets(rng, prompts, SHIFTED)
        other = own + rng.normal(0, 0.3, own.shape) * WIDTHS
        again = own + rng.normal(0, 0.3, own.shape) * WIDTHS
        one, two = (
            distance_of_set(DISTANCES[name], x, of_samples, Real(real, of_real), prompts) for x in (other, again)
        )
        wrong.append((one - two).p_value < 0.05)
    assert np.mean(wrong) <= 0.11


def test_of_ten_arms_without_a_difference_holm_seldom_finds_any():
    rng, of_prompt, wrong = np.random.default_rng(4), np.repeat(np.arange(40), SEEDS), {"alone": 0, "corrected": 0}
    for _ in range(100):
        arms = [mean(rng.normal(0, 1, 40 * SEEDS), of_prompt, 40) for _ in range(11)]
        p_values = [(arm - arms[0]).p_value for arm in arms[1:]]
        wrong["alone"] += min(p_values) < 0.05
        wrong["corrected"] += min(holm(p_values)) < 0.05
    assert wrong["alone"] > 20 and wrong["corrected"] <= 10, "of 100"


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
