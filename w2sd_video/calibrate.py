"""Tell whether a pair helps: ``python -m w2sd_video.calibrate --config miniature-cogvideox -o strength.json``.

Real clips are noised to every noise level of the sampling, and strong and weak predict the noise through the pipeline's
own call. Where moving strong's prediction away from weak's brings it nearer to the noise, the pair helps; the strength
that brings it nearest goes into the output, which ``w2sd_video.render --strength FILE`` reads. The same is asked of
clips that the base setting samples, alone and reflected: at which strength are they most like the real ones?

Options that are not listed here are those of ``w2sd_video.render`` and change the configuration. With a folder, the
caption of ``a.mp4`` is what ``a.txt`` says; miniatures need no folder, for their world makes the clips.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from w2sd_video.calibration import balance, calibrate, tilt
from w2sd_video.clips import Clip, check_clips, check_encodable, clips_of_folder, clips_of_world, encode
from w2sd_video.describe_calibration import Findings, report
from w2sd_video.ideal import corrected_cosines, ideal_of
from w2sd_video.probe import Moments, probe
from w2sd_video.rendering.arguments import call_arguments
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import LoadError, check_device, load, quiet
from w2sd_video.rendering.sample import branch_of, sample_clips, threads_for
from w2sd_video.rendering.video import VideoError, write_whole
from w2sd_video.settings.command_line import DEFAULT_CONFIG, fail, parse
from w2sd_video.settings.messages import first_line
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.settings.panels import filled
from w2sd_video.settings.schema import ConfigError, RenderConfig
from w2sd_video.settings.sources import MINIATURE


def main(argv: list[str] | None = None) -> int:
    """Run a command line: print the table and the verdict, and write the strengths; exit codes as of a render."""
    options, rest = _options().parse_known_args(sys.argv[1:] if argv is None else argv)
    output = Path(options.output)
    try:
        config = parse(["--config", options.config, *rest], command="calibrate").config
        for name, most in (
            ("draws", 1000),
            ("levels", 1000),
            ("number_of_clips", 10**4),
            ("batch", 1024),
            ("ideal", 10**5),
        ):
            value = getattr(options, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} {value}: must be from 1 to {most}")
        config = replace(config, steps=options.levels or config.steps, reflection_steps=None, autoguidance=0.0)
        _check_output(output)
        clips = _clips(config, options)
        found = calibrate_pair(config, clips, options.draws, options.batch, options.samples, options.ideal)
    except (ConfigError, VideoError) as error:
        fail(str(error), command="calibrate")
    except LoadError as error:
        fail(str(error), code=1, command="calibrate")
    counted = {"clips": len(clips), "draws": options.draws, "seed": config.seed, "source": options.clips or "world"}
    pair = {role: asdict(filled(config, getattr(config, role))) for role in ("strong", "weak")}
    told = {"pair": pair, "model": asdict(config.model), "counts": counted, **found.plain()}
    write_whole(output, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    print(report(found, config, counted))
    print(f"\nwritten to {output}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m w2sd_video.calibrate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="configuration of the pair: its name or a file")
    parser.add_argument("--clips", metavar="FOLDER", help="real clips with captions; not needed for miniatures")
    parser.add_argument("--number-of-clips", type=int, default=128, help="clips that a miniature's world makes")
    parser.add_argument("--draws", type=int, default=3, help="of noise, for each clip and level")
    parser.add_argument("--levels", type=int, help="noise levels: those of as many sampling steps; --steps unless told")
    parser.add_argument("--batch", type=int, default=16, help="clips evaluated together")
    parser.add_argument("--no-samples", dest="samples", action="store_false", help="sample nothing, find no tilt")
    parser.add_argument(
        "--ideal", type=int, metavar="N", help="estimate the ideal prediction by N clips of each caption (miniatures)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", default="strength.json", help="where the strengths go")
    return parser


def _clips(config: RenderConfig, options: argparse.Namespace) -> list[Clip]:
    """Return the clips of a command line, once they and their captions are known to suit the model."""
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
            found = Findings(calibrate(real), cosines=corrected_cosines(real) if bank else [])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not samples:
            return found
        base = _sampled(pipe, replace(config, reflection_steps=0), clips, inputs)
        reflected = _sampled(pipe, replace(config, strength=1.0), clips, inputs)
        alone, moved = (compare_clips(pipe, config, each, draws, batch, inputs) for each in (base, reflected))
        overall, each_level = tilt(real, alone)
        strength, strengths, left = balance(real, alone, moved)
        return replace(found, tilt=overall, tilts=each_level, balanced=strength, strengths=strengths, tilt_at_one=left)


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
                probe(pipe, arguments, latents, strong=strong, weak=weak, seeds=seeds, draws=draws, ideal=ideal)
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(first_line(error)) from error
    return Moments.joined(parts)


def _check_output(path: Path) -> None:
    """Refuse, before any work, an output that cannot be written, or a file that is no calibration."""
    if path.exists():
        try:
            is_calibration = {"log_snr", "strength", "pair"} <= set(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            is_calibration = False
        if not is_calibration:
            raise ConfigError(f"output {path}: exists and is no calibration; name another file with -o")
    elif not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"output {path}: there is no folder {path.parent} that can be written into")


if __name__ == "__main__":
    sys.exit(main())
