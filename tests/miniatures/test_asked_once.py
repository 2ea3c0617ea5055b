"""A network that several metrics ask about the same clips looks at them once."""

import numpy as np
import pytest
import torch
from torch import nn

from w2sd_video.metrics import load_metric
from w2sd_video.metrics.efficientnet import load_network
from w2sd_video.miniatures import judges, scene_judges
from w2sd_video.miniatures.asked_once import asked_once


@pytest.fixture
def counted():
    """Return a function of a network and clips, and what it was asked."""
    asked = []
    return asked_once(lambda network, clips: asked.append((network, clips)) or torch.tensor(float(clips.sum()))), asked


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_only_what_was_asked_last_is_kept(counted, kind):
    look, asked = counted
    network, other = nn.Identity(), nn.Identity()
    clips = kind([[1.0, 2.0]])
    assert look(network, clips) == look(network, kind([[1.0, 2.0]])) == 3 and len(asked) == 1
    assert look(network, kind([[1.0], [2.0]])) == 3 and len(asked) == 2, "another shape"
    assert look(other, kind([[1.0], [2.0]])) == 3 and len(asked) == 3, "another network"
    assert look(other, kind([[1], [2]])) == 3 and len(asked) == 4, "another kind of number"
    clips[0, 1] = 5.0
    assert look(network, clips) == 6 and len(asked) == 5, "changed in place"
    look(network, clips).zero_()
    assert look(network, clips) == 6 and len(asked) == 5, "an answer is its asker's own"


SCENE = "a red circle moving left above a blue square moving up"
WORLDS = {
    "sprites": (judges.Classifier, (3, 1, 32, 32, 3), "a red circle moving left", "kid"),
    "scenes": (scene_judges.SceneJudge, (3, 1, 64, 64, 3), SCENE, "kid"),
    "clothes": (None, (3, 1, 32, 32, 3), "trouser", "kid_efficientnet"),
}


@pytest.mark.parametrize("world", WORLDS)
def test_three_metrics_of_a_batch_cost_one_look(world, monkeypatch):
    judge, shape, prompt, distance = WORLDS[world]
    clips = np.random.default_rng(len(world)).integers(0, 256, shape, dtype=np.uint8)
    looked_at = []
    network, method = (type(load_network()), "extract_features") if judge is None else (judge, "features")
    original = getattr(network, method)
    monkeypatch.setattr(network, method, lambda self, x: looked_at.append(len(x)) or original(self, x))
    for name in ("likelihood", "adherence"):
        load_metric(name).of(clips, [prompt] * 3)
    load_metric(distance).features(clips)
    assert sum(looked_at) == (6 if world == "scenes" else 3), "of a scene both halves"
