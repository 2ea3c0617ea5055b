"""What else wraps a network: caches are refused, compiled networks and regions stay whole, arguments stay seen."""

import copy

import diffusers
import pytest
import tiny
import torch
from helpers import add_lora
from plain_loop import STRONG, WEAK, run

from w2sd_video import Branch, reflection
from w2sd_video.gaps.layers import blocks_of

GAP = {"strong": STRONG, "weak": WEAK}


def enabled(config):
    return lambda pipe: pipe.transformer.enable_cache(config)


def hooked(apply, config):
    return lambda pipe: apply(pipe.transformer, config)


def marked_on_the_class(pipe):
    """As cache-dit and ParaAttention mark a pipeline; the class is one of its own here."""
    pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {"_is_cached": True})


CACHES = {
    "enable_cache": enabled(diffusers.FirstBlockCacheConfig(threshold=0.1)),
    "first block": hooked(diffusers.hooks.apply_first_block_cache, diffusers.FirstBlockCacheConfig(threshold=0.1)),
    "pyramid": hooked(
        diffusers.hooks.apply_pyramid_attention_broadcast,
        diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 300
        ),
    ),
    "faster": hooked(
        diffusers.hooks.apply_faster_cache,
        diffusers.FasterCacheConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 300),
    ),
    "marked pipeline": lambda pipe: setattr(pipe, "_is_cached", True),
    "marked class": marked_on_the_class,
    "marked denoiser": lambda pipe: setattr(pipe.transformer, "_is_cached", True),
    "teacache": lambda pipe: setattr(pipe.transformer, "enable_teacache", True),
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_is_refused_at_entry_and_at_each_call(cache):
    pipe, call = tiny.cogvideox()
    with reflection(pipe, **GAP):
        run(pipe, call)
        CACHES[cache](pipe)
        with pytest.raises(ValueError, match=r"has a cache \(.*disable it before reflecting"):
            run(pipe, call)
    CACHES[cache](pipe) if cache == "marked class" else None
    with pytest.raises(ValueError, match=r"has a cache"), reflection(pipe, **GAP):
        pytest.fail("the block was entered")
    with reflection(pipe, **GAP, reflection_steps=0):
        pass


def test_cache_dit_is_refused():
    cache_dit = pytest.importorskip("cache_dit")
    pipe, call = tiny.wan()
    kept = type(pipe).__call__
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(max_warmup_steps=1))
    try:
        with pytest.raises(ValueError, match="has a cache"), reflection(pipe, **GAP):
            run(pipe, call)
    finally:
        cache_dit.disable_cache(pipe)
        assert type(pipe).__call__ is kept


def in_place(pipe, **options):
    pipe.transformer.compile(**options)


def wrapped(pipe, **options):
    pipe.transformer = torch.compile(pipe.transformer, **options)


def regional(pipe, **options):
    for block in blocks_of(pipe.transformer).values():
        block.compile(**options)


GAPS = {
    "guidance": lambda pipe: Branch(),
    "weights": lambda pipe: Branch(weights=tiny.randomise(copy.deepcopy(pipe.transformer), gain=1.2)),
    "lora": lambda pipe: Branch(lora={"style": -1.5}),
    "skip_layers": lambda pipe: Branch(skip_layers=[0]),
    "perturbed_layers": lambda pipe: Branch(perturbed_layers=[1]),
}


@pytest.mark.parametrize("way", [in_place, wrapped, regional])
@pytest.mark.parametrize("gap", GAPS)
def test_a_compiled_denoiser_has_a_graph_a_setting_and_gives_the_same(way, gap):
    pipe, call = tiny.cogvideox()
    if gap == "lora":
        add_lora(pipe.transformer, "style", 1)
    branches = {"strong": Branch(), "weak": GAPS[gap](pipe)}
    with reflection(pipe, **branches):
        expected = run(pipe, call)
    stock, graphs = run(pipe, call), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        way(pipe, backend=backend, fullgraph=True)
        if gap == "weights" and way is not wrapped:
            branches["weak"].weights.compile(backend=backend, fullgraph=True)
        for _ in range(2):
            with reflection(pipe, **branches):
                assert torch.equal(run(pipe, call), expected)
            assert torch.equal(run(pipe, call), stock)
    finally:
        torch._dynamo.reset()
    a_setting = 2 if way is regional else 1  # the first block of CogVideoX is compiled apart from the others
    settings = 1 if gap == "guidance" or (gap == "weights" and way is wrapped) else 2
    assert len(graphs) <= a_setting * settings


def test_a_compiled_network_of_two_stages_is_told_its_stage():
    pipe, call = tiny.wan(two_stage=True)
    gap = {"strong": Branch(), "weak": Branch(experts="high")}
    with reflection(pipe, **gap):
        expected = run(pipe, call)
    torch._dynamo.reset()
    for network in (pipe.transformer, pipe.transformer_2):
        network.compile(backend="eager", fullgraph=True)
    with reflection(pipe, **gap):
        assert torch.equal(run(pipe, call), expected)
    assert "forward" not in vars(pipe.transformer)
    torch._dynamo.reset()


def test_a_controlnet_compiled_in_place_is_scaled():
    pipe, call = tiny.stable_diffusion(control=True)
    gap = {"strong": Branch(), "weak": Branch(control_scale=0.3)}
    with reflection(pipe, **gap):
        expected = run(pipe, call)
    torch._dynamo.reset()
    pipe.controlnet.compile(backend="eager", fullgraph=True)
    with reflection(pipe, **gap):
        assert torch.equal(run(pipe, call), expected)
    torch._dynamo.reset()


class Hidden(torch.nn.Module):
    """A module of the user's around the network, with arguments by no name."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_a_module_around_the_network_that_hides_its_arguments_is_evaluated_as_the_network():
    pipe, call = tiny.wan()
    gap = {"strong": Branch(guidance_scale=4.0), "weak": Branch(prompt="a blue square", guidance_scale=1.0)}
    with reflection(pipe, **gap):
        expected = run(pipe, call)
    pipe.transformer = Hidden(pipe.transformer)
    with reflection(pipe, **gap):
        assert torch.equal(run(pipe, call), expected)
