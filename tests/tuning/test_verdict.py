"""Differences that are corrected for how many there are, and what is said of them."""

import numpy as np
import pytest
from scipy import stats

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Result
from w2sd_video.evaluation.samples import Samples
from w2sd_video.evaluation.statistics import Real, distance_of_set, mean
from w2sd_video.metrics import load_metric
from w2sd_video.settings.command_line import parse
from w2sd_video.tuning.verdict import differences_of, intervals_by_holm, verdict_in_words

CONFIG = parse(["a red circle moving left", "--config", "miniature-pixart"]).config


def figures(values):
    """Return the means of some settings, (settings, prompts), of one sample a prompt."""
    prompts = values.shape[1]
    return [mean(row, np.arange(prompts), prompts) for row in values]


def result(name, values, steps):
    empty = np.array([])
    samples = Samples(empty, empty, empty, empty, {}, {})
    config = parse(["a red circle moving left", "--config", "miniature-pixart", "--steps", str(steps)]).config
    candidate = Candidate(name, "", 10, config, 10)
    return Result(candidate, 0, samples, {"likelihood": mean(np.array(values), np.arange(len(values)), len(values))})


def test_intervals_exclude_zero_exactly_where_holms_test_rejects():
    chance = np.random.default_rng(0)
    for trial in range(20):
        values = chance.normal(chance.uniform(0, 0.6, (9, 1)), 1, (9, 24))
        differences = [other - figures(values)[0] for other in figures(values)[1:]]
        p = [one.p_value for one in differences]
        rejected, going_on = set(), True
        for rank, i in enumerate(np.argsort(p)):
            going_on = going_on and p[i] < 0.05 / (len(p) - rank)
            rejected |= {i} if going_on else set()
        excludes = {i for i, (low, high) in enumerate(intervals_by_holm(differences)) if low > 0 or high < 0}
        assert excludes == rejected, trial


def test_of_many_settings_alike_none_is_told_apart_more_often_than_one_time_in_twenty():
    chance, errors, corrected = np.random.default_rng(1), 0, 0
    for _ in range(200):
        settings = figures(chance.normal(0, 1, (11, 30)))
        differences = [other - settings[0] for other in settings[1:]]
        corrected += any(low > 0 or high < 0 for low, high in intervals_by_holm(differences))
        errors += any(one.low > 0 or one.high < 0 for one in differences)
    assert corrected <= 17, "5 % of 200, and two standard errors"
    assert errors > 30, "without the correction"


def test_one_difference_has_students_interval():
    values = np.random.default_rng(2).normal(0, 1, (2, 40))
    difference = figures(values)[0] - figures(values)[1]
    ((low, high),) = intervals_by_holm([difference])
    expected = stats.ttest_rel(*values).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.06)


def test_what_cannot_be_told_has_no_interval():
    one_prompt = figures(np.array([[1.0], [2.0]]))
    difference = one_prompt[0] - one_prompt[1]
    assert np.isnan(intervals_by_holm([difference])).all()
    alike = figures(np.ones((2, 5)))
    assert intervals_by_holm([alike[0] - alike[1]]) == [(0.0, 0.0)]


def test_the_verdict_names_a_winner_or_says_that_there_is_none():
    noise = np.random.default_rng(3).normal(0, 0.1, 20)
    results = [result("plain", noise, 3), result("guidance", noise + 0.5, 4), result("W2SD", noise + 0.9, 5)]
    told = differences_of(results, ["W2SD"], ["plain", "guidance"], {"likelihood": True})
    assert [one.is_better for one in told] == [True, True]
    assert verdict_in_words(told, {"W2SD": "W2SD"}, "likelihood", 20, True).startswith(
        "W2SD beats plain guidance here: by +0.4"
    )
    turned = differences_of(results, ["W2SD"], ["plain", "guidance"], {"likelihood": False})
    said = verdict_in_words(turned, {"W2SD": "W2SD"}, "likelihood", 20, True)
    assert said.startswith("Nothing beats plain guidance here (likelihood, 20 other prompts); the best that was tried")
    assert "W2SD, is worse than the configuration without reflection" in said


def test_guidance_itself_does_not_beat_guidance():
    noise = np.random.default_rng(4).normal(0, 0.1, 20)
    results = [result("plain", noise, 3), result("guidance", noise + 0.5, 4), result("guidance 2", noise + 0.9, 5)]
    told = differences_of(results, ["guidance 2"], ["plain", "guidance"], {"likelihood": True})
    assert verdict_in_words(told, {"guidance 2": "guidance"}, "likelihood", 20, True).startswith(
        "Nothing beats plain guidance"
    )


def test_a_setting_is_not_compared_with_itself():
    results = [result("guidance", [1.0, 2.0], 4), result("W2SD", [2.0, 3.0], 5)]
    told = differences_of(results, ["W2SD", "guidance"], ["guidance", "W2SD"], {"likelihood": True})
    assert [(one.ours, one.theirs) for one in told] == [("W2SD", "guidance"), ("guidance", "W2SD")]


@pytest.mark.parametrize("name", ["kid", "frechet_distance", "recall"])
def test_a_difference_of_distances_is_tested_by_their_own_intervals(name):
    """Two settings alike but for noise are seldom told apart, and a collapsed one is."""
    rng, prompts, metric = np.random.default_rng(0), 24, load_metric(name)
    of_samples, of_real = np.repeat(np.arange(prompts), 3), np.repeat(np.arange(prompts), 4)
    told_apart = []
    for _ in range(20):
        centre = rng.normal(0, 1, (prompts, 1, 4))
        one, other = ((centre + rng.normal(0, 0.5, (prompts, 3, 4)) + 0.3).reshape(-1, 4) for _ in range(2))
        real = Real((centre + rng.normal(0, 0.5, (prompts, 4, 4))).reshape(-1, 4), of_real)
        figures_of_sets = [
            distance_of_set(metric, features, of_samples, real, prompts) for features in (one, other, 0.1 * other)
        ]
        differences = [figure - figures_of_sets[0] for figure in figures_of_sets[1:]]
        assert all(np.isfinite(difference.p_value) for difference in differences)
        told_apart.append([low > 0 or high < 0 for low, high in intervals_by_holm(differences)])
    alike, collapsed = np.sum(told_apart, 0)
    assert alike <= 3 and collapsed >= 6, "of 20; the kernel distance is the least sure"
