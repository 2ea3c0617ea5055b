"""Guidance against the paper's own way of writing it."""

import torch

from w2sd_video.guidance import guided


def test_guided_is_the_papers_sum_in_the_precision_given():
    cond, uncond = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    for scale in (-1.5, 0.0, 1.0, 7.5):  # scale = 1 + w
        torch.testing.assert_close(guided(cond, uncond, scale), scale * cond - (scale - 1) * uncond)
    assert guided(cond.half(), uncond.half(), 3.0).dtype == torch.float16
