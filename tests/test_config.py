import dataclasses
import json
from importlib import resources

import pytest
import yaml

from w2sd_video.branch import Branch
from w2sd_video.presets import PRESETS
from w2sd_video.reflection_settings import Reflection
from w2sd_video.render import main
from w2sd_video.settings import command_line as configs
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import evaluations
from w2sd_video.settings.files import packaged_configs
from w2sd_video.settings.model_checks import check_plan, limits_of
from w2sd_video.settings.panels import panels, weak_panel
from w2sd_video.settings.schema import BranchConfig, ConfigError, ModelConfig, RenderConfig, reflected_steps
from w2sd_video.settings.words import plan_in_words

MINIMAL = {"prompts": ["a fox"], "model": {"family": "cogvideox", "pretrained": "owner/name"}}
PIPELINE = ["--model.family", "pipeline"]


@pytest.fixture
def write(tmp_path):
    """Write a configuration to a file, and return its path."""

    def write(data, name="mine.yaml"):
        text = data if isinstance(data, str) else json.dumps(data)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def minimal(write):
    return write(MINIMAL)


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
    assert (config.inversion, config.strength) == ("paper", 1.0)
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
        ("--preset best", "preset best: must be one of paper, recommended"),
        ("--steps 0", "steps 0: must be from 1 to 1000"),
        ("--steps 1001", "steps 1001: must be from 1 to 1000"),
        ("--steps ten", "steps ten: must be a whole number"),
        ("--steps 2.5", "steps 2.5: must be a whole number"),
        ("--reflection-steps 51", "reflection_steps 51: must be from 0 to 50, the number of steps"),
        ("--reflection-steps -1", "reflection_steps -1: must be from 0 to 50"),
        ("--reflection-steps [0.5,0.1]", "reflection_steps [0.5, 0.1]: a window must be [start, stop]"),
        ("--reflection-steps [0,2]", "reflection_steps [0.0, 2.0]: a window must be"),
        ("--reflection-steps all", "must be a whole number or a pair of numbers like [0, 0.5] or null"),
        ("--inversion explicit --reflection-steps 50", "cannot reflect the last step; at most 49"),
        (
            "--inversion euler",
            "inversion euler: must be one of paper, explicit, current, implicit, resample, resample-advanced",
        ),
        ("--rounds 0", "rounds 0: must be from 1"),
        ("--strength 11", "strength 11.0: must be from -10 to 10"),
        ("--strength nan", "strength 'nan': cannot be read: No such file"),
        ("--span 0", "span 0: must be from 1 to 1000"),
        ("--autoguidance 11", "autoguidance 11.0: must be from -10 to 10"),
        ("--inversion explicit --span 3", "cannot reflect the last 3 steps; at most 47"),
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
        ("--weak.experts 0", "weak.experts 0: must be top, bottom, high, low or a number of at least 1"),
        ("--weak.experts high", "weak: two stages (a pair of guidance scales, experts high, low) need model.family"),
        ("--base.guidance-scale [4,3]", "base: two stages"),
        ("--base.guidance-scale [4,3,2]", "must be a number or a pair of numbers like [0, 0.5] or null"),
        ("--weak.ip-adapter-scale 0", "weak.ip_adapter_scale: a branch with no IP-Adapter loaded; name it in model.ip"),
        ("--weak.skip-layers []", "weak.skip_layers: is empty"),
        ("--weak.skip-layers 3", "weak.skip_layers 3: must be a list, each a whole number or a text or null"),
        ("--inputs.prompt x", "inputs.prompt: is set elsewhere"),
        ("--model.pretrained ", "model.pretrained: is needed"),
        ("--call.prompt x", "call.prompt: is set by its own option"),
        ("--stepz 3", "unknown option --stepz; did you mean --steps?"),
        ("--strong.gidance-scale 3", "unknown option --strong.gidance-scale; did you mean --strong.guidance-scale?"),
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


def planned(minimal, *argv):
    """Return what is wrong with a plan, or None."""
    try:
        check_plan(parse(["--config", minimal, *argv]).config)
    except ConfigError as error:
        return str(error)
    return None


def test_sizes_that_a_model_cannot_do(minimal):
    assert planned(minimal) is None and planned(minimal, "--height", "480", "--frames", "49") is None
    assert "height 100: must be a multiple of 16 for this model; use 96 or 112" in planned(minimal, "--height", "100")
    assert "frames 48: this model makes 1 + 8 k frames; use 41 or 49" in planned(minimal, "--frames", "48")
    animatediff = ["--model.family", "animatediff"]
    assert planned(minimal, *animatediff, "--frames", "32", "--width", "72") is None
    assert "frames 33: this model makes at most 32" in planned(minimal, *animatediff, "--frames", "33")
    assert "width 12: must be a multiple of 8 for this model; use 8 or 16" in planned(
        minimal, *animatediff, "--width", "12"
    )


def test_models_that_are_not_there(minimal, tmp_path):
    missing = str(tmp_path / "none")
    assert "no such folder" in planned(minimal, "--model.pretrained", missing)
    assert "'sd15': no such folder, and not a hub id" in planned(minimal, "--model.pretrained", "sd15")
    assert "no such miniature" in planned(minimal, "--model.pretrained", "miniature:wan")
    assert "no such folder" in planned(minimal, "--model.weights.weak", missing)
    assert "no such folder" in planned(minimal, "--model.lora.style", "./none.safetensors")
    assert planned(minimal, "--model.weights.weak", str(tmp_path)) is None
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{")
    assert "vae/config.json is not JSON" in planned(minimal, "--model.pretrained", str(tmp_path))


def test_an_attention_is_said_where_it_is_not_torchs_own(minimal):
    kernels = []
    for options in ([], ["--model.attention", "sdpa"], ["--model.attention", "_native_cudnn"]):
        said = plan_in_words(parse(["--config", minimal, *options]).config)
        kernels.append([line for line in said.splitlines() if line.startswith("kernel")])
    assert kernels == [[], [], ["kernel   _native_cudnn (attention)"]]


def test_words_that_a_miniature_does_not_know(minimal):
    miniature = ["--model.pretrained", "miniature:animatediff", "--model.family", "animatediff"]
    said = planned(minimal, *miniature, "a purple circle moving left")
    assert "'purple'" in said and "red, green, blue, yellow" in said
    assert "'sideways'" in planned(minimal, *miniature, "a red circle moving left", "a red circle moving sideways")
    assert planned(minimal, *miniature, "a red circle moving left") is None
    assert "'big'" in planned(minimal, *miniature, "a red circle moving left", "--weak.prompt", "a big circle")


@pytest.fixture
def pipeline_folder(tmp_path):
    """Write what a pipeline's folder says without its weights, and return options that name it."""

    def write(kind, denoisers, **index):
        index |= {"_class_name": kind} | {name: ["diffusers", "x"] for name in denoisers}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        for name, settings in denoisers.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": "Denoiser"} | settings))
        return [*PIPELINE, "--model.pretrained", str(tmp_path)]

    return write


def test_branches_that_a_pipelines_folder_shows_to_make_no_sense(minimal, pipeline_folder):
    plain = pipeline_folder("StableDiffusionPipeline", {"unet": {}})
    assert planned(minimal, *plain) is None
    said = planned(minimal, *plain, "--strong.control-scale", "1")
    assert said == "strong.control_scale: a control branch without a ControlNet; name it in model.controlnet"
    assert planned(minimal, *plain, "--strong.control-scale", "1", "--model.controlnet", "a/b") is None
    assert "weak.experts bottom: Denoiser is no mixture of experts" in planned(
        minimal, *plain, "--weak.experts", "bottom"
    )
    for argv in (["--weak.experts", "low"], ["--weak.guidance-scale", "[4, 3]"]):
        said = planned(minimal, *plain, *argv)
        assert "is for a two-stage model, but StableDiffusionPipeline has one denoiser" in said
    control = pipeline_folder("StableDiffusionControlNetPipeline", {"unet": {}})
    assert planned(minimal, *control, "--strong.control-scale", "1") is None


def test_experts_and_stages_that_a_pipelines_folder_shows(minimal, pipeline_folder):
    mixture = pipeline_folder("HiDreamImagePipeline", {"transformer": {"num_routed_experts": 4}})
    assert planned(minimal, *mixture, "--weak.experts", "bottom", "--strong.experts", "4") is None
    assert "weak.experts 5: the model has 4 experts; use 1 to 4" in planned(minimal, *mixture, "--weak.experts", "5")
    stages = pipeline_folder("WanPipeline", {"transformer": {}, "transformer_2": {}})
    assert planned(minimal, *stages, "--weak.experts", "low", "--base.guidance-scale", "[4, 3]") is None
    assert "no mixture" in planned(minimal, *stages, "--weak.experts", "top")


def test_classes_are_asked_for_by_number_or_name(minimal, pipeline_folder, write):
    settings = {"transformer": {"num_embeds_ada_norm": 3}}
    folder = pipeline_folder("DiTPipeline", settings, id2label={"0": "tench, Tinca tinca", "1": "goldfish", "2": "ray"})
    assert planned(minimal, *folder, "0", "2", "goldfish", "Tinca tinca") is None
    said = planned(minimal, *folder, "3")
    assert said.startswith("prompt '3': this model is asked for classes; use a number from 0 to 2, or a name: tench, ")
    assert said.endswith("Tinca tinca, goldfish, ray")
    assert planned(minimal, *folder, "gold fish").endswith("did you mean 'goldfish'?")
    assert planned(minimal, *folder, "1", "--weak.prompt", "a fish").startswith("weak.prompt: this model is asked for")
    numbers = write({"prompts": [1, 2], "model": {"pretrained": folder[-1]}})
    assert parse(["--config", numbers]).config.prompts == ["1", "2"] and planned(numbers) is None
    assert "True is not a text" in planned(write({"prompts": [True], "model": {"pretrained": "a/b"}}, "true.yaml"))
    assert "base.prompt: this model" in planned(minimal, "--model.family", "dit_moe", "--base.prompt", "x")


def test_evaluations_of_two_stages_are_exact_or_at_most(minimal, pipeline_folder):
    folder = pipeline_folder("WanPipeline", {"transformer": {}, "transformer_2": {}})
    options = [*folder, "--steps", "5", "--reflection-steps", "2", "--inversion", "current"]
    pair = ["--base.guidance-scale", "[4, 3]"]
    same = parse(["--config", minimal, *options, *pair, "--weak.guidance-scale", "1"]).config
    assert evaluations(same) == {"base": 10, "strong": 4, "weak": 0} and "at most" not in plan_in_words(same)
    mixed = parse(["--config", minimal, *options, "--base.guidance-scale", "[4, 1]"]).config
    assert evaluations(mixed) == {"base": 10, "strong": 4, "weak": 0} and "at most base 10" in plan_in_words(mixed)
    high = parse(["--config", minimal, *options, *pair, "--weak.experts", "high"]).config
    assert evaluations(high) == {"base": 10, "strong": 4, "weak": 4}, "only the low noise stage has a gap"


def test_memory_is_estimated_from_the_headers_of_a_folder(minimal, tmp_path):
    for name, size in {"transformer": 3000, "vae": 500, "weak": 3000}.items():
        (tmp_path / name).mkdir()
        header = json.dumps({"__metadata__": {}, "a": {"shape": [size, 1000]}, "b": {"shape": []}}).encode()
        (tmp_path / name / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "x", "transformer": [], "vae": []}))
    options = ["--model.pretrained", str(tmp_path), "--model.weights.weak", str(tmp_path / "weak")]
    said = plan_in_words(parse(["--config", minimal, *options]).config)
    assert "about 26 MB of weights in float32 (transformer 3 M, vae 0.5 M, weak 3 M); activations" in said
    options += ["--dtype", "bfloat16", "--model.memory", "offload", "--model.weights.other", "a/b"]
    said = plan_in_words(parse(["--config", minimal, *options]).config)
    assert "about 13 MB of weights in bfloat16" in said and "at most 12 MB of them on the device" in said
    assert "size unknown: other" in said


def test_limits_are_read_from_a_models_folder(tmp_path):
    for name, settings in {
        "vae": {"block_out_channels": [1, 2, 3], "temporal_compression_ratio": 2},
        "transformer": {"patch_size": 4},
        "motion_adapter": {"motion_max_seq_length": 12},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    model = ModelConfig("cogvideox", str(tmp_path))
    assert dataclasses.astuple(limits_of(model)) == (16, 4, 1024)
    assert dataclasses.astuple(limits_of(dataclasses.replace(model, family="animatediff"))) == (8, 1, 12)


def test_the_weak_clip_of_a_comparison_differs_by_the_gap_alone():
    def weak(*argv):
        return weak_panel(parse(["--config", "animatediff-dreamshaper", *argv]).config)

    assert (weak().guidance_scale, weak().weights) == (5.5, "weak"), "a guidance that both have is no part of the gap"
    guided = weak("--strong.guidance-scale", "5.5", "--weak.guidance-scale", "0")
    assert (guided.guidance_scale, guided.weights) == (0.0, "weak")
    prompted = weak("--weak.prompt", "a dog")
    assert prompted.prompt == "a dog" and prompted.guidance_scale == 5.5


def test_a_comparison_has_three_panels_and_only_the_last_is_reflected():
    config = parse(["--config", "cogvideox-5b-guidance", "--compare"]).config
    found = panels(config)
    assert list(found) == ["weak", "strong", "W2SD"]
    assert [sum(evaluations(one).values()) for one in found.values()] == [50, 100, 100 + 49 * 3]
    assert list(panels(dataclasses.replace(config, compare=False))) == ["W2SD"]
