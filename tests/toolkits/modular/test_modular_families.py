"""Modular pipelines of diffusers, reflected: each family against a plain loop, by its predictor, or refused."""

import threading

import diffusers
import pytest
import torch
from helpers import close
from modular_by_hand import DENOISERS, counted, kept, plain_run, role, run, weaker
from tiny.modular import FAMILIES, modular

from w2sd_video import Branch, predictor, reflection, sample


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name):
    """Off is the stock call bit for bit, no gap is it to rounding, on is the plain loop, and nothing is left behind."""
    pipe, call = modular(name)
    weak = weaker(pipe)
    networks = [getattr(pipe, each) for each in DENOISERS if each in pipe.components]
    weak_networks = weak if isinstance(weak, tuple) else (weak,)
    with counted(*networks) as calls:
        stock = run(pipe, call)
        of_stock = len(calls)
    before = kept(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), stock)
    assert off.nfe == {"base": of_stock, "strong": 0, "weak": 0}
    begun = round(call.get("strength", 1.0) * call["num_inference_steps"])
    assert (off.steps, off.reflected_steps) == (begun, 0)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with (
        counted(*networks) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=2, inversion="paper") as on,
    ):
        reflected = run(pipe, call)
    assert on.reflected_steps == 2
    assert on.nfe["weak"] == sum(calls.count(id(network)) for network in weak_networks)
    assert on.nfe["base"] + on.nfe["strong"] == sum(calls.count(id(network)) for network in networks)
    assert on.nfe["base"] == of_stock
    assert on.nfe["weak"] == on.nfe["strong"] == on.reflected_steps * of_stock // begun
    assert kept(pipe) == before
    expected = plain_run(pipe, call, role(), role(weak_networks), 2)
    close(reflected, expected, 1e-4)
    assert not torch.allclose(reflected, stock, rtol=1e-2, atol=1e-2)
    assert torch.equal(run(pipe, call), stock)


def predicted(pipe, call, branches, **settings):
    generator = torch.Generator().manual_seed(7)
    with predictor(pipe, **branches, **call, generator=generator) as predict:
        return sample(predict, predict.latents, predict.scheduler, begin=predict.begin, generator=generator, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"reflection_steps": 2, "inversion": "paper"},
        {"reflection_steps": 3, "inversion": "current", "reading": "native", "reuse": 3},
    ],
    ids=["paper", "reuse"],
)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "ltx image to video"])
def test_sample_with_a_predictor_is_the_pipeline_reflected(name, settings):
    """Some blocks lay out the latents anew after their loop: then the numbers are the same, in another order."""
    pipe, call = modular(name)
    branches = {"strong": Branch(), "weak": Branch(weights=weaker(pipe))}
    before = kept(pipe)
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    result = predicted(pipe, call, branches, **settings)
    assert torch.equal(result.latents.flatten().sort().values, expected.flatten().sort().values)
    rows = reflected.nfe["base"] // result.nfe["base"]
    assert reflected.nfe == {each: rows * calls for each, calls in result.nfe.items()}
    assert kept(pipe) == before and not [each for each in threading.enumerate() if each.name.startswith("predictor")]


@pytest.mark.parametrize("guider", ["APG", "windowed"])
def test_a_predictor_with_texts_scales_and_guiders_that_know_the_step(guider):
    chosen = {
        "APG": diffusers.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
        "windowed": diffusers.ClassifierFreeGuidance(3.0, start=0.3, stop=0.9),
    }[guider]
    pipe, call = modular("wan", guider=chosen)
    branches = {"strong": Branch(guidance_scale=4.0), "weak": Branch(prompt="a sea", guidance_scale=2.0)}
    with reflection(pipe, **branches, inversion="current"):
        expected = run(pipe, call)
    assert torch.equal(predicted(pipe, call, branches, inversion="current").latents, expected)


def test_a_reused_gap_is_measured_anew_where_the_guider_begins_and_ends():
    pipe, call = modular("wan", guider=diffusers.ClassifierFreeGuidance(3.0, start=0.3, stop=0.7))
    call |= {"num_inference_steps": 10}
    branches = {"strong": Branch(), "weak": Branch(weights=weaker(pipe))}
    settings = {"inversion": "current", "reuse": 5}
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    assert reflected.nfe["weak"] == reflected.nfe["strong"] == 6  # at 0 without signal, 1, 3 (guided: 2), 7 and 8
    assert torch.equal(predicted(pipe, call, branches, **settings).latents, expected)
    told = predicted(pipe, call, branches, **settings, stage_changes=[3, 7])
    assert torch.equal(told.latents, expected)


def test_blocks_that_step_a_part_of_their_latents_have_no_predictor():
    pipe, call = modular("ltx image to video")
    with pytest.raises(ValueError, match=r"and those of its state have \(1, 48, 4\), so that it can have no predictor"):
        predicted(pipe, call, {"strong": Branch(), "weak": Branch(weights=weaker(pipe))})
    with pytest.raises(ValueError, match="not loaded"):
        predictor(diffusers.WanBlocks().init_pipeline(), strong=Branch(), weak=Branch())


REFUSED = {
    "LTX2AutoBlocks": "side by side",
    "HeliosAutoBlocks": "not one of a loop",
    "WanAnimate2Blocks": "not one of a loop",
    "MiniMaxH3Blocks": "side by side",
    "EchoBlocks": "needs a scheduler and a denoiser",
}


@pytest.mark.parametrize("blocks", [name for name in REFUSED if hasattr(diffusers, name)])  # some are newer than others
def test_a_loop_of_another_kind_is_refused(blocks):
    pipe = getattr(diffusers, blocks)().init_pipeline()
    for name, part in pipe.components.items():
        if part is None:
            pipe.__dict__[name] = diffusers.DDIMScheduler() if "scheduler" in name else torch.nn.Identity()
    with pytest.raises(TypeError, match=REFUSED[blocks]), reflection(pipe, strong=Branch(), weak=Branch()):
        pass
