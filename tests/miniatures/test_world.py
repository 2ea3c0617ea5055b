"""The procedural world: its prompts, its pixels and its motion."""

import numpy as np
import pytest

from w2sd_video.miniatures import world
from w2sd_video.miniatures.world import Attributes


def _centroids(pixels: np.ndarray) -> np.ndarray:
    """The x, y of the brightest pixels of each frame."""
    light = pixels.astype(float).max(-1)
    y, x = np.mgrid[: world.SIZE, : world.SIZE]
    bright = light > 0.8 * light.max()
    return np.array([(x[b].mean(), y[b].mean()) for b in bright])


def test_there_are_432_distinct_prompts_and_48_short_ones():
    assert len(set(world.prompts())) == 432
    assert len(set(world.prompts(sizes_and_speeds=False))) == 48


def test_every_prompt_reads_back_to_the_attributes_it_was_written_from():
    for attributes in world.all_attributes():
        assert world.parse(attributes.prompt) == attributes


def test_word_order_case_and_punctuation_do_not_matter():
    assert world.parse("Moving quickly left, a red small circle.") == Attributes(
        "circle", "red", "left", "small", "quickly"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a purple circle moving left", "unknown word 'purple'.*red.*circle"),
        ("a red moving left", "names no shape.*triangle"),
        ("a circle moving left", "names no colour.*yellow"),
        ("a red circle moving", "names no direction.*down"),
        ("", "names no shape"),
        ("a red blue circle moving left", "more than one colour: red, blue|more than one colour: blue, red"),
        ("a small large red circle moving left", "more than one size"),
    ],
)
def test_a_prompt_the_world_cannot_show_is_refused_with_the_reason(prompt, message):
    with pytest.raises(ValueError, match=message):
        world.parse(prompt)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    prompt = "a red circle moving left"
    assert np.array_equal(world.clip(prompt, 7), world.clip(prompt, 7))
    assert not np.array_equal(world.clip(prompt, 7), world.clip(prompt, 8))


def test_a_batch_holds_the_same_clips_as_one_at_a_time():
    prompts = world.prompts()[:3]
    batch = world.clips(prompts, [4, 5, 6], frames=9)
    assert batch.shape == (3, 9, 32, 32, 3) and batch.dtype == np.uint8
    assert np.array_equal(batch[1], world.clip(prompts[1], 5, frames=9))


@pytest.mark.parametrize("direction", world.DIRECTIONS)
@pytest.mark.parametrize("shape", world.SHAPES)
def test_pixels_move_where_the_prompt_says_and_where_the_positions_say(shape, direction):
    for seed in range(5):
        what = Attributes(shape, "yellow", direction)
        moving = world.motion(what, seed)
        seen = _centroids(world.clip(what, seed))
        travel = seen[-1] - seen[0]
        assert travel @ np.array(world.DIRECTIONS[direction]) > 3
        assert np.abs(travel - (moving.positions[-1] - moving.positions[0])).max() < 0.6
        assert np.abs(seen - seen.mean(0) - (moving.positions - moving.positions.mean(0))).max() < 0.6


def test_the_sprite_is_of_its_colour_and_the_rest_is_nearly_black():
    for colour, rgb in world.COLOURS.items():
        first = world.clip(Attributes("square", colour, "up"), 3)[0]
        x, y = world.motion(Attributes("square", colour, "up"), 3).positions[0].round().astype(int)
        assert first[y, x].tolist() == list(rgb)
        assert (first == world.BACKGROUND).all(-1).mean() > 0.5


def test_the_trail_lies_behind_the_sprite_in_a_still_frame():
    what = Attributes("circle", "green", "right")
    ghost = world.clip(what, 1).astype(int) - world.clip(what, 1, trail=())
    x, _ = world.motion(what, 1).positions[0]
    columns = ghost[0].sum((0, 2))
    assert columns[: int(x)].sum() > 0
    assert columns[int(x) + 1 :].sum() == 0


def test_sprites_stay_inside_the_frame():
    for seed, attributes in enumerate(world.all_attributes()):
        moving = world.motion(attributes, seed, frames=9)
        assert (moving.positions - moving.radius > -1.5).all()
        assert (moving.positions + moving.radius < world.SIZE + 0.5).all()


def test_outlines_are_thin_rings_around_the_sprite_and_centres_are_where_it_is():
    prompts = ["a red circle moving left", "a blue square moving up"]
    clips = world.clips(prompts, [1, 2])
    outlines = world.edges(clips)
    assert outlines.shape == clips.shape and set(np.unique(outlines)) == {0, 255}
    ring, sprite = outlines[..., 0] > 0, world.bright(clips)
    assert (sprite | ~ring).all(), "on the sprite"
    assert (0.2 < ring.sum((2, 3)) / sprite.sum((2, 3))).all() and (ring.sum((2, 3)) < 0.6 * sprite.sum((2, 3))).all()
    true = np.stack([world.motion(prompt, seed).positions for prompt, seed in zip(prompts, [1, 2], strict=True)])
    assert np.abs(world.centres(clips) - true).max() < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_size_and_speed_words_mean_what_they_say(seed):
    def moving(words: str) -> world.Motion:
        return world.motion(words, seed)

    small, large = moving("a small red circle moving up"), moving("a large red circle moving up")
    slow, quick = moving("a red circle moving up slowly"), moving("a red circle moving up quickly")
    assert small.radius < large.radius - 0.5
    assert np.ptp(quick.positions[:, 1]) > 1.5 * np.ptp(slow.positions[:, 1])
