"""What happens to a command and not in its words: Ctrl-C, memory and disk that run out, a reader that goes away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import OF_A_USER, hears_ctrl_c

from w2sd_video.messages import NO_SPACE, OUT_OF_MEMORY, first_line, is_disk_full, is_out_of_memory
from w2sd_video.rendering.video import read_video, write_picture, write_video

RENDER = [sys.executable, "-m", "w2sd_video.render", "--config", "miniature-pixart"]


def lines_of(text):
    return [part.strip() for line in text.splitlines() for part in line.split("\r") if part.strip()]


def run_limited(folder, limit, script):
    """Run Python with a limit on one of its resources."""
    kind, most = limit
    setup = f"import resource\nresource.setrlimit(resource.{kind}, ({most}, resource.RLIM_INFINITY))\n"
    command = [sys.executable, "-c", setup + script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=OF_A_USER)


@pytest.mark.parametrize("waits_for", ["its first import", "its first step"])
def test_ctrl_c_is_one_line_and_leaves_nothing(waits_for, tmp_path):
    process = subprocess.Popen(
        [*RENDER, "--steps", "500", "-o", "x.png"], cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c
    )
    if waits_for == "its first import":
        time.sleep(0.5)
        said = b""
    else:
        said = process.stderr.read(60)
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = lines_of((said + process.stderr.read()).decode())
    assert process.wait(30) in (130, -signal.SIGINT)
    assert "interrupted" in said[-1] and not any("Traceback" in line for line in said)
    assert os.listdir(tmp_path) == []


def test_memory_that_runs_out_is_one_line_that_says_what_to_set(tmp_path):
    script = (
        "from w2sd_video.render import main\n"
        "main(['--config', 'miniature-cogvideox', '--call.max_sequence_length', '99999', '--steps', '1'])"
    )
    done = run_limited(tmp_path, ("RLIMIT_AS", 6 * 2**30), script)
    assert done.returncode == 1 and lines_of(done.stderr)[-1] == f"w2sd_video.render: {OUT_OF_MEMORY}"
    assert os.listdir(tmp_path) == []
    for setting in ("model.memory", "frames", "height", "batch", "dtype"):
        assert setting in OUT_OF_MEMORY


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk: ffmpeg is ended by it, and Python told."""
    script = (
        "import numpy as np\n"
        "from w2sd_video.rendering.video import write_picture, write_video\n"
        "frames = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), dtype=np.uint8)\n"
        "for name in ('x.mp4', 'x.gif', 'x', 'x.png'):\n"
        "    try:\n"
        "        write_picture(name, frames[0]) if name == 'x.png' else write_video(name, frames)\n"
        "    except OSError as error:\n"
        "        print(name, error)\n"
    )
    for name in ("x.mp4", "x.gif", "x.png"):
        (tmp_path / name).write_bytes(b"earlier")
    (tmp_path / "x").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run_limited(tmp_path, ("RLIMIT_FSIZE", 2000), script)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["x.mp4", "x.gif", "x", "x.png"], done
    assert done.stderr == "" and sorted(tmp_path.rglob("*")) == before
    assert all(path.read_bytes() == b"earlier" for path in before if path.is_file())


def test_a_full_disk_is_said_by_the_command_in_one_line(tmp_path):
    script = "from w2sd_video.render import main\nmain(['--config', 'miniature-pixart', '--steps', '2', '-o', 'x.png'])"
    done = run_limited(tmp_path, ("RLIMIT_FSIZE", 100), script)
    assert done.returncode == 1 and lines_of(done.stderr)[-1] == f"w2sd_video.render: {NO_SPACE}"
    assert os.listdir(tmp_path) == []


def test_what_a_library_wraps_is_still_known_for_what_it_is():
    for error in (OSError(28, "No space left on device"), RuntimeError("write failed: No space left on device")):
        assert is_disk_full(error) and first_line(error) == NO_SPACE
    for error in (
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"),
        np.exceptions.AxisError(1),
    ):
        assert is_out_of_memory(error) == (not isinstance(error, ValueError))
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise ValueError("could not decode") from cause
    except ValueError as wrapped:
        assert first_line(wrapped) == OUT_OF_MEMORY
    assert first_line(KeyError("x")) == "KeyError: 'x'" and first_line(ValueError()) == "ValueError"


@pytest.mark.thorough
def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    process = subprocess.Popen(
        [*RENDER, "--dry-run"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=OF_A_USER
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(60) == 1 and said == ""


def test_a_video_is_whole_with_frames_of_any_number_and_odd_sides(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 255, 257, 3), dtype=np.uint8)
    write_video(tmp_path / "x.mp4", frames, fps=12.5)
    assert read_video(tmp_path / "x.mp4").shape == (3, 256, 258, 3)
    write_picture(tmp_path / "x.png", frames[0])
    assert sorted(os.listdir(tmp_path)) == ["x.mp4", "x.png"]
    assert Path(tmp_path / "x.mp4").stat().st_size > 1000
