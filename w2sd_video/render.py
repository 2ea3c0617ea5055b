"""Render clips from the command line: ``python -m w2sd_video.render "a red circle moving left" -o out.mp4``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2sd_video.config import BranchConfig, ConfigError, RenderConfig, fail, parse
from w2sd_video.plan import (
    MINIATURE,
    check_plan,
    describe,
    filled,
    locate,
    nfe_in_words,
    pair_in_words,
    panels,
    steps_in_words,
)
from w2sd_video.video import (
    VideoError,
    check_output,
    contact_sheet,
    enlarge,
    side_by_side,
    to_uint8,
    write_picture,
    write_video,
    write_whole,
)


class LoadError(Exception):
    """A model that cannot be loaded; the message is one line."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 if a model cannot be loaded, 2 for what makes no sense."""
    try:
        request = parse(sys.argv[1:] if argv is None else argv)
        if request.print_config:
            print(yaml.safe_dump(_plain(request.config), sort_keys=False), end="")
            return 0
        check_plan(request.config)
        for output in outputs(request.config):
            check_output(output)
        if request.dry_run:
            print(describe(request.config))
            return 0
        render(request.config)
    except (ConfigError, VideoError) as error:
        fail(str(error))
    except LoadError as error:
        fail(str(error), code=1)
    return 0


def outputs(config: RenderConfig) -> list[Path]:
    """Return the path of each prompt's clip: the output itself, or out-00.mp4, out-01.mp4, … for several prompts."""
    path, count = Path(config.output), len(config.prompts)
    if count == 1:
        return [path]
    digits = max(2, len(str(count - 1)))
    return [path.with_name(f"{path.stem}-{number:0{digits}d}{path.suffix}") for number in range(count)]


def render(config: RenderConfig) -> list[Path]:
    """Render all prompts of a checked configuration, one after the other, each with a sidecar ``<output>.json``.

    Returns:
        The files, or folders, that were written.

    Raises:
        ConfigError: a device or a setting that this machine or this pipeline cannot be given.
        LoadError: a model that is not there, cannot be reached, or has another shape.
    """
    _check_device(config.device)
    paths = outputs(config)
    with _threads(config.model.pretrained):
        with quiet():
            pipe = load(config)
        _check_call(pipe, config)
        for number, (prompt, path) in enumerate(zip(config.prompts, paths, strict=True)):
            one = dataclasses.replace(config, prompts=[prompt], seed=config.seed + number, output=str(path))
            _render_one(pipe, one, path)
    return paths


def load(config: RenderConfig) -> Any:
    """Load the pipeline that a configuration names, with its second denoisers and LoRA adapters.

    Raises:
        LoadError: what the backend refuses, in one line.
    """
    import torch

    model = config.model
    more: dict[str, Any] = {}
    if model.motion_adapter:
        more["motion_adapter"] = locate(model.motion_adapter)
    try:
        pipe = import_module(f"w2sd_video.backends.{model.family}").load(
            locate(model.pretrained),
            weights={name: locate(source) for name, source in model.weights.items()},
            dtype=getattr(torch, config.dtype),
            device=config.device,
            memory=model.memory,
            variant=model.variant,
            **more,
        )
        for name, source in model.lora.items():
            pipe.load_lora_weights(locate(source), adapter_name=name)
    except (OSError, ValueError) as error:
        raise LoadError(f"model {model.pretrained}: {_first_line(error)}") from error
    return pipe


def sample_clips(
    pipe: Any, config: RenderConfig, prompts: list[str], seeds: list[int]
) -> tuple[np.ndarray, dict[str, int]]:
    """Sample prompts in one batch, each from the noise of its own seed.

    Returns:
        Clips, uint8 (prompts, frames, height, width, 3), and network evaluations a clip by role.

    Raises:
        ConfigError: a scheduler, branch or setting that this pipeline cannot be reflected with; or frames that are not
            finite.
    """
    import torch

    from w2sd_video.plugin import reflection

    branches = {role: _branch(filled(config, getattr(config, role))) for role in ("base", "strong", "weak")}
    sizes = {"height": config.height, "width": config.width, "num_frames": config.frames}
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
            )
            run = stack.enter_context(reflected)
        except (TypeError, ValueError) as error:
            raise ConfigError(_first_line(error)) from error
        result = pipe(
            prompt=prompts,
            num_inference_steps=config.steps,
            guidance_scale=_call_guidance(config),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],  # the CPU's, on any device
            output_type="np",
            **{name: value for name, value in sizes.items() if value is not None},
            **config.call,
        )
    try:
        return to_uint8(result.frames), dict(run.nfe)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _render_one(pipe: Any, config: RenderConfig, path: Path) -> None:
    """Sample one prompt, write its file and its sidecar, and say so."""
    started = time.perf_counter()
    clips, nfe = {}, {}
    for label, one in panels(config).items():
        pipe.set_progress_bar_config(desc=f"{label}: " if one is not config else None, leave=False)
        (clips[label],), nfe[label] = sample_clips(pipe, one, one.prompts, [one.seed])
    seconds = round(time.perf_counter() - started, 2)
    _write(path, clips, config.fps)
    _write_sidecar(path, config, nfe, seconds, clips["W2SD"].shape)
    print(f"prompt   {config.prompts[0]} (seed {config.seed})")
    print(f"pair     {pair_in_words(config)}")
    print(f"steps    {steps_in_words(config)}")
    for label, counts in nfe.items():
        print(f"NFE      {label}: {nfe_in_words(counts)}")
    print(f"seconds  {seconds}")
    print(f"file     {path}", flush=True)


def _write(path: Path, clips: dict[str, np.ndarray], fps: float) -> None:
    if path.suffix.lower() == ".png":
        return write_picture(path, contact_sheet(list(clips.values()), list(clips)))
    if len(clips) > 1:
        return write_video(path, side_by_side([enlarge(clip) for clip in clips.values()], list(clips)), fps)
    (clip,) = clips.values()
    write_video(path, enlarge(clip) if path.suffix else clip, fps)  # a folder holds the frames as the model made them


def _write_sidecar(
    path: Path, config: RenderConfig, nfe: dict[str, dict[str, int]], seconds: float, shape: tuple[int, ...]
) -> None:
    said = {
        "config": _plain(config),
        "prompt": config.prompts[0],
        "seed": config.seed,
        "nfe": nfe,
        "seconds": seconds,
        "frames": list(shape),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("w2sd-video", "torch", "diffusers", "transformers")},
    }
    write_whole(Path(f"{path}.json"), json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def _branch(branch: BranchConfig) -> Any:
    from w2sd_video.branch import Branch

    return Branch(**vars(branch))


def _call_guidance(config: RenderConfig) -> float:
    """Return the scale for the pipeline's own argument: above 1 as soon as a branch needs the unconditional half."""
    used = [config.base] if config.reflection_steps == 0 else [config.base, config.strong, config.weak]
    scales = [filled(config, branch).guidance_scale or 0.0 for branch in used]
    if all(scale == 1 for scale in scales):
        return 1.0
    return scales[0] if scales[0] > 1 else max(2.0, *scales)


@contextmanager
def _threads(pretrained: str) -> Iterator[None]:
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


def _check_device(device: str) -> None:
    import torch

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device!r}: not available on this machine; use auto or cpu") from error


def _check_call(pipe: Any, config: RenderConfig) -> None:
    known = list(inspect.signature(type(pipe).__call__).parameters)
    for name in config.call:
        if name not in known:
            raise ConfigError(
                f"call.{name}: {type(pipe).__name__} takes no such argument; it takes {', '.join(known[1:])}"
            )


def _plain(config: RenderConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as YAML and JSON can hold it."""
    values = dataclasses.asdict(config)
    if isinstance(values["reflection_steps"], tuple):
        values["reflection_steps"] = list(values["reflection_steps"])
    return values


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
