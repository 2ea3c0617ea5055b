"""The command line of calibrate: what it writes, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from w2sd_video import calibrate
from w2sd_video.render import main as render
from w2sd_video.rendering.video import write_picture, write_video
from w2sd_video.settings.command_line import parse
from w2sd_video.strength import StrengthSchedule

QUICK = ["--number-of-clips", "8", "--draws", "1"]


def test_a_miniature_is_calibrated_and_its_strengths_are_rendered(tmp_path, capsys):
    file = tmp_path / "strength.json"
    argv = ["--config", "miniature-cogvideox", *QUICK, "--levels", "3", "-o", str(file)]
    assert calibrate.main(argv) == 0
    printed, written = capsys.readouterr().out, file.read_text()
    assert "| step | log SNR |" in printed and "mean over the levels" in printed and "- Verdict: " in printed
    assert "Left out: 1 step(s) without signal" in printed
    told = json.loads(written)
    assert told["counts"] == {"clips": 8, "draws": 1, "seed": 0, "source": "world"}
    assert told["pair"]["weak"]["weights"] == "weak" and len(told["levels"]) == len(told["tilts"]) == 2
    assert StrengthSchedule.read(file).strength == tuple(told["strengths"] if told["tilt"]["low"] > 0 else [0, 0])
    assert -1 <= told["balanced"]["low"] <= told["balanced"]["value"] <= told["balanced"]["high"] <= 4
    assert calibrate.main([*argv, "--batch", "3", "--no-samples"]) == 0  # over the earlier one
    again = json.loads(file.read_text())
    assert again["tilt"] is None and "Tilt" not in capsys.readouterr().out
    assert StrengthSchedule.read(file).strength == tuple(
        min(one["strength"], 4) if one["low"] > 0 else 0 for one in again["levels"]
    )
    assert [one["gap"] for one in again["levels"]] == pytest.approx([one["gap"] for one in told["levels"]], rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strength.json"]

    file.write_text(json.dumps(told | {"strength": [0.0, 1.0]}))  # the last of three steps is reflected
    steps = ["--steps", "3", "--reflection-steps", "3", "--strength", str(file)]
    render(["a red circle moving left", "--config", "miniature-cogvideox", *steps, "-o", str(tmp_path / "clip.gif")])
    assert json.loads((tmp_path / "clip.gif.json").read_text())["nfe"]["W2SD"] == {"base": 6, "strong": 1, "weak": 1}


def test_a_strength_is_written_with_the_window_that_it_is_for(tmp_path, capsys):
    file = tmp_path / "strength.json"
    argv = ["--config", "miniature-pixart", *QUICK, "--levels", "4", "-o", str(file), "--window", "[0.5, 1]"]
    assert calibrate.main(argv) == 0
    told, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert told["reflection_steps"] == {"start": 0.5, "stop": 1.0, "unit": "steps"}
    assert told["strengths"][:2] == [0.0, 0.0] and "- Tilt in [0.5, 1]: " in printed
    assert StrengthSchedule.read(file).strength[:2] == (0.0, 0.0)
    overall = np.mean([tilt["value"] for tilt in told["tilts"][2:]])
    assert told["tilt"]["value"] == pytest.approx(overall) and len(told["tilts"]) == 4
    assert told["tilt_at_one"]["value"] != told["tilt"]["value"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "3"], "window 3: must be fractions"),
        (["--window", "[0.5, 1]", "--no-samples"], "leave one out"),
        (["--window", "[0.5, 0.1]"], "must be (start, stop)"),
        (["--window", "[0, 0.1]", "--levels", "2"], "window [0, 0.1]: none of 2 steps is in it"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        calibrate.main(["--config", "miniature-pixart", *QUICK, *words, "-o", str(tmp_path / "s.json")])
    assert said in capsys.readouterr().err


def fill(folder, count, frames=8, size=32, captions=True):
    folder.mkdir()
    for k in range(count):
        clip = np.random.default_rng(k).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
        if frames == 1:
            write_picture(folder / f"{k}.png", clip[0])
        else:
            write_video(folder / (f"{k}.mp4" if size > 32 else f"{k}"), clip)
        if captions:
            (folder / f"{k}.txt").write_text(f"a red {('circle', 'square')[k % 2]} moving left\n")
    return folder


@torch.no_grad()
def test_the_command_corrects_the_cosine_by_clips_of_the_same_captions(tmp_path, capsys):
    argv = ["--config", "miniature-pixart", *QUICK, "--levels", "2", "--no-samples", "-o", str(tmp_path / "s.json")]
    assert calibrate.main([*argv, "--ideal", "20"]) == 0
    assert "| effective clips | fit |" in capsys.readouterr().out
    told = json.loads((tmp_path / "s.json").read_text())
    for one, level in zip(told["cosines"], told["levels"], strict=True):
        assert abs(one["value"]) >= abs(level["cosine"]) and 1 <= one["effective"] <= 20


def test_a_folder_is_calibrated(tmp_path, capsys):
    clips = fill(tmp_path / "clips", 8)
    argv = ["--clips", str(clips), "--no-samples", "--draws", "1", "--levels", "2", "-o", str(tmp_path / "s.json")]
    assert calibrate.main(argv) == 0
    assert "8 clips, 1 draws" in capsys.readouterr().out


def test_captions_are_those_beside_the_clips_or_the_configuration_s(tmp_path):
    from w2sd_video.calibration.real_clips import clips_of_folder

    config = parse(["a blue square moving up", "--config", "miniature-animatediff"]).config
    told = clips_of_folder(fill(tmp_path / "told", 3), config)
    assert [clip.caption for clip in told] == [f"a red {shape} moving left" for shape in ("circle", "square", "circle")]
    assert told[0].read().shape == (8, 32, 32, 3)
    untold = clips_of_folder(fill(tmp_path / "untold", 3, frames=1, captions=False), config)
    assert {clip.caption for clip in untold} == {"a blue square moving up"}
    assert untold[0].read().shape == (1, 32, 32, 3)
    assert clips_of_folder(fill(tmp_path / "videos", 1, size=64), config)[0].read().shape == (8, 64, 64, 3)


def _corrupt(folder):
    (folder / "3.mp4").write_bytes(b"no video")
    (folder / "3").rename(folder.parent / "3")


def _without_a_frame(folder):
    write_picture(folder / "3" / "frame-0002.png", np.zeros((16, 16, 3), np.uint8))


def _without_a_caption(folder):
    (folder / "3.txt").unlink()


def _of_an_unknown_word(folder):
    (folder / "3.txt").write_text("a purple circle moving left")


BAD = {
    "none": (lambda path: path / "nothing", "no such folder"),
    "empty": (lambda path: fill(path / "clips", 0), "holds no clips"),
    "few": (lambda path: fill(path / "clips", 7), "7 found; at least 8 are needed"),
    "size": (lambda path: fill(path / "clips", 8, size=64), "8 frame(s) of 64 x 64 pixels, but the model is asked for"),
    "frames": (lambda path: fill(path / "clips", 8, frames=4), "4 frame(s) of 32 x 32 pixels, but the model is asked"),
    "corrupt": (lambda path: _changed(fill(path / "clips", 8), _corrupt), "3.mp4: not a video that can be decoded"),
    "frame": (lambda path: _changed(fill(path / "clips", 8), _without_a_frame), "frame-0002.png is of another size"),
    "caption": (lambda path: _changed(fill(path / "clips", 8), _without_a_caption), "there is no 3.txt"),
    "word": (lambda path: _changed(fill(path / "clips", 8), _of_an_unknown_word), "unknown word 'purple'"),
}


def _changed(folder, change):
    change(folder)
    return folder


def refused(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        calibrate.main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1
    return error


@pytest.mark.parametrize("name", BAD)
def test_bad_clips_are_one_line_before_a_model_is_loaded(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("w2sd_video.calibration.pair.load", lambda config: pytest.fail("a model was loaded"))
    make, said = BAD[name]
    error = refused(["--clips", str(make(tmp_path)), "-o", str(tmp_path / "s.json")], capsys)
    assert said in error and not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "nothing"], "unknown config 'nothing'"),
        (["--config", "cogvideox-5b-guidance"], "name a folder of videos or images with --clips"),
        (["--weak.weights", "null"], "strong and weak are the same setting"),
        (["--ideal", "9", "--clips", "."], "only the miniatures' world makes so many clips"),
        (["--ideal", "0"], "ideal 0: must be from 1 to 100000"),
        (["--draws", "0"], "draws 0: must be from 1 to 1000"),
        (["--number-of-clips", "4"], "4 found; at least 8 are needed"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_bad_input_is_one_line(argv, said, tmp_path, capsys):
    assert said in refused([*argv, "-o", str(tmp_path / "s.json")], capsys)


def test_a_pair_whose_gap_is_nothing_is_refused(tmp_path, capsys):
    same = ["--weak.weights", "null", "--weak.guidance_scale", "1.0", "--weak.prompt", "a red circle moving left"]
    argv = [
        "--clips",
        str(fill(tmp_path / "clips", 8)),
        "--draws",
        "1",
        "--levels",
        "1",
        "-o",
        str(tmp_path / "s.json"),
    ]
    for k in range(8):
        (tmp_path / "clips" / f"{k}.txt").write_text("a red circle moving left")
    with pytest.raises(SystemExit):
        calibrate.main([*argv, *same, "--draws", "1", "--levels", "1"])
    assert "the pair has no gap" in capsys.readouterr().err and not (tmp_path / "s.json").exists()


def test_a_file_that_is_no_calibration_is_left_alone(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text('{"log_snr": [1]}')
    assert "exists and is no calibration" in refused([*QUICK, "-o", str(file)], capsys)
    assert file.read_text() == '{"log_snr": [1]}'
    assert "there is no folder" in refused([*QUICK, "-o", str(tmp_path / "none" / "s.json")], capsys)
