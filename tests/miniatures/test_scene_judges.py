"""The judges of scenes: what they count, and that they know what they see."""

import numpy as np
import pytest
import torch

from w2sd_video.metrics import load_metric
from w2sd_video.miniatures import fashion, folder_of, scene_judges, scenes
from w2sd_video.miniatures.scene_judges import SceneJudge

PROMPTS = list(scenes.prompts()[:8])
SWAPS = {"red": "blue", "blue": "red", "circle": "square", "square": "circle"}
RIGHT = "a red circle moving left above a small blue square moving up"
MIXED_UP = "a blue circle moving left above a small red square moving up"


class Knowing(SceneJudge):
    """A judge that is told what is to be seen, so that what is counted of it is what is tested."""

    def __init__(self, prompts):
        super().__init__()
        self.shown = scene_judges.labels_of([scenes.parse(prompt) for prompt in prompts]).clamp(min=0).flatten(0, 1)

    def logits_of(self, features):
        one_hot = torch.nn.functional.one_hot
        return {
            kind: 9.0 * one_hot(self.shown[:, k], len(words)) for k, (kind, words) in enumerate(scenes.KINDS.items())
        }


@pytest.fixture
def shows(monkeypatch):
    """Have the judge see what prompts say."""
    return lambda prompts: monkeypatch.setattr(scene_judges, "load_judge", lambda of_clips: Knowing(prompts))


def clips(count):
    return np.zeros((count, 16, 64, 64, 3), np.uint8)


def test_what_is_as_the_prompt_says_is_right_and_what_it_leaves_open_too(shows):
    shows(PROMPTS)
    found = scene_judges.adherence(clips(8), PROMPTS)
    assert found["joint"] == 1 and found["swapped"] == 0 and {found[kind] for kind in scenes.KINDS} == {1}
    shows([RIGHT])
    opened = RIGHT.replace("small ", "")
    assert scene_judges.adherence(clips(1), [opened])["joint"] == 1
    assert np.isnan(scene_judges.adherence(clips(1), [opened])["size"])
    assert scene_judges.adherence(clips(1), [RIGHT.replace("small", "large")])["joint"] == 0


def test_an_attribute_of_the_wrong_thing_is_wrong_and_counted_as_swapped(shows):
    shows([MIXED_UP])
    found = scene_judges.adherence(clips(1), [RIGHT])
    assert (found["colour"], found["shape"], found["joint"], found["swapped"]) == (0, 1, 0, 1)
    shows([RIGHT.replace("red", "green")])
    found = scene_judges.adherence(clips(1), [RIGHT])
    assert (found["colour"], found["joint"], found["swapped"]) == (0.5, 0, 0)
    upside_down = RIGHT.replace("above", "below")
    shows([upside_down])
    assert scene_judges.adherence(clips(1), [RIGHT])["swapped"] == 1


def test_the_likelihood_is_of_what_the_prompt_says(shows):
    shows([RIGHT])
    sizes = [len(words) for words in scenes.KINDS.values()]
    sure = sum(-np.log1p((size - 1) * np.exp(-9)) for size in [*sizes[:3], *sizes[:3], 2])
    assert scene_judges.log_likelihood(clips(1), [RIGHT])[0] == pytest.approx(sure)
    assert scene_judges.log_likelihood(clips(1), [MIXED_UP])[0] == pytest.approx(sure - 2 * 9)


def test_metrics_ask_the_judge_of_the_world_that_clips_are_of(shows, tmp_path, monkeypatch):
    monkeypatch.setenv("W2SD_MINIATURES", str(tmp_path))
    SceneJudge().save_pretrained(tmp_path / scene_judges.JUDGES[True])
    shows([RIGHT, MIXED_UP])
    assert load_metric("adherence").of(clips(2), [RIGHT, RIGHT]).tolist() == [1, 0]
    assert load_metric("likelihood").of(clips(2), [RIGHT, RIGHT])[0] > -1
    assert load_metric("kid").features(clips(2)).shape == (2, 2 * 256)
    assert load_metric("hollow").of(scenes.clips([RIGHT], [0], style="hollow"), [RIGHT]).tolist() == [1]
    assert load_metric("motion_error").of(scenes.clips([RIGHT], [0]), [RIGHT])[0] < 0.7


@pytest.mark.parametrize("shape", [(2, 15, 64, 64, 3), (2, 16, 32, 32, 3), (2, 64, 64, 3), (2, 16, 64, 64, 1)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="want clips of at least 16 frames or single pictures"):
        scene_judges.logits(np.zeros(shape, np.uint8))


def test_a_judge_that_is_not_trained_is_named_with_what_trains_it(monkeypatch):
    monkeypatch.delenv("W2SD_MINIATURES", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no weights of 'scenes_none'.*--stage scenes trains them.*W2SD_MINI"):
        folder_of("scenes_none")
    with pytest.raises(FileNotFoundError, match="--stage fashion trains them"):
        folder_of("fashion_none")


@pytest.mark.parametrize("of_clips", [True, False])
def test_a_trained_judge_knows_fresh_scenes(of_clips):
    """Where there are weights: of the package, or of the folder that W2SD_MINIATURES names."""
    try:
        folder_of(scene_judges.JUDGES[of_clips])
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    prompts = list(scenes.prompts())
    made = scenes.clips(prompts, range(10**6, 10**6 + len(prompts)), frames=16 if of_clips else 1)
    found = scene_judges.adherence(made, prompts)
    assert found["joint"] > 0.95 and found["swapped"] < 0.01
    held_out = [i for i, prompt in enumerate(prompts) if scenes.parse(prompt).is_held_out]
    assert scene_judges.adherence(made[held_out], [prompts[i] for i in held_out])["joint"] > 0.95


def test_classes_of_clothes_are_known_by_name():
    assert fashion.wanted(["trouser", "ankle boot"]).tolist() == [1, 9]
    with pytest.raises(ValueError, match="unknown class 'hat'; known are t-shirt, trouser"):
        fashion.parse("hat")
