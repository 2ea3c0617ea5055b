"""The experts of mixtures, against dense layers."""

import pytest
import tiny
import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoELayer
from networks import TOKENS, WIDTH, noise, with_branch

from w2sd_video import Branch
from w2sd_video.gaps import swaps_of


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
