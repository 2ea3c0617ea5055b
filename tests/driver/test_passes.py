"""Calls that go through their timesteps more than once, or set them again."""

import diffusers
import pytest
import tiny
import torch
from plain_loop import STEPS, STRONG, WEAK, run
from tiny.variants import build

from w2sd_video import Branch, reflection

GAP = {"strong": STRONG, "weak": WEAK}


def test_the_steps_of_all_passes_are_counted():
    pipe, call = tiny.animatediff()
    pipe.enable_free_init(num_iters=2)
    with reflection(pipe, **GAP, reflection_steps=2) as reflected:
        run(pipe, call)
    assert (reflected.steps, reflected.reflected_steps) == (2 * STEPS, 4)


def test_timesteps_that_are_set_again_after_the_last_step_do_not_count():
    """WanAnimate sets them once more after its last segment."""

    class SetsThemAgain(diffusers.StableDiffusionPipeline):
        def maybe_free_model_hooks(self):
            self.scheduler.set_timesteps(3)

    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP):
        expected = run(pipe, call)
    pipe.__class__ = SetsThemAgain
    with reflection(pipe, **GAP) as reflected:
        assert torch.equal(run(pipe, call), expected)
    assert (reflected.steps, reflected.reflected_steps) == (STEPS, STEPS - 1)


@pytest.mark.parametrize("name", ["HunyuanDiTControlNetPipeline"])
def test_residuals_that_a_denoiser_takes_from_a_list_are_given_anew(name):
    pipe, call = build(name)
    pipe.set_progress_bar_config(disable=True)
    call = call | {"num_inference_steps": 3}
    role = Branch(control_scale=0.0)
    with reflection(pipe, strong=role, weak=role, base=role):
        result = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, controlnet_conditioning_scale=0.0)
    torch.testing.assert_close(result, expected)
