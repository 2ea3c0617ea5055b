"""Weak-to-Strong Diffusion: a sampler plugin for diffusers pipelines."""

from w2sd_video.branch import Branch
from w2sd_video.plugin import Run, reflection
from w2sd_video.presets import PRESETS
from w2sd_video.reflect import reflect
from w2sd_video.sampler import Reflection, Request, Sampled, reflect_step, sample
from w2sd_video.strength import StrengthSchedule
from w2sd_video.trajectory import Level, Trajectory, known_schedulers

__version__ = "0.2.0"

__all__ = [
    "PRESETS",
    "Branch",
    "Level",
    "Reflection",
    "Request",
    "Run",
    "Sampled",
    "StrengthSchedule",
    "Trajectory",
    "known_schedulers",
    "reflect",
    "reflect_step",
    "reflection",
    "sample",
]
