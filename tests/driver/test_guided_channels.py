"""A branch's guidance is of the channels that the pipeline guides: base at the pipeline's own scale is the stock call.

Goes to tests/driver/test_guided_channels.py when the driver does it.
"""

import diffusers
import pytest
import torch
from helpers import NOTHING
from tiny.dit_moe import dit_moe as tiny_dit_moe
from tiny.variants import build

from w2sd_video import Branch, reflection


def dit_moe_learned_range():
    pipe, call = tiny_dit_moe()
    settings = {"variance_type": "learned_range", "clip_sample": False}
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, **settings)
    return pipe, call


def lumina():
    return build("LuminaPipeline")


@pytest.mark.parametrize("make", [dit_moe_learned_range, lumina])
@pytest.mark.parametrize("settings", [{"reflection_steps": 0}, {"strength": NOTHING}])
def test_base_at_the_pipelines_own_scale_is_the_stock_call(make, settings):
    pipe, call = make()
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "guidance_scale": 4.0, "output_type": "np"}

    def run():
        return torch.as_tensor(pipe(**call, generator=torch.Generator().manual_seed(0)).images).double()

    stock = run()
    guided = Branch(guidance_scale=4.0)
    with reflection(pipe, strong=guided, weak=Branch(guidance_scale=1.0), base=guided, **settings):
        torch.testing.assert_close(run(), stock, rtol=1e-4, atol=1e-4)
