"""Real processes that are killed, interrupted, or have no room: what is there in the end is what would have been.

The number of kills is small unless asked for: ``python -m pytest -m kills tests/rendering`` kills twenty times each.
"""

import functools
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from kill_jobs import command, contents, leftovers, run, run_and_kill
from processes import OF_A_USER, hears_ctrl_c, kill_workers_of

from w2sd_video.rendering.video import write_video

PROMPTS = ["a red circle moving left", "a small blue square moving up", "a green triangle moving up"]
CLIPS = ("--prompts", "prompts.txt", "--samples", "2", "--steps", "4")
PICTURES = ("--config", "miniature-pixart", *CLIPS)


@pytest.fixture(autouse=True)
def prompts_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))


@functools.cache
def undisturbed_run(options):
    """Return what a run that nothing disturbs leaves; it is made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = run(Path(folder, "undisturbed"), *options)
        assert code == 0, said
        return contents(Path(folder, "undisturbed"))


def check_the_same(options):
    code, said = run("killed", *options)
    assert code == 0, said
    killed, undisturbed = contents("killed"), undisturbed_run(options)
    assert killed.keys() == undisturbed.keys()
    assert [name for name in killed if killed[name] != undisturbed[name]] == []
    assert leftovers("killed") == []


@pytest.mark.parametrize(
    ("kills", "batch"),
    [(3, "4"), pytest.param(20, "1", marks=pytest.mark.kills), pytest.param(20, "4", marks=pytest.mark.kills)],
)
def test_a_job_that_is_killed_makes_the_same_files_in_the_end(kills, batch):
    options = (*CLIPS, "--batch", batch)
    seen = run_and_kill("killed", options, kills, seed=kills)
    assert {"latents", "unfinished"} <= set(seen)
    check_the_same(options)


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.kills)])
def test_a_job_that_is_interrupted_leaves_nothing_unfinished_and_goes_on(sent):
    process = subprocess.Popen(
        command("killed", *PICTURES), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=OF_A_USER,
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip
    while process.poll() is None and not list(Path("killed").glob("*.png")):
        time.sleep(0.005)
    process.send_signal(sent)
    _, said = process.communicate()
    if sent == signal.SIGINT:
        assert process.returncode == 130 and said.splitlines()[-1] == (
            "w2sd_video.render: interrupted; what was finished is kept"
        )
        assert [name for name in leftovers("killed") if ".part" in name] == []
    assert process.returncode != 0
    check_the_same(PICTURES)


def test_a_full_disk_ends_a_job_which_goes_on_when_there_is_room():
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    limited = subprocess.run(
        command("killed", *PICTURES), stderr=subprocess.PIPE, text=True, env=OF_A_USER, preexec_fn=small_files
    )
    assert limited.returncode == 1 and "no space is left to write to" in limited.stderr.splitlines()[-1]
    assert [name for name in leftovers("killed") if ".part" in name] == []
    check_the_same(PICTURES)


def test_two_jobs_do_not_work_in_one_folder():
    process = subprocess.Popen(command("killed", *PICTURES), stderr=subprocess.DEVNULL, env=OF_A_USER)
    while process.poll() is None and not list(Path("killed").glob("*.png")):
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    try:
        code, said = run("killed", *PICTURES)
        assert code == 2 and "another run is at work in it" in said
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    check_the_same(PICTURES)


def test_a_prompt_that_fails_always_is_listed_at_each_start_and_the_others_are_made():
    Path("prompts.jsonl").write_text(
        '{"prompt": "a red circle moving left"}\n'
        '{"prompt": "a red circle moving left", "inputs": {"conditioning_frames": "broken.mp4"}}\n'
    )
    Path("broken.mp4").write_bytes(b"no video")
    options = ("--config", "miniature-animatediff-control", "--prompts", "prompts.jsonl", "--steps", "2")
    options = (*options, "--inputs.conditioning_frames", "whole.mp4")
    write_edges(Path("whole.mp4"))
    for made, kept in ((1, 0), (0, 1)):
        code, said = run("out", *options)
        assert code == 1 and f"{made} made, {kept} kept, 1 failed" in said
        assert "failed   0001-1.mp4: broken.mp4: not a video that can be decoded" in said
    assert sorted(contents("out")) == ["0000-0.mp4", "0000-0.mp4.json", "failed/0001-1.mp4.json", "job.json"]


def write_edges(path):
    write_video(path, np.zeros((8, 256, 256, 3), np.uint8))


@pytest.mark.kills
def test_workers_that_are_killed_are_replaced_and_nothing_is_lost():
    pytest.importorskip("ray", reason="several workers need the extra ray")
    options = ("--prompts", "prompts.txt", "--samples", "20", "--steps", "10")
    process = subprocess.Popen(command("killed", *options, "--workers", "2"), env=OF_A_USER, start_new_session=True)
    assert kill_workers_of(process, 20, lambda: len(list(Path("killed").glob("*.mp4")))) == 20, "it ended too soon"
    assert process.wait() == 0
    check_the_same(options)
