"""Models whose files are damaged: a plan or a render says which file it is, and what to do."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from commands import ended
from safetensors.torch import load_file, save_file

from w2sd_video.miniatures import WEIGHTS

WEIGHTS_OF = "diffusion_pytorch_model.safetensors"
CONFIGS = {
    "model_index.json: empty": ("model_index.json", ""),
    "model_index.json: no JSON": ("model_index.json", "{"),
    "model_index.json: list": ("model_index.json", "[1]"),
    "model_index.json: null": ("model_index.json", "null"),
    "model_index.json: no class": ("model_index.json", '{"transformer": ["diffusers", "PixArtTransformer2DModel"]}'),
    "model_index.json: class is a number": ("model_index.json", '{"_class_name": 3}'),
    "model_index.json: unknown class": ("model_index.json", '{"_class_name": "NoSuchPipeline"}'),
    "model_index.json: component is a text": ("model_index.json", '{"_class_name": "PixArtAlphaPipeline", "vae": "x"}'),
    "model_index.json: denoiser is a number": (
        "model_index.json",
        '{"_class_name": "PixArtAlphaPipeline", "transformer": 3}',
    ),
    "model_index.json: denoiser's class is none": (
        "model_index.json",
        '{"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "NoSuchModel"]}',
    ),
    "model_index.json: twice": ("model_index.json", '{"_class_name": "A", "_class_name": "B"}'),
    "model_index.json: deep": ("model_index.json", "[" * 100000),
    "vae/config.json: empty": ("vae/config.json", ""),
    "vae/config.json: list": ("vae/config.json", "[]"),
    "vae/config.json: blocks are a number": ("vae/config.json", '{"block_out_channels": 3}'),
    "transformer/config.json: another class": ("transformer/config.json", '{"_class_name": "AutoencoderKL"}'),
    "transformer/config.json: texts for numbers": (
        "transformer/config.json",
        '{"_class_name": "PixArtTransformer2DModel", "num_layers": "many", "sample_size": "x"}',
    ),
    "scheduler/scheduler_config.json: empty": ("scheduler/scheduler_config.json", ""),
    "scheduler/scheduler_config.json: texts": (
        "scheduler/scheduler_config.json",
        '{"_class_name": "DDIMScheduler", "beta_schedule": "x"}',
    ),
    "tokenizer/tokenizer.json: empty": ("tokenizer/tokenizer.json", ""),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a copy of a miniature, whose files may be damaged."""
    shutil.copytree(WEIGHTS / "pixart", tmp_path / "model")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


def rendered(capfd, *argv):
    words = ["--config", "miniature-pixart", "--model.pretrained", "./model", "--steps", "2", "-o", "out/x.png"]
    return ended(capfd, "render", *words, *argv)


def test_the_folder_is_fine_before_it_is_damaged(folder, capfd):
    assert rendered(capfd) == (0, "") and Path("out/x.png").is_file()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_damaged_config_is_said_in_one_line(kind, folder, capfd):
    file, text = CONFIGS[kind]
    (folder / file).write_text(text)
    planned = ended(capfd, "render", "--config", "miniature-pixart", "--model.pretrained", "./model", "--dry-run")
    code, answer = rendered(capfd)
    assert code and "model" in answer, (planned, answer)
    assert planned[0] in (0, 1, 2)


@pytest.mark.parametrize("cut", [0, 4, 200, 50_000])
@pytest.mark.parametrize("part", ["transformer", "transformer_weak", "vae"])
def test_truncated_weights_are_said_in_a_plan_and_before_sampling(part, cut, folder, capfd):
    file = folder / part / WEIGHTS_OF
    file.write_bytes(file.read_bytes()[:cut])
    argv = ["--model.weights.weak", "./model/transformer_weak"]
    plan = ["--config", "miniature-pixart", "--model.pretrained", "./model", *argv, "--dry-run"]
    code, answer = ended(capfd, "render", *plan)
    assert code == 2 and f"{part}/{WEIGHTS_OF}" in answer and "get it again" in answer
    code, answer = rendered(capfd, *argv)
    assert code and "model" in answer


def test_pickled_weights_are_refused_with_what_to_do(folder, capfd):
    (folder / "transformer" / WEIGHTS_OF).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    code, answer = rendered(capfd)
    assert code == 1 and "model ./model: " in answer


def test_weights_that_are_not_finite_are_named(folder, capfd):
    weights = load_file(folder / "transformer" / WEIGHTS_OF)
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, folder / "transformer" / WEIGHTS_OF, {"format": "pt"})
    code, answer = rendered(capfd)
    assert code == 2 and "the weights of transformer hold NaN or infinity" in answer


def test_weights_of_another_shape_are_refused(folder, capfd):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    code, answer = rendered(capfd)
    assert code == 1 and "model ./model: " in answer
