"""Any pipeline of diffusers: it is loaded as diffusers loads it, and what is loaded beside it fits."""

import shutil

import diffusers
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from w2sd_video import Branch, reflection
from w2sd_video.backends import pipeline, registered

BUILDERS = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "pixart": tiny.pixart,
    "dit": tiny.dit,
    "wan": tiny.wan,
    "wan22": lambda seed=0: tiny.wan(two_stage=True, seed=seed),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny pipelines, of the same with other weights, of parts alone, and an IP-Adapter's file."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, build in BUILDERS.items():
        build()[0].save_pretrained(root / name)
        build(seed=1)[0].save_pretrained(root / f"{name}-weak")
    tiny.unet(seed=9).save_pretrained(root / "unet")
    tiny.stable_diffusion(control=True)[0].controlnet.save_pretrained(root / "controlnet")
    tiny.stable_diffusion_xl(control=True)[0].controlnet.save_pretrained(root / "controlnet-sdxl")
    pipe, _ = tiny.stable_diffusion(ip_adapter=True)
    pipe.image_encoder.save_pretrained(root / "ip" / "image_encoder")
    tiny.save_ip_adapter(pipe, root / "ip" / "adapter.safetensors")
    return root


def run(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return torch.as_tensor(pipe(**call | {"output_type": "np"}, generator=generator)[0])


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def same_weights(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def only_configs(source, target):
    """Copy a checkpoint without its weights: whoever tries to load it fails."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return target


@pytest.mark.parametrize("name", BUILDERS)
def test_a_pipeline_equals_diffusers_and_has_second_denoisers(saved, name):
    pipe = pipeline.load(saved / name, weights={"weak": saved / f"{name}-weak"}, device="cpu")
    original, call = BUILDERS[name]()
    other = BUILDERS[name](seed=1)[0]
    assert type(pipe) is type(original)
    close(run(pipe, call), run(original, call))
    weak = registered(pipe)["weak"]
    parts = [component for component in pipeline.DENOISERS if getattr(pipe, component, None) is not None]
    assert isinstance(weak, tuple) == (name == "wan22")
    for part, module in zip(parts, weak if isinstance(weak, tuple) else (weak,), strict=True):
        assert same_weights(module, getattr(other, part)) and not module.training
        assert not same_weights(module, getattr(pipe, part))


def test_second_denoisers_from_modules_and_from_a_folder_of_their_own(saved):
    unet = tiny.unet(seed=9)
    pipe = pipeline.load(saved / "sd", weights={"module": unet, "folder": saved / "unet"}, device="cpu")
    assert registered(pipe)["module"] is unet and same_weights(registered(pipe)["folder"], unet)
    pair = (tiny.wan()[0].transformer, tiny.wan(seed=1)[0].transformer)
    pipe = pipeline.load(saved / "wan22", weights={"weak": pair}, device="cpu", dtype=torch.bfloat16)
    assert registered(pipe)["weak"] == pair
    assert pipe.transformer.dtype == pipe.transformer_2.dtype == torch.bfloat16


def test_configs_that_say_the_same_in_other_words_fit(saved, tmp_path):
    """Checkpoints that were converted from a single file often have null for false."""
    unet = tiny.unet(seed=9)
    unet.register_to_config(upcast_attention=None, dual_cross_attention=None, sample_size=64)
    unet.save_pretrained(tmp_path)
    pipe = pipeline.load(saved / "sd", weights={"weak": tmp_path}, device="cpu")
    assert same_weights(registered(pipe)["weak"], unet)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_channels": 9}, r"has conv_in.weight=\(8, 9, 3, 3\), .* has conv_in.weight=\(8, 4, 3, 3\)"),
        ({"attention_head_dim": 4}, "has attention_head_dim=4, .* has attention_head_dim=2"),
        ({"layers_per_block": 2}, r"has up_blocks.* has up_blocks"),
    ],
)
def test_second_denoisers_of_another_shape_are_refused_before_loading(saved, tmp_path, changes, says):
    tiny.unet(**changes).save_pretrained(tmp_path / "full")
    first, other = only_configs(saved / "sd", tmp_path / "sd"), only_configs(tmp_path / "full", tmp_path / "other")
    for source in (other, tiny.unet(**changes)):
        with pytest.raises(ValueError, match=rf"weights\['weak'\] {says}"):
            pipeline.load(first, weights={"weak": source}, device="cpu")


def test_what_does_not_fit_is_refused_before_loading(saved, tmp_path):
    sd, stages = only_configs(saved / "sd", tmp_path / "sd"), only_configs(saved / "wan22", tmp_path / "wan22")
    transformer = tiny.wan()[0].transformer
    for first, weights, says in [
        (sd, saved / "wan", "UNet2DConditionModel|holds no denoiser"),
        (sd, nn.Linear(1, 1), "is a Linear; allowed are UNet2DConditionModel"),
        (sd, (tiny.unet(), tiny.unet()), "is a pair, but the pipeline has one denoiser"),
        (stages, transformer, "must be a pair, for the pipeline has two denoisers: transformer, transformer_2"),
        (stages, saved / "wan" / "transformer", "is one denoiser; pass a pipeline's folder with transformer and trans"),
        (stages, saved / "wan", "holds no denoiser: it has neither a config.json nor a transformer_2/config.json"),
    ]:
        with pytest.raises(ValueError, match=says):
            pipeline.load(first, weights={"weak": weights}, device="cpu")
    for options, says in [
        ({"ip_adapter": "a/b/c.safetensors"}, "WanPipeline takes no IP-Adapter"),
        ({"controlnet": "a/b"}, "diffusers has no ControlNet pipeline for a WanPipeline"),
        ({"components": {"vaf": "a/b"}}, "WanPipeline has no component 'vaf'; it has tokenizer, text_encoder, vae"),
        ({"scheduler": "DDIM"}, "diffusers has no scheduler 'DDIM'; name a class like DDIMScheduler"),
        ({"scheduler": "UNet2DModel"}, "diffusers has no scheduler"),
        ({"memory": "disk"}, "must be one of device, offload, sequential"),
    ]:
        with pytest.raises(ValueError, match=says):
            pipeline.load(stages, device="cpu", **options)
    with pytest.raises(ValueError, match="has cross_attention_dim=24, but the pipeline's denoiser has cross_att"):
        other = tiny.parts.controlnet(tiny.unet(cross_attention_dim=24))
        other.save_pretrained(tmp_path / "controlnet")
        pipeline.load(sd, controlnet=tmp_path / "controlnet", device="cpu")
    with pytest.raises(ValueError, match="has addition_embed_type=text_time"):
        pipeline.load(sd, controlnet=saved / "controlnet-sdxl", device="cpu")
    with pytest.raises(FileNotFoundError, match="no file 'nothing/there'"):
        pipeline.load(saved / "sd", ip_adapter="nothing/there", device="cpu")


def test_a_controlnet_is_loaded_into_the_pipeline_of_its_kind(saved):
    for name, build, controlnet in (
        ("sd", tiny.stable_diffusion, "controlnet"),
        ("sdxl", tiny.stable_diffusion_xl, "controlnet-sdxl"),
    ):
        pipe = pipeline.load(saved / name, controlnet=saved / controlnet, device="cpu")
        original, call = build(control=True)
        assert type(pipe) is type(original)
        original.unet.load_state_dict(pipe.unet.state_dict())
        original.vae.load_state_dict(pipe.vae.state_dict())
        original.text_encoder.load_state_dict(pipe.text_encoder.state_dict())
        if name == "sdxl":
            original.text_encoder_2.load_state_dict(pipe.text_encoder_2.state_dict())
        close(run(pipe, call), run(original, call))


def test_an_ip_adapter_is_loaded_with_its_image_encoder(saved, tmp_path):
    pipe = pipeline.load(saved / "sd", ip_adapter=saved / "ip" / "adapter.safetensors", device="cpu")
    original, call = tiny.stable_diffusion(ip_adapter=True)
    original.set_ip_adapter_scale(1.0)
    for name in ("unet", "vae", "text_encoder", "image_encoder"):
        assert same_weights(getattr(pipe, name), getattr(original, name))
    close(run(pipe, call), run(original, call))

    shutil.copy(saved / "ip" / "adapter.safetensors", tmp_path / "adapter.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*image_encoder'; pass the image encoder as components="):
        pipeline.load(saved / "sd", ip_adapter=tmp_path / "adapter.safetensors", device="cpu")
    components = {"image_encoder": saved / "ip" / "image_encoder"}
    pipe = pipeline.load(saved / "sd", ip_adapter=tmp_path / "adapter.safetensors", components=components, device="cpu")
    assert same_weights(pipe.image_encoder, original.image_encoder)


def test_components_and_schedulers_take_the_place_of_the_pipelines_own(saved, tmp_path):
    vae = tiny.parts.image_vae()
    vae.save_pretrained(tmp_path / "vae")
    components = {"vae": tmp_path / "vae", "tokenizer": saved / "sd" / "tokenizer"}
    pipe = pipeline.load(saved / "sdxl", components=components, scheduler="DDIMScheduler", device="cpu")
    assert same_weights(pipe.vae, vae)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler and pipe.scheduler.config.clip_sample is False
    own = diffusers.EulerDiscreteScheduler.from_pretrained(saved / "sdxl", subfolder="scheduler")
    assert torch.equal(pipe.scheduler.alphas_cumprod, own.alphas_cumprod)


def test_single_files_of_stable_diffusion(saved, tmp_path, monkeypatch):
    """The conversion is diffusers' own, and left out here: the files only hold the names that they are told by."""
    keys = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}
    save_file(keys, tmp_path / "sd.safetensors")
    save_file(keys | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    opened = []

    def from_single_file(cls, path, config=None, **others):
        opened.append(path)
        others = {name: value for name, value in others.items() if isinstance(value, nn.Module)}
        return cls.from_pretrained(config, **others)

    for cls in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionControlNetPipeline):
        monkeypatch.setattr(cls, "from_single_file", classmethod(from_single_file))
    file = tmp_path / "sd.safetensors"
    pipe = pipeline.load(file, config=saved / "sd", weights={"weak": saved / "sd-weak"}, device="cpu")
    assert opened == [str(file)] and type(pipe) is diffusers.StableDiffusionPipeline
    assert same_weights(registered(pipe)["weak"], tiny.stable_diffusion(seed=1)[0].unet)
    pipe = pipeline.load(file, config=saved / "sd", controlnet=saved / "controlnet", device="cpu")
    assert type(pipe) is diffusers.StableDiffusionControlNetPipeline
    for weights, says in [
        (tmp_path / "sdxl.safetensors", "is the file of a StableDiffusionXLPipeline, of which the pipeline is none"),
        (saved / "sdxl", "the two must be of the same architecture"),
    ]:
        with pytest.raises(ValueError, match=says):
            pipeline.load(file, config=saved / "sd", weights={"weak": weights}, device="cpu")


def test_checkpoints_that_are_not_there(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        pipeline.load(tmp_path / "missing", device="cpu")
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is neither a folder here nor a model on the hub"):
        pipeline.load("nobody/nothing", device="cpu")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        pipeline.load(saved / "sd", weights={"weak": "nobody/nothing"}, device="cpu")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        pipeline.load(saved / "sd", controlnet="nobody/nothing", device="cpu")


def test_a_transformer_of_another_size_may_be_the_weak_model_and_nothing_else_may_differ(saved, tmp_path):
    config = dict(tiny.pixart()[0].transformer.config)

    def save(name, **changed):
        other = diffusers.PixArtTransformer2DModel.from_config({**config, **changed})
        other.save_pretrained(tmp_path / name)
        return tmp_path / name

    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    wider = save("wider", num_attention_heads=2 * heads, cross_attention_dim=2 * heads * width)
    deeper = save("deeper", num_layers=config["num_layers"] + 1)
    pipe = pipeline.load(saved / "pixart", weights={"wider": wider, "deeper": deeper}, device="cpu")
    assert {name: len(second.transformer_blocks) for name, second in registered(pipe).items()} == {
        "wider": config["num_layers"],
        "deeper": config["num_layers"] + 1,
    }
    call = tiny.pixart()[1]
    plain = run(pipe, call)
    for name in ("wider", "deeper"):
        with reflection(pipe, strong=Branch(), weak=Branch(weights=name), base=Branch()):
            assert run(pipe, call).isfinite().all() and not torch.equal(run(pipe, call), plain)
    other_heads = save("heads", num_attention_heads=2 * heads, attention_head_dim=width // 2)
    fewer_channels = save("channels", in_channels=2, num_layers=config["num_layers"] + 1)
    for folder in (other_heads, fewer_channels):
        with pytest.raises(ValueError, match="the two must be of the same architecture"):
            pipeline.load(saved / "pixart", weights={"weak": folder}, device="cpu")
