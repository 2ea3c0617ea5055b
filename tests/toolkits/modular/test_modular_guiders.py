"""Guiders of modular pipelines: a state for each role, and what they keep over the steps."""

import functools

import diffusers
import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from modular_by_hand import kept, plain_run, role, run
from tiny.modular import modular

from w2sd_video import Branch, reflection

LAYERS = functools.partial(LayerSkipConfig, indices=[0], fqn="auto")
GUIDERS = {
    "ClassifierFreeGuidance": {},
    "ClassifierFreeGuidance, original": {"use_original_formulation": True},
    "ClassifierFreeGuidance, a window": {"start": 0.3, "stop": 0.8},
    "ClassifierFreeZeroStarGuidance": {},
    "AdaptiveProjectedGuidance": {"adaptive_projected_guidance_momentum": -0.5},
    "AdaptiveProjectedMixGuidance": {
        "adaptive_projected_guidance_momentum": -0.5,
        "adaptive_projected_guidance_start_step": 1,
    },
    "TangentialClassifierFreeGuidance": {},
    "AutoGuidance": {"auto_guidance_config": LAYERS(dropout=1.0)},
    "SkipLayerGuidance": {
        "skip_layer_config": LAYERS(),
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    },
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0], "seg_guidance_start": 0.0, "seg_guidance_stop": 1.0},
}


def guider_of(name, scale=3.0):
    return getattr(diffusers, name.partition(",")[0])(guidance_scale=scale, **GUIDERS[name])


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_keeps_a_state_for_each_role(name):
    """Also momentum, which is that of a guider of the role's own, called once a step."""
    pipe, call = modular("wan")
    pipe.update_components(guider=guider_of(name))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), stock)
    before = kept(pipe)
    scale = 1.5 + GUIDERS[name].get("use_original_formulation", False)
    with reflection(
        pipe, strong=Branch(), weak=Branch(guidance_scale=scale), inversion="current", reflection_steps=3
    ) as on:
        reflected = run(pipe, call)
    assert kept(pipe) == before
    assert on.nfe["strong"] == off.nfe["base"]
    pipe.update_components(guider=guider_of(name))
    strong, weak = role(guider=guider_of(name)), role(guider=guider_of(name, 1.5))
    expected = plain_run(pipe, call, strong, weak, 3, "current")
    torch.testing.assert_close(reflected, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reflected, stock, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("guider", "family"),
    [
        (lambda: diffusers.guiders.MagnitudeAwareGuidance(guidance_scale=3.0), "wan"),
        (
            lambda: diffusers.PerturbedAttentionGuidance(
                3.0, perturbed_guidance_config=LAYERS(), perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0
            ),
            "wan",
        ),
    ],
    ids=["magnitude-aware", "perturbed attention"],
)
def test_guiders_that_fail_by_themselves_do_so(guider, family):
    """The day that one of them does not, the page that names them is to be changed."""
    pipe, call = modular(family)
    pipe.update_components(guider=guider())
    with pytest.raises(Exception, match=r"must be a 2-tuple|not registered"):
        run(pipe, call, num_inference_steps=6)


def test_momentum_sees_each_step_once_however_often_a_role_is_evaluated():
    pipe, call = modular("wan")
    settings = {"guidance_scale": 3.0, "adaptive_projected_guidance_momentum": -0.5}
    pipe.update_components(guider=diffusers.AdaptiveProjectedGuidance(**settings))
    seen = []
    original = diffusers.guiders.adaptive_projected_guidance.MomentumBuffer.update
    updates = diffusers.guiders.adaptive_projected_guidance.MomentumBuffer

    def update(self, value):
        seen.append(self.running_average if isinstance(self.running_average, int) else self.running_average.clone())
        return original(self, value)

    updates.update = update
    try:
        weak = Branch(guidance_scale=1.5)
        with reflection(
            pipe, strong=Branch(), weak=weak, inversion="implicit", iterations=3, reflection_steps=(0.34, 1)
        ):
            run(pipe, call)
    finally:
        updates.update = original
    assert len(seen) == 3 + 2 * 4
    # Base begins in step 0; strong and weak, first evaluated in step 1, begin there; weak's three all begin alike.
    zeros = [isinstance(value, int) and value == 0 for value in seen]
    assert zeros == [True, True, True, True, True, False, False, False, False, False, False]
    assert torch.equal(seen[7], seen[8])
    assert torch.equal(seen[8], seen[9])
