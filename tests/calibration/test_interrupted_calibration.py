"""A calibration that is interrupted, damaged, shared out or killed finds what it would have found."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from w2sd_video import calibrate
from w2sd_video.calibration import pair

QUICK = ["--config", "miniature-pixart", "--number-of-clips", "8", "--draws", "1", "--levels", "2", "--batch", "4"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    file = tmp_path_factory.mktemp("undisturbed") / "s.json"
    assert calibrate.main([*QUICK, "-o", str(file)]) == 0
    return file.read_bytes()


@pytest.fixture
def compared(monkeypatch):
    """The first clip of each batch that is compared, as they come; the run ends at one of `stops`."""
    batches, stops, once = [], [], pair._compare_batch

    def compare(pipe, config, clips, start, *rest):
        if len(batches) in stops:
            stops.remove(len(batches))
            raise KeyboardInterrupt
        batches.append(start)
        return once(pipe, config, clips, start, *rest)

    monkeypatch.setattr(pair, "_compare_batch", compare)
    return batches, stops


def interrupted(argv):
    with pytest.raises(SystemExit) as stopped:
        calibrate.main(argv)
    return stopped.value.code


def test_it_goes_on_where_it_was_interrupted_and_leaves_nothing_beside(undisturbed, compared, tmp_path):
    batches, stops = compared
    stops += [3]
    argv = [*QUICK, "-o", str(tmp_path / "s.json")]
    assert interrupted(argv) == 130 and not (tmp_path / "s.json").exists()
    parts = tmp_path / "s.json.parts"
    assert {file.name for file in parts.glob("*.npz")} == {"real-0000.npz", "real-0001.npz", "base-0000.npz"}
    (parts / "real-0000.npz").write_bytes(b"")
    (parts / "real-0001.npz").write_bytes((parts / "real-0001.npz").read_bytes()[:300])
    (parts / ".base-0001.npz.part-1a2b3c4d").touch()
    assert calibrate.main(argv) == 0
    assert batches == [0, 4, 0, 0, 4, 4, 0, 4], "but for one batch all are compared, two once more"
    assert (tmp_path / "s.json").read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_parts_of_other_settings_are_refused(compared, tmp_path, capsys):
    _, stops = compared
    stops += [1]
    argv = [*QUICK, "-o", str(tmp_path / "s.json")]
    assert interrupted(argv) == 130
    for changes, said in ((["--seed", "1"], "clips."), (["--draws", "2"], "numbers.draws 1, now 2")):
        assert interrupted([*argv, *changes]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "s.json.parts: its files were made otherwise" in line and said in line


def test_shards_find_the_same(undisturbed, compared, tmp_path, capsys):
    batches, _ = compared
    argv = [*QUICK, "-o", str(tmp_path / "s.json")]
    for shard in ("0/2", "1/2"):
        assert calibrate.main([*argv, "--shard", shard]) == 0
        assert "nothing of this shard" in capsys.readouterr().out
    assert len(batches) == 6 and calibrate.main(argv) == 0 and len(batches) == 6
    assert (tmp_path / "s.json").read_bytes() == undisturbed


def test_a_dry_run_counts_and_writes_nothing(tmp_path, capsys):
    assert calibrate.main([*QUICK, "-o", str(tmp_path / "s.json"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "clips    8 real, 16 sampled; 2 levels, 1 draw(s)" in said and "seconds  about" in said
    # Unguided: two predictions a clip and level, of real clips and of both kinds of samples; 2 and 4 NFE a sample.
    assert "NFE      comparing: at most 96; sampling: at most 48" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--compare"], ["--reflection-steps", "2"], ["--autoguidance=1"]])
def test_options_that_it_does_not_follow_are_refused(words, tmp_path, capsys):
    assert interrupted([*QUICK, *words, "-o", str(tmp_path / "s.json")]) == 2
    assert words[0].split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=needs_ray)], ids=["in one process", "on a pool"])
@pytest.mark.kills
def test_it_makes_the_same_file_however_often_it_is_killed(workers, undisturbed, tmp_path):
    file, chosen = tmp_path / "s.json", random.Random(7)
    command = [sys.executable, "-m", "w2sd_video.calibrate", *QUICK, "-o", str(file), "--workers", workers]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(20):
        there = len(list(Path(f"{file}.parts").glob("*.npz")))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, **quiet)
        more = there + chosen.randint(0, 1)  # at least one in two goes on
        while process.poll() is None and len(list(Path(f"{file}.parts").glob("*.npz"))) < more:
            time.sleep(0.002)
        time.sleep(chosen.uniform(0, 0.2))
        if process.poll() is not None:  # it was done before it could be killed: begin anew
            assert file.read_bytes() == undisturbed
            file.unlink()
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert file.read_bytes() == undisturbed and [path.name for path in tmp_path.iterdir()] == ["s.json"]
