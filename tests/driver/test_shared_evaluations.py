"""Rows that are evaluated at the same latents, for branches that differ in guidance at most, are evaluated once."""

import pytest
import tiny
import torch

from w2sd_video import Branch, reflection


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan], ids=["batch", "calls"])
def test_a_gap_of_guidance_over_the_pipelines_own_costs_no_weak_evaluation(build):
    pipe, call = build()
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "guidance_scale": 4.0, "output_type": "latent"}
    results = {}
    for name, strong in (("left out", Branch()), ("set", Branch(guidance_scale=4.0))):
        with reflection(pipe, strong=strong, weak=Branch(guidance_scale=1.0), inversion="current") as run:
            results[name] = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
        assert run.nfe["weak"] == 0, name
    torch.testing.assert_close(results["left out"], results["set"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [Branch(), Branch(guidance_scale=4.0)], ids=["left out", "set"])
@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan, tiny.pixart], ids=["batch", "calls", "variance"])
def test_guided_autoguidance_takes_three_rows(build, base):
    """uncond + w (cond - uncond) + g (cond - weak cond): cond is evaluated once."""
    pipe, call = build()
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "guidance_scale": 4.0, "output_type": "latent"}
    weak = Branch(guidance_scale=1.0, skip_layers=[0])

    def run(**settings):
        with reflection(pipe, base=base, weak=weak, reflection_steps=0, autoguidance=0.7, **settings) as done:
            return pipe(**call, generator=torch.Generator().manual_seed(0))[0], done

    three, done = run(strong=Branch(guidance_scale=1.0), autoguidance_gap="strong")
    assert sum(done.nfe.values()) == 3 * done.steps
    against_guided, done = run(strong=Branch())  # the gap of guidance is in it too
    assert sum(done.nfe.values()) == 3 * done.steps and not torch.equal(three, against_guided)
    # With the gap of guidance alone it is guidance at another scale.
    by_scale = Branch(guidance_scale=4.0)
    with reflection(
        pipe, base=by_scale, strong=Branch(guidance_scale=1.0), weak=Branch(guidance_scale=0.0), reflection_steps=0,
        autoguidance=0.7, autoguidance_gap="strong",
    ) as done:  # fmt: skip
        pushed = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
    assert sum(done.nfe.values()) == 2 * done.steps
    with reflection(pipe, base=Branch(guidance_scale=4.7), strong=Branch(), weak=Branch(), reflection_steps=0):
        scaled = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(pushed, scaled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan, tiny.flux], ids=["batch", "calls", "told"])
def test_autoguidance_costs_nothing_where_a_window_has_its_gap_off(build):
    """Without a guidance scale in any branch; the layers are skipped in the second half of the steps."""
    pipe, call = build()
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": 6, "output_type": "latent"}
    weak = Branch(skip_layers=[0], windows={"skip_layers": (0.5, 1.0)})
    results, evaluations = {}, {}
    for name, settings in {
        "late": {"autoguidance_steps": (0.5, 1.0), "weak": Branch(skip_layers=[0])},
        "window": {"weak": weak},
    }.items():
        with reflection(pipe, strong=Branch(), reflection_steps=0, autoguidance=0.7, **settings) as done:
            results[name] = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
        evaluations[name] = sum(done.nfe.values())
    assert evaluations["window"] == evaluations["late"]
    torch.testing.assert_close(results["window"], results["late"])
