"""Loading: it gives what diffusers gives, shares what can be shared, and refuses early what does not fit."""

import gc
import json
import shutil
import weakref

import diffusers
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from torch import nn

from w2sd_video.backends import animatediff, cogvideox, register, registered

AS_DOCUMENTED = {"clip_sample": False, "timestep_spacing": "linspace", "beta_schedule": "linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that `save_pretrained` wrote: pipelines, motion adapters, denoisers alone."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, (pipe, _) in {
        "sd": tiny.stable_diffusion(),
        "sdxl": tiny.stable_diffusion_xl(),
        "animatediff": tiny.animatediff(),
        "2b": tiny.cogvideox(),
        "5b": tiny.cogvideox(rotary=True),
    }.items():
        pipe.save_pretrained(root / name)
    tiny.motion_adapter(seed=5).save_pretrained(root / "motion")
    tiny.motion_adapter(seed=5, use_motion_mid_block=False).save_pretrained(root / "motion_sdxl")
    tiny.unet(seed=9).save_pretrained(root / "unet")
    tiny.cogvideox_transformer(seed=9).save_pretrained(root / "transformer")
    return root


def run(pipe, call, **changes):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call | {"output_type": "latent"} | changes, generator=torch.Generator().manual_seed(0))[0]


def close(one, other):
    """Up to rounding: where a tensor lies in memory decides which of the CPU's instructions add it up."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.std().item())


def motion_addresses(model):
    return {name: p.data_ptr() for name, p in model.named_parameters() if "motion_modules" in name}


def only_configs(source, target):
    """Copy a checkpoint without its weights: whoever tries to load it fails."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return target


# AnimateDiff


def test_stock_sd_equals_diffusers_with_the_documented_scheduler(saved):
    pipe = animatediff.load(saved / "sd", motion_adapter=saved / "motion", device="cpu")
    assert type(pipe) is diffusers.AnimateDiffPipeline
    scheduler = DDIMScheduler.from_pretrained(saved / "sd", subfolder="scheduler", **AS_DOCUMENTED)
    assert {name: pipe.scheduler.config[name] for name in AS_DOCUMENTED} == AS_DOCUMENTED
    assert torch.equal(pipe.scheduler.alphas_cumprod, scheduler.alphas_cumprod)
    adapter = MotionAdapter.from_pretrained(saved / "motion")
    stock = diffusers.AnimateDiffPipeline.from_pretrained(saved / "sd", motion_adapter=adapter, scheduler=scheduler)
    _, call = tiny.animatediff()
    close(run(pipe, call), run(stock, call))


def test_sdxl_gets_all_of_its_weights(saved):
    pipe = animatediff.load(saved / "sdxl", motion_adapter=saved / "motion_sdxl", device="cpu")
    assert type(pipe) is diffusers.AnimateDiffSDXLPipeline
    flat = UNet2DConditionModel.from_pretrained(saved / "sdxl", subfolder="unet")
    own = pipe.unet.state_dict()
    assert all(torch.equal(own[name], value) for name, value in flat.state_dict().items())
    assert {name for name in own if name not in flat.state_dict()} == {name for name in own if "motion_modules" in name}

    adapter = MotionAdapter.from_pretrained(saved / "motion_sdxl")
    stock = diffusers.AnimateDiffSDXLPipeline.from_pretrained(
        saved / "sdxl", motion_adapter=adapter, scheduler=pipe.scheduler
    )
    stock.unet.add_embedding.load_state_dict(flat.add_embedding.state_dict())  # diffusers leaves it random
    _, call = tiny.animatediff_sdxl()
    close(run(pipe, call), run(stock, call))


def test_saved_animatediff_keeps_its_scheduler_but_for_clipping(saved, tmp_path):
    original, call = tiny.animatediff()
    settings = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
    original.scheduler = DDIMScheduler(**settings, clip_sample=True)
    original.save_pretrained(tmp_path)
    pipe = animatediff.load(tmp_path, device="cpu")
    before, after = ({k: v for k, v in p.scheduler.config.items() if k[0] != "_"} for p in (original, pipe))
    assert before["clip_sample"] is True and after == before | {"clip_sample": False}
    original.scheduler = DDIMScheduler(**settings, clip_sample=False)
    close(run(pipe, call), run(original, call))
    with pytest.raises(ValueError, match="leave motion_adapter out"):
        animatediff.load(tmp_path, motion_adapter=saved / "motion", device="cpu")


def test_saved_animatediff_with_a_flat_unet_takes_its_own_adapter(saved, tmp_path):
    shutil.copytree(saved / "animatediff", tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "unet")
    tiny.unet(seed=9).save_pretrained(tmp_path / "pipe" / "unet")
    index = tmp_path / "pipe" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]}))
    pipe = animatediff.load(tmp_path / "pipe", device="cpu")
    adapter = MotionAdapter.from_pretrained(saved / "animatediff", subfolder="motion_adapter")
    expected = UNetMotionModel.from_unet2d(tiny.unet(seed=9), adapter)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize("kind", ["pipeline folder", "UNet folder", "UNet", "saved with motion"])
def test_second_unet_shares_the_motion_layers(saved, tmp_path, kind):
    pipe = animatediff.load(saved / "sd", motion_adapter=saved / "motion", device="cpu")
    flat = tiny.unet(seed=9)
    if kind == "pipeline folder":
        source = saved / "sd"
        flat = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    elif kind == "UNet folder":
        source = str(saved / "unet")
    elif kind == "UNet":
        source = flat
    else:
        source = tmp_path
        UNetMotionModel.from_unet2d(flat, MotionAdapter.from_pretrained(saved / "motion")).save_pretrained(tmp_path)
    pipe = animatediff.load(saved / "sd", motion_adapter=saved / "motion", weights={"weak": source}, device="cpu")
    weak = registered(pipe)["weak"]
    assert isinstance(weak, UNetMotionModel) and not weak.training
    first = motion_addresses(pipe.unet)
    assert first and motion_addresses(weak) == first and motion_addresses(pipe.motion_adapter) == first
    assert weak.conv_in.weight.data_ptr() != pipe.unet.conv_in.weight.data_ptr()
    if kind == "UNet":
        assert weak.conv_in.weight.data_ptr() == flat.conv_in.weight.data_ptr()

    expected = UNetMotionModel.from_unet2d(flat, MotionAdapter.from_pretrained(saved / "motion")).eval()
    latents, text = torch.randn(1, 4, 4, 8, 8), torch.randn(4, 16, tiny.TEXT_WIDTH)
    with torch.no_grad():
        close(weak(latents, 500, text).sample, expected(latents, 500, text).sample)


def test_second_unet_keeps_motion_layers_that_differ(saved, tmp_path):
    own = UNetMotionModel.from_unet2d(tiny.unet(seed=9), tiny.motion_adapter(seed=6))
    own.save_pretrained(tmp_path)
    for source in (tmp_path, own):
        pipe = animatediff.load(saved / "sd", motion_adapter=saved / "motion", weights={"weak": source}, device="cpu")
        weak = registered(pipe)["weak"]
        assert set(motion_addresses(weak).values()).isdisjoint(motion_addresses(pipe.unet).values())
        assert all(torch.equal(value, own.state_dict()[name]) for name, value in weak.state_dict().items())


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"block_out_channels": (8, 32)}, r"block_out_channels=\[8, 32\].*block_out_channels=\[8, 16\]"),
        ({"cross_attention_dim": 24}, r"cross_attention_dim=24.*cross_attention_dim=16"),
        ({"in_channels": 9}, r"in_channels=9.*in_channels=4"),
        ({"down_block_types": ("CrossAttnDownBlock2D",) * 2}, r"down_block_types=.*down_block_types="),
    ],
)
def test_second_unet_of_another_shape_is_refused_before_loading(saved, tmp_path, second, says):
    tiny.unet(**second).save_pretrained(tmp_path / "full")
    first, other = only_configs(saved / "sd", tmp_path / "sd"), only_configs(tmp_path / "full", tmp_path / "other")
    for source in (other, tiny.unet(**second)):
        with pytest.raises(ValueError, match=rf"weights\['weak'\] has {says}"):
            animatediff.load(first, motion_adapter=saved / "motion", weights={"weak": source}, device="cpu")


def test_wrong_checkpoints_are_refused_before_loading(saved, tmp_path):
    first = only_configs(saved / "sd", tmp_path / "sd")
    motion = saved / "motion"
    with pytest.raises(ValueError, match=r"addition_embed_type=text_time, .* addition_embed_type=None"):
        animatediff.load(first, motion_adapter=motion, weights={"weak": saved / "sdxl"}, device="cpu")
    with pytest.raises(ValueError, match="CogVideoXTransformer3DModel; allowed are UNet2DConditionModel"):
        animatediff.load(first, motion_adapter=motion, weights={"weak": saved / "transformer"}, device="cpu")
    with pytest.raises(ValueError, match="Linear; allowed are"):
        animatediff.load(first, motion_adapter=motion, weights={"weak": nn.Linear(1, 1)}, device="cpu")
    with pytest.raises(ValueError, match="UNet2DConditionModel; allowed are MotionAdapter"):
        animatediff.load(first, motion_adapter=saved / "unet", device="cpu")
    for changes in ({"block_out_channels": (8, 32)}, {"motion_layers_per_block": 2}):
        with pytest.raises(ValueError, match=r"motion adapter has (block_out|motion_layers).*the UNet has"):
            animatediff.load(first, motion_adapter=tiny.motion_adapter(**changes), device="cpu")
    with pytest.raises(ValueError, match="PIA"):
        animatediff.load(first, motion_adapter=tiny.motion_adapter(conv_in_channels=9), device="cpu")


def test_dtype(saved):
    pipe = animatediff.load(
        saved / "sd",
        motion_adapter=saved / "motion",
        weights={"weak": saved / "unet"},
        dtype=torch.float16,
        device="cpu",
    )
    given = tiny.motion_adapter()
    assert (
        animatediff.load(saved / "sd", motion_adapter=given, dtype=torch.float16, device="cpu").unet.dtype
        == given.dtype
    )
    for module in (pipe.unet, registered(pipe)["weak"], pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in module.parameters()} == {torch.float16}


@pytest.mark.parametrize("sdxl", [False, True])
def test_single_file(saved, tmp_path, monkeypatch, sdxl):
    """The conversion is diffusers' own, and left out here: the files only hold the names that they are told by."""
    keys = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}
    save_file(keys, tmp_path / "sd.safetensors")
    save_file(keys | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    save_file({"something": torch.zeros(1)}, tmp_path / "else.safetensors")
    name, other, stock, motion = "sd", "sdxl", diffusers.StableDiffusionPipeline, saved / "motion"
    if sdxl:
        name, other, stock, motion = "sdxl", "sd", diffusers.StableDiffusionXLPipeline, saved / "motion_sdxl"
    opened = []

    def from_single_file(cls, path, subfolder=None, config=None, **_):
        opened.append((path, str(config)))
        where = {"subfolder": subfolder} if subfolder else {}
        return cls.from_pretrained(config, **where)

    for cls in (stock, UNet2DConditionModel):
        monkeypatch.setattr(cls, "from_single_file", classmethod(from_single_file))
    file = tmp_path / f"{name}.safetensors"
    common = {"motion_adapter": motion, "config": saved / name, "device": "cpu"}
    pipe = animatediff.load(file, **common, weights={"weak": file})
    assert opened == [(str(file), str(saved / name))] * 2
    assert motion_addresses(registered(pipe)["weak"]) == motion_addresses(pipe.unet)
    expected = animatediff.load(saved / name, motion_adapter=motion, device="cpu")
    _, call = (tiny.animatediff_sdxl if sdxl else tiny.animatediff)()
    close(run(pipe, call), run(expected, call))

    with pytest.raises(ValueError, match=r"is an SD.* checkpoint, but the pipeline's is an SD"):
        animatediff.load(file, **common, weights={"weak": tmp_path / f"{other}.safetensors"})
    with pytest.raises(ValueError, match=r"else\.safetensors' is not an SD1\.5 or SDXL checkpoint"):
        animatediff.load(tmp_path / "else.safetensors", **common)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        animatediff.load(tmp_path / "nothing.safetensors", **common)


# CogVideoX


@pytest.mark.parametrize("name", ["2b", "5b"])
def test_cogvideox_equals_diffusers_and_loads_a_second_transformer(saved, name):
    second = saved / "transformer" if name == "2b" else tiny.cogvideox_transformer(rotary=True, seed=9)
    pipe = cogvideox.load(saved / name, weights={"weak": second, "same": saved / name}, device="cpu")
    original, call = tiny.cogvideox(rotary=name == "5b")
    assert type(pipe) is diffusers.CogVideoXPipeline and type(pipe.scheduler) is type(original.scheduler)
    close(run(pipe, call), run(original, call))
    weak, same = registered(pipe)["weak"], registered(pipe)["same"]
    expected = tiny.cogvideox_transformer(rotary=name == "5b", seed=9).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in weak.state_dict().items())
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in pipe.transformer.state_dict().items())


def test_cogvideox_refuses_another_generation_before_loading(saved, tmp_path):
    first = only_configs(saved / "2b", tmp_path / "2b")
    for second in (only_configs(saved / "5b", tmp_path / "5b"), tiny.cogvideox_transformer(rotary=True)):
        with pytest.raises(
            ValueError,
            match=r"\['weak'\] has use_rotary_positional_embeddings=True.*has use_rotary_positional_embeddings=False",
        ):
            cogvideox.load(first, weights={"weak": second}, device="cpu")
    with pytest.raises(ValueError, match=r"num_layers=3.*num_layers=2"):
        cogvideox.load(first, weights={"weak": tiny.cogvideox_transformer(num_layers=3)}, device="cpu")
    with pytest.raises(ValueError, match="Linear; allowed are"):
        cogvideox.load(first, weights={"weak": nn.Linear(1, 1)}, device="cpu")


def test_cogvideox_dtype_follows_the_family(saved):
    assert [cogvideox._native_dtype(saved / name) for name in ("2b", "5b")] == [torch.float16, torch.bfloat16]
    assert cogvideox.load(saved / "5b", device="cpu").transformer.dtype == torch.float32
    pipe = cogvideox.load(saved / "2b", weights={"weak": saved / "transformer"}, dtype=torch.bfloat16, device="cpu")
    assert pipe.transformer.dtype == registered(pipe)["weak"].dtype == pipe.vae.dtype == torch.bfloat16


# Finding a checkpoint


@pytest.mark.parametrize("backend", [animatediff, cogvideox])
def test_checkpoints_that_are_not_there(saved, tmp_path, backend):
    (tmp_path / "empty").mkdir()
    wrong = saved / ("2b" if backend is animatediff else "sd")
    with pytest.raises(
        FileNotFoundError, match=r"no folder '.*missing'; pass one that save_pretrained wrote, or a hub id"
    ):
        backend.load(tmp_path / "missing", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing' is neither a folder here nor a model on the hub"):
        backend.load("nobody/nothing", device="cpu")
    with pytest.raises(ValueError, match=r"empty' has no model_index\.json"):
        backend.load(tmp_path / "empty", device="cpu")
    with pytest.raises(ValueError, match=r"is a (CogVideoX|StableDiffusion)Pipeline; this backend loads "):
        backend.load(wrong, device="cpu")
    (tmp_path / "empty" / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        backend.load(tmp_path / "empty", device="cpu")
    good = {animatediff: ("animatediff", "unet"), cogvideox: ("2b", "transformer")}[backend]
    with pytest.raises(ValueError, match=rf"empty' holds no denoiser: .* a {good[1]}/config\.json"):
        backend.load(saved / good[0], weights={"weak": tmp_path / "empty"}, device="cpu")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        backend.load(saved / good[0], weights={"weak": "nobody/nothing"}, device="cpu")


def test_home_folders(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved))
    assert cogvideox.load("~/2b", weights={"weak": "~/transformer"}, device="cpu").transformer is not None


# Registration


def test_registration_leaves_the_pipeline_alone_and_ends_with_it():
    pipe, _ = tiny.stable_diffusion()
    before, module = dict(vars(pipe)), nn.Linear(1, 1)
    assert registered(pipe) == {}
    register(pipe, "weak", module)
    assert registered(pipe) == {"weak": module} and vars(pipe) == before
    registered(pipe).clear()
    assert registered(pipe) == {"weak": module}
    for name, wrong, error in (("", module, ValueError), (1, module, TypeError), ("weak", "module", TypeError)):
        with pytest.raises(error, match="second denoiser"):
            register(pipe, name, wrong)
    gone = weakref.ref(module)
    del pipe, module, before
    gc.collect()
    assert gone() is None
