"""What a calibration is to do, from its command line, checked before any model is loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from w2sd_video.calibration.real_clips import Clip, check_clips, clips_of_folder, clips_of_world
from w2sd_video.jobs.pool_options import add_pool_options
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.load import check_device
from w2sd_video.rendering.video import check_name
from w2sd_video.settings.command_line import refuse_words
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.settings.schema import RenderConfig, filled
from w2sd_video.settings.sources import MINIATURE
from w2sd_video.settings.value_checks import check_range
from w2sd_video.text_files import parse_json, read_text
from w2sd_video.window import Window, as_steps

_MOST = {"draws": 1000, "levels": 1000, "number_of_clips": 10**4, "batch": 1024, "ideal": 10**5}
"""The largest value of each number, of which the smallest is 1: beyond what is of use, so that a slip is refused."""


_NOT_FOLLOWED = {
    "--compare": "a calibration shows no clips; leave it out",
    "--autoguidance": "a calibration compares strong and weak as they are; leave it out",
    "--reflection-steps": "name the part of the sampling that the strength is for with --window",
    "--reflection_steps": "name the part of the sampling that the strength is for with --window",
}
"""Options of a render that mean nothing here, and why."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--clips", metavar="FOLDER", help="real clips with captions; not needed for miniatures")
    add("--number-of-clips", type=int, default=128, help="clips that a miniature's world makes")
    add("--draws", type=int, default=3, help="of noise, for each clip and level")
    add("--levels", type=int, help="noise levels: those of as many sampling steps; --steps unless told")
    add("--batch", type=int, default=16, help="clips evaluated together")
    add("--window", metavar="WINDOW", help="where the strength is to be used, like '[0.5, 1]'; everywhere unless told")
    add("--no-samples", dest="samples", action="store_false", help="sample nothing, find no tilt")
    add("--ideal", type=int, metavar="N", help="estimate the ideal prediction by N clips of each caption (miniatures)")
    add("-o", "--output", metavar="FILE", default="strength.json", help="where the strengths go")
    add_pool_options(parser)


def configuring_words(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return the words of the command line that change the configuration, the window among them.

    Args:
        options: of the command line.
        words: those that are no options of a calibration.

    Raises:
        ConfigError: an option of a render that a calibration would not follow; the message says what to take instead.
    """
    refuse_words(words, _NOT_FOLLOWED)
    return [*words, "--reflection-steps", options.window] if options.window else list(words)


def calibrated_config(options: argparse.Namespace, config: RenderConfig) -> RenderConfig:
    """Return the configuration whose pair is judged: at as many steps as there are levels to be asked about.

    Raises:
        ConfigError: a number out of range, or an output that cannot be written or is no calibration.
    """
    for name, most in _MOST.items():
        check_range(name, getattr(options, name), 1, most)
    _check_output(Path(options.output))
    window = config.reflection_steps if options.window else None
    if isinstance(window, int):
        raise ConfigError(f"window {options.window}: must be fractions like '[0.5, 1]', or a window of log-SNRs")
    if options.window and not options.samples:
        raise ConfigError(
            "window: γ* of each level, which is all that --no-samples finds, knows of none; leave one out"
        )
    steps = options.levels or config.steps
    within = as_steps("window", window)
    if isinstance(within, Window) and not within.steps(steps):
        raise ConfigError(f"window {options.window}: none of {steps} steps is in it; take a longer one")
    return replace(config, steps=steps, reflection_steps=window, autoguidance=0.0)


def clips_of(options: argparse.Namespace, config: RenderConfig) -> Sequence[Clip]:
    """Return the clips of a command line, once they and their captions are known to suit the model.

    Raises:
        ConfigError: a pair without a gap, no clips, or clips that the model cannot be asked about.
        VideoError: a clip that cannot be read.
    """
    strong, weak = (filled(config, branch) for branch in (config.strong, config.weak))
    if options.ideal and (options.clips or not config.model.pretrained.startswith(MINIATURE)):
        raise ConfigError(
            f"ideal {options.ideal}: only the miniatures' world makes so many clips of a caption; leave --ideal out"
        )
    if strong == weak:
        raise ConfigError("strong and weak are the same setting, so the pair has no gap; let them differ in a field")
    if options.clips is not None:
        clips = clips_of_folder(Path(options.clips), config)
    elif config.model.pretrained.startswith(MINIATURE):
        clips = clips_of_world(config, options.number_of_clips, config.seed)
    else:
        raise ConfigError("clips: are needed; name a folder of videos or images with --clips FOLDER")
    check_plan(replace(config, prompts=[clip.caption for clip in clips]))
    check_device(config.device)
    check_clips(clips, config)
    return clips


def _check_output(path: Path) -> None:
    """Refuse, before any work, an output that cannot be written, or a file that is no calibration."""
    check_name(path)
    if path.exists():
        try:
            is_calibration = {"log_snr", "strength", "pair"} <= set(parse_json(read_text(path)))
        except (TypeError, ValueError):
            is_calibration = False
        if not is_calibration:
            raise ConfigError(f"output {path}: exists and is no calibration; name another file with -o")
    elif not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"output {path}: there is no folder {path.parent} that can be written into")
