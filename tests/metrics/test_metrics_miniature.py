"""Metrics of the miniatures' world, on its own exact clips, on wrong prompts and on clips with a known flaw."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from w2sd_video.metrics import load_metric
from w2sd_video.metrics.frechet import frechet_distance
from w2sd_video.miniatures import world
from w2sd_video.miniatures.world import Motion

PROMPTS = world.prompts(sizes_and_speeds=False)


def _of(name, clips, prompts):
    return load_metric(name).of(clips, prompts)


@pytest.fixture(scope="module")
def exact():
    return world.clips(PROMPTS, range(len(PROMPTS)))


def test_exact_clips_are_as_their_prompts_say_and_no_others(exact):
    assert _of("adherence", exact, PROMPTS).mean() > 0.97
    assert set(_of("adherence", exact, PROMPTS)) <= {0, 1}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"colour": "red"}, {"colour": "blue"}),
        ({"shape": "circle"}, {"shape": "square"}),
        ({"direction": "left"}, {"direction": "up"}),
    ],
)
def test_a_single_wrong_attribute_is_not_adherence_and_is_unlikely(wrong, right):
    rest = {"shape": "square", "colour": "blue", "direction": "up"}
    true, false = world.Attributes(**{**rest, **right}), world.Attributes(**{**rest, **wrong})
    clips = world.clips([true] * 4, range(4))
    assert _of("adherence", clips, [true.prompt] * 4).tolist() == [1] * 4
    assert _of("adherence", clips, [false.prompt] * 4).tolist() == [0] * 4
    assert (_of("likelihood", clips, [true.prompt] * 4) > _of("likelihood", clips, [false.prompt] * 4) + 3).all()


def test_the_likelihoods_of_all_short_prompts_of_a_clip_add_up_to_one(exact):
    one = np.repeat(exact[5:6], len(PROMPTS), 0)
    chances = np.exp(_of("likelihood", one, PROMPTS))
    assert chances.sum() == pytest.approx(1, abs=1e-5) and chances.argmax() == 5


def test_pictures_are_judged_as_clips_of_one_frame(exact):
    pictures = exact[:, 4:5]
    assert _of("adherence", pictures, PROMPTS).mean() > 0.9
    assert np.isfinite(_of("likelihood", pictures, PROMPTS)).all()
    assert np.isnan(_of("motion_error", pictures, PROMPTS)).all()


def test_comets_are_told_from_other_trails(exact):
    comets = world.clips(PROMPTS, range(len(PROMPTS)), trail=world.COMET)
    assert _of("comets", comets, PROMPTS).all() and not _of("comets", exact, PROMPTS).any()


def _drawn(prompt, positions):
    return world.draw(world.parse(prompt), Motion(np.asarray(positions, float), 5.0))[None]


def _uniform(prompt, speed):
    """Centres of a uniform motion, that of the prompt; whole pixels for a whole speed."""
    return np.array([16.0, 16.0]) + (np.arange(8) - 4)[:, None] * speed * np.array(world.DIRECTIONS[prompt.split()[4]])


def test_motion_of_exact_clips_has_hardly_an_error(exact):
    errors = _of("motion_error", exact, PROMPTS)
    assert errors.shape == (len(PROMPTS),) and errors.max() < 0.35


@pytest.mark.parametrize("amplitude", [1, 2])
@pytest.mark.parametrize(("direction", "across"), [("right", (0, 1)), ("down", (1, 0))])
def test_motion_error_of_a_wobble_is_its_amplitude(direction, across, amplitude):
    prompt = f"a yellow circle moving {direction}"
    wobble = amplitude * np.array([1, -1, -1, 1, 1, -1, -1, 1])  # without mean and slope, so no straight line is nearer
    positions = _uniform(prompt, 1) + wobble[:, None] * np.array(across)
    assert _of("motion_error", _drawn(prompt, positions), [prompt])[0] == pytest.approx(amplitude, rel=0.05)


@pytest.mark.parametrize(
    ("prompt", "speed", "nearest"),
    [
        ("a yellow circle moving right", 1, 1),
        ("a yellow circle moving right", 0, 0.6),
        ("a yellow circle moving right", 3, 2.1),
        ("a yellow circle moving right", -1, 0.6),
        ("a yellow circle moving right slowly", 2, 0.9),
        ("a yellow circle moving right quickly", 1, 1.7),
    ],
)
def test_motion_error_of_a_wrong_speed_is_to_the_nearest_that_the_prompt_allows(prompt, speed, nearest):
    expected = abs(speed - nearest) * np.sqrt((8**2 - 1) / 12)  # the standard deviation of eight frames' times
    found = _of("motion_error", _drawn(prompt, _uniform(prompt, speed)), [prompt])[0]
    assert found == pytest.approx(expected, rel=0.05, abs=0.15)


def test_frechet_distance_is_small_to_other_real_clips_and_large_to_one_sided_or_broken_ones():
    metric = load_metric("frechet_distance")
    real, others = (metric.features(world.clips(PROMPTS * 4, range(at, at + 192))) for at in (0, 200))
    one_sided = metric.features(world.clips([prompt for prompt in PROMPTS if "red" in prompt] * 16, range(400, 592)))
    negatives = metric.features(255 - world.clips(PROMPTS * 4, range(600, 792)))
    same = metric.between(others, real)
    assert not metric.higher_is_better and metric.needs_real
    assert 0 < same < metric.between(one_sided, real) / 2
    assert same < metric.between(negatives, real) / 2


@pytest.mark.parametrize(("n", "m"), [(40, 50), (5, 40), (6, 4)])
def test_frechet_distance_is_the_formula_with_a_root_of_matrices(n, m):
    random = np.random.default_rng(2)
    mix = random.normal(size=(12, 12))
    a, b = random.normal(size=(n, 12)) @ mix, random.normal(size=(m, 12)) + 0.5
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = apart + np.trace(c) + np.trace(d) - 2 * np.trace(sqrtm(sqrtm(c) @ d @ sqrtm(c))).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
