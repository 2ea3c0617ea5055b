"""Jobs in this process, by the command line of render: what is kept, refused, named and listed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused, sidecar_of
from PIL import Image
from safetensors.torch import save_file

from w2sd_video.render import main
from w2sd_video.rendering import job_worker
from w2sd_video.rendering.job_samples import samples_of
from w2sd_video.rendering.kept_latents import read_kept
from w2sd_video.rendering.load import load
from w2sd_video.rendering.video import about_of
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.prompt_files import PromptLine
from w2sd_video.settings.schema import RenderConfig

CONFIG = ("--config", "miniature-pixart", "--steps", "3")
PROMPTS = ["a red circle moving left", "a small blue square moving up", "a green triangle moving up"]


@pytest.fixture(autouse=True)
def prompts_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))


@pytest.fixture(scope="module")
def pipe():
    """One pipeline for all tests, for loading is what takes time."""
    return load(parse([*CONFIG]).config)


@pytest.fixture(autouse=True)
def loaded_once(pipe, monkeypatch):
    monkeypatch.setattr(job_worker, "load", lambda config: pipe)


def render(*options, prompts="prompts.txt", folder="out/"):
    return main([*CONFIG, "--prompts", prompts, "-o", folder, *options])


def names(folder="out"):
    others = (".json", ".html", "")
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix not in others and path.name[0] != ".")


def contents(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix in (".png", ".json")}


def test_a_job_makes_each_sample_with_its_record_and_keeps_it(capsys):
    assert render("--samples", "2") == 0
    assert names() == sorted(f"000{k}-{seed}.png" for k in range(3) for seed in (k, 10000 + k))
    assert "6 made, 0 kept, 0 failed" in capsys.readouterr().out
    record = sidecar_of("out/0001-10001.png")
    assert record["prompt"] == PROMPTS[1] and record["seed"] == 10001 and record["config"]["output"] == "0001-10001.png"
    before = contents()
    assert render("--samples", "2") == 0
    assert "0 made, 6 kept, 0 failed" in capsys.readouterr().out
    assert contents() == before


def test_nothing_is_loaded_when_all_is_there(monkeypatch):
    render()
    monkeypatch.setattr(job_worker, "load", lambda config: pytest.fail("loaded"))
    assert render() == 0


def test_a_record_renders_its_sample_again():
    render()
    record = "out/0002-2.png.json"
    assert main(["--config", record, "-o", "again.png"]) == 0
    assert np.array_equal(Image.open("again.png"), Image.open("out/0002-2.png"))


def test_what_is_missing_or_damaged_is_made_again_and_the_same(capsys):
    render()
    before = contents()
    Path("out/0000-0.png").unlink()
    Path("out/0001-1.png.json").write_text("")
    Path("out/0002-2.png").write_bytes(before["0002-2.png"][:50])
    capsys.readouterr()
    render()
    assert "3 made, 0 kept" in capsys.readouterr().out
    after = contents()
    assert [name for name in before if name.endswith(".png") and before[name] != after[name]] == []


def test_a_job_can_grow(capsys):
    render()
    before = contents()
    Path("prompts.txt").write_text("\n".join([*PROMPTS, "a large red square moving down"]))
    render("--samples", "2")
    assert "5 made, 3 kept" in capsys.readouterr().out
    after = contents()
    assert {name: after[name] for name in before} == before and len(names()) == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--strength", "0.5"], "settings.strength 1.0, now 0.5"),
        (["--steps", "4"], "settings.steps 3, now 4"),
        (["--names", "{seed}.png"], 'names "{name}-{seed}.png", now "{seed}.png"'),
        (["--model.weights.weak", "miniature:pixart/transformer"], "model.weights.weak"),
        (["--base.guidance-scale", "2"], "settings.base.guidance_scale 1.0, now 2.0"),
    ],
)
def test_other_settings_are_refused_and_named(options, said, capsys):
    render()
    before = contents()
    capsys.readouterr()
    code, line = refused(capsys, *CONFIG[2:], "--prompts", "prompts.txt", "-o", "out/", *options, config=CONFIG[1])
    assert code == 2 and said in line
    assert contents() == before


def test_versions_are_part_of_what_a_job_is(monkeypatch, capsys):
    render()
    monkeypatch.setattr("w2sd_video.settings.identity.library_versions", lambda: {"torch": "0.1"})
    capsys.readouterr()
    code, line = refused(capsys, *CONFIG[2:], "--prompts", "prompts.txt", "-o", "out/", config=CONFIG[1])
    assert code == 2 and 'versions.torch "' in line and 'now "0.1"' in line


def test_what_changes_no_sample_can_be_changed():
    render()
    assert (
        render("--model.memory", "device", "--batch", "2", "--device", "cpu", "--model.parameters.transformer", "1")
        == 0
    )


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--strength", "settings.strength"),
        ("--autoguidance", "settings.autoguidance"),
        ("--base.windows.guidance_scale", "settings.base.windows.guidance_scale"),
    ],
)
def test_a_strength_file_is_told_by_its_content(option, setting, capsys):
    levels = {"log_snr": [-5, 5], "strength": [1.0, 0.5]}
    for name in ("one.json", "copy.json"):
        Path(name).write_text(json.dumps(levels))
    assert render(option, "one.json") == 0
    assert render(option, "copy.json") == 0
    Path("one.json").write_text(json.dumps(levels | {"strength": [1.0, 0.6]}))
    options = ["--prompts", "prompts.txt", "-o", "out/", option, "one.json"]
    capsys.readouterr()
    assert setting in refused(capsys, *CONFIG[2:], *options, config=CONFIG[1])[1]


def test_prompts_that_changed_their_places_are_refused(capsys):
    render()
    before = contents()
    Path("prompts.txt").write_text("\n".join(reversed(PROMPTS)))
    capsys.readouterr()
    code, line = refused(capsys, *CONFIG[2:], "--prompts", "prompts.txt", "-o", "out/", config=CONFIG[1])
    assert code == 2 and "0000-0.png: is there already, of another sample" in line and PROMPTS[2] in line
    assert contents() == before


def test_what_a_line_says_goes_before_the_command_line():
    lines = [
        {"prompt": PROMPTS[0], "seed": 42, "name": "first", "dimension": ["color"]},
        {"prompt": PROMPTS[1], "negative_prompt": PROMPTS[2]},
    ]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert render("--samples", "2", "--seed", "5", "--base.guidance-scale", "3", prompts="prompts.jsonl") == 0
    assert names() == ["0001-10006.png", "0001-6.png", "first-10042.png", "first-42.png"]
    assert sidecar_of("out/first-42.png")["about"] == {"dimension": ["color"]}
    record = sidecar_of("out/0001-6.png")
    assert record["config"]["call"]["negative_prompt"] == PROMPTS[2]
    assert "negative_prompt" not in sidecar_of("out/first-42.png")["config"]["call"]
    plain = ["--base.guidance-scale", "3", "--seed", "6", PROMPTS[1]]
    main([*CONFIG, *plain, "-o", "without.png"])
    main([*CONFIG, *plain, "--call.negative_prompt", PROMPTS[2], "-o", "with.png"])
    assert np.array_equal(Image.open("out/0001-6.png"), Image.open("with.png"))
    assert not np.array_equal(Image.open("out/0001-6.png"), Image.open("without.png"))


@pytest.mark.parametrize("batch", [2, 4])
def test_a_seed_belongs_to_a_sample_whatever_the_batch(batch):
    render("--samples", "2", folder="alone/")
    render("--samples", "2", "--batch", str(batch), folder="together/")
    assert names("alone") == names("together")
    for name in names("alone"):
        alone, together = (np.asarray(Image.open(f"{folder}/{name}"), int) for folder in ("alone", "together"))
        assert np.abs(alone - together).max() <= 1, "sums of a batch are rounded in another order"


def test_a_batch_is_the_same_after_it_was_half_made():
    render("--samples", "2", "--batch", "4")
    before = contents()
    for name in ("0000-10000.png", "0001-1.png"):
        Path(f"out/{name}.json").unlink()
    render("--samples", "2", "--batch", "4")
    after = contents()
    assert [name for name in before if name.endswith(".png") and before[name] != after[name]] == []


def test_names_come_from_a_template():
    render("--samples", "2", "--names", "{prompt}-{sample}.webp")
    assert names() == sorted(f"{prompt}-{k}.webp" for prompt in PROMPTS for k in (0, 1))


def test_what_is_in_a_name_is_fit_for_a_file():
    prompts = ["a red circle moving left/../../x", ".hidden\n", "long " * 100, "long " * 100 + "x"]
    config = RenderConfig(frames=1)
    made = [sample.name for sample in samples_of(config, [PromptLine(prompt) for prompt in prompts], 1, "{prompt}.png")]
    assert made[:2] == ["a red circle moving left_.._.._x.png", "_hidden_.png"]
    assert len(set(made)) == 4 and all(len(name.encode()) <= 200 and name.endswith(".png") for name in made)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--names", "{promt}"], "unknown field {promt}; the fields are {name}, {index}"),
        (["--names", "{index"], "the fields are"),
        (["--names", "{}"], "unknown field {}"),
        (["--names", "a/{index}"], "without folders"),
        (["--names", ".{index}"], "do not begin with a dot"),
        (["--names", "{index}.avi"], "unknown ending '.avi'"),
        (["--names", "{sample}"], "two samples would be 0.png"),
        (["--names", "{index.real}"], "unknown field {index.real}"),
        (["--samples", "0"], "--samples 0: must be a whole number from 1 to 10000"),
        (["--samples", "many"], "--samples many: must be a whole number"),
        (["--batch", "-1"], "--batch -1: must be a whole number"),
        (["-o", "out.mp4", "--batch", "2"], "--batch: needs a folder for the samples: --output FOLDER/, not out.mp4"),
        (["--shard", "2/2"], "--shard 2/2"),
        (["--device", "cuda:99"], "not available"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(options, said, capsys):
    code, line = refused(capsys, *CONFIG[2:], "--prompts", "prompts.txt", "-o", "out/", *options, config=CONFIG[1])
    assert code == 2 and said in line


def test_an_input_that_is_not_there_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(job_worker, "load", lambda config: pytest.fail("loaded"))
    Path("prompts.jsonl").write_text(json.dumps({"prompt": PROMPTS[0], "inputs": {"conditioning_frames": "none.mp4"}}))
    options = ["--prompts", "prompts.jsonl", "-o", "out/"]
    code, line = refused(capsys, *options, config="miniature-animatediff-control")
    assert code == 2 and "none.mp4: cannot be read: No such file" in line


def test_a_line_that_says_more_than_a_prompt_needs_a_folder(capsys):
    Path("prompts.jsonl").write_text(json.dumps({"prompt": PROMPTS[0], "seed": 3}))
    code, line = refused(capsys, "--prompts", "prompts.jsonl", "-o", "out.png", config=CONFIG[1])
    assert code == 2 and "line 1: says more than a prompt" in line


def test_a_folder_of_frames_is_still_one_of_one_prompt():
    assert main([*CONFIG, PROMPTS[0], "-o", "frames/"]) == 0
    assert os.listdir("frames") == ["frame-0000.png"]


def test_the_file_itself_says_how_it_was_made():
    render()
    about = about_of("out/0001-1.png")
    assert (about["prompt"], about["seed"]) == (PROMPTS[1], 1)
    assert about["config"]["steps"] == 3 and about["nfe"] == {"W2SD": 7} and "torch" in about["versions"]


def test_shards_make_all_and_nothing_twice(capsys):
    for number in range(3):
        render("--samples", "2", "--batch", "2", "--shard", f"{number}/3", folder="shards/")
        assert "2 made, 0 kept" in capsys.readouterr().out
    render("--samples", "2", "--batch", "2", folder="whole/")
    sharded, whole = contents("shards"), contents("whole")
    assert sharded.keys() == whole.keys()
    assert [name for name in whole if name.endswith(".png") and whole[name] != sharded[name]] == []


def test_a_sample_that_fails_is_listed_and_tried_again(pipe, monkeypatch, capsys):
    sample_clips = job_worker.sample_clips

    def fail(pipe, config, prompts, seeds, inputs):
        if 1 in seeds:
            raise RuntimeError("a broken cable\nat the corner")
        return sample_clips(pipe, config, prompts, seeds, inputs)

    monkeypatch.setattr(job_worker, "sample_clips", fail)
    for batch in ("1", "3"):
        assert render("--batch", batch, folder=f"out{batch}/") == 1
        said = capsys.readouterr().out
        assert "2 made, 0 kept, 1 failed" in said and "failed   0001-1.png: a broken cable\n" in said
        assert names(f"out{batch}") == ["0000-0.png", "0002-2.png"]
        assert "0001-1.png failed: a broken cable" in Path(f"out{batch}/index.html").read_text()
        assert json.loads(Path(f"out{batch}/failed/0001-1.png.json").read_text())["reason"] == "a broken cable"
        assert not Path(f"out{batch}/.job/latents").exists()
    monkeypatch.setattr(job_worker, "sample_clips", sample_clips)
    assert render("--batch", "3", folder="out3/") == 0
    assert "1 made, 2 kept, 0 failed" in capsys.readouterr().out
    assert not Path("out3/failed").exists()


@pytest.fixture
def no_memory(pipe, monkeypatch):
    """Have the VAE run out of memory once for each number of calls in a list."""
    decode, failing = type(pipe.vae).decode, []

    def decode_or_fail(self, *args, **kwargs):
        if failing:
            raise torch.OutOfMemoryError(f"CUDA out of memory ({failing.pop()})")
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.vae), "decode", decode_or_fail)
    return failing


@pytest.mark.parametrize("batch", ["1", "2"])
@pytest.mark.parametrize("compare", ["--no-compare", "--compare"])
def test_latents_outlive_a_decoding_without_memory(batch, compare, pipe, no_memory, monkeypatch, capsys):
    options = ("--batch", batch, compare)
    render(*options, folder="undisturbed/")
    no_memory += [1]
    assert render(*options) == 1
    failed = capsys.readouterr().out
    assert f"{batch} failed" in failed and "out of memory; set model.memory" in failed
    assert "the latents are kept" in failed
    assert len(list(Path("out/.job/latents").iterdir())) == 1

    evaluations = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: evaluations.append(1))
    assert render(*options) == 0
    hook.remove()
    assert len(evaluations) <= (2 if compare == "--no-compare" else 40), "it was not sampled again"
    undisturbed, resumed = contents("undisturbed"), contents("out")
    assert undisturbed.keys() == resumed.keys()
    assert [name for name in resumed if name.endswith(".png") and resumed[name] != undisturbed[name]] == []
    for name in (name for name in resumed if name.startswith("0") and name.endswith(".json")):
        assert json.loads(resumed[name])["nfe"] == json.loads(undisturbed[name])["nfe"]
    assert not Path("out/.job/latents").exists()


@pytest.mark.parametrize("damage", ["other latents", "cut off", "empty"])
def test_latents_that_are_not_what_they_were_are_sampled_anew(damage, no_memory, capsys):
    render(folder="undisturbed/")
    no_memory += [1]
    render()
    (file,) = Path("out/.job/latents").iterdir()
    if damage == "other latents":
        kept = read_kept(file)
        save_file({"last": kept.last, "decoded": kept.decoded + 1}, file, {"about": json.dumps(kept.about)})
    else:
        file.write_bytes(file.read_bytes()[:100] if damage == "cut off" else b"")
    assert render() == 0
    undisturbed, resumed = contents("undisturbed"), contents("out")
    assert [name for name in resumed if name.endswith(".png") and resumed[name] != undisturbed[name]] == []
    assert not Path("out/.job/latents").exists()


def test_a_model_that_is_broken_and_mended(monkeypatch, capsys):
    monkeypatch.setattr(job_worker, "load", load)
    weights = Path(job_worker.__file__).parents[1] / "miniatures" / "weights" / "pixart"
    shutil.copytree(weights, "model")
    options = ["--model.pretrained", "./model", "--model.weights.weak", "./model/transformer_weak"]
    render(*options)
    Path("out/0001-1.png.json").unlink()
    file = next(Path("model/transformer").glob("*.safetensors"))
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole[:-4] + b"abcd"):
        file.write_bytes(broken)
        capsys.readouterr()
        code, line = refused(capsys, *CONFIG[2:], "--prompts", "prompts.txt", "-o", "out/", *options, config=CONFIG[1])
        assert code == 2 and "files../model.transformer" in line
    file.write_bytes(whole)
    assert render(*options) == 0
    assert "1 made, 2 kept" in capsys.readouterr().out
    assert len(names()) == 3


def test_a_job_that_began_with_a_broken_model_goes_on_with_a_mended_one(monkeypatch, capsys):
    monkeypatch.setattr(job_worker, "load", load)
    weights = Path(job_worker.__file__).parents[1] / "miniatures" / "weights" / "pixart"
    shutil.copytree(weights, "model")
    file = next(Path("model/transformer").glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    options = ["--model.pretrained", "./model", "--model.weights.weak", "./model/transformer_weak"]
    with pytest.raises(SystemExit) as end:
        render(*options)
    assert end.value.code == 1 and "model ./model" in capsys.readouterr().err
    file.write_bytes(whole)
    assert render(*options) == 0
    assert len(names()) == 3
