"""A gap that is reused, where something that makes it begins or ends: there it is measured anew, or is refused.

The reference is a loop of one's own that is told the step: ``sample(predict, ..., stage_changes=[5])``.
"""

import pytest
import tiny
import torch
from pipelines_table import run
from tiny.variants import build

from w2sd_video import Branch, predictor, reflection, sample
from w2sd_video.strength import StrengthSchedule
from w2sd_video.window import Window

STEPS, EDGE = 10, 5
REUSED = {"reuse": 4, "inversion": "current"}
HALF = {"guidance_scale": (0.0, 0.5)}


def guided(**settings):
    return Branch(guidance_scale=4.0, **settings)


SETTINGS = {  # measured at 0, 4, 5 and 8 (the last) of 9 reflected steps, and at 0, 4, 5 and 9 of 10 pushed ones
    "strong": (dict(strong=guided(windows=HALF), weak=Branch(skip_layers=[1])), {}, {"strong": 6, "weak": 8}),
    "weak": (
        dict(
            strong=guided(),
            weak=Branch(guidance_scale=1.0, skip_layers=[1], perturbed_layers=[0], windows={"skip_layers": (0.5, 1.0)}),
        ),
        {},
        {"strong": 8, "weak": 4},
    ),
    "base, pushed": (
        dict(strong=Branch(), weak=Branch(guidance_scale=1.0, skip_layers=[1]), base=guided(windows=HALF)),
        {"reflection_steps": 0, "autoguidance": 0.5},
        {"base": 15, "weak": 4},
    ),
    "another field's schedule": (
        dict(
            strong=guided(windows={"guidance_scale": StrengthSchedule((-3.0, -2.9), (1.0, 0.0))}),
            weak=Branch(guidance_scale=1.0, skip_layers=[1]),
        ),
        {},
        None,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_gap_is_measured_anew_at_the_edge_of_a_window(name):
    branches, settings, nfe = SETTINGS[name]
    settings = REUSED | settings
    pipe, call = tiny.pixart()
    call = {**call, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
    with reflection(pipe, **branches, **settings) as done:
        result = run(pipe, call)
    generator = torch.Generator().manual_seed(7)  # as `run` has it
    with predictor(pipe, **branches, **call, generator=generator) as predict:
        known = set().union(*predict.changes.values())
        sampled = sample(predict, predict.latents, predict.scheduler, **settings)
        told = sample(predict, predict.latents, predict.scheduler, stage_changes=known, **settings)
        held = sample(predict, predict.latents, predict.scheduler, stage_changes=[], **settings)
    assert len(known) == 1 and (nfe is None or known == {EDGE})
    torch.testing.assert_close(result, told.latents)
    torch.testing.assert_close(sampled.latents, told.latents)
    assert not torch.allclose(held.latents, told.latents, rtol=1e-3, atol=1e-3)
    assert nfe is None or {role: done.nfe[role] for role in nfe} == nfe


def test_a_window_of_the_base_alone_is_no_matter_of_a_reflection():
    pipe, call = tiny.pixart()
    call = {**call, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    branches = dict(strong=Branch(guidance_scale=1.0), weak=Branch(guidance_scale=1.0, skip_layers=[1]))
    with reflection(pipe, **branches, base=guided(windows=HALF), **REUSED) as done:
        run(pipe, call)
    assert done.nfe["strong"] == done.nfe["weak"] == 3  # at steps 0, 4 and 8


def test_a_window_of_the_calls_own_controlnet_is_known():
    pipe, call = tiny.animatediff_controlnet()
    call = {**call, "num_inference_steps": STEPS, "guidance_scale": 1.0, "control_guidance_end": 0.5}
    branches = dict(strong=Branch(), weak=Branch(control_scale=0.0))
    call["output_type"] = "latent"
    with reflection(pipe, **branches, **REUSED) as done:
        result = run(pipe, call)
    assert done.nfe["weak"] == 4
    with reflection(pipe, **branches, reflection_steps=EDGE, **REUSED):
        by_half = run(pipe, call)  # without the ControlNet strong and weak are alike
    torch.testing.assert_close(result, by_half, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layers", "rows"), [([0], 2 + 3 + 2 + 2), (None, 2 + 2 + 2)], ids=["skipped", "none"])
def test_a_window_of_guidance_by_skipped_layers_is_known(layers, rows):
    """It has a third row, at steps 2 to 5 of 10: so 0, 2, 6 and 8 are measured, where without it 0, 4 and 8 are."""
    pipe, call = build("StableDiffusion3Pipeline")
    call |= {"num_inference_steps": STEPS, "guidance_scale": 4.0, "skip_guidance_layers": layers}
    call |= {"skip_layer_guidance_start": 0.15, "skip_layer_guidance_stop": 0.6}
    with reflection(pipe, strong=Branch(), weak=Branch(perturbed_layers=[0]), **REUSED, reading="native") as done:
        run(pipe, call)
    assert done.nfe["weak"] == rows


@pytest.mark.parametrize(
    ("make", "window"),
    [
        (lambda: build("StableDiffusionXLAdapterPipeline"), {"adapter_conditioning_factor": 0.5}),
        (lambda: build("Lumina2Pipeline"), {"cfg_trunc_ratio": 0.5}),
    ],
    ids=["adapter", "truncated guidance"],
)
def test_what_a_loop_switches_by_itself_is_refused_where_a_gap_is_reused(make, window):
    pipe, call = make()
    call = {**call, "num_inference_steps": STEPS, **window}
    branches = dict(
        strong=Branch(), weak=Branch(perturbed_layers=[0] if hasattr(pipe, "transformer") else ["mid_block"])
    )
    with reflection(pipe, **branches, inversion="current"):
        run(pipe, call)
    with (
        reflection(pipe, **branches, **REUSED),
        pytest.raises(ValueError, match=r"every step \(reuse=1\)"),
    ):
        run(pipe, call)


def test_a_window_of_levels_holds_for_a_reused_gap_too():
    pipe, call = tiny.pixart()
    call = {**call, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    window = Window(-20.0, -2.0, "log_snr")
    weak = Branch(guidance_scale=1.0, skip_layers=[1])
    with reflection(pipe, strong=guided(windows={"guidance_scale": window}), weak=weak, **REUSED) as done:
        run(pipe, call)
    assert done.nfe["weak"] == 4 and done.nfe["strong"] in (5, 6, 7)
