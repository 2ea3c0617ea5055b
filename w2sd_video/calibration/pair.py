"""A configuration's pair judged by real clips, and by what it samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from w2sd_video.calibration.gap import calibrate
from w2sd_video.calibration.ideal_prediction import corrected_cosines, ideal_of
from w2sd_video.calibration.latents import check_encodable, encode
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import moments_of_clips
from w2sd_video.calibration.real_clips import Clip
from w2sd_video.calibration.report import Findings
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.messages import first_line
from w2sd_video.rendering.call_arguments import call_arguments
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import load, quiet
from w2sd_video.rendering.sample import branch_of, sample_clips, threads_for
from w2sd_video.settings.panels import filled
from w2sd_video.settings.schema import ConfigError, RenderConfig


def calibrate_pair(
    config: RenderConfig, clips: Sequence[Clip], draws: int, batch: int, samples: bool, bank: int | None = None
) -> Findings:
    """Load the model of a configuration, and judge its pair by real clips.

    Args:
        config: as of a render; its `steps` set the noise levels, its `seed` the noise.
        clips: see `check_clips`.
        draws: of noise, for each clip and level.
        batch: clips evaluated together.
        samples: whether to sample a clip of each caption with the base setting alone and one that is reflected at
            strength 1, and find the tilt and the strength at which it vanishes.
        bank: clips of each caption by which a miniature's ideal prediction is estimated.

    Raises:
        ConfigError: what this pipeline cannot be given, clips that do not suit it, or a pair without a gap.
        LoadError: a model that cannot be loaded.
    """
    inputs = read_inputs(config)
    with threads_for(config.model.pretrained):
        with quiet():
            pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        check_encodable(pipe)
        real = compare_clips(pipe, config, clips, draws, batch, inputs, bank)
        try:
            findings = Findings(calibrate(real), cosines=corrected_cosines(real) if bank else [])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not samples:
            return findings
        base = _sampled(pipe, replace(config, reflection_steps=0), clips, inputs)
        reflected = _sampled(pipe, replace(config, strength=1.0), clips, inputs)
        base_moments, reflected_moments = (
            compare_clips(pipe, config, sampled, draws, batch, inputs) for sampled in (base, reflected)
        )
        overall, tilts = tilt(real, base_moments)
        balanced, strengths, tilt_at_one = balance(real, base_moments, reflected_moments)
        return replace(
            findings, tilt=overall, tilts=tilts, balanced=balanced, strengths=strengths, tilt_at_one=tilt_at_one
        )


def _sampled(pipe: Any, config: RenderConfig, clips: Sequence[Clip], inputs: Mapping[str, Any]) -> list[Clip]:
    """Return clips of the same captions, that a configuration samples when they are read."""

    def read(caption: str, seed: int) -> np.ndarray:
        return sample_clips(pipe, config, [caption], [seed], inputs)[0][0]

    seeds = range(config.seed + 10**6, config.seed + 10**6 + len(clips))  # other noise than that of the levels
    return [
        Clip("sample", clip.caption, partial(read, clip.caption, seed)) for clip, seed in zip(clips, seeds, strict=True)
    ]


def compare_clips(
    pipe: Any,
    config: RenderConfig,
    clips: Sequence[Clip],
    draws: int,
    batch: int,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    bank: int | None = None,
) -> Moments:
    """Compare the strong and the weak branch of a configuration on clips.

    Args:
        pipe: as `render.load` returns it.
        config: names the branches; its `steps` set the noise levels, its `seed` the noise.
        clips: see `check_clips`.
        draws: of noise, for each clip and level.
        batch: clips evaluated together.
        inputs: further arguments of the pipeline's call.
        bank: clips of each caption by which a miniature's ideal prediction is estimated.

    Raises:
        ConfigError: what this pipeline cannot be given, or clips that do not suit it.
    """
    strong, weak = (branch_of(filled(config, branch)) for branch in (config.strong, config.weak))
    parts = []
    for start in tqdm(range(0, len(clips), batch), desc="batches of clips"):
        part = clips[start : start + batch]
        latents = encode(pipe, np.stack([clip.read() for clip in part]))
        seeds = [config.seed + start + k for k in range(len(part))]
        captions = [clip.caption for clip in part]
        arguments = {**call_arguments(pipe, config, captions, seeds), **inputs}
        ideal = ideal_of(pipe, config, captions, bank) if bank else None
        try:
            parts.append(
                moments_of_clips(
                    pipe, arguments, latents, strong=strong, weak=weak, seeds=seeds, draws=draws, ideal=ideal
                )
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(first_line(error)) from error
    return Moments.joined(parts)
