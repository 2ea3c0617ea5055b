"""What rendering would cost, told without it."""

from __future__ import annotations

from dataclasses import replace

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.job import RenderJob, parts_of
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.rendering.step_cost import cost_lines, measured_cost
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.settings.panels import panels
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import plan_in_words


def clips_cost_in_words(config: RenderConfig) -> str:
    """Say what would be loaded, how often the networks are evaluated, and what the prompts of a configuration take.

    The model is loaded to measure that, if all of it is on this machine.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    lines = plan_in_words(config).splitlines()
    to_come = [f"inputs.{name}" for name, path in config.inputs.items() if path is None]
    if to_come:
        return "\n".join([*lines, f"seconds  unknown: {', '.join(to_come)} is to come"])
    try:
        check_before_loading(config)
    except ConfigError as error:  # a plan can be made for another machine, and before all files are there
        return "\n".join([*lines, f"seconds  unknown: {error}"])
    shown = panels(config).values()
    nfe = sum(map(nfe_of, shown)) * len(config.prompts)
    cost = measured_cost(replace(config, compare=False))
    return "\n".join([*lines, *cost_lines(cost, len(shown) * len(config.prompts), nfe, 1)])


def cost_in_words(job: RenderJob) -> str:
    """Say what would be loaded, how many samples and evaluations are missing, and what they would take.

    The model is loaded to measure that, if it is on this machine and samples are missing.

    Raises:
        ConfigError: a folder of other settings, an input that is not there, or what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    parts = parts_of(job)
    nfe = sum(nfe_of(panel) for panel in panels(job.config).values())
    missing = parts.total - parts.kept
    lines = [line for line in plan_in_words(job.config).splitlines() if not line.startswith("clip ")]
    shard = f" of shard {job.shard.index}/{job.shard.count}" if job.shard.count > 1 else ""
    lines += [
        f"samples  {parts.total}{shard} in {job.folder}, {parts.kept} there already; {missing} to make, "
        f"{job.batch} in a call",
        f"NFE      in all: at most {missing * nfe}",
    ]
    if not missing:
        return "\n".join(lines)
    cost = measured_cost(parts.groups[0][0].config, len(parts.groups[0]))
    return "\n".join([*lines, *cost_lines(cost, missing, missing * nfe, job.pool.workers or 1)])
