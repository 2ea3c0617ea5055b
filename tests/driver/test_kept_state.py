"""What a network, a wrapper or a processor keeps of its evaluations: refused where it acts by it."""

import functools

import diffusers
import pytest
import tiny
import torch
from helpers import close
from plain_loop import STEPS, STRONG, WEAK, run

from w2sd_video import Branch, reflection
from w2sd_video.gaps.layers import blocks_of

GAP = {"strong": STRONG, "weak": WEAK}


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
