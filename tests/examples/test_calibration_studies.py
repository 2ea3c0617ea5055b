"""The studies of calibration at a reduced size, and what they compute against other ways of computing it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

pytest.importorskip("matplotlib", reason="the studies draw figures; install the extra 'examples'")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "studies"))

import calibration_arms
import calibration_predicts
import calibration_schedule
import opposing_biases

from w2sd_video.calibration.moments import Moments
from w2sd_video.metrics.frechet import frechet_distance
from w2sd_video.miniatures import judges, world
from w2sd_video.settings.command_line import parse
from w2sd_video.strength import StrengthSchedule
from w2sd_video.trajectory import Level

PIXART = parse(["--config", "miniature-pixart"]).config


def test_an_answer_is_kept_for_its_question_alone(tmp_path):
    asked = []

    def make(value):
        asked.append(value)
        return {"value": np.array(value)}

    found = [calibration_arms.kept(tmp_path, key, lambda key=key: make(key)) for key in (1, 2, 1)]
    assert [int(one["value"]) for one in found] == [1, 2, 1] and asked == [1, 2]
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


def test_the_distance_is_the_classifier_s():
    prompts = world.prompts()[:6]
    reference = calibration_arms.Reference(PIXART, prompts)
    features = np.random.default_rng(0).normal(size=(2, 40, 256))
    real = judges.features(world.clips(prompts * calibration_arms.REAL, range(10**6, 10**6 + 48), 1)[:, 0])
    expected = frechet_distance(features.reshape(80, 256), real)
    assert reference.distance(features) == pytest.approx(expected, rel=1e-3)


def test_a_jackknife_of_means_has_their_standard_errors():
    values = np.random.default_rng(0).normal(1.0, 2.0, (240, 2))
    found, halves = calibration_arms.jackknife(lambda chosen: values[chosen].mean(0), 240)
    np.testing.assert_allclose(found, values.mean(0))
    np.testing.assert_allclose(halves, 1.96 * values.std(0) / np.sqrt(240), rtol=0.4)
    one_by_one = calibration_arms.jackknife(lambda chosen: values[:20][chosen].mean(0), 20)[1]
    np.testing.assert_allclose(one_by_one, 1.96 * values[:20].std(0, ddof=1) / np.sqrt(20))


def test_changes_are_positive_where_the_second_arm_is_better():
    reference = calibration_arms.Reference(PIXART, world.prompts()[:6])
    rng = np.random.default_rng(0)
    near, far = (reference.mean + rng.normal(size=(2, 20, 256)) * scale for scale in (1.0, 30.0))
    arms = [
        {"features": features, "likelihood": np.full((2, 20), value), "adherence": np.full((2, 20), value)}
        for features, value in ((far, 0.25), (near, 0.75))
    ]
    fall, *rises = calibration_predicts.changes(*arms, np.arange(20), reference)
    assert fall > 0 and rises == [0.5, 0.5]
    assert calibration_predicts.changes(arms[0], arms[0], np.arange(20), reference).tolist() == [0, 0, 0]


def test_ranks_are_correlated_as_spearman_does():
    one, other = np.random.default_rng(0).normal(size=(2, 12))
    assert calibration_predicts.rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_moments_of_a_group_are_those_of_its_clips():
    arrays = np.random.default_rng(0).normal(size=(3, 2, 4, 10))
    moments = Moments((Level(0.5, 0.8), Level(0.6, 0.7)), (0, 1), 2, *arrays)
    chosen = np.arange(10) % 3 == 0
    found = opposing_biases.of_clips(moments, chosen)
    assert found.error.shape == (2, 4, 4)
    np.testing.assert_array_equal(found.product, arrays[2][:, :, chosen])


def test_pairs_are_calibrated_and_sampled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration_predicts, "RESAMPLES", 3)
    monkeypatch.setattr(calibration_predicts, "PERMUTATIONS", 9)
    sizes = {"clips": 8, "draws": 1, "prompts": 2, "seeds": 1, "steps": 1}
    calibration_predicts.main(folder=tmp_path, pairs=2, **sizes)
    printed = capsys.readouterr().out
    assert "| weights, swapped |" in printed and printed.count("; p ") == 18
    calibration_predicts.main(folder=tmp_path, pairs=2, **sizes)  # what is kept is not found again
    assert capsys.readouterr().out == printed


def test_a_training_shows_what_is_not_said(tmp_path):
    config = calibration_predicts.with_checkpoints(PIXART, tmp_path, 2)
    assert set(config.model.weights) == {"weak", "permuted", "trained_on"}
    weights = [torch.load(tmp_path / f"{name}.pt")["network"] for name in ("permuted-2", "trained_on-1")]
    assert weights[0].keys() == weights[1].keys()


def test_arms_cost_as_many_evaluations(tmp_path, capsys):
    calibration_schedule.main(folder=tmp_path, clips=8, draws=1, prompts=3, seeds=1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert {row[1].split(",")[0].strip() for row in rows} > {"strength 1", "schedule by tilt"}
    assert all(24 <= int(row[2]) <= 28 for row in rows[1:])


def test_a_schedule_is_named_by_what_it_holds(tmp_path):
    one, same, other = (StrengthSchedule((0.0, 1.0), strengths) for strengths in ((1.0, 2.0), (1.0, 2.0), (1.0, 3.0)))
    names = [calibration_arms.written(schedule, tmp_path) for schedule in (one, same, other)]
    assert names[0] == names[1] != names[2] and StrengthSchedule.read(names[2]) == other


def test_groups_are_judged_and_sampled(tmp_path, capsys):
    figure = tmp_path / "figure.png"
    sizes = {"clips": 48, "draws": 1, "prompts": 3, "seeds": 1, "steps": 1}
    found = opposing_biases.main(figure, tmp_path / "runs", **sizes)
    assert set(found) == {"other colours", "blue"} and all(len(arms) == 10 for arms in found.values())
    printed = capsys.readouterr().out
    assert "| all |" in printed and "balanced strength of the group: the log distance falls by " in printed
    with Image.open(figure) as image:
        image.load()
    assert replace(PIXART).model.weights.keys() == {"weak"}  # the shared configuration is left alone
