"""Render clips and images: ``python -m w2sd_video.render "a red circle moving left" -o out.mp4``."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from w2sd_video.outputs import outputs, plain, write_clips, write_sidecar
from w2sd_video.settings.command_line import fail, parse
from w2sd_video.settings.model_checks import check_plan, class_label
from w2sd_video.settings.panels import filled, panels
from w2sd_video.settings.schema import (
    FAMILY_OPTIONS,
    ROLES,
    BranchConfig,
    ConfigError,
    RenderConfig,
    stage_scales,
    used_roles,
)
from w2sd_video.settings.sources import MINIATURE, index_of, locate
from w2sd_video.settings.words import nfe_in_words, pair_in_words, plan_in_words, steps_in_words
from w2sd_video.video import VideoError, check_output, read_picture, read_video, to_uint8

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
"""Endings of the files that are read as videos; all others are pictures."""


class LoadError(Exception):
    """A model that cannot be loaded; the message is one line."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 if a model cannot be loaded, 2 for what makes no sense."""
    try:
        request = parse(sys.argv[1:] if argv is None else argv)
        if request.print_config:
            print(yaml.safe_dump(plain(request.config), sort_keys=False), end="")
            return 0
        check_plan(request.config)
        for output in outputs(request.config):
            check_output(output)
        if request.dry_run:
            print(plan_in_words(request.config))
            return 0
        render(request.config)
    except (ConfigError, VideoError) as error:
        fail(str(error))
    except LoadError as error:
        fail(str(error), code=1)
    return 0


def render(config: RenderConfig) -> list[Path]:
    """Render all prompts of a checked configuration, one after the other, each with a sidecar ``<output>.json``.

    Returns:
        The files, or folders, that were written.

    Raises:
        ConfigError: a device or a setting that this machine or this pipeline cannot be given.
        LoadError: a model that is not there, cannot be reached, or has another shape.
        VideoError: a picture or a video of the inputs that cannot be read.
    """
    check_device(config.device)
    for name, source in config.model.lora.items():
        if source is None:
            raise ConfigError(f"model.lora.{name}: is needed by this configuration; add --model.lora.{name} FILE")
    if known := _known_class(config):
        check_call(known, config)
    inputs = read_inputs(config)
    written = []
    with threads_for(config.model.pretrained):
        with quiet():
            pipe = load(config)
        check_call(type(pipe), config)
        for number, (prompt, path) in enumerate(zip(config.prompts, outputs(config), strict=True)):
            one = dataclasses.replace(config, prompts=[prompt], seed=config.seed + number)
            written.append(_render_one(pipe, one, path, inputs))
    return written


def read_inputs(config: RenderConfig) -> dict[str, Any]:
    """Read the pictures and videos that the pipeline is given: PIL images, and lists of them.

    Raises:
        ConfigError: one that is still to come, or that the ControlNet or the IP-Adapter lacks.
        VideoError: a file that is not there or cannot be decoded.
    """
    from PIL import Image

    given = config.inputs | config.call
    if config.model.controlnet and not {"image", "control_image", "conditioning_frames"} & set(given):
        raise ConfigError("inputs: a ControlNet needs its picture; add --inputs.image FILE (or --inputs.control_image)")
    if config.model.ip_adapter and not {"ip_adapter_image", "ip_adapter_image_embeds"} & set(given):
        raise ConfigError("inputs: an IP-Adapter needs a picture; add --inputs.ip_adapter_image FILE")
    read: dict[str, Any] = {}
    for name, path in config.inputs.items():
        if path is None:
            raise ConfigError(f"inputs.{name}: is needed by this configuration; add --inputs.{name} FILE")
        if Path(path).suffix.lower() in VIDEOS:
            read[name] = [Image.fromarray(frame) for frame in read_video(path)]
        else:
            read[name] = Image.fromarray(read_picture(path)[0])
    return read


def load(config: RenderConfig) -> Any:
    """Load the pipeline that a configuration names, with its second denoisers and LoRA adapters.

    Raises:
        LoadError: what the backend refuses, in one line.
    """
    import torch

    model = config.model
    given = {name: getattr(model, name) for name in FAMILY_OPTIONS if getattr(model, name)}
    as_given = ("ip_adapter", "scheduler", "size")
    try:
        options = {name: value if name in as_given else _located(value) for name, value in given.items()}
        pipe = import_module(f"w2sd_video.backends.{model.family}").load(
            locate(model.pretrained),
            weights=_located(model.weights),
            dtype=getattr(torch, config.dtype),
            device=config.device,
            memory=model.memory,
            variant=model.variant,
            **options,
        )
        for name, source in model.lora.items():
            pipe.load_lora_weights(locate(source or ""), adapter_name=name)
    except (OSError, ValueError) as error:
        raise LoadError(f"model {model.pretrained}: {first_line(error)}") from error
    return pipe


def sample_clips(
    pipe: Any,
    config: RenderConfig,
    prompts: list[str],
    seeds: list[int],
    inputs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[np.ndarray, dict[str, int]]:
    """Sample prompts in one batch, each from the noise of its own seed.

    Args:
        pipe: as `load` returns it.
        config: how to sample; its prompts and its seed are not looked at.
        prompts: texts, or numbers or names of classes.
        seeds: one a prompt.
        inputs: further arguments of the pipeline's call, as `read_inputs` returns them.

    Returns:
        Clips, uint8 (prompts, frames, height, width, 3), an image being a clip of one frame; and network evaluations a
        clip by role.

    Raises:
        ConfigError: a scheduler, branch or setting that this pipeline cannot be reflected with; or frames that are not
            finite.
    """
    from w2sd_video.plugin import reflection

    branches = {role: branch_of(filled(config, getattr(config, role))) for role in ROLES}
    window = config.reflection_steps
    with ExitStack() as stack:
        try:
            reflected = reflection(
                pipe,
                **branches,
                reflection_steps=tuple(window) if isinstance(window, (tuple, list)) else window,  # type: ignore[arg-type]
                strength=config.strength,
                rounds=config.rounds,
                inversion=config.inversion,
                iterations=config.iterations,
                autoguidance=config.autoguidance,
                span=config.span,
            )
            run = stack.enter_context(reflected)
        except (TypeError, ValueError) as error:
            raise ConfigError(first_line(error)) from error
        arguments = call_arguments(pipe, config, prompts, seeds)
        try:
            result = pipe(**arguments, **inputs)
            frames = to_uint8(result.images[:, None] if hasattr(result, "images") else result.frames)
        except (TypeError, ValueError) as error:  # how pipelines refuse what they are called with
            raise ConfigError(first_line(error)) from error
    return frames, dict(run.nfe)


def call_arguments(pipe: Any, config: RenderConfig, prompts: list[str], seeds: list[int]) -> dict[str, Any]:
    """Return what a pipeline is called with, by the names that its call has for it."""
    import torch

    known = inspect.signature(type(pipe).__call__).parameters
    if "class_labels" in known:
        names, settings = getattr(pipe, "labels", {}), pipe.transformer.config
        count = settings.get("num_classes") or settings.get("num_embeds_ada_norm")
        asked: dict[str, Any] = {"class_labels": [class_label(prompt, names, count) for prompt in prompts]}
    else:
        asked = {"prompt": prompts}
    sizes = {name: getattr(config, name) for name in ("height", "width")}
    sizes |= {"num_frames": config.frames if "num_frames" in known else None}
    return {
        **asked,
        "num_inference_steps": config.steps,
        "guidance_scale": _call_guidance(config),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],  # the CPU's, on any device
        "output_type": "np",
        **{name: value for name, value in sizes.items() if value is not None},
        **config.call,
    }


def _render_one(pipe: Any, config: RenderConfig, path: Path, inputs: Mapping[str, Any]) -> Path:
    """Sample one prompt, write its file and its sidecar, and say so."""
    started = time.perf_counter()
    clips, nfe = {}, {}
    for label, one in panels(config).items():
        pipe.set_progress_bar_config(desc=f"{label}: " if one is not config else None, leave=False)
        (clips[label],), nfe[label] = sample_clips(pipe, one, one.prompts, [one.seed], inputs)
    seconds = round(time.perf_counter() - started, 2)
    if config.output is None and len(clips["W2SD"]) == 1:
        path = path.with_suffix(".png")
    write_clips(path, clips, config.fps)
    write_sidecar(path, dataclasses.replace(config, output=str(path)), nfe, seconds, clips["W2SD"].shape)
    print(f"prompt   {config.prompts[0]} (seed {config.seed})")
    print(f"pair     {pair_in_words(config)}")
    print(f"steps    {steps_in_words(config)}")
    for label, counts in nfe.items():
        print(f"NFE      {label}: {nfe_in_words(counts)}")
    print(f"seconds  {seconds}")
    print(f"file     {path}", flush=True)
    return path


def branch_of(branch: BranchConfig) -> Any:
    """Return the branch that a part of a configuration describes."""
    from w2sd_video.branch import Branch

    return Branch(**vars(branch))


def _call_guidance(config: RenderConfig) -> float:
    """Return the scale for the pipeline's own argument: above 1 as soon as a branch needs the unconditional half."""
    used = [filled(config, getattr(config, role)) for role in used_roles(config)]
    scales = [scale for branch in used for scale in stage_scales(branch.guidance_scale)]
    if all(scale == 1 for scale in scales):
        return 1.0
    return scales[0] if scales[0] > 1 else max(2.0, *scales)


def _located(value: Any) -> Any:
    """Return the path that a source names, or each of several."""
    return {name: locate(source) for name, source in value.items()} if isinstance(value, dict) else locate(value)


@contextmanager
def threads_for(pretrained: str) -> Iterator[None]:
    """Sample miniatures in one thread: layers so small lose by being shared out, most of all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if pretrained.startswith(MINIATURE) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the notes and bars of the libraries, but for the bars of downloads."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    before = [(logging, logging.get_verbosity()) for logging in (diffusers_logging, transformers_logging)]
    shows_downloads = not are_progress_bars_disabled()
    for logging, _ in before:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logging, level in before:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device!r}: not available on this machine; use auto or cpu") from error


def _known_class(config: RenderConfig) -> Any:
    """Return the class of a pipeline of diffusers that is known before it is loaded; None for any other."""
    import diffusers

    name = index_of(config.model).get("_class_name", "")
    own = config.model.family == "pipeline" and not config.model.controlnet
    return getattr(diffusers, name, None) if own else None


def check_call(pipeline: Any, config: RenderConfig) -> None:
    """Refuse settings that the call of a pipeline's class has no argument for."""
    known, name = list(inspect.signature(pipeline.__call__).parameters), pipeline.__name__
    for section in ("call", "inputs"):
        for argument in getattr(config, section):
            if argument not in known:
                raise ConfigError(
                    f"{section}.{argument}: {name} takes no such argument; it takes {', '.join(known[1:])}"
                )
    for size in ("height", "width"):
        if getattr(config, size) is not None and size not in known:
            raise ConfigError(f"{size} {getattr(config, size)}: {name} makes one size only; leave it out")
    if (config.frames or 1) > 1 and "num_frames" not in known:
        raise ConfigError(f"frames {config.frames}: {name} takes no number of frames; leave it out")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
