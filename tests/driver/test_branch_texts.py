"""The text of a branch: for every encoder, and refused beside a text that a callback changes."""

import pytest
import tiny
import torch
from plain_loop import STRONG, WEAK, run

from w2sd_video import Branch, reflection

GAP = {"strong": STRONG, "weak": WEAK}


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
