"""Features of real clips: in batches, once for a folder, and those alone that are needed."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from running import configured

from w2sd_video.calibration.real_clips import Clip, clips_of_folder, real_clips
from w2sd_video.evaluation.kept_features import KeptFeatures, features_of
from w2sd_video.evaluation.measures import real_against_real, real_of_splits
from w2sd_video.evaluation.plan import add_options, plan_of
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import Distance, load_metric
from w2sd_video.rendering.video import write_picture


def counting(name="d", fails=lambda clip: False):
    """Return a distance that notes how many clips it is given at a time, and the list of its notes."""
    given = []

    def features(clips):
        given.append(len(clips))
        if any(fails(clip) for clip in clips):
            raise ValueError("no such clip")
        return clips.reshape(len(clips), -1)[:, :4].astype(float)

    return Distance(name, False, features, lambda own, real: 0.0), given


def clip_of(number, size=8):
    return Clip(f"clip {number}", "a", lambda: np.full((1, size, size, 3), number % 256, np.uint8))


def test_clips_are_looked_at_in_batches_in_their_order():
    metric, given = counting()
    clips = [clip_of(number, 8 if number < 300 else 4) for number in range(310)]
    found = features_of(clips, [metric], "")["d"]
    assert given == [256, 44, 10] and found[:, 0].tolist() == [number % 256 for number in range(310)]


def test_features_in_batches_are_those_of_each_clip():
    clips = real_clips(configured(), ["a red circle moving left", "a blue square moving up"] * 5, 7 * 10**6)
    metric = load_metric("kid")
    together = features_of(clips, [metric], "")["classifier"]
    alone = np.concatenate([metric.features(clip.read()[None]) for clip in clips])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_of_a_batch_the_clip_that_cannot_be_taken_is_named():
    metric, _ = counting(fails=lambda clip: clip[0, 0, 0, 0] == 3)
    with pytest.raises(ConfigError, match=r"^real clips: clip 3: no such clip"):
        features_of([clip_of(number) for number in range(6)], [metric], "")


def test_what_is_kept_is_not_found_again_unless_a_file_or_a_setting_changes(tmp_path):
    folder, real = tmp_path / "runs", tmp_path / "real"
    (folder / ".job").mkdir(parents=True)
    real.mkdir()
    for number in range(3):
        write_picture(real / f"{number}.png", np.full((8, 8, 3), number, np.uint8))
    metric, given = counting()

    def found(about="world"):
        kept = KeptFeatures(folder, {"about": about})
        features = kept.of(clips_of_folder(real, configured()), [metric], "")["d"]
        kept.write()
        return features[:, 0].tolist()

    assert found() == [0, 1, 2] == found() and given == [3]
    write_picture(real / "1.png", np.full((8, 8, 3), 99, np.uint8))
    assert found() == [0, 99, 2] == found() and given == [3, 3]
    assert found("other") == [0, 99, 2] and given == [3, 3, 3]
    (folder / ".job" / "real.npz").write_bytes(b"damaged")
    assert found() == [0, 99, 2] and given == [3, 3, 3, 3]


def test_where_settings_are_chosen_those_features_alone_are_found_that_choose(tmp_path):
    parser = argparse.ArgumentParser()
    add_options(parser)
    few = ["--number-of-prompts", "3", "--number-of-tuning-prompts", "2", "--metrics", "kid"]
    plan = plan_of(parser.parse_args(few), configured(), "miniature-pixart")
    (kid, of_kid), (other, of_other) = counting("kid"), counting("other")
    (tmp_path / ".job").mkdir()
    kept = KeptFeatures(tmp_path, {})
    real = real_of_splits([kid, other], configured(), plan, ["kid"], kept)
    assert set(real["tuning"]) == {"kid"} and set(real["report"]) == {"kid", "other"}
    assert (of_kid, of_other) == ([24, 16], [24])
    real_against_real([kid, other], configured(), plan, real["report"], kept)
    kept.write()
    assert (of_kid, of_other) == ([24, 16, 9], [24, 9])
    again = KeptFeatures(tmp_path, {})
    real_against_real(
        [kid, other],
        configured(),
        plan,
        real_of_splits([kid, other], configured(), plan, ["kid"], again)["report"],
        again,
    )
    assert (of_kid, of_other) == ([24, 16, 9], [24, 9]), "all of it was kept"
    given = replace(plan, real=[clip_of(number) for number in range(4)])
    real = real_of_splits([kid, other], configured(), given, ["kid"])
    assert real["tuning"] is real["report"] and of_kid[3:] == [4]
    one = replace(plan, report=replace(plan.report, prompts=plan.report.prompts[:1], seeds=1))
    with pytest.raises(ConfigError, match="report: 1 sample, but kid is of a set"):
        real_of_splits([kid], configured(), one, ["kid"])
