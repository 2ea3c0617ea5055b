import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import peft
import pytest
import tiny
import torch
import yaml
from command import refused, sidecar_of
from PIL import Image

from w2sd_video.render import main
from w2sd_video.rendering import outputs, step_cost, video
from w2sd_video.rendering import prompts as rendering
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import evaluations
from w2sd_video.settings.panels import panels

COMMON = {
    "prompts": ["a red circle moving left"],
    "base": {"guidance_scale": 3.0},
    "strong": {"guidance_scale": 2.0},
    "weak": {"guidance_scale": 1.0, "weights": "weak"},
    "steps": 3,
    "reflection_steps": 2,
    "device": "cpu",
}
SIZES = {
    "cogvideox": {"height": 32, "width": 32, "frames": 9, "call": {"max_sequence_length": 16}},
    "animatediff": {"height": 16, "width": 16, "frames": 4},
}
DENOISER = {"cogvideox": "transformer", "animatediff": "unet"}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders with a tiny random pipeline of each family, and a second denoiser for it."""
    folder = tmp_path_factory.mktemp("models")
    for family, name in DENOISER.items():
        getattr(tiny, family)()[0].save_pretrained(folder / family)
        getattr(getattr(tiny, family)(seed=1)[0], name).save_pretrained(folder / f"{family}-weak")
    return folder


@pytest.fixture(params=SIZES)
def family(request, models, tmp_path, monkeypatch):
    """A family, and its pair.yaml in the folder that is worked in."""
    work_on(request.param, models, tmp_path, monkeypatch)
    return request.param


@pytest.fixture
def cogvideox(models, tmp_path, monkeypatch):
    work_on("cogvideox", models, tmp_path, monkeypatch)


def work_on(family, models, folder, monkeypatch):
    monkeypatch.chdir(folder)
    model = {"family": family, "pretrained": str(models / family), "weights": {"weak": str(models / f"{family}-weak")}}
    Path("pair.yaml").write_text(yaml.safe_dump(COMMON | SIZES[family] | {"model": model}))


def render(*argv):
    assert main(["--config", "pair.yaml", *argv]) == 0


def frames_of(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())])


def test_a_render_writes_a_clip_a_sidecar_and_says_what_it_did(family, capsys):
    render("-o", "out.mp4")
    frames, side = SIZES[family]["frames"], SIZES[family]["height"]
    assert video.read_video("out.mp4").shape == (frames, 256, 256, 3)
    sidecar = sidecar_of("out.mp4")
    assert sidecar["nfe"] == {"W2SD": {"base": 6, "strong": 4, "weak": 2}}
    assert sidecar["frames"] == [frames, side, side, 3] and sidecar["seed"] == 0 and sidecar["seconds"] > 0
    assert sidecar["prompt"] == "a red circle moving left"
    assert set(sidecar["versions"]) == {"python", "w2sd-video", "torch", "diffusers", "transformers"}
    said = capsys.readouterr()
    for line in (
        "pair     strong guidance 2; weak weights weak, guidance 1; base guidance 3",
        "steps    3, 2 reflected (inversion paper, strength 1)",
        "NFE      W2SD: base 6 + strong 4 + weak 2 = 12",
        f"seconds  {sidecar['seconds']}",
        "file     out.mp4",
    ):
        assert line in said.out
    assert "2 of 3 steps reflected" in said.err and "/3 [" in said.err, "the progress bar counts real steps"
    assert sorted(os.listdir()) == ["out.mp4", "out.mp4.json", "pair.yaml"]


def test_a_sidecar_renders_the_same_frames_again(family):
    render(
        "-o", "first", "--seed", "3", "--strength", "0.5", "--inversion", "current", "--reflection-steps", "[0, 0.5]"
    )
    before = {path.name: path.read_bytes() for path in Path("first").iterdir()}
    assert main(["--config", "first.json", "-o", "again"]) == 0
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == before
    assert main(["--config", "first.json", "-o", "other", "--seed", "4"]) == 0
    assert not np.array_equal(frames_of("other"), frames_of("first"))


def test_a_seed_belongs_to_a_sample(cogvideox):
    Path("prompts.txt").write_text("a red circle\na blue square\n")
    render("--prompts", "prompts.txt", "--seed", "5", "-o", "all")
    render("a blue square", "--seed", "6", "-o", "one")
    assert np.array_equal(frames_of("all-01"), frames_of("one"))
    assert not np.array_equal(frames_of("all-00"), frames_of("all-01"))
    assert sidecar_of("all-01")["config"] == sidecar_of("one")["config"] | {"output": "all-01"}
    assert sidecar_of("all-01")["prompt"] == "a blue square"


def test_prompts_in_a_batch_are_the_same_samples(family):
    config = parse(["--config", "pair.yaml"]).config
    pipe = load(config)
    prompts = ["a red circle", "a blue square moving"]
    together, nfe = sample_clips(pipe, config, prompts, [7, 9])
    alone, nfe_alone = sample_clips(pipe, config, prompts[1:], [9])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert nfe == nfe_alone == evaluations(config)


def test_a_comparison_shows_what_the_stock_pipeline_gives(family, models, monkeypatch):
    clips = {}
    kept = outputs.write_clips
    monkeypatch.setattr(
        outputs, "write_clips", lambda path, found, *rest: clips.update(found) or kept(path, found, *rest)
    )
    render("--compare", "-o", "out.mp4", "--seed", "2")
    assert list(clips) == ["weak", "strong", "strong at equal cost", "W2SD"]
    assert video.read_video("out.mp4").shape[2] == 4 * 256 + 3 * 8

    sizes = dict(SIZES[family])
    call = sizes.pop("call", {}) | {"num_frames": sizes.pop("frames")} | sizes
    pipe = diffusers.DiffusionPipeline.from_pretrained(models / family)

    def stock(guidance_scale):
        generator = torch.Generator().manual_seed(2)
        found = pipe(
            *COMMON["prompts"],
            **call,
            num_inference_steps=3,
            guidance_scale=guidance_scale,
            generator=generator,
            output_type="np",
        )
        return video.to_uint8(found.frames[0])

    assert np.array_equal(clips["strong"], stock(3.0))
    second = type(getattr(pipe, DENOISER[family])).from_pretrained(models / f"{family}-weak")
    setattr(pipe, DENOISER[family], second.eval())
    assert np.abs(clips["weak"].astype(int) - stock(1.0)).max() <= 1  # a batch of one rounds otherwise in older torch
    assert not np.array_equal(clips["W2SD"], clips["strong"])


def test_other_kinds_of_output(cogvideox):
    render("-o", "out.gif", "--fps", "5")
    with Image.open("out.gif") as gif:
        assert gif.n_frames == 9 and gif.info["duration"] == 200 and gif.size == (256, 256)
    render("-o", "sheet.png", "--compare")
    assert np.asarray(Image.open("sheet.png")).shape[0] > 4 * 128 + 3 * 4, "a caption stands below them"
    render("-o", "frames")
    assert frames_of("frames").shape == (9, 32, 32, 3)
    render("-o", "frames", "--frames", "1")
    assert frames_of("frames").shape == (1, 32, 32, 3), "a render replaces an earlier one"
    assert np.array_equal(sidecar_of("frames")["frames"], [1, 32, 32, 3])


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
@pytest.mark.parametrize("scales", [(3, 2, 1), (1, 1, 1), (1, 5, 0), (0, 1, 1), (2, 0, 4)])
def test_evaluations_are_foretold(cogvideox, inversion, scales):
    config = parse(["--config", "pair.yaml", "--frames", "1", "--inversion", inversion, "--rounds", "2"]).config
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    config.base.guidance_scale, config.strong.guidance_scale, config.weak.guidance_scale = scales
    for weights in ("weak", None):
        config.weak.weights = weights
        if config.weak == config.strong:
            continue  # no gap
        for one in panels(config).values():
            assert sample_clips(pipe, one, one.prompts, [0])[1] == evaluations(one)


def test_a_lora_gap(cogvideox):
    pipe = tiny.cogvideox()[0]
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    layers = peft.get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    type(pipe).save_lora_weights("lora", transformer_lora_layers=layers)
    options = ["--model.lora.style", "./lora", "--weak.weights", "null", "--base.lora.style", "0"]
    render(*options, "-o", "none", "--reflection-steps", "0")
    render("-o", "plain", "--reflection-steps", "0")
    assert np.array_equal(frames_of("none"), frames_of("plain")), "a scale of 0 is no adapter"
    render(*options, "-o", "gap", "--strong.lora.style", "4", "--weak.lora.style", "-4")
    render(*options, "-o", "swapped", "--strong.lora.style", "-4", "--weak.lora.style", "4")
    assert not np.array_equal(frames_of("gap"), frames_of("swapped"))


def test_a_dry_run_of_a_model_that_is_not_here_loads_nothing(capsys, monkeypatch):
    monkeypatch.setattr(step_cost, "load", lambda config: pytest.fail("loaded"))
    assert main(["--config", "wan21-guidance", "--device", "cpu", "--dry-run"]) == 0
    assert "seconds  unknown: the model is not on this machine" in capsys.readouterr().out


def test_a_dry_run_counts_and_measures_and_writes_nothing(cogvideox, capsys):
    render("--dry-run", "--compare", "one", "two")
    said = capsys.readouterr().out
    assert "NFE      weak: base 3 + strong 0 + weak 0 = 3" in said
    assert "NFE      strong: base 6 + strong 0 + weak 0 = 6" in said
    assert "NFE      W2SD: base 6 + strong 4 + weak 2 = 12" in said
    assert "NFE      strong at equal cost: base 12 + strong 0 + weak 0 = 12" in said
    assert "NFE      in all: 66" in said
    parameters = sum(one.numel() for one in tiny.cogvideox()[0].transformer.parameters())
    assert f"transformer {parameters / 1e6:.4g} M" in said and "weak " in said
    measured = re.search(
        r"seconds  about (.*) s \(measured: (.*) s an evaluation, (.*) s a sample beside, (.*) s to", said
    )
    assert measured, said
    total, evaluation, rest, loading = map(float, measured.groups())
    assert total == pytest.approx(loading + 8 * rest + 66 * evaluation, abs=1), "4 panels of 2 prompts"
    assert os.listdir() == ["pair.yaml"]


def test_a_printed_configuration_can_be_used(cogvideox, capsys):
    render("--print-config", "--steps", "9", "--reflection-steps", "[0, 0.5]", "a blue square")
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed)
    config = parse(["--config", "printed.yaml"]).config
    assert (config.steps, config.reflection_steps, config.prompts) == (9, (0.0, 0.5), ["a blue square"])
    assert yaml.safe_load(printed)["model"]["family"] == "cogvideox"


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--steps 0", "steps 0: must be from 1 to 1000"),
        ("--reflection-steps 4", "reflection_steps 4: must be from 0 to 3"),
        ("--frames 6", "frames 6: this model makes 1 + 8 k frames; use 1 or 9"),
        ("--height 36", "height 36: must be a multiple of"),
        ("--model.pretrained ./none", "model './none': no such folder"),
        ("--model.pretrained miniature:none", "no such miniature"),
        ("-o none/out.mp4", "create it first: mkdir -p none"),
        ("-o out.avi", "unknown ending '.avi'"),
        ("-o pair.yaml/out.mp4", "cannot write into pair.yaml"),
        ("--device cuda:99", "device 'cuda:99': not available on this machine; use auto or cpu"),
        ("--device toaster", "device 'toaster': is no device; use auto, cpu, cuda"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(argv, said, cogvideox, capsys, monkeypatch):
    monkeypatch.setattr(rendering, "load", lambda config: pytest.fail("loaded"))
    code, line = refused(capsys, *argv.split())
    assert code == 2 and said in line


def test_models_that_cannot_be_loaded(cogvideox, models, capsys):
    code, line = refused(capsys, "--model.pretrained", "nobody/has-this-model")
    assert code == 1 and "nobody/has-this-model" in line and "hub" in line
    code, line = refused(capsys, "--model.pretrained", str(models / "animatediff"))
    assert code == 1 and "AnimateDiffPipeline" in line
    tiny.cogvideox(rotary=True)[0].transformer.save_pretrained("other")
    code, line = refused(capsys, "--model.weights.weak", "./other")
    assert code == 1 and "same architecture" in line
    Path("empty").mkdir()
    code, line = refused(capsys, "--model.weights.weak", "./empty")
    assert code == 1 and "holds no denoiser" in line
    code, line = refused(capsys, "--model.memory", "offload")
    assert code == 1 and "offload" in line
    code, line = refused(capsys, "--model.attention", "_native_efficient")
    assert code == 1 and "attention='_native_efficient' does not run on cpu in float32" in line


def test_a_scheduler_that_cannot_be_reflected(cogvideox, models, capsys):
    shutil.copytree(models / "cogvideox", "lcm")
    diffusers.LCMScheduler().save_pretrained("lcm/scheduler")
    index = json.loads(Path("lcm/model_index.json").read_text())
    Path("lcm/model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "LCMScheduler"]}))
    code, line = refused(capsys, "--model.pretrained", "./lcm")
    assert code == 2 and "LCMScheduler" in line


def test_an_argument_that_the_pipeline_does_not_take(cogvideox, capsys):
    code, line = refused(capsys, "--call.colour", "red")
    assert code == 2 and "call.colour: CogVideoXPipeline takes no such argument; it takes prompt," in line


def test_an_error_on_the_way_leaves_nothing_and_keeps_its_traceback_where_it_is_asked_for(
    cogvideox, monkeypatch, capsys
):
    def sample(*_):
        raise RuntimeError("the sky fell\ndown")

    monkeypatch.setattr(rendering, "sample_clips", sample)
    monkeypatch.delenv("W2SD_TRACEBACK")
    assert refused(capsys, "-o", "out.mp4") == (
        1,
        "RuntimeError: the sky fell (nobody foresaw this; W2SD_TRACEBACK=1 shows where it comes from)",
    )
    monkeypatch.setenv("W2SD_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="the sky fell"):
        render("-o", "out.mp4")
    assert os.listdir() == ["pair.yaml"]


def test_frames_that_are_not_finite_are_an_error(cogvideox, capsys):
    transformer = tiny.cogvideox()[0].transformer
    torch.nn.init.constant_(transformer.proj_out.bias, torch.nan)
    transformer.save_pretrained("broken")
    options = ["--model.weights.broken", "./broken", "--base.weights", "broken", "--reflection-steps", "0"]
    code, line = refused(capsys, *options)
    assert code == 2 and "the weights of broken hold NaN or infinity (proj_out.bias); the file is damaged" in line
    torch.nn.init.constant_(transformer.proj_out.bias, 3e38)
    transformer.save_pretrained("broken")
    code, line = refused(capsys, *options)
    assert code == 2 and "diverged" in line and "base.guidance_scale" in line and "lower strength" not in line
    code, line = refused(capsys, *options[:-1], "1")
    assert code == 2 and "diverged" in line and "lower strength or rounds" in line


def test_the_command_itself_runs_from_anywhere(cogvideox, tmp_path):
    command = [sys.executable, "-m", "w2sd_video.render", "--config", "pair.yaml", "-o", "out.mp4", "--steps", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "file     out.mp4" in done.stdout and Path("out.mp4").exists()
    assert "Warning" not in done.stderr and "torchvision" not in done.stderr
