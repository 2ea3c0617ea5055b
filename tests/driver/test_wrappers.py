"""What else wraps a network: caches are refused, compiled regions stay whole, adapters are not lost."""

import copy
import functools
import inspect

import diffusers
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from helpers import add_lora, close, state
from plain_loop import STEPS, STRONG, WEAK, alphas_of, noise_like, plain_loop, read_noise, run
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.gaps.layers import blocks_of

GAP = {"strong": STRONG, "weak": WEAK}


# --- caches --------------------------------------------------------------------------------------------------------


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


# --- compiled networks ---------------------------------------------------------------------------------------------


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


# --- adapters and text ---------------------------------------------------------------------------------------------


class Plain(AttnProcessor2_0):
    """A processor of the user's, whatever it does."""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6), "FreeU"),
        (lambda pipe: pipe.enable_free_noise(context_length=4, context_stride=2), "FreeNoise"),
        (lambda pipe: pipe.unet.set_attn_processor(Plain()), "the attention processor Plain"),
    ],
)
def test_a_second_denoiser_is_evaluated_in_the_way_of_the_first_or_refused(change, named):
    (pipe, call), (other, _) = tiny.animatediff(), tiny.animatediff(seed=1)
    gap = {"strong": Branch(), "weak": Branch(weights=other.unet)}
    change(pipe)
    with pytest.raises(ValueError, match=f"weak branch lacks {named}"), reflection(pipe, **gap):
        pytest.fail("the block was entered")
    change(other)
    with reflection(pipe, **gap):
        run(pipe, call)


def test_perturbed_attention_of_a_pipeline_acts_in_a_second_denoiser_too():
    (pipe, call), (other, _) = build("StableDiffusionPAGPipeline"), tiny.stable_diffusion(seed=1)
    before = state(other)
    gap = {role: Branch(weights=other.unet) for role in ("base", "strong", "weak")}
    with reflection(pipe, **gap):
        result = run(pipe, call)
    assert state(other) == before
    pipe.unet = other.unet
    with reflection(pipe, strong=Branch(), weak=Branch()):
        assert torch.equal(run(pipe, call), result)
    with reflection(pipe, strong=Branch(), weak=Branch()):
        assert not torch.equal(run(pipe, call, pag_scale=0.0), result)


def test_what_a_pipeline_switches_in_its_network_in_mid_call_is_switched_in_a_second_denoiser_too():
    """GLIGEN's grounding is on in the first steps only; a second denoiser of the same weights answers alike."""
    pipe, call = tiny.stable_diffusion()
    grounding = {"attention_type": "gated", "cross_attention_dim": pipe.unet.config.cross_attention_dim}
    parts = {**pipe.components, "unet": tiny.unet(3, **grounding).eval()}
    names = inspect.signature(diffusers.StableDiffusionGLIGENPipeline).parameters
    pipe = diffusers.StableDiffusionGLIGENPipeline(
        **{name: parts[name] for name in names if name in parts}, requires_safety_checker=False
    )
    for name, parameter in pipe.unet.named_parameters():
        if "fuser.alpha" in name:  # 0 before training
            parameter.data.fill_(1.0)
    call |= {"gligen_phrases": ["a fox"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.7]]}
    call = {name: value for name, value in call.items() if name in inspect.signature(pipe.__call__).parameters}
    call["gligen_scheduled_sampling_beta"] = 0.5
    second = copy.deepcopy(pipe.unet)
    before = [getattr(module, "enabled", None) for module in second.modules()]

    def result_of(weak):
        with reflection(pipe, strong=Branch(guidance_scale=1.0), weak=weak):
            return run(pipe, call)

    one = result_of(Branch())
    assert torch.equal(result_of(Branch(weights=second)), one)
    assert [getattr(module, "enabled", None) for module in second.modules()] == before and True in before
    with reflection(pipe, strong=Branch(guidance_scale=1.0), weak=Branch()):
        assert not torch.equal(run(pipe, call | {"gligen_scheduled_sampling_beta": 1.0}), one)


def test_a_second_denoiser_without_the_adapters_of_the_first_is_refused():
    pipe, call = tiny.stable_diffusion(ip_adapter=True)
    plain = tiny.stable_diffusion()[0].unet
    with (
        pytest.raises(ValueError, match="weak branch lacks the IP-Adapter"),
        reflection(pipe, strong=Branch(), weak=Branch(weights=plain)),
    ):
        pytest.fail("the block was entered")
    pipe, call = tiny.stable_diffusion()
    gap = {"strong": Branch(), "weak": Branch(weights=copy.deepcopy(pipe.unet))}
    with reflection(pipe, **gap):
        add_lora(pipe.unet, "style", 1)
        with pytest.raises(ValueError, match="weak branch lacks the LoRA style"):
            run(pipe, call)
        pipe.unet.set_adapters(["style"], [0.0])
        run(pipe, call)
        pipe.unet.set_adapters(["style"], [1.0])
        add_lora(gap["weak"].weights, "style", 1)
        run(pipe, call)


def test_a_lora_scale_that_a_text_encoder_has_otherwise_is_refused():
    from peft import LoraConfig, inject_adapter_in_model

    pipe, call = tiny.stable_diffusion()
    add_lora(pipe.unet, "style", 1)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    inject_adapter_in_model(config, pipe.text_encoder, "style")
    for scale in (1.0, 0.4):
        with reflection(pipe, strong=Branch(), weak=Branch(lora={"style": 1.0})):
            run(pipe, call)
        with (
            pytest.raises(ValueError, match="this adapter acts in text_encoder too, at 1"),
            reflection(pipe, strong=Branch(), weak=Branch(lora={"style": scale - 1})),
        ):
            pytest.fail("the block was entered")


@pytest.mark.parametrize("system", [tiny.stable_diffusion_xl, tiny.flux, tiny.stable_diffusion_3])
def test_the_text_for_another_encoder_follows_the_prompt_of_a_branch(system):
    pipe, call = system()
    other = "a blue square over the sea"
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, prompt=other)
    role = Branch(prompt=other)
    with reflection(pipe, strong=role, weak=role, base=role):
        assert torch.equal(run(pipe, call, prompt_2=call["prompt"]), expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_callback_that_changes_the_text_beside_a_branch_with_text_is_refused(in_place):
    pipe, call = tiny.stable_diffusion()

    def change(pipe, index, timestep, kwargs):
        text = kwargs["prompt_embeds"]
        return {"prompt_embeds": text.mul_(0.5) if in_place else 0.5 * text}

    changes = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with (
        pytest.raises(ValueError, match="a callback changed prompt_embeds"),
        reflection(pipe, strong=Branch(), weak=Branch(prompt="a blue square")),
    ):
        run(pipe, call, **changes)
    with reflection(pipe, **GAP):
        assert torch.isfinite(run(pipe, call, **changes)).all()


@pytest.mark.parametrize("system", [tiny.stable_diffusion, tiny.wan])
@pytest.mark.parametrize("is_returned", [True, False])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_text_that_is_written_into_beside_a_branch_with_text_is_refused(mode, is_returned, system):
    pipe, call = system()
    kept = []

    def change(pipe, index, timestep, kwargs):
        kept.append(kwargs["prompt_embeds"])
        if index == 2:
            kept[0].mul_(0.5)
        return kwargs if is_returned else {}

    changes = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    branches = {"strong": Branch(), "weak": Branch(prompt="a blue square")}
    with (
        mode(),
        reflection(pipe, **branches),
        pytest.raises(ValueError, match=r"text .* changed|changed prompt_embeds"),
    ):
        run(pipe, call, **changes)
    with mode(), reflection(pipe, **GAP):
        run(pipe, call, **changes)
    changes["callback_on_step_end"] = lambda pipe, index, timestep, kwargs: kwargs
    with mode(), reflection(pipe, **branches) as done:
        run(pipe, call, **changes)
    assert done.reflected_steps


# --- passes --------------------------------------------------------------------------------------------------------


def test_the_steps_of_all_passes_are_counted():
    pipe, call = tiny.animatediff()
    pipe.enable_free_init(num_iters=2)
    with reflection(pipe, **GAP, reflection_steps=2) as reflected:
        run(pipe, call)
    assert (reflected.steps, reflected.reflected_steps) == (2 * STEPS, 4)


def test_timesteps_that_are_set_again_after_the_last_step_do_not_count():
    """WanAnimate sets them once more after its last segment."""

    class SetsThemAgain(diffusers.StableDiffusionPipeline):
        def maybe_free_model_hooks(self):
            self.scheduler.set_timesteps(3)

    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP):
        expected = run(pipe, call)
    pipe.__class__ = SetsThemAgain
    with reflection(pipe, **GAP) as reflected:
        assert torch.equal(run(pipe, call), expected)
    assert (reflected.steps, reflected.reflected_steps) == (STEPS, STEPS - 1)


@pytest.mark.parametrize("name", ["HunyuanDiTControlNetPipeline"])
def test_residuals_that_a_denoiser_takes_from_a_list_are_given_anew(name):
    pipe, call = build(name)
    pipe.set_progress_bar_config(disable=True)
    call = call | {"num_inference_steps": 3}
    role = Branch(control_scale=0.0)
    with reflection(pipe, strong=role, weak=role, base=role):
        result = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, controlnet_conditioning_scale=0.0)
    torch.testing.assert_close(result, expected)


# --- what a network keeps ------------------------------------------------------------------------------------------


class Count:
    """What people write to act in the first evaluations only: an object with a number, called or shared."""

    def __init__(self):
        self.number = 0

    def __call__(self, module, inputs, output):
        self.number += 1
        return output * 1.5 if self.number <= 3 else output

    def hook(self, *given):
        return self(*given)

    def see(self, module, inputs):
        self.number += 1


def in_a_closure(unet):
    number, forward = 0, unet.mid_block.forward

    def counting(*args, **kwargs):
        nonlocal number
        number += 1
        return forward(*args, **kwargs) * (1.5 if number <= 3 else 1.0)

    unet.mid_block.forward = counting


def in_a_list_of_a_processor(unet):
    class Recording(diffusers.models.attention_processor.AttnProcessor2_0):
        def __init__(self):
            super().__init__()
            self.outputs = []

        def __call__(self, *args, **kwargs):
            self.outputs.append(super().__call__(*args, **kwargs))
            return self.outputs[-1]

    unet.set_attn_processor(Recording())


def in_an_editor_of_all_layers(unet):
    editor = Count()
    for module in unet.modules():
        if type(module).__name__ == "Attention":
            kept = module.forward
            module.forward = lambda *args, kept=kept, **kwargs: editor(None, None, kept(*args, **kwargs))


def in_a_buffer(unet):
    class Counting(type(unet.mid_block)):
        def forward(self, *args, **kwargs):
            self.number += 1
            return super().forward(*args, **kwargs)

    unet.mid_block.register_buffer("number", torch.zeros((), dtype=torch.long))
    unet.mid_block.__class__ = Counting


def in_features_of_before(unet):
    kept, forward = {}, unet.mid_block.forward

    def answering(*args, **kwargs):
        kept["output"] = forward(*args, **kwargs) if "output" not in kept else 0.9 * kept["output"]
        return kept["output"]

    unet.mid_block.forward = answering


KEEPING = {
    "number": in_a_closure,
    "mid_block hook 0.number": lambda unet: unet.mid_block.register_forward_hook(Count().hook),
    "editor.number": in_an_editor_of_all_layers,
    "_buffers['number']": in_a_buffer,
    "output": in_features_of_before,
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_network_that_keeps_something_of_its_evaluations_is_refused_by_its_name(name):
    pipe, call = tiny.stable_diffusion()
    KEEPING[name](pipe.unet)
    stock = run(pipe, call)
    gap = {"strong": STRONG, "weak": Branch(guidance_scale=2.0)}
    with reflection(pipe, **gap), pytest.raises(ValueError, match=r"keeps something of them") as refused:
        run(pipe, call)
    assert name in str(refused.value)
    assert stock.isfinite().all()


def test_a_network_that_draws_in_every_other_evaluation_is_refused():
    """As token merging does, which draws where both rows of guidance are at hand."""

    class Merging(diffusers.models.attention.BasicTransformerBlock):
        def forward(self, hidden_states, *args, **kwargs):
            if len(hidden_states) % 2 == 0:
                hidden_states = hidden_states * torch.rand(1, generator=self.drawing["generator"])
            return super().forward(hidden_states, *args, **kwargs)

    pipe, call = tiny.stable_diffusion()
    block = next(iter(blocks_of(pipe.unet).values()))
    block.drawing = {"generator": torch.Generator().manual_seed(0)}
    block.__class__ = Merging
    with reflection(pipe, **GAP), pytest.raises(ValueError, match=r"keeps something of them .*'generator'"):
        run(pipe, call)


def acting_by_a_number(forward):
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"] * (1.0 if calls % 2 else 0.9)
        return forward(*args, **kwargs)

    return wrapped


def acting_in_the_name_of_another(forward):
    return functools.wraps(forward)(acting_by_a_number(forward))


def acting_by_a_dictionary(forward):
    state = {"calls": 0}

    def wrapped(*args, **kwargs):
        state["calls"] = state["calls"] + 1
        if state["calls"] < 4:
            kwargs["encoder_hidden_states"] = 0.9 * kwargs["encoder_hidden_states"]
        return forward(*args, **kwargs)

    return wrapped


def acting_by_the_length_of_a_list(forward):
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"] / len(calls)
        return forward(*args, **kwargs)

    return wrapped


class ActingByAnAttribute:
    def __init__(self, forward):
        self.forward, self.calls = forward, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        kwargs["encoder_hidden_states"] = self.strength() * kwargs["encoder_hidden_states"]
        return self.forward(*args, **kwargs)

    def strength(self):
        return 1 / self.calls


def acting_by_an_object(forward):
    counter = ActingByAnAttribute(forward)

    def wrapped(*args, **kwargs):
        counter.calls += 1
        kwargs["encoder_hidden_states"] = counter.strength() * kwargs["encoder_hidden_states"]
        return forward(*args, **kwargs)

    return wrapped


def only_counting(forward):
    calls, of_each, lengths = 0, {}, []

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        of_each["unet"] = of_each.get("unet", 0) + 1
        lengths.append(len(args))
        return forward(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    "wrapper",
    [
        acting_by_a_number,
        acting_in_the_name_of_another,
        acting_by_a_dictionary,
        acting_by_the_length_of_a_list,
        ActingByAnAttribute,
        acting_by_an_object,
    ],
)
def test_a_wrapper_of_the_network_that_acts_by_its_count_is_refused(wrapper):
    pipe, call = tiny.stable_diffusion()
    pipe.unet.forward = wrapper(pipe.unet.forward)
    with reflection(pipe, **GAP), pytest.raises(ValueError, match=r"counts its evaluations .*its forward.*calls"):
        run(pipe, call)
    with reflection(pipe, **GAP, reflection_steps=0):
        run(pipe, call)


def test_a_wrapper_of_the_network_that_only_counts_is_let_through():
    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP):
        expected = run(pipe, call)
    pipe.unet.forward = only_counting(pipe.unet.forward)
    with reflection(pipe, **GAP):
        close(run(pipe, call), expected)


@pytest.mark.parametrize("where", ["hook", "features", "inner hook", "forward", "class"])
def test_counts_of_what_only_looks_on_are_let_through(where, monkeypatch):
    """Hooks that count, time or keep features, and wrappers of the network that count its calls."""
    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP) as plain:
        expected = run(pipe, call)
    count, kept, seconds, forward = Count(), {}, [0.0], pipe.unet.forward

    def counted(*args, **kwargs):
        count.number += 1
        return forward(*args, **kwargs)

    def timed(*_):
        count.number += 1
        seconds[0] += 0.001

    if where == "hook":
        pipe.unet.register_forward_pre_hook(count.see)
        pipe.unet.register_forward_hook(lambda module, inputs, output: kept.update(output=output))
    elif where == "features":
        pipe.unet.mid_block.register_forward_hook(lambda module, inputs, output: kept.update(output=output.clone()))
    elif where == "inner hook":
        pipe.unet.mid_block.register_forward_hook(timed)
    elif where == "forward":
        pipe.unet.forward = counted
    else:
        stock = type(pipe.unet).forward
        noting = functools.wraps(stock)(lambda self, *args, **kwargs: (timed(), stock(self, *args, **kwargs))[1])
        monkeypatch.setattr(type(pipe.unet), "forward", noting)
    with reflection(pipe, **GAP) as reflected:
        result = run(pipe, call)
    if where in ("forward", "class"):  # which see all rows, for they might have them look at each other
        close(result, expected)
        assert reflected.nfe == plain.nfe | {"weak": 2 * plain.nfe["weak"]}
    else:
        assert torch.equal(result, expected)
        assert reflected.nfe == plain.nfe
    hooks = [*pipe.unet._forward_pre_hooks.values(), *pipe.unet._forward_hooks.values()]
    assert not [hook for hook in hooks if isinstance(hook, functools.partial)], "hooks are as they were"
    assert where == "features" or count.number > 2 * STEPS


def mixed(output):
    """Rows that look at each other, as those of StyleAligned do."""
    return output + 0.5 * output.mean(0, keepdim=True)


def mixing(function):
    return lambda *args, **kwargs: mixed(function(*args, **kwargs))


def by_a_wrapper(unet, patch):
    forward = unet.forward
    patch.setattr(unet, "forward", lambda *args, **kwargs: (mixed(forward(*args, **kwargs)[0]),))


def by_a_class_of_its_own(unet, patch):
    block = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    patch.setattr(block, "__class__", type("Mixing", (type(block),), {"forward": mixing(type(block).forward)}))


def by_a_module_around_another(unet, patch):
    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return mixed(self.inner(*args, **kwargs))

    block = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    patch.setattr(block, "ff", Around(block.ff))


MIXING = {
    "hook": lambda unet, patch: unet.mid_block.register_forward_hook(lambda module, given, output: mixed(output)),
    "wrapper": by_a_wrapper,
    "patched class": lambda unet, patch: patch.setattr(
        diffusers.models.attention_processor.Attention,
        "forward",
        mixing(diffusers.models.attention_processor.Attention.forward),
    ),
    "class": by_a_class_of_its_own,
    "module": by_a_module_around_another,
}


@torch.no_grad()
@pytest.mark.parametrize("weak_first", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_rows_that_may_look_at_each_other_are_evaluated_together(name, weak_first, monkeypatch):
    pipe, call = tiny.stable_diffusion()
    MIXING[name](pipe.unet, monkeypatch)
    scales = {"strong": 1.0 if weak_first else 4.0, "weak": 4.0 if weak_first else 1.0, "base": 3.0}
    embeddings = torch.cat(pipe.encode_prompt(call["prompt"], "cpu", 1, True)[::-1])
    pipe.scheduler.set_timesteps(STEPS)
    levels = alphas_of(pipe.scheduler)

    def predict(latents, timestep, role):
        rows = pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=embeddings, return_dict=False)[0]
        return torch.lerp(rows[:1], rows[1:], scales[role])

    expected = plain_loop(noise_like((1, 4, 8, 8)), copy.deepcopy(pipe.scheduler), levels, predict, read_noise(levels))
    gap = {"strong": Branch(guidance_scale=scales["strong"]), "weak": Branch(guidance_scale=scales["weak"])}
    with reflection(pipe, **gap, inversion="paper"):
        close(run(pipe, call), expected)


def test_what_a_network_makes_once_or_a_callback_changes_is_reflected():
    """Positions that are made when they are needed, the size of an image, an editor that is told the steps; a log."""
    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP):
        expected = run(pipe, call)
    kept, editor, forward = {"size": None}, Count(), pipe.unet.mid_block.forward

    def before(module, inputs):
        kept["size"] = inputs[0].shape[-2:]

    def at_steps(*args, **kwargs):
        if "positions" not in kept:
            kept["positions"] = torch.ones(3)
        return forward(*args, **kwargs) if editor.number >= 0 else 0.0

    def on_step(pipe, index, timestep, given):
        editor.number += 1
        return {}

    in_a_list_of_a_processor(pipe.unet)
    pipe.unet.register_forward_pre_hook(before)
    pipe.unet.mid_block.forward = at_steps
    for _ in range(2):
        with reflection(pipe, **GAP):
            close(run(pipe, call, callback_on_step_end=on_step), expected)  # rows are not evaluated alone then
    assert editor.number == 2 * STEPS
