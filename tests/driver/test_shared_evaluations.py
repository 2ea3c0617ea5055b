"""Goes to tests/driver/: `current` costs no weak evaluation also where strong leaves its scale out."""

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
