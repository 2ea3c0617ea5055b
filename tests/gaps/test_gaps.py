"""Side networks, stages and negative prompts of branches, against pipelines set up by hand."""

import copy

import diffusers
import pytest
import tiny
import torch
from helpers import NOTHING
from networks import STEPS, attributes, everywhere, reflected, run

from w2sd_video import Branch, reflection


def controlled(count=1):
    """Stable Diffusion with ControlNets that are not zero, and the pipeline without."""
    plain, call = tiny.stable_diffusion()
    nets = [
        tiny.randomise(diffusers.ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(8, 16)))
        for _ in range(count)
    ]
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=nets if count > 1 else nets[0], requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    images = [torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return pipe, call | {"image": images if count > 1 else images[0]}, plain, call


@pytest.mark.parametrize("count", [1, 2])
def test_a_control_scale_is_that_of_the_pipelines_own_argument(count):
    pipe, call, _, _ = controlled(count)
    scale = [0.6] * count if count > 1 else 0.6
    expected = reflected(pipe, call, controlnet_conditioning_scale=scale)
    before = attributes(pipe.controlnet)
    assert torch.equal(reflected(pipe, call, everywhere(control_scale=0.6)), expected)
    assert attributes(pipe.controlnet) == before
    assert not torch.equal(reflected(pipe, call), expected)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("window", [{"control_guidance_end": 0.5}, {"control_guidance_start": 0.5}])
def test_a_control_scale_acts_within_the_window_of_the_call(count, window):
    pipe, call, _, _ = controlled(count)
    wanted, own, off = ([0.6, 0.6], [0.6, 0.3], [0.0, 1.0]) if count > 1 else (0.6, 0.3, 0.0)
    branches = everywhere(control_scale=0.6)
    expected = reflected(pipe, call, controlnet_conditioning_scale=wanted, **window)
    assert torch.equal(reflected(pipe, call, branches, controlnet_conditioning_scale=own, **window), expected)
    assert not torch.equal(reflected(pipe, call, branches), expected)
    with pytest.raises(ValueError, match="nothing tells where it is on"):
        reflected(pipe, call, branches, controlnet_conditioning_scale=off, **window)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_at_a_control_scale_of_0_the_controlnet_is_not_run(guidance_scale, guess_mode):
    pipe, call, plain, plain_call = controlled()
    runs = []
    handle = pipe.controlnet.controlnet_mid_block.register_forward_hook(lambda *_: runs.append(1))
    fields = {"guidance_scale": guidance_scale}
    weak = {"strong": Branch(**fields), "weak": Branch(**fields, control_scale=0.0)}
    with reflection(pipe, **weak) as on:
        run(pipe, call, guess_mode=guess_mode)
    assert len(runs) == STEPS + on.reflected_steps, "base and strong"
    runs.clear()
    result = reflected(pipe, call, everywhere(**fields, control_scale=0.0), guess_mode=guess_mode)
    assert len(runs) == 1, "once, to learn the shapes"
    assert torch.equal(result, reflected(plain, plain_call, everywhere(**fields)))
    handle.remove()


def with_ip_adapter():
    """Stable Diffusion with a random IP-Adapter in the published layout, loaded by diffusers."""
    import transformers

    pipe, call = tiny.stable_diffusion()
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    pipe.register_modules(image_encoder=tiny.randomise(transformers.CLIPVisionModelWithProjection(config)))
    attentions = [name for name in pipe.unet.attn_processors if "attn2" in name]
    layers = {}
    for number, name in enumerate(attentions):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for key in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{key}.weight"] = 0.5 * torch.randn(width, tiny.TEXT_WIDTH)
    projection = {"proj.weight": torch.randn(4 * tiny.TEXT_WIDTH, 12), "proj.bias": torch.zeros(4 * tiny.TEXT_WIDTH)}
    norm = {"norm.weight": torch.ones(tiny.TEXT_WIDTH), "norm.bias": torch.zeros(tiny.TEXT_WIDTH)}
    pipe.load_ip_adapter({"image_proj": projection | norm, "ip_adapter": layers}, subfolder="", weight_name="")
    embedded = [torch.cat([torch.zeros(1, 1, 12), torch.randn(1, 1, 12)])]
    return pipe, call | {"ip_adapter_image_embeds": embedded}


def test_an_ip_adapter_scale_is_that_of_diffusers():
    pipe, call = with_ip_adapter()
    pipe.set_ip_adapter_scale(0.3)
    expected = reflected(pipe, call)
    pipe.set_ip_adapter_scale(1.0)
    before = attributes(pipe.unet)
    assert torch.equal(reflected(pipe, call, everywhere(ip_adapter_scale=0.3)), expected)
    assert attributes(pipe.unet) == before
    assert not torch.equal(reflected(pipe, call), expected)


def test_at_an_ip_adapter_scale_of_0_its_attention_is_not_evaluated():
    pipe, call = with_ip_adapter()
    plain, plain_call = tiny.stable_diffusion()
    runs = []
    for processor in pipe.unet.attn_processors.values():
        for layer in getattr(processor, "to_k_ip", []):
            layer.register_forward_hook(lambda *_: runs.append(1))
    assert torch.equal(reflected(pipe, call, everywhere(ip_adapter_scale=0.0)), reflected(plain, plain_call))
    assert not runs


def test_a_t2i_adapter_acts_in_every_turn():
    """Its pipeline counts the steps in which it acts, whatever the turns of a reflected loop."""
    plain, call = tiny.stable_diffusion_xl()
    adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionXLAdapterPipeline(**parts, adapter=tiny.randomise(adapter))
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    call |= {"image": image}
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=1.0), strength=NOTHING):
        assert torch.equal(run(pipe, call), stock)
        in_half = run(pipe, call, adapter_conditioning_factor=0.5)
    assert torch.equal(run(pipe, call, adapter_conditioning_factor=0.5), in_half) and not torch.allclose(in_half, stock)


def test_second_weights_of_a_two_stage_model_are_a_pair():
    pipe, call = tiny.wan(two_stage=True)
    own = pipe.transformer, pipe.transformer_2
    second = tuple(tiny.randomise(copy.deepcopy(module), gain=1.2) for module in own)
    result = reflected(pipe, call, everywhere(weights=second))
    pipe.transformer, pipe.transformer_2 = second
    assert torch.equal(reflected(pipe, call), result)
    with pytest.raises(ValueError, match="must be a pair of modules"):
        reflected(pipe, call, everywhere(weights=own[0]))


@pytest.mark.parametrize("stage", ["high", "low"])
def test_one_stage_can_do_all_steps(stage):
    pipe, call = tiny.wan(two_stage=True)
    result = reflected(pipe, call, everywhere(experts=stage))
    only = pipe.transformer if stage == "high" else pipe.transformer_2
    pipe.transformer = pipe.transformer_2 = only
    assert torch.equal(reflected(pipe, call), result)


def test_each_stage_has_a_guidance_scale_of_its_own():
    pipe, call = tiny.wan(two_stage=True)
    expected = reflected(pipe, call, guidance_scale=5.0, guidance_scale_2=2.0)
    result = reflected(pipe, call, everywhere(guidance_scale=(5.0, 2.0)))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reflected(pipe, call, everywhere(guidance_scale=(2.0, 5.0))), expected, atol=1e-2)


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.stable_diffusion_xl, tiny.cogvideox, tiny.wan])
def test_a_branch_has_its_own_negative_prompt(build):
    pipe, call = build()
    words = "a blue square over the sea"
    expected = reflected(pipe, call, negative_prompt=words)
    assert torch.equal(reflected(pipe, call, everywhere(negative_prompt=words)), expected)
    assert not torch.equal(reflected(pipe, call), expected)
    with pytest.raises(ValueError, match="negative_prompt, but this call"):
        reflected(pipe, call, everywhere(negative_prompt=words), guidance_scale=1.0)


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        (Branch(control_scale=0.0), "control_scale, but StableDiffusionPipeline evaluates no ControlNet"),
        (Branch(ip_adapter_scale=0.0), "ip_adapter_scale=0, but no IP-Adapter is loaded"),
        (Branch(experts="bottom"), "is no mixture of experts"),
        (Branch(experts="high"), "one denoiser of a two-stage model, but StableDiffusionPipeline has only one"),
        (Branch(guidance_scale=(3.0, 4.0)), "a pair of guidance_scale, but StableDiffusionPipeline has one denoiser"),
        (Branch(skip_layers=[99]), "skip_layers 99: this UNet2DConditionModel has 4 blocks"),
    ],
)
def test_a_setting_that_a_pipeline_cannot_be_given_is_refused_before_sampling(branch, said):
    pipe, _ = tiny.stable_diffusion()
    for role in ("strong", "weak", "base"):
        branches = {"strong": Branch(), "weak": Branch()} | {role: branch}
        with pytest.raises(ValueError, match=said), reflection(pipe, **branches):
            pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"experts": "best"}, ValueError, "experts must be top, bottom, high, low or a number of at least 1"),
        ({"experts": 0}, ValueError, "at least 1, got 0"),
        ({"experts": 1.5}, TypeError, "experts must be"),
        ({"control_scale": float("nan")}, ValueError, "control_scale must be a finite number"),
        ({"ip_adapter_scale": "0"}, TypeError, "ip_adapter_scale must be a number"),
        ({"skip_layers": []}, ValueError, "skip_layers is empty"),
        ({"skip_layers": "mid_block"}, TypeError, "skip_layers must be a list"),
        ({"perturbed_layers": [1.5]}, TypeError, "perturbed_layers must hold block numbers or names, got 1.5"),
        ({"guidance_scale": (1.0, 2.0, 3.0)}, TypeError, "guidance_scale must be a number"),
        ({"negative_prompt": 3}, TypeError, "negative_prompt must be text"),
        ({"weights": ("high", "low")}, TypeError, "a pair of weights must be of modules, got str"),
    ],
)
def test_branch_fields_are_checked(fields, error, said):
    with pytest.raises(error, match=said):
        Branch(**fields)
