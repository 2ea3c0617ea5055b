"""A configuration as arguments of `reflection`, for scripts."""

import numpy as np
import pytest
import torch

from w2sd_video import Branch, load_settings, reflection
from w2sd_video.messages import ConfigError
from w2sd_video.miniatures import CALL, load_pipeline, load_weak
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse

CALLED = """height: 32
width: 32
frames: 1
call: {max_sequence_length: 12, clean_caption: false, use_resolution_binning: false}
"""
SETTINGS = (
    """
model: {pretrained: miniature:pixart, weights: {weak: miniature:pixart/transformer_weak}}
base: {guidance_scale: 3.0, windows: {guidance_scale: [0.5, 1.0]}}
strong: {guidance_scale: 1.0}
weak: {guidance_scale: 1.0, weights: weak}
steps: 6
reflection_steps: [0.25, 0.75]
inversion: current
reading: sample
reuse: 2
strength: 0.7
solver: DPMSolverMultistepScheduler
grid: 1.5
"""
    + CALLED
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS)
    return path


def test_a_script_samples_what_render_samples_with_the_same_evaluations(file):
    pipe = load_pipeline("pixart")
    weak = load_weak(pipe)
    config = parse(["a red circle moving left", "--config", str(file)]).config
    from w2sd_video.backends import register

    register(pipe, "weak", weak)
    (expected,), nfe = sample_clips(pipe, config, ["a red circle moving left"], [3])
    call = CALL["pixart"] | {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "np"}
    generator = torch.Generator("cpu").manual_seed(3)
    own = pipe.scheduler
    with reflection(pipe, **load_settings(file, {"weak": weak})) as run:
        image = pipe("a red circle moving left", **call | {"generator": generator}).images[0]
    assert pipe.scheduler is own and run.nfe == nfe
    assert np.array_equal((image * 255).round().astype(np.uint8), expected[0])
    plain = pipe("a red circle moving left", **call | {"generator": torch.Generator("cpu").manual_seed(3)}).images[0]
    assert np.abs(plain - image).max() > 0.05


def test_every_setting_is_there_and_what_is_not_used_is_left_out(file):
    settings = load_settings(file)
    assert settings["reflection_steps"] == (0.25, 0.75) and settings["solver"] == "DPMSolverMultistepScheduler"
    assert (settings["reading"], settings["reuse"], settings["strength"], settings["grid"]) == ("sample", 2, 0.7, 1.5)
    assert settings["weak"] == Branch(guidance_scale=1.0, weights="weak")
    file.write_text(SETTINGS.replace("[0.25, 0.75]", "0"))
    settings = load_settings(file)
    assert settings["weak"] == Branch() and settings["base"].guidance_scale == 3.0


def test_packaged_configurations_can_be_named():
    assert load_settings("miniature-dit-moe")["weak"].experts == "bottom"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: lots", "steps lots: must be a whole number"),
        ("stepz: 3", "unknown key 'stepz'; did you mean 'steps'?"),
        (SETTINGS.replace("[0.25, 0.75]", "7"), "reflection_steps 7: must be from 0 to 6"),
        (SETTINGS.replace("DPMSolverMultistepScheduler", "DDIM"), "solver 'DDIM': is no scheduler that is known"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_and_no_exit(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        load_settings(tmp_path / "a.yaml")


def test_weights_for_no_branch_are_refused(file):
    pipe = load_pipeline("pixart")
    with pytest.raises(ConfigError, match=r"weights 'other': no branch of .* has them; they are weak"):
        load_settings(file, {"other": load_weak(pipe)})


def test_a_solver_that_is_none_is_refused():
    with pytest.raises(ValueError, match="solver 'Nothing': is no scheduler that is known"):
        with reflection(load_pipeline("pixart"), strong=Branch(), weak=Branch(guidance_scale=0.0), solver="Nothing"):
            pass


def test_a_window_of_base_works_at_the_scale_of_the_call(file):
    """Base was left to the pipeline there, which knows of no window."""
    file.write_text(SETTINGS.replace("[0.25, 0.75]", "0").replace(", weights: weak}", "}").split("solver")[0] + CALLED)
    pipe = load_pipeline("pixart")
    config = parse(["a red circle moving left", "--config", str(file)]).config
    _, nfe = sample_clips(pipe, config, ["a red circle moving left"], [0])
    assert nfe["base"] == 3 + 2 * 3
