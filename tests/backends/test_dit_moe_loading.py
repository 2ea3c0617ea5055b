"""DiT-MoE's checkpoints: what loads, what is refused, and that no code is run."""

import argparse
import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from dit_moe_by_hand import published_shapes
from safetensors.torch import save_file
from tiny.dit_moe import CONFIG, dit_moe_transformer
from tiny.dit_moe import dit_moe as tiny_dit_moe
from tiny.parts import image_vae

from w2sd_video import Branch, reflection
from w2sd_video.backends import dit_moe, registered
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline


def tiny_pipe(scheduler=None, **changes):
    return tiny_dit_moe(scheduler, **changes)[0]


def run(pipe):
    generator = torch.Generator().manual_seed(7)
    return pipe([3, 5], num_inference_steps=4, generator=generator, output_type="latent").images


@pytest.mark.parametrize(
    ("size", "published", "millions"),
    [
        ("S/2-8E2A", (12, 384, 6, 8, False), 199),
        ("S/2-16E2A", (12, 384, 6, 16, False), 369),
        ("B/2-8E2A", (12, 768, 12, 8, False), 795),
        ("XL/2-8E2A", (28, 1152, 16, 8, True), 4168),
        ("G/2-16E2A", (40, 1408, 16, 16, True), 16503),
    ],
)
def test_published_sizes_have_the_published_parameters(size, published, millions):
    shapes = dit_moe.shapes_of(size)
    assert shapes == published_shapes(*published)
    assert sum(map(math.prod, shapes.values())) // 10**6 == millions


@pytest.fixture
def tiny_sizes(monkeypatch):
    sizes = {
        "tiny": {**CONFIG},
        "wide": {**CONFIG, "num_experts": 8},
        "flow": {**CONFIG, "qk_norm": True},
    }
    monkeypatch.setattr(dit_moe, "SIZES", sizes)
    monkeypatch.setattr(dit_moe, "RECTIFIED_FLOW", ("flow",))


@pytest.mark.parametrize("layout", ["plain", "ema", "model", "safetensors"])
def test_checkpoint_loads_as_it_was_published(tiny_sizes, tmp_path, layout):
    state, other = dit_moe_transformer().state_dict(), dit_moe_transformer(seed=5).state_dict()
    path = tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pt")
    training = {"ema": state, "model": other, "args": argparse.Namespace(model="DiT-S/2")}
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save({"plain": state, "ema": training, "model": {"model": state}}[layout], path)
    model = dit_moe.load_checkpoint(path, size="tiny")
    loaded = model.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    assert not model.training and model.config.timestep_scale == 1.0
    assert dit_moe.load_checkpoint(path, torch.float16).dtype == torch.float16
    assert dit_moe.load_checkpoint(path, rectified_flow=True).config.timestep_scale == 0.001


def test_size_and_training_are_told_from_the_checkpoint(tiny_sizes, tmp_path):
    torch.save(dit_moe_transformer(qk_norm=True).state_dict(), tmp_path / "w.pt")
    config = dit_moe.load_checkpoint(tmp_path / "w.pt").config
    assert config.qk_norm and config.timestep_scale == 0.001


def damaged(damage):
    state = dit_moe_transformer().state_dict()
    if damage == "missing":
        del state["blocks.1.moe.gate.weight"]
    elif damage == "extra":
        state["blocks.7.attn.qkv.weight"] = torch.zeros(1)
    else:
        state["final_layer.linear.bias"] = torch.zeros(3)
    return state


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"missing: blocks\.1\.moe\.gate\.weight$"),
        ("extra", r"extra: blocks\.7\.attn\.qkv\.weight$"),
        ("misshapen", r"misshapen: final_layer\.linear\.bias \(3,\) instead of \(32,\)$"),
    ],
)
@pytest.mark.parametrize("size", [None, "tiny"])
def test_damaged_checkpoint_is_refused_in_words(tiny_sizes, tmp_path, damage, message, size):
    torch.save(damaged(damage), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"does not fit DiT-MoE-tiny: it is none of tiny, wide, flow\. .*{message}"):
        dit_moe.load_checkpoint(tmp_path / "w.pt", size=size)


def test_wrong_size_names_the_one_that_fits(tiny_sizes, tmp_path):
    torch.save(dit_moe_transformer(num_experts=8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"does not fit DiT-MoE-tiny: it is a wide; pass size='wide'.* and 20 more; misshapen"
    ):
        dit_moe.load_checkpoint(tmp_path / "w.pt", size="tiny")


class Harmful:
    def __reduce__(self):
        return (open, ("harm.txt", "w"))


def test_code_in_a_checkpoint_is_not_run(tiny_sizes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": dit_moe_transformer().state_dict(), "args": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        dit_moe.load_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "harm.txt").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_file_that_is_no_checkpoint_is_refused(tiny_sizes, tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        dit_moe.load_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        dit_moe.load_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        dit_moe.load_checkpoint(tmp_path / "w.pt")


def test_loads_a_published_file_with_its_vae_and_second_weights(tiny_sizes, tmp_path):
    image_vae().save_pretrained(tmp_path / "vae")
    for name, seed in (("strong", 0), ("weak", 3)):
        torch.save({"ema": dit_moe_transformer(seed).state_dict()}, tmp_path / f"{name}.pt")
    pipe = dit_moe.load(
        tmp_path / "strong.pt", weights={"early": tmp_path / "weak.pt"}, vae=tmp_path / "vae", device="cpu"
    )
    assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config.beta_end == 0.02
    pipe.set_progress_bar_config(disable=True)
    expected = tiny_pipe(dit_moe.published_scheduler(rectified_flow=False))
    assert torch.equal(run(pipe), run(expected))
    assert torch.equal(registered(pipe)["early"].pos_embed, pipe.transformer.pos_embed)
    with reflection(pipe, strong=Branch(guidance_scale=1.0), weak=Branch(weights="early", guidance_scale=1.0)):
        assert not torch.equal(run(pipe), run(expected))


def test_loads_a_rectified_flow_file(tiny_sizes, tmp_path):
    image_vae().save_pretrained(tmp_path / "vae")
    torch.save(dit_moe_transformer(qk_norm=True).state_dict(), tmp_path / "w.pt")
    pipe = dit_moe.load(tmp_path / "w.pt", vae=tmp_path / "vae", device="cpu")
    assert (
        isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler) and pipe.transformer.config.timestep_scale == 0.001
    )


@pytest.mark.parametrize("scheduler", [DDIMScheduler(clip_sample=False), FlowMatchEulerDiscreteScheduler()])
def test_saved_pipeline_is_the_same_when_loaded(tmp_path, scheduler):
    pipe = tiny_pipe(scheduler, timestep_scale=0.5)
    pipe.save_pretrained(tmp_path / "pipe")
    for loaded in (DiTMoEPipeline.from_pretrained(tmp_path / "pipe"), dit_moe.load(tmp_path / "pipe", device="cpu")):
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(run(loaded), run(pipe))
        assert loaded.labels == pipe.labels and type(loaded.scheduler) is type(scheduler)


def test_load_refuses_in_words(tiny_sizes, tmp_path):
    tiny_pipe().save_pretrained(tmp_path / "pipe")
    dit_moe_transformer(num_experts=8).save_pretrained(tmp_path / "wide")
    torch.save(dit_moe_transformer(num_experts=8).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="size must be one of tiny, wide, flow; got 'huge'"):
        dit_moe.load(tmp_path / "pipe", size="huge", device="cpu")
    with pytest.raises(ValueError, match="size and rectified_flow are for checkpoint files"):
        dit_moe.load(tmp_path / "pipe", size="tiny", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"vae=.*is neither a folder"):
        dit_moe.load(tmp_path / "wide.pt", vae=tmp_path / "nowhere", device="cpu")
    for weak in (tmp_path / "wide", tmp_path / "wide.pt", dit_moe_transformer(num_experts=8)):
        with pytest.raises(ValueError, match=r"weights\['weak'\] has num_experts=8"):
            dit_moe.load(tmp_path / "pipe", weights={"weak": weak}, device="cpu")
    with pytest.raises(ValueError, match=r"weights\['weak'\] is a Linear"):
        dit_moe.load(tmp_path / "pipe", weights={"weak": torch.nn.Linear(1, 1)}, device="cpu")
