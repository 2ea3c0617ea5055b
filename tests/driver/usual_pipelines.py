"""Pipelines of each kind, tiny, and the gap that their calls are reflected with."""

import pytest
import tiny
from plain_loop import STRONG, WEAK, run

from w2sd_video import reflection

GAP = {"strong": STRONG, "weak": WEAK}
PIPELINES = {
    "animatediff": tiny.animatediff,
    "cogvideox": tiny.cogvideox,
    "wan": tiny.wan,
    "stable_diffusion": tiny.stable_diffusion,
    "pixart": tiny.pixart,
}
pipelines = pytest.mark.parametrize("name", PIPELINES)


def denoiser_of(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def reflected(pipe, call, gap=GAP, **changes):
    with reflection(pipe, **gap):
        return run(pipe, call, **changes)
