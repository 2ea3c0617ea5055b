"""The cosine without the noise's own variance, against exact predictions."""

import math

import numpy as np
import pytest
import tiny
import torch
from gaussians import four_levels, made, of_width

from w2sd_video.algorithm import drive
from w2sd_video.calibration.ideal_prediction import corrected_cosines, ideal_of, posterior_noise
from w2sd_video.calibration.latents import encode
from w2sd_video.calibration.noised_clips import compare
from w2sd_video.miniatures import world
from w2sd_video.settings.command_line import parse
from w2sd_video.trajectory import Level


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_a_bank_of_gaussian_clips_tells_their_ideal_prediction(width):
    torch.manual_seed(0)
    bank = width * torch.randn(40000, 2, 1)
    for level in (Level(0.3, 0.954), Level(0.8, 0.6), Level(1.0, 3.0)):
        latents = level.alpha * width * torch.randn(50, 2, 1) + level.sigma * torch.randn(50, 2, 1)
        found, effective = posterior_noise(latents, bank, level)
        assert (found - of_width(width, level) * latents).abs().mean() < 0.02
        shape = (level.alpha * width / level.sigma) ** 2  # of a Gaussian's weights about the prior's centre
        centred = posterior_noise(torch.zeros(1, 2, 1), bank, level)[1]
        assert centred.item() == pytest.approx(40000 * (1 + 2 * shape) / (1 + shape) ** 2, rel=0.1)
        assert effective.median() > 100


def towards(ideal_of, clips=400, spread=0.3):
    """The corrected cosines where the gap is 0.2 of the ideal prediction and noise of its own beside it."""
    trajectory = four_levels()

    def answer(request):
        ideal = of_width(2.0, trajectory.level(request.step)) * request.latents
        return 0.9 * ideal if request.role == "strong" else 0.7 * ideal + spread * noise.pop(0)

    torch.manual_seed(0)
    data = 2.0 * torch.randn(clips, 64)
    noise = [torch.randn(clips, 64) for _ in range(8)]
    return trajectory, corrected_cosines(drive(compare(trajectory, data, 2, torch.randn_like, ideal=ideal_of), answer))


def exact(latents, level):
    return of_width(2.0, level) * latents, torch.full((len(latents),), 99.0)


def true_cosine(level, spread=0.3):
    explained = level.sigma**2 / (4 * level.alpha**2 + level.sigma**2)
    return math.sqrt(0.04 * explained / (0.04 * explained + spread**2)), explained


def test_the_cosine_without_the_noise_s_own_variance_is_that_of_gaussians():
    trajectory, found = towards(exact)
    for i, one in enumerate(found):
        cosine, explained = true_cosine(trajectory.level(i))
        error = 0.1**2 * explained + (1 - explained)
        assert one.low - 0.03 < cosine < one.high + 0.03 and one.value == pytest.approx(cosine, abs=0.2)
        assert one.distance == pytest.approx(0.1**2 * explained / error, rel=0.3)
        assert one.fit == pytest.approx(1, abs=0.15) and one.effective == 99 and one.is_estimate


def test_any_other_estimate_of_the_ideal_only_loosens_the_bound():
    def poor(latents, level):
        return exact(latents, level)[0] + 0.1 * torch.randn_like(latents), torch.ones(len(latents))

    _, loose = towards(poor)
    trajectory, tight = towards(exact)
    for i, (one, other) in enumerate(zip(loose, tight, strict=True)):
        assert one.value >= true_cosine(trajectory.level(i))[0] - 0.05 and one.distance < other.distance
        assert one.fit < 0.8 and not one.is_estimate


def test_an_estimate_that_leads_away_from_the_ideal_bounds_nothing():
    def opposite(latents, level):
        return 0.5 * exact(latents, level)[0], torch.ones(len(latents))

    assert all(one.distance == 0 and one.value == 1 for one in towards(opposite)[1][:2])


def test_a_cosine_cannot_be_corrected_without_an_estimate():
    with pytest.raises(ValueError, match="no estimate of the ideal"):
        corrected_cosines(made(np.ones(8), np.ones(8), np.ones(8)))


def test_each_clip_has_a_bank_of_its_own_caption():
    pipe, _ = tiny.pixart()
    config = parse(["--config", "miniature-pixart"]).config
    captions, nothing = ["a red circle moving left", "a blue square moving up"], Level(0.5, 1e4)
    seen = ideal_of(pipe, config, captions, 4)(torch.zeros(2, 4, 16, 16), nothing)[0] * -1e4 / 0.5
    for one, caption in zip(seen, captions, strict=True):
        clips = np.stack([world.clip(caption, 6 * 10**6 + k, 1) for k in range(4)])
        torch.testing.assert_close(one, encode(pipe, clips).mean(0), atol=1e-3, rtol=1e-2)
