"""All prompts of a configuration, rendered one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.call_arguments import check_call, known_class
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import check_device, load
from w2sd_video.rendering.outputs import outputs, write_sample, write_sidecar
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.settings.panels import panels
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import nfe_in_words, pair_in_words, steps_in_words


def render(config: RenderConfig) -> list[Path]:
    """Render all prompts of a checked configuration, one after the other, each with a sidecar ``<output>.json``.

    Returns:
        The files, or folders, that were written.

    Raises:
        ConfigError: a device or a setting that this machine or this pipeline cannot be given.
        LoadError: a model that is not there, cannot be reached, or has another shape.
        VideoError: a picture or a video of the inputs that cannot be read.
    """
    check_before_loading(config)
    inputs = read_inputs(config)
    written = []
    with threads_for(config.model.pretrained):
        pipe = load(config)
        check_call(type(pipe), config)
        for number, (prompt, path) in enumerate(zip(config.prompts, outputs(config), strict=True)):
            prompt_config = dataclasses.replace(config, prompts=[prompt], seed=config.seed + number)
            written.append(_render_one(pipe, prompt_config, path, inputs))
    return written


def check_before_loading(config: RenderConfig) -> None:
    """Check what can be known of a configuration and this machine before a model is loaded.

    Raises:
        ConfigError: a device, an adapter or an argument of the call that there is not.
    """
    check_device(config.device)
    for name, source in config.model.lora.items():
        if source is None:
            raise ConfigError(f"model.lora.{name}: is needed by this configuration; add --model.lora.{name} FILE")
    if pipeline_class := known_class(config):
        check_call(pipeline_class, config)


def sample_panels(
    pipe: Any,
    config: RenderConfig,
    inputs: Mapping[str, Any],
    say: Callable[[float, str], object] = lambda share, text: None,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]], float]:
    """Sample one prompt as every panel that a configuration shows.

    Args:
        pipe: as `load` returns it.
        config: of one prompt.
        inputs: as `read_inputs` returns them.
        say: told the share that is done, and what comes next.

    Returns:
        Clips (frames, height, width, 3) and network evaluations by label, and the seconds that it took.
    """
    started, shown = time.perf_counter(), panels(config)
    clips: dict[str, np.ndarray] = {}
    nfe: dict[str, dict[str, int]] = {}
    for number, (label, panel) in enumerate(shown.items()):
        say(number / len(shown), f"sampling {label}")
        pipe.set_progress_bar_config(desc=f"{label}: " if panel is not config else None, leave=False)
        (clips[label],), nfe[label] = sample_clips(pipe, panel, panel.prompts, [panel.seed], inputs)
    return clips, nfe, round(time.perf_counter() - started, 2)


def _render_one(pipe: Any, config: RenderConfig, path: Path, inputs: Mapping[str, Any]) -> Path:
    """Sample one prompt, write its file and its sidecar, and say so."""
    clips, nfe, seconds = sample_panels(pipe, config, inputs)
    if config.output is None and len(next(iter(clips.values()))) == 1:
        path = path.with_suffix(".png")
    config = dataclasses.replace(config, output=str(path))
    write_sidecar(path, write_sample(path, config, clips, nfe, seconds))
    print(f"prompt   {config.prompts[0]} (seed {config.seed})")
    print(f"pair     {pair_in_words(config)}")
    print(f"steps    {steps_in_words(config)}")
    for label, counts in nfe.items():
        print(f"NFE      {label}: {nfe_in_words(counts)}")
    print(f"seconds  {seconds}")
    print(f"file     {path}", flush=True)
    return path
