"""Configurations from files and the command line, and what is said of bad ones."""

import dataclasses
from importlib import resources

import pytest
import yaml
from minimal_configs import MINIMAL, PIPELINE

from w2sd_video.branch import Branch
from w2sd_video.messages import ConfigError
from w2sd_video.presets import PRESETS
from w2sd_video.reflection_settings import Reflection
from w2sd_video.render import main
from w2sd_video.settings import command_line as configs
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import evaluations, reflected_steps
from w2sd_video.settings.files import packaged_configs
from w2sd_video.settings.schema import BranchConfig, RenderConfig
from w2sd_video.settings.words import plan_in_words


def error_of(capsys, *argv):
    """Run a command line that makes no sense, and return the one line that it says."""
    try:
        parse(list(argv))
    except ConfigError as error:
        said = str(error)
    except SystemExit as end:
        assert end.code == 2
        said = capsys.readouterr().err.removeprefix("w2sd_video.render: ").removesuffix("\n")
    else:
        pytest.fail(f"{argv} was accepted")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", packaged_configs())
def test_every_packaged_configuration_is_valid_and_says_what_it_is(name):
    config = parse(["--config", name]).config
    assert config.prompts and config.output is None
    text = (resources.files("w2sd_video.configs") / f"{name}.yaml").read_text()
    assert text.startswith("# ") and len(text.splitlines()[0]) > 40
    assert set(yaml.safe_load(text)) <= {one.name for one in dataclasses.fields(RenderConfig)}


def test_a_branch_has_in_a_configuration_all_that_it_has_in_a_script():
    assert [one.name for one in dataclasses.fields(BranchConfig)] == [one.name for one in dataclasses.fields(Branch)]


DREAMSHAPER, JUGGERNAUT = {"weak": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, "RunDiffusion/Juggernaut-XL-v9"


@pytest.mark.parametrize(
    "name, scales, strong, weak",
    [
        ("sd15-dreamshaper", (5.5, 1.0, 1.0), {}, {"weights": "weak"}),
        ("sdxl-juggernaut", (5.5, 1.0, 1.0), {}, {"weights": "weak"}),
        ("sdxl-lora", (5.5, 1.0, 1.0), {"lora": {"more_art": 0.8}}, {"lora": {"more_art": -1.5}}),
        ("sd15-dpo-lora", (5.5, 1.0, 1.0), {"lora": {"dpo": 0.8}}, {"lora": {"dpo": -1.5}}),
        ("sd15-personal-lora", (5.5, 1.0, 1.0), {"lora": {"personal": 0.8}}, {"lora": {"personal": -1.5}}),
        ("dit-moe-s", (1.5, None, None), {"experts": "top"}, {"experts": "bottom"}),
        ("sdxl-z-sampling", (5.5, 5.5, 0.0), {}, {}),
        ("sdxl-refined-prompt", (5.5, 1.0, 1.0), {}, {"prompt": "a photo of two clocks"}),
        ("sdxl-controlnet", (5.5, 0.5, 0.5), {"control_scale": 1.0}, {"control_scale": 0.0}),
        ("sdxl-ip-adapter", (5.5, 0.5, 0.5), {"ip_adapter_scale": 1.0}, {"ip_adapter_scale": 0.0}),
        ("sdxl-cumulative", (5.5, 5.5, 0.0), {}, {"weights": "weak"}),
        ("animatediff-dreamshaper", (5.5, 1.0, 1.0), {}, {"weights": "weak"}),
        ("animatediff-sdxl-juggernaut", (3.0, 3.0, 1.0), {}, {"weights": "weak"}),
    ],
)
def test_the_packaged_pairs_are_the_papers(name, scales, strong, weak):
    """Tables 1 to 6, 10 and 12, figures 10 and 17, and appendix B.1, of arXiv 2502.00473."""
    config = parse(["--config", name]).config
    assert (config.steps, reflected_steps(config), config.rounds) == (50, range(49), 1)
    assert (config.inversion, config.strength) == ("auto", 1.0)  # the paper's, but on flow
    assert (config.strong, config.weak) == (BranchConfig(scales[1], **strong), BranchConfig(scales[2], **weak))
    lora = strong.get("lora")
    assert config.base == BranchConfig(scales[0], lora=lora), "the step that counts is the strong model's"
    assert config.model.scheduler == ("DDIMScheduler" if config.model.family == "pipeline" else None)


@pytest.mark.parametrize("name", packaged_configs())
def test_every_configuration_is_planned_without_a_network(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(["--config", name]).config
    assert main(["--config", name, "--dry-run"]) == 0
    said, nfe = capsys.readouterr().out, evaluations(config)
    assert config.model.pretrained in said
    assert f"steps    {config.steps}, {config.steps - 1} reflected" in said
    assert f"NFE      W2SD: base {nfe['base']} + strong {nfe['strong']} + weak {nfe['weak']} = " in said
    assert "B of weights" in said and "size unknown" not in said
    assert ("would be downloaded" in said) == (not name.startswith("miniature"))


def test_what_a_configuration_leaves_to_be_given_is_said_of_it():
    said = plan_in_words(parse(["--config", "sdxl-controlnet"]).config)
    assert "input    image: to come: --inputs.image FILE" in said
    assert "input    image: edges.png" in plan_in_words(
        parse(["--config", "sdxl-controlnet", "--inputs.image", "edges.png"]).config
    )
    said = plan_in_words(parse(["--config", "sdxl-lora"]).config)
    assert "load     LoRA more_art: to come: --model.lora.more_art FILE" in said


def test_the_default_configuration_is_used_where_none_is_named():
    assert parse([]).config == parse(["--config", configs.DEFAULT_CONFIG]).config


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(write):
    file = write(MINIMAL | {"steps": 7, "rounds": 3, "strong": {"guidance_scale": 5, "prompt": "a red fox"}})
    for argv in (["--steps", "9", "--config", file], ["--config", file, "--steps=9"]):
        config = parse([*argv, "--strong.guidance-scale", "2"]).config
        assert (config.steps, config.rounds, config.iterations) == (9, 3, RenderConfig.iterations)
        assert (config.strong.guidance_scale, config.strong.prompt) == (2.0, "a red fox")


def test_prompts_come_from_the_command_line_a_file_or_the_configuration(write, minimal):
    listed = write("a red fox\n\n# a comment\n  a blue fox  \n", "prompts.txt")
    assert parse(["--config", minimal]).config.prompts == ["a fox"]
    assert parse(["one", "two", "--config", minimal]).config.prompts == ["one", "two"]
    assert parse(["--config", minimal, "--prompts", listed]).config.prompts == ["a red fox", "a blue fox"]
    assert parse(["one", "--config", minimal, "--prompts", listed]).config.prompts == ["one", "a red fox", "a blue fox"]


def test_options_in_dashes_and_of_several_kinds(minimal):
    assert parse(["--config", minimal, *PIPELINE, "--base.guidance-scale", "[4, 3]"]).config.base.guidance_scale == (
        4,
        3,
    )
    layers = parse(["--config", minimal, "--weak.skip-layers", "[2, -1, blocks.3]", "--weak.experts", "2"]).config.weak
    assert (layers.skip_layers, layers.experts) == ([2, -1, "blocks.3"], 2)
    options = "--reflection-steps 3 -o x.gif --compare --call.max_sequence_length 16 --call.use_it true --dry-run"
    request = parse(["--config", minimal, *options.split()])
    config = request.config
    assert request.dry_run and not request.print_config
    assert (config.reflection_steps, config.output, config.compare) == (3, "x.gif", True)
    assert config.call == {"max_sequence_length": 16, "use_it": True}
    assert parse(["--config", minimal, "--reflection_steps", "[0.1, 0.5]"]).config.reflection_steps == (0.1, 0.5)
    assert parse(["--config", minimal, "--reflection-steps=null"]).config.reflection_steps is None
    assert parse(["--config", minimal, "--model.variant", "null"]).config.model.variant is None
    assert parse(["--config", minimal, "--no-compare"]).config.compare is False
    assert parse(
        ["--config", minimal, "--model.weights.weak", "a/b", "--weak.weights", "weak"]
    ).config.model.weights == {"weak": "a/b"}


def test_a_sidecar_is_a_configuration(write):
    config = parse(["--config", "miniature-animatediff", "--seed", "5", "--reflection-steps", "[0, 0.5]"]).config
    sidecar = write({"config": dataclasses.asdict(config), "nfe": {}, "seed": 5}, "out.mp4.json")
    assert parse(["--config", sidecar]).config == config
    assert parse(["--config", sidecar, "--seed", "6"]).config.seed == 6


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_before_the_file_and_the_command_line_before_a_preset(write, name):
    file = write(MINIMAL | {"inversion": "explicit", "strength": 0.3, "steps": 7})
    found = parse(["a fox", "--config", file, "--preset", name]).config
    assert {key: getattr(found, key) for key in PRESETS[name]} == PRESETS[name] and found.steps == 7
    argv = ["a fox", "--config", file, "--preset", name, "--inversion", "implicit"]
    assert parse(argv).config.inversion == "implicit"
    assert Reflection(**PRESETS[name]).is_on


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--preset best", "preset best: must be one of paper, recommended, fast"),
        ("--steps 0", "steps 0: must be from 1 to 1000"),
        ("--steps 1001", "steps 1001: must be from 1 to 1000"),
        ("--steps ten", "steps ten: must be a whole number"),
        ("--steps 2.5", "steps 2.5: must be a whole number"),
        ("--reflection-steps 51", "reflection_steps 51: must be from 0 to 50, the number of steps"),
        ("--reflection-steps -1", "reflection_steps -1: must be from 0 to 50"),
        ("--reflection-steps [0.5,0.1]", "a window of reflection_steps must be (start, stop) with 0 <= start"),
        ("--reflection-steps [0,2]", "<= stop <= 1, got (0.0, 2.0)"),
        (
            "--reflection-steps all",
            "must be a whole number or a pair of numbers like [0, 0.5]",
        ),
        ("--inversion explicit --reflection-steps 50", "the last of 50 steps does not have; reflect at most 49 steps"),
        (
            "--inversion euler",
            "inversion euler: must be one of auto, paper, explicit, current, implicit, resample, resample-advanced",
        ),
        ("--rounds 0", "rounds 0: must be from 1"),
        ("--strength 11", "strength 11.0: must be from -10 to 10"),
        ("--strength nan", "strength nan: must be from -10 to 10, or the name of a file"),
        ("--span 0", "span 0: must be from 1 to 1000"),
        ("--autoguidance 11", "autoguidance 11.0: must be from -10 to 10"),
        ("--reuse 2 --inversion resample", "inversion 'resample' has no gap to reuse; leave it at 1"),
        ("--weak.windows.lora [0,1]", "weak: windows has 'lora', which is no field that this branch sets"),
        ("--inversion explicit --span 3", "the last of 50 steps does not have; reflect at most 47 steps"),
        ("--height 7", "height 7: must be from 8 to 4096"),
        ("--frames 0", "frames 0: must be from 1 to 1024"),
        ("--fps 0", "fps 0.0: must be from 0.1 to 120"),
        ("--seed -1", "seed -1: must be from 0"),
        ("--dtype int8", "dtype int8: must be one of float32, float16, bfloat16"),
        ("--weak.guidance-scale 1000", "weak.guidance_scale 1000.0: must be from -100 to 100"),
        ("--weak.guidance-scale much", "weak.guidance_scale much: must be a number or a pair of numbers like"),
        ("--base.guidance-scale null", "base.guidance_scale: is needed"),
        ("--weak.weights other", "weak.weights 'other': not among model.weights (there are none)"),
        ("--strong.lora.detail 1", "strong.lora 'detail': not among model.lora (there are none)"),
        ("--model.family wan", "model.family wan: must be one of animatediff, cogvideox, pipeline, dit_moe"),
        ("--model.controlnet a/b", "model.controlnet: is for the family pipeline, but model.family is cogvideox"),
        ("--model.attention flahs", "model.attention: unknown attention 'flahs'; did you mean 'flash'?"),
        ("--model.motion_adapter a/b", "model.motion_adapter: is for the family animatediff"),
        ("--weak.experts some", "weak.experts some: must be a whole number or one of top, bottom, high, low or null"),
        ("--weak.experts 0", "weak: experts must be top, bottom, high, low or a number of at least 1, got 0"),
        ("--weak.experts high", "weak: two stages (a pair of guidance scales, experts high, low) need model.family"),
        ("--base.guidance-scale [4,3]", "base: two stages"),
        ("--base.guidance-scale [4,3,2]", "must be a number or a pair of numbers like [0, 0.5] or null"),
        ("--weak.ip-adapter-scale 0", "weak.ip_adapter_scale: a branch with no IP-Adapter loaded; name it in model.ip"),
        ("--weak.skip-layers []", "weak: skip_layers is empty; name at least one block"),
        ("--weak.skip-layers 3", "weak.skip_layers 3: must be a list, each a whole number or a text or null"),
        ("--inputs.prompt x", "inputs.prompt: is set elsewhere"),
        ("--model.pretrained ", "model.pretrained: is needed"),
        ("--call.prompt x", "call.prompt: is set by its own option"),
        ("--stepz 3", "unknown option --stepz; did you mean '--steps'?"),
        ("--strong.gidance-scale 3", "unknown option --strong.gidance-scale; did you mean '--strong.guidance-scale'?"),
        ("--steps", "argument --steps: expected one argument"),
        ("--prompts /none/file", "prompts /none/file: cannot be read: No such file"),
        ("--config nope", "unknown config 'nope': no such file; the packaged ones are animatediff-dreamshaper,"),
    ],
)
def test_bad_command_lines_are_answered_in_one_line(argv, said, minimal, capsys):
    parts = argv.split(" ") if argv.startswith("--model.pre") else argv.split()
    assert said in error_of(capsys, "--config", minimal, *parts)


@pytest.mark.parametrize(
    "text, said",
    [
        ("stepz: 7", "unknown key 'stepz'; did you mean 'steps'?"),
        ("strong: {gidance: 3}", "strong: unknown key 'gidance'; did you mean 'guidance_scale'?"),
        ("xyzzy: 7", "unknown key 'xyzzy'; known are prompts, model,"),
        ("strong: 7", "strong: must be a mapping of keys to values, not 7"),
        ("- a", "must be a mapping of keys to values"),
        ("steps: [", "not valid YAML or JSON"),
        ("steps: a", "steps a: must be a whole number"),
        ("model: {weights: [a]}", "model.weights ['a']: must be a mapping of names to a text"),
        ("model: {pretrained: a/b}\nprompts: []", "prompts: none given; write one after the command"),
        ("model: {pretrained: a/b}\nprompts: ['  ']", "prompts: '  ' is not a text"),
        ("model: {pretrained: a/b}\nprompts: fox", "prompts: must be a list"),
        ("model: {pretrained: a/b}\nprompts: [x]\nsteps: 0", "steps 0: must be from 1 to 1000"),
    ],
)
def test_bad_files_are_answered_in_one_line(text, said, write, capsys):
    assert said in error_of(capsys, "--config", write(text))


def test_an_empty_prompt_file_and_one_that_is_no_text(write, tmp_path, minimal, capsys):
    assert "holds no prompt" in error_of(capsys, "--config", minimal, "--prompts", write("\n# nothing\n", "none.txt"))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    assert "cannot be read" in error_of(capsys, "--config", minimal, "--prompts", str(tmp_path / "binary.yaml"))
    assert "cannot be read as text" in error_of(capsys, "--config", str(tmp_path / "binary.yaml"))
