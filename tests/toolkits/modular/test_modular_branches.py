"""What a branch may change of a modular pipeline: networks, texts, adapters, layers, scales, windows."""

import diffusers
import pytest
import torch
from helpers import add_lora
from modular_by_hand import counted, kept, plain_run, role, run, weaker
from tiny.assembled import mask
from tiny.modular import modular
from tiny.parts import picture

from w2sd_video import Branch, StrengthSchedule, reflection
from w2sd_video.backends import register
from w2sd_video.backends.modular import SecondDenoiser


def test_two_stages_have_networks_and_guiders_of_their_own():
    pipe, call = modular("wan 2.2")
    call = call | {"num_inference_steps": 4}
    pipe.update_components(guider_2=diffusers.ClassifierFreeGuidance(guidance_scale=2.0))
    boundary = pipe.config.boundary_ratio * 1000
    stock = run(pipe, call)
    assert {bool(t >= boundary) for t in pipe.scheduler.timesteps} == {True, False}
    weak = weaker(pipe)
    with (
        counted(pipe.transformer) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=4, inversion="paper"),
    ):
        reflected = run(pipe, call)
    high = sum(bool(t >= boundary) for t in pipe.scheduler.timesteps)
    assert calls.count(id(weak[0])) == 2 * high
    assert calls.count(id(weak[1])) == 2 * (4 - high)
    torch.testing.assert_close(reflected, plain_run(pipe, call, role(), role(weak), 4), rtol=1e-4, atol=1e-4)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=(3.0, 1.0)), inversion="current"):
        only_low = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=(1.0, 2.0)), inversion="current") as only_high:
        assert not torch.equal(run(pipe, call), only_low)
    assert only_high.nfe["strong"] == 2 * 3
    assert not torch.equal(only_low, stock)


def test_a_text_is_encoded_once_more_before_the_first_step():
    pipe, call = modular("wan")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0))
    other = {"prompt": "a blue square", "negative_prompt": "green"}
    with reflection(pipe, strong=Branch(), weak=Branch(**other), base=Branch(**other), reflection_steps=0):
        changed = run(pipe, call)
    assert torch.equal(changed, run(pipe, call | other))
    stock = run(pipe, call)
    same = {"prompt": call["prompt"]}
    with reflection(pipe, strong=Branch(), weak=Branch(**same), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with reflection(pipe, strong=Branch(), weak=Branch(**other), inversion="current") as gap:
        state = pipe(generator=torch.Generator().manual_seed(7), **call)
    assert gap.nfe == {"base": 6, "strong": 4, "weak": 4}
    assert not torch.equal(state.latents, stock)
    stock = pipe(generator=torch.Generator().manual_seed(7), **call)
    assert torch.equal(state.prompt_embeds, stock.prompt_embeds)


@pytest.mark.parametrize("field", ["lora", "skip_layers", "perturbed_layers"])
def test_what_changes_a_network_from_within_does_so_for_its_role(field):
    pipe, call = modular("wan")
    add_lora(pipe.transformer, "paint", 3)
    pipe.transformer.set_adapters(["paint"], [0.0])
    value = {"lora": {"paint": 1.0}, "skip_layers": [0], "perturbed_layers": [0]}[field]
    stock = run(pipe, call)
    before = kept(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(**{field: value}), reflection_steps=0):
        changed = run(pipe, call)
    assert not torch.equal(changed, stock)
    with reflection(pipe, strong=Branch(), weak=Branch(**{field: value})):
        reflected = run(pipe, call)
    assert not torch.equal(reflected, stock)
    with reflection(pipe, strong=Branch(), weak=Branch(**{field: value}), inversion="current"):
        assert not torch.equal(run(pipe, call), stock)
    assert kept(pipe) == before
    assert torch.equal(run(pipe, call), stock)
    window = Branch(**{field: value}, windows={field: (0, 0)})
    with reflection(pipe, strong=Branch(), weak=window, inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)


def test_a_guidance_gap_at_one_latent_shares_its_evaluations():
    pipe, call = modular("wan")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0))
    with (
        counted(pipe.transformer) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=1), inversion="current") as gap,
    ):
        run(pipe, call)
    assert gap.nfe == {"base": 6, "strong": 4, "weak": 0}
    assert len(calls) == 10


def test_autoguidance_and_windows():
    pipe, call = modular("wan")
    weak = weaker(pipe)
    settings = {"strong": Branch(), "reflection_steps": 0, "autoguidance": 1.0}
    with reflection(pipe, weak=Branch(weights=weak), **settings) as pushed:
        both = run(pipe, call)
    assert pushed.nfe == {"base": 6, "strong": 0, "weak": 6}
    assert not torch.equal(both, run(pipe, call))
    late = {"windows": {"weights": (0.6, 1.0)}}
    with reflection(pipe, weak=Branch(weights=weak, **late), **settings):
        assert not torch.equal(run(pipe, call), both)
    schedule = StrengthSchedule((-1.0, 1.0), (0.0, 0.0))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak), strength=schedule) as none:
        assert torch.equal(run(pipe, call), stock)
    assert none.reflected_steps == 0


def test_weights_may_be_a_component_of_the_pipeline_or_registered():
    pipe, call = modular("wan")
    weak = weaker(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak)):
        expected = run(pipe, call)
    register(pipe, "poor", weak)
    with reflection(pipe, strong=Branch(), weak=Branch(weights="poor")):
        assert torch.equal(run(pipe, call), expected)
    blocks = pipe.blocks
    blocks.sub_blocks.insert("weak", SecondDenoiser("weak_transformer", diffusers.WanTransformer3DModel), 0)
    parts = pipe.components
    pipe = blocks.init_pipeline()
    pipe.update_components(**parts, weak_transformer=weak)
    with reflection(pipe, strong=Branch(), weak=Branch(weights="weak_transformer")):
        assert torch.equal(run(pipe, call), expected)


def test_a_distilled_network_is_told_the_scale_of_its_role():
    pipe, call = modular("flux 2")
    with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(guidance_scale=1.5), reflection_steps=0):
        told = run(pipe, call)
    assert torch.equal(told, run(pipe, call, guidance_scale=1.5))
    assert not torch.equal(told, run(pipe, call, guidance_scale=4.0))


@pytest.mark.parametrize("solver", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_solvers_with_a_history_keep_it_without_a_gap(solver):
    """And with one the stock plugin, in a pipeline with a `__call__`, gives the same."""
    pipe, call = modular("wan")
    flow = (
        {} if "Heun" in solver else {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 7.0}
    )
    pipe.update_components(scheduler=getattr(diffusers, solver)(**flow))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    weak = weaker(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak)):
        reflected = run(pipe, call)
    of_one_call = diffusers.WanPipeline(
        **{name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    )
    of_one_call.set_progress_bar_config(disable=True)
    arguments = call | {"guidance_scale": 3.0, "output_type": "latent", "negative_prompt": ""}
    with reflection(of_one_call, strong=Branch(), weak=Branch(weights=weak)):
        same = of_one_call(generator=torch.Generator().manual_seed(7), **arguments).frames
    torch.testing.assert_close(reflected, same, rtol=1e-4, atol=1e-4)


def test_inpainting_that_noises_the_unmasked_part_anew_is_reflected():
    """The blocks after a step act on its latents only, and not on those of a reflection."""
    pipe, call = modular("stable diffusion xl")
    call = call | {
        "image": picture(16),
        "mask_image": mask().resize((16, 16)),
        "strength": 0.9,
        "num_inference_steps": 4,
    }
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weaker(pipe))) as on:
        reflected = run(pipe, call)
    assert on.steps == 3
    unmasked = stock == reflected
    assert unmasked.any()
    assert not unmasked.all()
