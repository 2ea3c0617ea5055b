"""What a branch changes inside a denoiser: exactly what it names, compared with a network set up that way by hand."""

import copy

import diffusers
import pytest
import tiny
import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoELayer

from w2sd_video import Branch, reflection
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.gaps.layers import blocks_of

TOKENS, WIDTH = 6, 8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attributes(module):
    """Return every attribute of every submodule, by identity."""
    return [{name: id(value) for name, value in vars(one).items()} for one in module.modules()]


@torch.no_grad()
def with_branch(module, branch, *args, **kwargs):
    """Evaluate a module as a branch says, and check that nothing is left changed."""
    before = attributes(module)
    swaps = swaps_of(module, branch)
    with swapped(swaps):
        result = module(*args, **kwargs)
    with pytest.raises(KeyError), swapped(swaps):
        raise KeyError
    assert attributes(module) == before
    return result


# --- experts -----------------------------------------------------------------------------------------------------


def token_choice(experts_a_token=2):
    torch.manual_seed(0)
    return MOEFeedForwardSwiGLU(WIDTH, 16, num_routed_experts=4, num_activated_experts=experts_a_token).eval()


def expert_choice(capacity_factor=2.0):
    torch.manual_seed(0)
    layer = NucleusMoELayer(WIDTH, 16, 4, capacity_factor, use_sigmoid=False, route_scale=1.5)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@torch.no_grad()
def dense_token_choice(layer, x, chosen):
    """Evaluate every expert on every token, and add those that `chosen(scores)` lists, weighted by their scores."""
    scores = torch.softmax(x @ layer.gate.weight.T, -1)
    outputs = torch.stack([expert(x) for expert in layer.experts], -2)
    picked = torch.zeros_like(scores).scatter(-1, chosen(scores), 1.0)
    return (outputs * (scores * picked)[..., None]).sum(-2) + layer.shared_experts(x)


@torch.no_grad()
def dense_expert_choice(layer, x, raw, time, chosen):
    """The same where each expert takes the tokens that `chosen(scores)` lists; weights of a token add up to a scale."""
    scores = torch.softmax(layer.gate(torch.cat([time[:, None].expand_as(raw), raw], -1)), -1)
    picked = torch.zeros_like(scores).scatter(1, chosen(scores), 1.0)
    weights = scores * picked
    weights = layer.route_scale * weights / (weights.sum(-1, keepdim=True) + 1e-12)
    gate_up = torch.einsum("bsd,edf->bsef", x, layer.experts.gate_up_proj)
    gate, up = gate_up.chunk(2, -1)
    outputs = torch.einsum("bsef,efd->bsed", torch.nn.functional.silu(gate) * up, layer.experts.down_proj)
    return layer.shared_expert(x) + (weights[..., None] * outputs).sum(-2)


@pytest.mark.parametrize(
    ("experts", "order"), [("top", (2, True)), ("bottom", (2, False)), (1, (1, True)), (3, (3, True))]
)
def test_tokens_go_to_the_experts_that_the_branch_says(experts, order):
    count, largest = order
    layer, x = token_choice(), noise(2, TOKENS, WIDTH)

    def chosen(scores):
        return scores.argsort(-1, descending=largest)[..., :count]

    expected = dense_token_choice(layer, x, chosen)
    torch.testing.assert_close(with_branch(layer, Branch(experts=experts), x), expected)


@pytest.mark.parametrize(
    ("experts", "order"), [("top", (3, True)), ("bottom", (3, False)), (1, (2, True)), (4, (6, True))]
)
def test_experts_that_choose_take_the_tokens_that_the_branch_says(experts, order):
    """Capacity is the tokens an expert takes: experts a token x 6 tokens / 4 experts, rounded up."""
    capacity, largest = order
    layer, x, raw, time = expert_choice(), noise(2, TOKENS, WIDTH), noise(2, TOKENS, WIDTH, seed=1), noise(2, WIDTH)

    def chosen(scores):
        return scores.argsort(1, descending=largest)[:, :capacity]

    expected = dense_expert_choice(layer, x, raw, time, chosen)
    torch.testing.assert_close(with_branch(layer, Branch(experts=experts), x, raw, time), expected)


def test_experts_are_refused_where_there_are_none_or_fewer():
    with pytest.raises(ValueError, match=r"experts='bottom', but this UNet2DConditionModel is no mixture of experts"):
        swaps_of(tiny.unet(0), Branch(experts="bottom"))
    for layer in (token_choice(), expert_choice()):
        with pytest.raises(ValueError, match="experts=5, but each router has only 4; use 1 to 4"):
            swaps_of(layer, Branch(experts=5))


# --- layers ------------------------------------------------------------------------------------------------------


def joint_transformer():
    """SD3's, whose blocks return the text first."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "out_channels": 4}
    return tiny.randomise(
        diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=3, joint_attention_dim=16, pooled_projection_dim=16,
            **sizes,
        )
    )  # fmt: skip


def sd3_inputs():
    return noise(1, 4, 8, 8), noise(1, 5, 16), noise(1, 16), torch.tensor([300])


def cogvideox_inputs():
    return noise(1, 3, 4, 4, 4), noise(1, tiny.TEXT_LENGTH, tiny.TEXT_WIDTH), torch.tensor([300])


def motion_unet():
    pipe, _ = tiny.animatediff()
    return pipe.unet


def motion_inputs():
    return noise(1, 4, 4, 8, 8), torch.tensor([300]), noise(4, 5, tiny.TEXT_WIDTH)


NETWORKS = {
    "cogvideox": (lambda: tiny.cogvideox_transformer(seed=0, num_layers=3), cogvideox_inputs, "transformer_blocks.1"),
    "sd3": (joint_transformer, sd3_inputs, "transformer_blocks.1"),
    "motion": (motion_unet, motion_inputs, "mid_block.motion_modules.0.transformer_blocks.0"),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def number_of(network, block):
    return list(blocks_of(network)).index(block)


@networks
@torch.no_grad()
def test_a_skipped_block_is_a_block_that_is_not_there(name):
    build, inputs, block = NETWORKS[name]
    network, shorter, given = build(), build(), inputs()
    parent, _, index = block.rpartition(".")
    shorter.get_submodule(parent).__delitem__(int(index))
    expected = shorter(*given).sample
    assert not torch.allclose(network(*given).sample, expected)
    number = number_of(network, block)
    for layers in ([block], [number], [number - len(blocks_of(network))]):
        assert torch.equal(with_branch(network, Branch(skip_layers=layers), *given).sample, expected)


def test_blocks_of_a_unet_are_numbered_as_they_are_executed():
    network, order = motion_unet(), []
    handles = [
        block.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
        for name, block in reversed(blocks_of(network).items())
    ]
    with torch.no_grad():
        network(*motion_inputs())
    for handle in handles:
        handle.remove()
    assert order == list(blocks_of(network)) and len(order) > 4


def test_a_name_means_all_blocks_below_it():
    network, given = motion_unet(), motion_inputs()
    names = [name for name in blocks_of(network) if name.startswith("up_blocks.")]
    one, other = (with_branch(network, Branch(skip_layers=layers), *given).sample for layers in (["up_blocks"], names))
    assert len(names) > 1 and torch.equal(one, other)


class IdentityMap:
    """An attention processor written by hand: every token keeps its own value; joint ones concatenate text."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is not None and attn.add_v_proj is not None:
            return attn.to_out[0](attn.to_v(hidden_states)), attn.to_add_out(attn.add_v_proj(encoder_hidden_states))
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            values = attn.to_out[0](attn.to_v(torch.cat([encoder_hidden_states, hidden_states], 1)))
            return values[:, text:], values[:, :text]
        return attn.to_out[0](attn.to_v(hidden_states))


@networks
@torch.no_grad()
def test_a_perturbed_block_attends_to_nothing_but_itself(name):
    build, inputs, block = NETWORKS[name]
    network, by_hand, given = build(), build(), inputs()
    inner = by_hand.get_submodule(block)
    attentions = [inner.attn] if name == "sd3" else [inner.attn1, inner.attn2] if name == "motion" else [inner.attn1]
    for attention in attentions:
        attention.processor = IdentityMap()
    expected = by_hand(*given).sample
    assert not torch.allclose(network(*given).sample, expected)
    result = with_branch(network, Branch(perturbed_layers=[block]), *given).sample
    torch.testing.assert_close(result, expected)


def test_cross_attention_is_not_perturbed():
    """As many words as there are pixels, so that the shapes of cross-attention do not give it away."""
    network, given = tiny.unet(0), (noise(1, 4, 8, 8), torch.tensor([300]), noise(1, 16, tiny.TEXT_WIDTH))
    by_hand = copy.deepcopy(network)
    block = by_hand.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    block.attn1.processor = IdentityMap()
    with torch.no_grad():
        expected = by_hand(*given).sample
    result = with_branch(network, Branch(perturbed_layers=["mid_block"]), *given).sample
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("field", ["skip_layers", "perturbed_layers"])
def test_layers_out_of_range_are_refused_with_those_there_are(field):
    network = tiny.cogvideox_transformer(seed=0)
    for layer in (2, -3, "transformer_blocks.7", "transformer"):
        with pytest.raises(ValueError, match=rf"{field} .* has 2 blocks, 0 to 1 .* named transformer_blocks.0"):
            swaps_of(network, Branch(**{field: [layer]}))


def test_an_attention_that_is_not_torchs_own_is_not_passed_over_in_silence():
    network = tiny.unet(0)
    network.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    given = (noise(1, 4, 8, 8), torch.tensor([300]), noise(1, 5, tiny.TEXT_WIDTH))
    with pytest.raises(ValueError, match="does not attend by torch's own function"):
        with_branch(network, Branch(perturbed_layers=[0]), *given)


def test_a_compiled_denoiser_is_changed_too():
    pipe, call = tiny.cogvideox()
    weak = {"strong": Branch(), "weak": Branch(skip_layers=[0], perturbed_layers=[1])}
    expected = reflected(pipe, call, weak)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    torch.testing.assert_close(reflected(pipe, call, weak), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reflected(pipe, call), expected, rtol=1e-2, atol=1e-2)


def test_an_attention_to_more_than_its_own_tokens_is_not_passed_over_either():
    """NucleusMoE's image attends to itself and to text at once, so that no map of it is the identity."""
    pipe, call = tiny.nucleus_moe()
    with pytest.raises(ValueError, match="very tokens that attend"):
        reflected(pipe, call, everywhere(perturbed_layers=[0]))


# --- side networks ---------------------------------------------------------------------------------------------------

STEPS = 4


def run(pipe, call, **changes):
    arguments = {**call, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), **changes}
    result = pipe(**arguments, output_type="latent")
    return result.frames if hasattr(result, "frames") else result.images


def reflected(pipe, call, branches=None, **changes):
    """Run with a reflection whose branches are the pipeline's own, unless told."""
    with reflection(pipe, **(branches or {"strong": Branch(), "weak": Branch()})):
        return run(pipe, call, **changes)


def everywhere(**fields):
    return {role: Branch(**fields) for role in ("base", "strong", "weak")}


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
    """Its pipeline counts the steps in which it acts, of which a reflected loop has more turns."""
    plain, call = tiny.stable_diffusion_xl()
    adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionXLAdapterPipeline(**parts, adapter=tiny.randomise(adapter))
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    call |= {"image": image}
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=1.0), strength=0.0):
        assert torch.equal(run(pipe, call), stock)
        with pytest.raises(ValueError, match=r"adapter_conditioning_factor=0.5 cannot be reflected"):
            run(pipe, call, adapter_conditioning_factor=0.5)
    assert not torch.allclose(run(pipe, call, adapter_conditioning_factor=0.5), stock)


# --- models of two stages --------------------------------------------------------------------------------------------


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


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.stable_diffusion_xl, tiny.cogvideox, tiny.wan])
def test_a_branch_has_its_own_negative_prompt(build):
    pipe, call = build()
    words = "a blue square over the sea"
    expected = reflected(pipe, call, negative_prompt=words)
    assert torch.equal(reflected(pipe, call, everywhere(negative_prompt=words)), expected)
    assert not torch.equal(reflected(pipe, call), expected)
    with pytest.raises(ValueError, match="negative_prompt, but this call"):
        reflected(pipe, call, everywhere(negative_prompt=words), guidance_scale=1.0)


# --- refusals --------------------------------------------------------------------------------------------------------


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
        ({"control_scale": float("nan")}, ValueError, "control_scale must be finite"),
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
