"""Motion of clips without their prompts: still ones, textures of a known speed, and noise."""

import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from w2sd_video.metrics import MetricUnavailableError, load_metric

MOTION = ("flicker", "dynamic_degree", "motion_smoothness")


def _of(name, *clips):
    return load_metric(name).of(np.stack(clips), [""] * len(clips))


def _moving(places, size=64, direction=(0, 1)):
    """A soft texture whose content is at `places` pixels along a direction (y, x), one frame each."""
    margin = 40
    noise = np.random.default_rng(0).normal(size=(size + 2 * margin, size + 2 * margin, 3))
    texture = gaussian_filter(noise, (2, 2, 0))
    texture = 255 * (texture - texture.min()) / np.ptp(texture)
    moved = [shift(texture, (place * direction[0], place * direction[1], 0), order=3) for place in places]
    frames = np.stack([frame[margin:-margin, margin:-margin] for frame in moved])
    return np.clip(frames, 0, 255).round().astype(np.uint8)


def _noise(frames=8, size=64):
    return np.random.default_rng(1).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def test_a_still_clip_neither_flickers_nor_moves_and_is_smooth():
    still = _moving([0] * 5)
    assert [float(_of(name, still)[0]) for name in MOTION] == [1, 0, 1]


def test_flicker_is_the_mean_absolute_difference_of_neighbours():
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    clip[1], clip[2] = 51, 153
    assert _of("flicker", clip)[0] == pytest.approx(1 - (51 + 102) / 2 / 255)


def test_flicker_of_noise_is_that_of_two_independent_bytes():
    expected = 1 - (256**2 - 1) / (3 * 256) / 255  # E|a - b| of a and b uniform on 0 to 255
    assert _of("flicker", _noise())[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("direction", [(0, 1), (-1, 0)])
@pytest.mark.parametrize("speed", [0.5, 1, 2, 3])
def test_dynamic_degree_is_the_speed_of_a_texture_in_256ths_of_the_frame(speed, direction):
    clip = _moving(speed * np.arange(5), direction=direction)
    assert _of("dynamic_degree", clip)[0] == pytest.approx(speed * 256 / 64, rel=0.07, abs=0.4)


def test_dynamic_degree_is_that_of_the_fastest_pixels_and_of_the_shorter_side():
    clip = _moving([0] * 5, size=96)
    clip[:, 30:60, 30:60] = _moving(2 * np.arange(5), size=96)[:, 30:60, 30:60]
    wide = clip[:, 16:80]  # 64 x 96; the window that moves is 15 % of it
    assert _of("dynamic_degree", wide)[0] == pytest.approx(2 * 256 / 64, rel=0.15)


def test_uniform_motion_is_smooth_and_a_jerk_of_the_same_way_is_not():
    uniform, shaken = 2.0 * np.arange(7), 2.0 * np.arange(7) + 1.5 * (-1.0) ** np.arange(7)
    smooth, rough = _of("motion_smoothness", _moving(uniform), _moving(shaken))
    assert smooth > 0.995 and rough < 0.95


def test_smoothness_of_a_blink_is_how_far_it_is_from_the_frames_around_it():
    clip = np.full((3, 16, 16, 3), 100, np.uint8)
    clip[1] = 151
    assert _of("motion_smoothness", clip)[0] == pytest.approx(1 - 51 / 255)


def test_noise_is_not_smooth():
    assert _of("motion_smoothness", _noise())[0] < 0.8


def test_clips_are_scored_one_by_one():
    clips = [_moving(speed * np.arange(4)) for speed in (0, 1, 3)]
    for name in MOTION:
        together = _of(name, *clips)
        assert together.shape == (3,) and together.tolist() == [float(_of(name, clip)[0]) for clip in clips]


def test_too_few_frames_have_no_motion():
    assert np.isnan([_of(name, _noise(1)) for name in MOTION]).all()
    assert np.isnan(_of("motion_smoothness", _noise(2))).all() and np.isfinite(_of("flicker", _noise(2))).all()


def test_without_opencv_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("dynamic_degree", "motion_smoothness"):
        with pytest.raises(
            MetricUnavailableError, match=rf'^{name} needs the package .cv2.: pip install "w2sd-video\[me'
        ):
            load_metric(name)
