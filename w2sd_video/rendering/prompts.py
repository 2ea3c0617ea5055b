"""All prompts of a configuration, rendered one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2sd_video.rendering.call_arguments import check_call, known_class
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import check_device, load, quiet
from w2sd_video.rendering.outputs import (
    about_sample,
    caption_of,
    outputs,
    record_of,
    titles_of,
    write_clips,
    write_sidecar,
)
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.settings.panels import panels
from w2sd_video.settings.schema import ConfigError, RenderConfig
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
        with quiet():
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


def _render_one(pipe: Any, config: RenderConfig, path: Path, inputs: Mapping[str, Any]) -> Path:
    """Sample one prompt, write its file and its sidecar, and say so."""
    started = time.perf_counter()
    clips, nfe = {}, {}
    for label, panel in panels(config).items():
        pipe.set_progress_bar_config(desc=f"{label}: " if panel is not config else None, leave=False)
        (clips[label],), nfe[label] = sample_clips(pipe, panel, panel.prompts, [panel.seed], inputs)
    seconds = round(time.perf_counter() - started, 2)
    if config.output is None and len(clips["W2SD"]) == 1:
        path = path.with_suffix(".png")
    config = dataclasses.replace(config, output=str(path))
    boxes = write_clips(path, clips, config.fps, titles_of(nfe), caption_of(config), about_sample(config, nfe))
    write_sidecar(path, record_of(config, nfe, seconds, clips["W2SD"].shape, boxes))
    print(f"prompt   {config.prompts[0]} (seed {config.seed})")
    print(f"pair     {pair_in_words(config)}")
    print(f"steps    {steps_in_words(config)}")
    for label, counts in nfe.items():
        print(f"NFE      {label}: {nfe_in_words(counts)}")
    print(f"seconds  {seconds}")
    print(f"file     {path}", flush=True)
    return path
