"""Rows that may look at each other are evaluated together."""

import copy

import diffusers
import pytest
import tiny
import torch
from helpers import close
from plain_loop import STEPS, alphas_of, noise_like, plain_loop, read_noise, run

from w2sd_video import Branch, reflection


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
