"""What a model's files tell before it is loaded: sizes, branches, evaluations, memory."""

import dataclasses
import json
from dataclasses import replace

import pytest

from w2sd_video.messages import ConfigError
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import evaluations, inversion_of
from w2sd_video.settings.model_checks import check_plan, limits_of
from w2sd_video.settings.panels import panels, weak_panel
from w2sd_video.settings.schema import BranchConfig, ModelConfig
from w2sd_video.settings.words import plan_in_words, steps_in_words


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


def test_words_that_a_miniature_does_not_know(minimal):
    miniature = ["--model.pretrained", "miniature:animatediff", "--model.family", "animatediff"]
    said = planned(minimal, *miniature, "a purple circle moving left")
    assert "'purple'" in said and "red, green, blue, yellow" in said
    assert "'sideways'" in planned(minimal, *miniature, "a red circle moving left", "a red circle moving sideways")
    assert planned(minimal, *miniature, "a red circle moving left") is None
    assert "'big'" in planned(minimal, *miniature, "a red circle moving left", "--weak.prompt", "a big circle")


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
    named = pipeline_folder("DiTPipeline", {"transformer": {"num_embeds_ada_norm": 1000}}, id2label={"4": "ray"})
    assert planned(minimal, *named, "4") is None and "use a number from 4 to 4" in planned(minimal, *named, "3")
    bare = pipeline_folder("DiTPipeline", {"transformer": {"num_embeds_ada_norm": 9}})
    assert planned(minimal, *bare, "8") is None and "use a number from 0 to 8" in planned(minimal, *bare, "9")


def test_noise_of_the_steps_is_refused_where_nothing_adds_it(minimal):
    miniature = ["--model.family", "pipeline", "--model.pretrained", "miniature:pixart", "--call.eta", "0.5"]
    prompt = ["a red circle moving left"]
    assert planned(minimal, *miniature, *prompt) is None
    assert planned(minimal, *miniature, *prompt, "--solver", "DDIMParallelScheduler") is None
    said = planned(minimal, *miniature, *prompt, "--solver", "UniPCMultistepScheduler")
    assert said.startswith("call.eta 0.5: UniPCMultistepScheduler adds no such noise to its steps; leave it out, or")
    said = planned(minimal, *miniature, *prompt, "--model.scheduler", "CogVideoXDDIMScheduler")
    assert said.startswith("call.eta 0.5: CogVideoXDDIMScheduler adds no"), "which has the argument, in vain"


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


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "current"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "current"),
        ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}, "paper"),
        ("DDIMScheduler", {}, "paper"),
    ],
)
def test_the_default_inversion_is_that_of_the_models_scheduler(
    minimal, pipeline_folder, tmp_path, name, settings, expected
):
    folder = pipeline_folder("WanPipeline", {"transformer": {}}, scheduler=["diffusers", name])
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    pair = ["--strong.guidance-scale", "5", "--weak.guidance-scale", "1", "--steps", "5"]
    config = parse(["--config", minimal, *folder, *pair]).config
    assert inversion_of(config) == expected and f"inversion {expected}" in plan_in_words(config)
    assert (
        evaluations(config)["weak"] == {"current": 0, "paper": 4}[expected]
    )  # a row of strong's, where both are asked
    assert inversion_of(replace(config, inversion="explicit")) == "explicit"


def test_the_default_inversion_of_a_model_that_is_not_here_is_left_open(minimal):
    config = parse(["--config", minimal, "--model.pretrained", "someone/something", "--steps", "5"]).config
    assert inversion_of(config) == "auto" and "inversion auto" in steps_in_words(config)


def test_a_strength_of_1_is_said_to_be_unmeasured(minimal, pipeline_folder):
    config = parse(["--config", minimal, *pipeline_folder("WanPipeline", {"transformer": {}})]).config
    assert "steps    strength 1 is the paper's" in plan_in_words(config)
    for changes in ({"strength": 0.5}, {"reflection_steps": 0}):
        assert "strength 1 is" not in plan_in_words(replace(config, **changes))


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


def test_a_comparison_has_strong_at_equal_cost_and_only_the_last_is_reflected():
    config = parse(["--config", "cogvideox-5b-guidance", "--compare"]).config
    found = panels(config)
    assert list(found) == ["weak", "strong", "strong at equal cost", "W2SD"]
    assert [sum(evaluations(panel).values()) for panel in found.values()] == [50, 100, 246, 100 + 49 * 3]
    assert found["strong at equal cost"] == dataclasses.replace(found["strong"], steps=123)
    unreflected = panels(dataclasses.replace(config, reflection_steps=0))
    assert list(unreflected) == ["weak", "strong", "guidance"], "of no more cost than strong there needs no fourth"
    assert list(panels(dataclasses.replace(config, compare=False))) == ["W2SD"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "W2SD"),
        ({"autoguidance": 1.0}, "W2SD and AutoGuidance"),
        ({"autoguidance": 1.0, "reflection_steps": 0}, "AutoGuidance"),
        ({"autoguidance": 1.0, "reflection_steps": 0, "autoguidance_steps": [0.5, 1.0]}, "AutoGuidance"),
        ({"autoguidance": 1.0, "reflection_steps": 0, "autoguidance_steps": 0}, "no guidance"),
        (
            {"autoguidance": 1.0, "reflection_steps": 0, "weak": BranchConfig(guidance_scale=1.0, skip_layers=[1])},
            "skip-layer guidance",
        ),
        (
            {"autoguidance": 1.0, "reflection_steps": 0, "weak": BranchConfig(weights="weak", skip_layers=[1])},
            "AutoGuidance",
        ),
        ({"inversion": "resample"}, "Re-Sampling"),
        ({"inversion": "resample-advanced"}, "advanced Re-Sampling"),
        ({"reflection_steps": 0}, "no guidance"),
        ({"reflection_steps": 0, "base": BranchConfig(guidance_scale=3.0)}, "guidance"),
        ({"reflection_steps": 0, "base": BranchConfig(guidance_scale=[1.0, 3.0])}, "guidance"),
    ],
)
def test_a_clip_is_named_by_what_it_is_sampled_with(changes, name):
    config = dataclasses.replace(parse(["--config", "miniature-pixart"]).config, **changes)
    assert list(panels(config)) == [name]
    assert list(panels(dataclasses.replace(config, compare=True)))[-1] == name
    said = plan_in_words(config)
    assert f"NFE      {name}: " in said


def test_a_window_is_said_behind_what_is_on_in_it():
    config = parse(["--config", "miniature-pixart"]).config
    base = BranchConfig(guidance_scale=3.0, skip_layers=[1], windows={"guidance_scale": (0.5, 1.0)})
    said = plan_in_words(dataclasses.replace(config, base=base)).splitlines()[0]
    assert said.endswith("base skip_layers [1], guidance 3 in (0.5, 1.0)")
    base = dataclasses.replace(base, windows={"skip_layers": (0.0, 0.5)})
    said = plan_in_words(dataclasses.replace(config, base=base)).splitlines()[0]
    assert said.endswith("base skip_layers [1] in (0.0, 0.5), guidance 3")


def test_an_attention_is_said_where_it_is_not_torchs_own(minimal):
    kernels = []
    for options in ([], ["--model.attention", "sdpa"], ["--model.attention", "_native_cudnn"]):
        said = plan_in_words(parse(["--config", minimal, *options]).config)
        kernels.append([line for line in said.splitlines() if line.startswith("kernel")])
    assert kernels == [[], [], ["kernel   _native_cudnn (attention)"]]
