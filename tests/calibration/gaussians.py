"""Worlds of Gaussian clips, of which all answers are known."""

import diffusers
import numpy as np
import torch

from w2sd_video import Trajectory
from w2sd_video.algorithm import drive
from w2sd_video.calibration.gap import calibrate as judge
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import compare
from w2sd_video.trajectory import Level


def gaussian(strong, weak, clips=400, width=2.0):
    """Judge two predictors on Gaussian data, given as functions of the ideal prediction for it."""
    trajectory = four_levels()

    def answer(request):
        ideal = of_width(width, trajectory.level(request.step)) * request.latents
        return (strong if request.role == "strong" else weak)(ideal)

    torch.manual_seed(0)
    data = width * torch.randn(clips, 64)
    return trajectory, judge(drive(compare(trajectory, data, 2, torch.randn_like), answer))


def four_levels():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    return Trajectory(scheduler)


def of_width(width, level):
    """What the ideal prediction of the noise is of the latents, for data of N(0, width²)."""
    return level.sigma / (level.alpha**2 * width**2 + level.sigma**2)


def made(error, gap, product, levels=1, draws=1):
    """Moments that are the same at each level and draw, of clips that are given."""
    arrays = (np.tile(np.array(one, float), (levels, draws, 1)) for one in (error, gap, product))
    return Moments(tuple(Level(0.5, 0.8 - i / 10) for i in range(levels)), tuple(range(levels)), levels, *arrays)
