import os
import struct
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from w2sd_video.rendering import sheets, video


def moving_square(frames=9, height=32, width=40):
    clip = np.full((frames, height, width, 3), (10, 10, 14), np.uint8)
    for index in range(frames):
        clip[index, 8:20, 3 + 2 * index : 15 + 2 * index] = (235, 50, 50)
    return clip


def test_an_mp4_holds_the_frames_it_was_given(tmp_path):
    clip = sheets.enlarge(moving_square())
    video.write_video(tmp_path / "out.mp4", clip, fps=8)
    read = video.read_video(tmp_path / "out.mp4")
    assert read.shape == clip.shape and read.dtype == np.uint8
    assert np.abs(read.astype(int) - clip).mean() < 2
    assert np.abs(np.diff(read.astype(int), axis=0)).max() > 150, "the square moves"


def test_an_mp4_plays_everywhere(tmp_path):
    video.write_video(tmp_path / "out.mp4", moving_square(height=33, width=41), fps=12.5)
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "out.mp4"], capture_output=True, text=True
    ).stderr
    assert "h264" in said and "yuv420p(" in said and "42x34" in said and "12.50 fps" in said
    assert "bt709" in said
    assert boxes(tmp_path / "out.mp4").index("moov") < boxes(tmp_path / "out.mp4").index("mdat"), "faststart"


def boxes(path):
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


def test_the_same_frames_give_the_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video.write_video(tmp_path / name, moving_square())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_gif_holds_the_frames_and_their_rate(tmp_path):
    clip = moving_square()
    video.write_video(tmp_path / "out.gif", clip, fps=10)
    with Image.open(tmp_path / "out.gif") as gif:
        assert gif.n_frames == len(clip) and gif.info["duration"] == 100 and gif.info["loop"] == 0
        for index, frame in enumerate(clip):
            gif.seek(index)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() <= 8


def test_a_folder_holds_the_frames_exactly_and_replaces_an_earlier_one(tmp_path):
    video.write_video(tmp_path / "out", moving_square(frames=12))
    clip = moving_square(frames=5)[::-1]
    video.check_output(tmp_path / "out")
    video.write_video(tmp_path / "out", clip)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == [f"frame-{index:04d}.png" for index in range(5)]
    read = np.stack([np.asarray(Image.open(tmp_path / "out" / name)) for name in names])
    assert np.array_equal(read, clip)
    assert os.listdir(tmp_path) == ["out"], "nothing else is left"


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out"])
def test_after_an_error_nothing_has_changed(tmp_path, name, monkeypatch):
    video.write_video(tmp_path / name, moving_square())
    before = snapshot(tmp_path)
    with pytest.raises((ValueError, TypeError, OSError)):
        video.write_video(tmp_path / name, np.zeros((3, 8, 8, 7), np.uint8))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        video.write_video(tmp_path / name, moving_square(frames=3))
    assert snapshot(tmp_path) == before


def snapshot(folder):
    return {str(path): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_enlarging_repeats_pixels():
    clip = moving_square(frames=2, height=30, width=50)
    large = sheets.enlarge(clip, minimum=100)
    assert large.shape == (2, 120, 200, 3)
    assert np.array_equal(large[:, 1::4, 2::4], clip)
    assert sheets.enlarge(large, minimum=100).shape == large.shape


def test_frames_are_rounded_and_clipped_and_must_be_finite():
    assert video.to_uint8(np.array([-0.1, 0.0, 0.5, 0.999, 1.2])).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="diverged"):
        video.to_uint8(np.array([0.5, np.nan]))


def test_side_by_side_keeps_the_clips_and_labels_each():
    clips = [np.full((3, 64, 96, 3), shade, np.uint8) for shade in (40, 120, 200)]
    joined = sheets.side_by_side(clips, ["weak", "strong", "W2SD"], gap=8)
    assert joined.shape == (3, 64 + 20, 3 * 96 + 2 * 8, 3)
    for index, clip in enumerate(clips):
        left = index * (96 + 8)
        assert np.array_equal(joined[:, 20:, left : left + 96], clip)
        title = joined[:, :20, left : left + 96]
        assert title.max() > 150, "a label is written above it"
        assert np.array_equal(title[0], title[2])


def test_a_caption_stands_below_in_as_many_lines_as_it_needs():
    clips = [np.full((2, 64, 96, 3), 40, np.uint8)] * 2
    plain = sheets.side_by_side(clips, ["a", "b"])
    heights = []
    for caption in ("short", "a caption that is much too long for a single line " * 4):
        captioned = sheets.side_by_side(clips, ["a", "b"], caption=caption)
        assert np.array_equal(captioned[:, : plain.shape[1]], plain)
        assert captioned[:, plain.shape[1] :].max() > 150
        assert captioned[:, :, -4:].max() < 60, "no line runs out of the picture"
        heights.append(captioned.shape[1])
    assert heights[1] > heights[0] + 40
    for (left, top, width, height), clip in zip(sheets.panel_boxes(2, 64, 96), clips, strict=True):
        assert np.array_equal(plain[:, top : top + height, left : left + width], clip)


def test_a_contact_sheet_shows_frames_at_one_distance():
    clip = np.stack([np.full((32, 32, 3), index, np.uint8) for index in range(50, 59)])
    sheet = sheets.contact_sheet([clip, clip], ["a", "b"], columns=3, side=64, gap=4)
    assert sheet.shape == (2 * 64 + 4, 72 + 3 * (4 + 64), 3)
    assert [sheet[10, 72 + 4 + 10 + 68 * column, 0] for column in range(3)] == [50, 54, 58]


def test_reading_what_is_no_video(tmp_path):
    with pytest.raises(video.VideoError, match=r"none\.mp4: no such video file"):
        video.read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("this is not a video")
    video.write_video(tmp_path / "whole.mp4", moving_square())
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:900])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "cut.mp4", "empty.mp4"):
        with pytest.raises(video.VideoError, match=f"{name}: not a video that can be decoded"):
            video.read_video(tmp_path / name)


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(frame).save(tmp_path / "a.png")
    assert np.array_equal(video.read_picture(tmp_path / "a.png"), frame[None])
    Image.fromarray(frame[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(video.read_picture(tmp_path / "grey.png"), frame[None, ..., :1].repeat(3, axis=-1))
    (tmp_path / "b.png").write_bytes(b"nothing")
    for name, said in (("b.png", "not a picture that can be decoded"), ("none.png", "no such picture file")):
        with pytest.raises(video.VideoError, match=said):
            video.read_picture(tmp_path / name)


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    (tmp_path / "dir.mp4").mkdir()
    bad = {
        "out.avi": r"unknown ending '\.avi'; use \.mp4",
        "none/out.mp4": "mkdir -p",
        "file/out.mp4": "cannot write into .*Not a directory$",
        "file": "is a file",
        "full": r"holds other files \(thesis\.txt\)",
        "dir.mp4": "is a folder",
    }
    before = snapshot(tmp_path)
    for name, message in bad.items():
        with pytest.raises(video.VideoError, match=message):
            video.check_output(tmp_path / name)
    for name in ("out.mp4", "out.GIF", "out.png", "out"):
        video.check_output(tmp_path / name)
    assert snapshot(tmp_path) == before, "checking leaves nothing behind"


ABOUT = {"prompt": 'a "red" circle; = # \\ of two\nlines, größer, 雪', "seed": 3, "config": {"steps": [1, None, 2.5]}}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip.png", "still.webp"])
def test_a_file_says_how_it_was_made(name, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), np.uint8)
    if name.startswith("still") or name.endswith(".png"):
        video.write_picture(tmp_path / name, frames[0], ABOUT)
    else:
        video.write_video(tmp_path / name, frames, 8, ABOUT)
    assert video.about_of(tmp_path / name) == ABOUT


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.webp"])
def test_a_file_of_one_clip_is_the_same_each_time(name, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), np.uint8)
    written = []
    for _ in range(2):
        video.write_video(tmp_path / name, frames, 8, ABOUT)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_a_file_that_says_nothing_has_nothing_to_say(tmp_path):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    for name in ("clip.mp4", "clip.gif", "clip.webp"):
        video.write_video(tmp_path / name, frames)
        assert video.about_of(tmp_path / name) == {}
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(video.VideoError, match="cannot be read"):
        video.about_of(tmp_path / "broken.mp4")


@pytest.mark.parametrize("ending", [".webm", ".webp"])
def test_a_clip_of_the_newer_kinds_is_near_to_its_frames(ending, tmp_path):
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (5, 256, 256, 3)).copy()
    frames[:, :, :, 1] = np.arange(5)[:, None, None] * 50
    path = tmp_path / f"clip{ending}"
    video.write_video(path, frames, 10)
    if ending == ".webm":
        read = video.read_video(path)
    else:
        with Image.open(path) as animation:
            assert animation.n_frames == 5 and animation.info["loop"] == 0
            read = np.stack([seen(animation, number) for number in range(5)])
    assert read.shape == frames.shape and np.abs(read.astype(int) - frames).mean() < 6


@pytest.mark.parametrize(("fps", "hundredths"), [(8, 12.5), (24, 100 / 24), (30, 100 / 30), (5, 20), (50, 2)])
def test_a_gif_plays_at_its_rate_on_the_average(fps, hundredths, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (48, 16, 16, 3), np.uint8)
    video.write_video(tmp_path / "clip.gif", frames, fps)
    durations = durations_of(tmp_path / "clip.gif")
    assert len(durations) == 48 and min(durations) >= 20
    assert sum(durations) == pytest.approx(48 * 10 * hundredths, abs=5)
    assert max(durations) - min(durations) <= 10


def test_a_gif_that_cannot_be_as_fast_says_so(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    with pytest.warns(UserWarning, match="at most 50 frames a second, not 60"):
        video.write_video(tmp_path / "clip.gif", frames, 60)
    assert durations_of(tmp_path / "clip.gif") == [20] * 4


def durations_of(path):
    with Image.open(path) as animation:
        return [(animation.seek(number), animation.info["duration"])[1] for number in range(animation.n_frames)]


def seen(animation, number):
    animation.seek(number)
    return np.asarray(animation.convert("RGB"))
