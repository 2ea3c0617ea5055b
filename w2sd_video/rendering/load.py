"""Loading the pipeline that a configuration names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from w2sd_video.messages import ConfigError, first_line
from w2sd_video.settings.schema import FAMILY_OPTIONS, RenderConfig
from w2sd_video.settings.sources import locate


class LoadError(Exception):
    """A model that cannot be loaded; the message is one line."""


def load(config: RenderConfig) -> Any:
    """Load the pipeline that a configuration names, with its second denoisers and LoRA adapters, without a word.

    Raises:
        LoadError: what the backend refuses, or whatever a library raises of a file that is damaged or of something
            else, in one line.
    """
    import torch

    model = config.model
    try:
        with quiet():
            pipe = import_module(f"w2sd_video.backends.{model.family}").load(
                locate(model.pretrained), dtype=getattr(torch, config.dtype), **load_options(config)
            )
            for name, source in model.lora.items():
                pipe.load_lora_weights(locate(source or ""), adapter_name=name)
    except ConfigError:
        raise
    except Exception as error:  # each library has errors of its own for a file that is not what its name says
        raise LoadError(f"model {model.pretrained}: {first_line(error)}") from error
    return pipe


def load_options(config: RenderConfig) -> dict[str, Any]:
    """Return what a backend's `load` is called with, beside the pipeline and its dtype.

    Raises:
        ConfigError: a source that is none.
        OSError: the hub cannot be reached, or has no such file.
    """
    model = config.model
    settings = {name: getattr(model, name) for name in FAMILY_OPTIONS if getattr(model, name)}
    # Not looked for on this machine: a class, a size, and a file whose folder on the hub the backend needs.
    not_located = ("ip_adapter", "scheduler", "size")
    return {
        "weights": _located(model.weights),
        "device": config.device,
        "memory": model.memory,
        "attention": model.attention,
        "variant": model.variant,
        **{name: value if name in not_located else _located(value) for name, value in settings.items()},
    }


def _located(value: Any) -> Any:
    """Return the path that a source names, or each of several."""
    return {name: locate(source) for name, source in value.items()} if isinstance(value, dict) else locate(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the notes and bars of the libraries, but for the bars of downloads."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosities = [(logging, logging.get_verbosity()) for logging in (diffusers_logging, transformers_logging)]
    shows_downloads = not are_progress_bars_disabled()
    for logging, _ in verbosities:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logging, level in verbosities:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def check_device(device: str) -> Any:
    """Return the `torch.device` that a name means, and refuse one that this machine does not have.

    Raises:
        ConfigError: no such device here.
    """
    from w2sd_video.backends import loading

    try:
        return loading.check_device(device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
