"""The world of scenes: its prompts, its pixels, its motion, and what training does not see."""

import time

import numpy as np
import pytest
import torch

from w2sd_video.miniatures import scenes
from w2sd_video.miniatures.scenes import Scene
from w2sd_video.miniatures.world import Attributes

RED_ABOVE_BLUE = "a red circle moving left above a small blue square moving up"


def test_a_prompt_binds_its_words_to_things():
    scene = scenes.parse(RED_ABOVE_BLUE)
    assert scene.upper == Attributes("circle", "red", "left")
    assert scene.lower == Attributes("square", "blue", "up", "small")
    below = scenes.parse(RED_ABOVE_BLUE.replace("above", "below"))
    assert (below.upper, below.lower) == (scene.lower, scene.upper)
    assert scenes.parse("Moving left, a circle red. Above up a square, small, blue") == scene


def test_every_prompt_reads_back_to_what_it_was_written_from():
    for prompt in [*scenes.prompts(), *scenes.classes()]:
        assert scenes.parse(prompt).prompt == prompt
    shown = scenes.random_scenes(torch.arange(200))
    for i, prompt in enumerate(shown.prompts()):
        labels = scenes.parse(prompt)
        for half, thing in enumerate((labels.upper, labels.lower)):
            for k, (kind, words) in enumerate(scenes.KINDS.items()):
                word = getattr(thing, kind)
                assert word is None or words[shown.seen[i, half, k]] == word
                assert (word is None) == (not shown.named[i, half, k])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a pink circle moving left above a blue square moving up", "unknown word 'pink'.*red.*circle"),
        ("a red circle moving left", "names 0 relations.*above, below"),
        ("a red circle moving left above below a blue square moving up", "names 2 relations"),
        ("a red circle moving left above a square moving up", "names no colour of a thing.*yellow"),
        ("a red circle moving left above a blue square", "names no direction of a thing.*down"),
        ("a red blue circle moving left above a blue square moving up", "more than one colour of a thing: red, blue"),
        ("something above a blue square moving up", "stands for the whole second thing"),
        ("a red circle moving left above something red", "stands for the whole second thing"),
        ("", "names 0 relations"),
    ],
)
def test_a_prompt_the_world_cannot_show_is_refused_with_the_reason(prompt, message):
    with pytest.raises(ValueError, match=message):
        scenes.parse(prompt)


def test_a_seed_belongs_to_a_sample_whatever_is_in_its_batch():
    prompts = scenes.prompts()[:5]
    batch = scenes.clips(prompts, [4, 5, 6, 7, 2**62], frames=17)
    assert batch.shape == (5, 17, 64, 64, 3) and batch.dtype == np.uint8
    for i, seed in enumerate([4, 5, 6, 7, 2**62]):
        assert np.array_equal(batch[i], scenes.clip(prompts[i], seed, frames=17))
    assert not np.array_equal(batch[0], scenes.clip(prompts[0], 5, frames=17))
    many, few = scenes.random_scenes(torch.arange(1000)), scenes.random_scenes(torch.tensor([700, 3]))
    assert torch.equal(many.seen[[700, 3]], few.seen) and torch.equal(many.named[[700, 3]], few.named)


def test_chance_is_even_and_seeds_that_follow_each_other_are_strangers():
    numbers = scenes._uniform(torch.arange(20_000))
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert (numbers.mean(0) - 0.5).abs().max() < 0.01 and (numbers.var(0) - 1 / 12).abs().max() < 0.003
    between_columns = torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max()
    between_seeds = torch.stack([torch.corrcoef(numbers[:, k].unfold(0, 2, 1).T)[0, 1] for k in range(3)]).abs().max()
    assert between_columns < 0.04 and between_seeds < 0.04


def test_some_of_the_frames_are_drawn_as_all_are():
    shown = scenes.random_scenes(torch.arange(3))
    some = scenes.draw(shown, only=torch.tensor([0, 9]))
    assert torch.equal(some, scenes.draw(shown)[:, [0, 9]])


def test_pairs_held_out_are_in_no_training_scene_and_each_colour_and_shape_is():
    shown = scenes.random_scenes(torch.arange(50_000))
    colours = tuple(scenes.COLOURS)
    looks = {(colours[c], scenes.SHAPES[s]) for s, c in shown.seen[..., :2].flatten(0, 1).tolist()}
    assert not looks & set(scenes.HELD_OUT)
    assert looks | set(scenes.HELD_OUT) == {(c, s) for c in colours for s in scenes.SHAPES}
    everything = scenes.random_scenes(torch.arange(50_000), held_out=True)
    assert {(colours[c], scenes.SHAPES[s]) for s, c in everything.seen[..., :2].flatten(0, 1).tolist()} >= set(
        scenes.HELD_OUT
    )
    things = shown.seen
    assert (things[:, 0, :2] != things[:, 1, :2]).all(), "two things differ in shape and colour"
    held_out = [scenes.parse(prompt).is_held_out for prompt in scenes.prompts()]
    assert held_out == [i % 4 == 3 for i in range(len(held_out))]


def test_half_of_sizes_and_speeds_are_named_and_all_else_is():
    named = scenes.random_scenes(torch.arange(20_000)).named.float().mean((0, 1))
    assert named[:3].tolist() == [1, 1, 1] and (named[3:] - 0.5).abs().max() < 0.02


def test_pixels_move_as_the_motion_says_within_their_half():
    prompts = scenes.prompts()[:64]
    shown = scenes.scenes_of(prompts, range(64))
    middle, velocity, radius = scenes.placed(shown)
    times = torch.arange(16) - 7.5
    true = (middle[:, None] + times[:, None, None] * velocity[:, None]).numpy()
    seen = scenes.centres(scenes.clips(prompts, range(64)))
    assert np.abs((seen - seen.mean(1, keepdims=True)) - (true - true.mean(1, keepdims=True))).max() < 0.7
    top = true[..., 1] - radius.numpy()[:, None]
    assert (top[..., 0] > -1).all() and (true[..., 0, 1] + radius.numpy()[:, None, 0] < 33).all()
    assert (top[..., 1] > 31).all() and (true[..., 1, 1] + radius.numpy()[:, None, 1] < 65).all()
    for i, prompt in enumerate(prompts):
        scene = scenes.parse(prompt)
        for half, thing in enumerate((scene.upper, scene.lower)):
            travel = seen[i, -1, half] - seen[i, 0, half]
            assert travel @ np.array(scenes.DIRECTIONS[thing.direction]) > 3
    assert scenes.motion_errors(scenes.clips(prompts, range(64)), prompts).max() < 0.7


def test_motion_that_is_wrong_is_far_from_what_the_prompt_asks_for():
    clip = scenes.clips([RED_ABOVE_BLUE], [3])
    turned = RED_ABOVE_BLUE.replace("left", "right")
    assert scenes.motion_errors(clip, [turned])[0] > 1 > scenes.motion_errors(clip, [RED_ABOVE_BLUE])[0]


def test_things_are_of_their_colour_size_and_speed():
    for colour, rgb in scenes.COLOURS.items():
        other = "red" if colour != "red" else "blue"
        clip = scenes.clip(f"a {colour} square moving left above a {other} circle moving up", 5)
        x, y = scenes.centres(clip)[8, 0].round().astype(int)
        assert clip[8, y, x].tolist() == list(rgb)
        assert (clip == scenes.BACKGROUND).all(-1).mean() > 0.6
    words = [
        f"a {size} red circle moving left {speed} above something" for size in scenes.SIZES for speed in scenes.SPEEDS
    ]
    _, velocity, radius = scenes.placed(scenes.scenes_of(words, [1] * 4))
    assert radius[:, 0].tolist() == sorted(radius[:, 0].tolist()) and radius[2, 0] > radius[0, 0] + 1.9
    pace = velocity[:, 0].norm(dim=-1)
    assert pace[1] > 1.6 * pace[0] and pace[3] > 1.6 * pace[2]


def test_the_trail_lies_behind_a_thing_in_a_still_picture():
    for seed in range(6):
        picture = scenes.clip("a green square moving right quickly above a red circle moving up", seed, frames=1)[0]
        x, y = scenes.centres(picture)[0].round().astype(int)
        light = picture[y].astype(int).sum(-1) - sum(scenes.BACKGROUND)
        left, right = light[max(0, x - 14) : x].sum(), light[x + 1 : x + 15].sum()
        assert left > 1.15 * right


def test_hollow_things_are_told_from_filled_ones():
    prompts, seeds = scenes.prompts()[:96], range(96)
    assert scenes.are_hollow(scenes.clips(prompts, seeds, style="hollow")).mean() > 0.97
    assert scenes.are_hollow(scenes.clips(prompts, seeds)).mean() < 0.03


def test_what_a_prompt_leaves_open_is_another_thing():
    names = scenes.classes()
    assert len(set(names)) == 96 and all(name.endswith("above something") for name in names)
    shown = scenes.scenes_of(names * 5, range(480))
    assert (shown.seen[:, 0, :2] != shown.seen[:, 1, :2]).all()
    assert scenes.parse(names[5]) == Scene(scenes.parse(names[5]).first, None)


def test_everything_is_made_on_the_device_of_the_seeds():
    """No device but the CPU is here; "meta" refuses whatever is made elsewhere."""
    shown = scenes.random_scenes(torch.arange(4, device="meta"))
    assert shown.seen.is_meta and scenes.placed(shown)[0].is_meta
    assert scenes.draw(shown).shape == (4, 16, 3, 64, 64) and scenes.draw(shown).is_meta


def test_a_clip_takes_less_work_than_ten_thousand_a_second_leave_a_gpu():
    """An H100 moves 3 TB/s: 300 MB a clip at 10,000 a second. Counted is what every operation reads and writes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Bytes(TorchDispatchMode):
        moved = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [*args, *(out if isinstance(out, (tuple, list)) else [out])]
            if not getattr(func, "is_view", False):
                self.moved += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            return out

    shown = scenes.random_scenes(torch.arange(16))
    with Bytes() as counted:
        scenes.draw(shown)
    assert counted.moved / 16 < 150e6
    started = time.perf_counter()
    scenes.draw(shown)
    assert time.perf_counter() - started < 30, "slow even for a busy processor"
