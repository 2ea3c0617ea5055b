"""Blocks left out and blocks perturbed, against networks without them."""

import copy

import diffusers
import pytest
import tiny
import torch
from helpers import run
from networks import everywhere, noise, reflected, with_branch
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.gaps import swaps_of
from w2sd_video.gaps.layers import blocks_of


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


def test_a_block_that_diffusers_registers_by_other_names_than_its_own_is_left_out():
    """Z-Image's takes ``x``, and is registered as taking ``hidden_states``."""
    pipe, call = build("ZImagePipeline")
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(skip_layers=[0]), reflection_steps=0):
        assert not torch.equal(run(pipe, call), stock)
