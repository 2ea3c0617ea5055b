"""A second denoiser is evaluated in the way of the first, with all that the pipeline sets in it, or refused."""

import copy
import inspect

import diffusers
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from helpers import add_lora, state
from plain_loop import run
from tiny.variants import build

from w2sd_video import Branch, reflection


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
