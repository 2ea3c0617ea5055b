"""Rendering with any pipeline: images, classes, ControlNet, IP-Adapter, two stages."""

import json
import os
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
import yaml
from command import refused, sidecar_of
from PIL import Image
from tiny.dit_moe import dit_moe as tiny_dit_moe

from w2sd_video.render import main
from w2sd_video.rendering import outputs, sheets, video
from w2sd_video.rendering import prompts as rendering
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import evaluations, evaluations_by_stage
from w2sd_video.settings.panels import panels

COMMON = {
    "prompts": ["a red circle"],
    "base": {"guidance_scale": 3.0},
    "strong": {"guidance_scale": 2.0},
    "weak": {"guidance_scale": 1.0},
    "steps": 3,
    "reflection_steps": 2,
    "device": "cpu",
}
SQUARE = {"height": 16, "width": 16, "frames": 1}
CLIP = {"height": 32, "width": 32, "frames": 9, "call": {"max_sequence_length": 16}}
PIXART = SQUARE | {"call": {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False}}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny random pipelines and of what can be loaded beside them, and a picture."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in ((0, "{}"), (1, "{}-weak")):
        tiny.stable_diffusion(seed=seed)[0].save_pretrained(root / name.format("sd"))
        tiny.wan(two_stage=True, seed=seed)[0].save_pretrained(root / name.format("wan22"))
        tiny.dit(seed=seed)[0].save_pretrained(root / name.format("dit"))
        tiny_dit_moe(seed=seed)[0].save_pretrained(root / name.format("dit_moe"))
        tiny.pixart(seed=seed)[0].save_pretrained(root / name.format("pixart"))
    flux = tiny.flux()[0]
    flux.vae.register_to_config(shift_factor=0.1)
    flux.save_pretrained(root / "flux")
    tiny.stable_diffusion(control=True)[0].controlnet.save_pretrained(root / "controlnet")
    pipe, _ = tiny.stable_diffusion(ip_adapter=True)
    pipe.image_encoder.save_pretrained(root / "ip" / "image_encoder")
    tiny.save_ip_adapter(pipe, root / "ip" / "adapter.safetensors")
    tiny.parts.picture().save(root / "picture.png")
    return root


@pytest.fixture
def configure(models, tmp_path, monkeypatch):
    """Write pair.yaml in the folder that is worked in, for one of the models."""
    monkeypatch.chdir(tmp_path)

    def write(name, *, family="pipeline", second=False, **changes):
        model = {"family": family, "pretrained": str(models / name)} | changes.pop("model", {})
        settings = COMMON | {"model": model}
        if second:
            model["weights"] = {"weak": str(models / f"{name}-weak")}
            settings["weak"] = settings["weak"] | {"weights": "weak"}
        Path("pair.yaml").write_text(yaml.safe_dump(settings | changes))

    return write


def render(*argv):
    assert main(["--config", "pair.yaml", *argv]) == 0


def picture_of(path):
    return np.asarray(Image.open(path))


def test_an_image_is_a_png_and_a_comparison_shows_what_the_stock_pipeline_gives(configure, models, monkeypatch):
    configure("sd", second=True, **SQUARE)
    clips = {}
    kept = outputs.write_clips
    monkeypatch.setattr(
        outputs, "write_clips", lambda path, found, *rest: clips.update(found) or kept(path, found, *rest)
    )
    render()
    assert picture_of("w2sd.png").shape == (256, 256, 3)
    assert np.array_equal(picture_of("w2sd.png"), sheets.enlarge(clips["W2SD"])[0])
    side = sidecar_of("w2sd.png")
    assert side["nfe"] == {"W2SD": {"base": 6, "strong": 4, "weak": 2}} and side["frames"] == [1, 16, 16, 3]
    assert side["config"]["output"] == "w2sd.png"

    render("--compare", "--seed", "2", "-o", "four.png")
    assert list(clips) == ["W2SD", "weak", "strong", "strong at equal cost"]
    side, shown = sidecar_of("four.png"), picture_of("four.png")
    for label, (left, top, width, height) in side["boxes"].items():
        assert np.array_equal(shown[top : top + height, left : left + width], sheets.enlarge(clips[label])[0]), label
    assert list(side["boxes"]) == list(side["nfe"]) == ["weak", "strong", "strong at equal cost", "W2SD"]
    below = shown[side["boxes"]["W2SD"][1] + 256 :]
    assert below.max() > 150, "a caption stands below them"
    pipe = diffusers.DiffusionPipeline.from_pretrained(models / "sd")
    pipe.set_progress_bar_config(disable=True)
    for label, scale, unet in (("strong", 3.0, models / "sd"), ("weak", 1.0, models / "sd-weak")):
        pipe.unet = diffusers.UNet2DConditionModel.from_pretrained(unet, subfolder="unet").eval()
        generator = torch.Generator().manual_seed(2)
        images = pipe(
            *COMMON["prompts"],
            height=16,
            width=16,
            num_inference_steps=3,
            guidance_scale=scale,
            generator=generator,
            output_type="np",
        ).images
        assert np.array_equal(clips[label], video.to_uint8(images))
    assert not np.array_equal(clips["W2SD"], clips["strong"])


def test_images_of_which_nothing_says_so_are_pngs_too(configure):
    configure("pixart", height=16, width=16, call=PIXART["call"])
    assert rendering.render(parse(["--config", "pair.yaml", "one circle", "two circles"]).config) == [
        Path("w2sd-00.png"),
        Path("w2sd-01.png"),
    ]
    render("-o", "out.gif")
    render("-o", "frames")
    assert sorted(os.listdir("frames")) == ["frame-0000.png"] and picture_of("frames/frame-0000.png").shape[0] == 16


@pytest.mark.parametrize("family", ["dit", "dit_moe"])
def test_classes_by_number_and_name(configure, family, capsys):
    experts = {"strong": {"experts": "top"}, "weak": {"experts": "bottom"}} if family == "dit_moe" else {}
    configure(family, family="pipeline" if family == "dit" else family, prompts=[0, 1], frames=1, **experts)
    config = parse(["--config", "pair.yaml"]).config
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    clips, nfe = sample_clips(pipe, config, config.prompts, [4, 5])
    assert clips.shape == (2, 1, 16, 16, 3) and nfe == evaluations(config)
    alone, _ = sample_clips(pipe, config, ["1"], [5])
    assert np.abs(clips[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(clips[1], sample_clips(pipe, config, ["0"], [5])[0][0])
    if family == "dit_moe":
        assert np.array_equal(alone, sample_clips(pipe, config, ["1"], [5])[0])
        named, _ = sample_clips(pipe, config, ["disc"], [4])
        assert np.abs(named[0].astype(int) - clips[0]).max() <= 1
    render("-o", "out.png")
    assert Path("out-00.png").exists() and sidecar_of("out-01.png")["prompt"] == "1"
    code, line = refused(capsys, "1000", "-o", "out.png")
    assert code == 2 and "prompt '1000': this model is asked for classes; use a number from 0 to" in line
    code, line = refused(capsys, "0", "--weak.prompt", "a fish")
    assert code == 2 and "weak.prompt: this model is asked for classes" in line
    code, line = refused(capsys, "0", "--height", "16")
    assert code == 2 and "height 16: DiT" in line and "makes one size only" in line


def test_a_controlnet_over_none(configure, models, capsys):
    picture = {"image": str(models / "picture.png")}
    gap = {"strong": {"control_scale": 1.0}, "weak": {"control_scale": 0.0}}
    configure("sd", model={"controlnet": str(models / "controlnet")}, inputs=picture, **gap, **SQUARE)
    config = parse(["--config", "pair.yaml"]).config
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    inputs = read_inputs(config)
    shown, nfe = sample_clips(pipe, config, config.prompts, [0], inputs)
    assert type(pipe) is diffusers.StableDiffusionControlNetPipeline and nfe == evaluations(config)
    config.weak.control_scale = None
    assert not np.array_equal(shown, sample_clips(pipe, config, config.prompts, [0], inputs)[0])
    render()
    assert sidecar_of("w2sd.png")["config"]["inputs"] == picture
    Path("w2sd.png").unlink(), Path("w2sd.png.json").unlink()

    for argv, said in [
        (["--inputs.image", "null"], "inputs.image: is needed by this configuration; add --inputs.image FILE"),
        (["--inputs.image", "none.png"], "none.png: no such picture file"),
        (["--inputs.image", "pair.yaml"], "pair.yaml: not a picture that can be decoded"),
        (["--inputs.image", "none.mp4"], "none.mp4: no such video file"),
        (["--model.controlnet", "null"], "strong.control_scale: a control branch without a ControlNet"),
    ]:
        code, line = refused(capsys, *argv)
        assert code == 2 and said in line
    configure("sd", model={"controlnet": str(models / "controlnet")}, **gap, **SQUARE)
    code, line = refused(capsys)
    assert code == 2 and "a ControlNet needs its picture; add --inputs.image FILE" in line


def test_an_ip_adapter_over_none(configure, models, capsys):
    gap = {"strong": {"ip_adapter_scale": 1.0}, "weak": {"ip_adapter_scale": 0.0}}
    model = {"ip_adapter": str(models / "ip" / "adapter.safetensors")}
    configure("sd", model=model, inputs={"ip_adapter_image": str(models / "picture.png")}, **gap, **SQUARE)
    render("-o", "gap.png")
    render("-o", "none.png", "--weak.ip-adapter-scale", "1")
    assert not np.array_equal(picture_of("gap.png"), picture_of("none.png"))
    assert sidecar_of("gap.png")["nfe"]["W2SD"] == evaluations(parse(["--config", "pair.yaml"]).config)
    configure("sd", model=model, **gap, **SQUARE)
    code, line = refused(capsys)
    assert code == 2 and "an IP-Adapter needs a picture; add --inputs.ip_adapter_image FILE" in line


def test_two_stages_with_a_pair_of_second_denoisers(configure, capsys):
    configure("wan22", second=True, base={"guidance_scale": [4.0, 3.0]}, strong={}, **CLIP)
    render("-o", "out.mp4")
    config = parse(["--config", "pair.yaml"]).config
    assert sidecar_of("out.mp4")["nfe"]["W2SD"] == evaluations(config) == {"base": 6, "strong": 4, "weak": 2}
    assert sidecar_of("out.mp4")["config"]["base"]["guidance_scale"] == [4.0, 3.0]
    assert main(["--config", "out.mp4.json", "-o", "again"]) == 0
    render("-o", "frames")
    render("-o", "own", "--weak.weights", "null")
    frames = {name: [path.read_bytes() for path in sorted(Path(name).iterdir())] for name in ("again", "frames", "own")}
    assert frames["again"] == frames["frames"] != frames["own"]
    assert "guidance 4 and 3" in capsys.readouterr().out


@pytest.mark.parametrize("inversion", ["paper", "current", "implicit"])
@pytest.mark.parametrize(
    "branches",
    [
        {"strong": {}, "weak": {"experts": "high"}},
        {"base": {"guidance_scale": [3.0, 1.0]}, "strong": {"guidance_scale": [2.0, 1.0]}, "weak": {"experts": "low"}},
        {"strong": {"negative_prompt": "a sea"}, "weak": {"guidance_scale": 1.0}},
    ],
)
def test_evaluations_of_two_stages_are_foretold_by_stage(configure, inversion, branches):
    """Those of each step are its stage's; `evaluations` tells the dearer stage's of all."""
    configure("wan22", **branches, **CLIP | {"frames": 1}, inversion=inversion, steps=4, reflection_steps=3)
    config = parse(["--config", "pair.yaml"]).config
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    stages = evaluations_by_stage(config)
    pipe.scheduler.set_timesteps(config.steps)
    is_high = [time >= pipe.config.boundary_ratio * 1000 for time in pipe.scheduler.timesteps]
    assert any(is_high[:3]) and not all(is_high[:3])
    counts = {"base": is_high, "strong": is_high[:3], "weak": is_high[:3]}
    expected = {
        role: sum(stages[0 if high else -1][role] // len(steps) for high in steps) for role, steps in counts.items()
    }
    assert sample_clips(pipe, config, config.prompts, [0])[1] == expected
    assert all(expected[role] <= most for role, most in evaluations(config).items())


@pytest.mark.parametrize(
    "name, inversion",
    [
        *(
            ("sd", inversion)
            for inversion in ("paper", "explicit", "current", "implicit", "resample", "resample-advanced")
        ),
        ("flux", "implicit"),
    ],
)
def test_evaluations_of_other_settings_are_foretold(configure, name, inversion):
    call = {} if name == "sd" else {"max_sequence_length": 16}
    configure(name, **SQUARE, call=call, inversion=inversion, autoguidance=0.5)
    base = parse(["--config", "pair.yaml"]).config
    pipe = load(base)
    pipe.set_progress_bar_config(disable=True)
    for argv in (["--weak.guidance-scale", "3"], ["--autoguidance", "0", "--rounds", "2"], ["--compare"]):
        config = parse(["--config", "pair.yaml", "--reflection-steps", "1", "--span", "2", *argv]).config
        for one in panels(config).values():
            assert sample_clips(pipe, one, one.prompts, [0])[1] == evaluations(one)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"])
def test_schedulers_that_evaluate_more_than_once_a_step(configure, models, scheduler):
    pretrained = Path(shutil.copytree(models / "sd", "sd")).absolute()
    file = pretrained / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"skip_prk_steps": True}))  # as Stable Diffusion has it
    configure("sd", model={"pretrained": str(pretrained), "scheduler": scheduler}, **SQUARE)
    config = parse(["--config", "pair.yaml"]).config
    pipe = load(config)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler).__name__ == scheduler
    assert sample_clips(pipe, config, config.prompts, [0])[1] == evaluations(config)


def test_a_strength_for_each_noise_level(configure, capsys):
    configure("sd", **SQUARE)
    Path("none.json").write_text(json.dumps({"log_snr": [0.0], "strength": [0.0]}))
    render("-o", "off.png", "--strength", "none.json")
    render("-o", "stock.png", "--reflection-steps", "0")
    assert np.array_equal(picture_of("off.png"), picture_of("stock.png"))
    assert sidecar_of("off.png")["nfe"]["W2SD"] == {"base": 6, "strong": 0, "weak": 0}
    capsys.readouterr()
    render("--strength", "none.json", "--dry-run")
    assert "NFE      W2SD: at most base 6 + strong 4 + weak 2 = 12" in capsys.readouterr().out
    Path("broken.json").write_text("{")
    for file, said in (("nothing.json", "cannot be read"), ("broken.json", "is no strength schedule")):
        code, line = refused(capsys, "--strength", file)
        assert code == 2 and said in line


def test_what_a_pipeline_cannot_do_is_refused_before_it_is_loaded(configure, capsys, monkeypatch):
    monkeypatch.setattr(rendering, "load", lambda config: pytest.fail("loaded"))
    configure("sd", **SQUARE)
    for argv, said in [
        (["--weak.experts", "bottom"], "weak.experts bottom: UNet2DConditionModel is no mixture of experts"),
        (["--weak.experts", "low"], "is for a two-stage model, but StableDiffusionPipeline has one denoiser"),
        (["--frames", "8"], "frames 8: StableDiffusionPipeline takes no number of frames; leave it out"),
        (["--call.colour", "red"], "call.colour: StableDiffusionPipeline takes no such argument; it takes prompt,"),
        (["--inputs.video", "pair.yaml"], "inputs.video: StableDiffusionPipeline takes no such argument"),
        (["--model.lora.style", "null"], "model.lora.style: is needed by this configuration; add --model.lora.style"),
    ]:
        code, line = refused(capsys, *argv)
        assert code == 2 and said in line


def test_what_a_pipeline_refuses_itself_is_one_line(configure, capsys):
    configure("sd", **SQUARE)
    for argv, said in [
        (["--weak.skip-layers", "[99]"], "99"),
        (["--height", "12"], "height"),
        (["--model.scheduler", "LCMScheduler"], "LCMScheduler"),
    ]:
        code, line = refused(capsys, *argv)
        assert code == 2 and said in line


def test_files_on_the_hub_that_cannot_be_reached(configure, capsys):
    configure("sd", **SQUARE)
    for argv in (
        ["--model.pretrained", "nobody/has/this.safetensors"],
        ["--model.lora.a", "nobody/has/this.safetensors"],
    ):
        code, line = refused(capsys, *argv)
        assert code == 1 and line.startswith("model ")


def test_a_video_goes_in(configure, models):
    video.write_video("in.mp4", np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (0, 200)]))
    config = parse(["--model.pretrained", "a/b", "--inputs.video", "in.mp4"]).config
    frames = read_inputs(config)["video"]
    assert len(frames) == 2 and frames[0].size == (64, 64) and frames[1].getpixel((5, 5))[0] > 150
