"""The script of a configuration makes the very frames that the command makes."""

from dataclasses import replace

import numpy as np
import pytest

from w2sd_video.miniatures import world
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.rendering.script import script_of
from w2sd_video.rendering.sheets import enlarge
from w2sd_video.rendering.video import write_video
from w2sd_video.settings.command_line import parse

ARGV = {
    "cogvideox": ["--config", "miniature-cogvideox", "--strength", "0.5", "--reflection-steps", "[0, 0.5]"],
    "pixart": ["--config", "miniature-pixart", "--inversion", "current", "--base.guidance-scale", "2"],
    "dit-moe": ["--config", "miniature-dit-moe"],
    "lora": ["--config", "miniature-animatediff-lora"],
    "control": ["--config", "miniature-animatediff-control", "--inputs.conditioning_frames", "edges.mp4"],
}


@pytest.mark.parametrize("name", ARGV)
def test_a_script_makes_the_frames_of_its_configuration(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "control":
        write_video("edges.mp4", enlarge(world.edges(world.clips(["a red circle moving left"], [0])[0])))
    config = replace(parse([*ARGV[name], "--seed", "3", "--steps", "4"]).config)
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    (expected,), _ = sample_clips(pipe, config, config.prompts[:1], [3], read_inputs(config))
    script = script_of(pipe, config)
    written = {}
    for writer in ("write_video", "write_picture"):
        monkeypatch.setattr(
            f"w2sd_video.rendering.video.{writer}", lambda path, frames, **_: written.update({path: frames})
        )
    exec(compile(script, "script.py", "exec"), {})
    (frames,) = written.values()
    assert np.array_equal(np.asarray(frames).reshape(expected.shape), expected)
    assert "strength" not in script or name == "cogvideox", "defaults are left out"
