"""The options that make a render a job: many samples in a folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from w2sd_video.jobs.pool_options import add_pool_options, number_of, pool_asked_for, shard_of
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.job import RenderJob
from w2sd_video.rendering.job_samples import FIELDS, NAMES, checked_template, samples_of
from w2sd_video.rendering.video import SUFFIXES
from w2sd_video.settings.command_line import CommandLine

MOST_SAMPLES, MOST_BATCH = 10_000, 1024
"""Of a prompt, so that no two of its samples have one seed; and of a call, so that a slip is refused."""
_OPTIONS = ("samples", "batch", "names", "shard", "workers", "ray", "gpus_per_worker", "cpus_per_worker")


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a render a job."""
    add = parser.add_argument
    fields = ", ".join(f"{{{name}}}" for name in FIELDS)
    add("--samples", metavar="N", help="samples a prompt, into the folder --output; 1 unless given")
    add("--batch", metavar="N", help="samples in one call of the pipeline, into the folder --output; 1 unless given")
    add("--names", metavar="TEMPLATE", help=f"names of the files in the folder, of {fields}; {NAMES} unless given")
    add_pool_options(parser)


def job_of(request: CommandLine) -> RenderJob | None:
    """Return the job that a command line asks for; None for a render of one file after the other.

    A job is asked for by any of its options, and by several prompts, or a file of them, for a folder (``out/``).

    Raises:
        ConfigError: an option out of range, no folder, or a line of prompts that only a job can follow.
    """
    options, config = request.options, request.config
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    is_folder = (config.output or "").endswith("/")
    if not given and not (is_folder and (options.prompts or len(request.lines) > 1)):
        for line in request.lines:
            if not line.is_plain or line.name:
                raise ConfigError(f"{line.where}: says more than a prompt, which needs a folder: --output FOLDER/")
        return None
    if not config.output or (Path(config.output).suffix.lower() in SUFFIXES and Path(config.output).suffix):
        option = f"--{next(iter(given), 'prompts')}".replace("_", "-")
        raise ConfigError(f"{option}: needs a folder for the samples: --output FOLDER/, not {config.output}")
    samples = int(number_of("samples", options.samples, 1, MOST_SAMPLES, whole=True) or 1)
    names = checked_template(given.get("names", NAMES), config)
    return RenderJob(
        config=replace(config, prompts=config.prompts[:1], output=None),
        samples=samples_of(config, request.lines, samples, names),
        folder=Path(config.output),
        names=names,
        batch=int(number_of("batch", options.batch, 1, MOST_BATCH, whole=True) or 1),
        pool=pool_asked_for(options, config.device),
        shard=shard_of(given.get("shard")),
    )
