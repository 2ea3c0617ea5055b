"""Where the networks of a metric come from, and what is said when they cannot be had."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2sd_video.metrics import MetricUnavailableError

Weights = dict[str, torch.Tensor]

_FAILURES = (LookupError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
"""What torch, safetensors, transformers and the hub raise of files that are missing, damaged or of something else."""


@contextmanager
def loading(name: str, source: str = "", extra: str = "metrics") -> Iterator[None]:
    """Say in one line what is missing where a metric cannot be loaded.

    Args:
        name: of the metric.
        source: what its weights are loaded from.
        extra: of this package, with what it needs.

    Raises:
        MetricUnavailableError: the body failed for want of a package, or of the right files.
    """
    try:
        yield
    except ImportError as error:
        missing = f"{name} needs the package {error.name!r}"
        raise MetricUnavailableError(f'{missing}: pip install "w2sd-video[{extra}]"') from error
    except _FAILURES as error:
        reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error)
        short_reason = textwrap.shorten(reason, 160, placeholder=" ...").rstrip(".")
        raise MetricUnavailableError(
            f"{name} cannot be loaded from {source!r}: {short_reason}; give a folder with its files as source"
        ) from error


def file_of(source: str, name: str) -> Path:
    """Return the path of a file of a folder or of a repository on the hub; a source may also be the file itself.

    Raises:
        OSError: no such file.
        ValueError: neither a path nor a hub id.
    """
    from huggingface_hub import hf_hub_download

    path = Path(source).expanduser()
    if path.is_dir():
        path = path / name
        if not path.is_file():
            raise FileNotFoundError(f"the folder has no {name}")
    return path if path.is_file() else Path(hf_hub_download(source, name))


def beside(source: str, marker: str, otherwise: str) -> str:
    """Return the folder that a source is, if the file `marker` lies in it, else the repository `otherwise`."""
    path = Path(source).expanduser()
    return str(path) if (path / marker).is_file() else otherwise


def read_checkpoint(path: Path) -> Weights:
    """Read tensors by name; no code in the file is run.

    Raises:
        OSError, RuntimeError, ValueError, pickle.UnpicklingError: a file that holds something else.
    """
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path.name} is no state dict")
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def fill(module: nn.Module, weights: Weights) -> nn.Module:
    """Put weights into a module, in evaluation mode; what it has no place for is left out.

    Raises:
        RuntimeError: of another shape.
        ValueError: weights that are missing.
    """
    if missing := module.load_state_dict(weights, strict=False).missing_keys:
        raise ValueError(f"{len(missing)} of its weights are missing, among them {missing[0]}")
    return module.eval().requires_grad_(False)


def linear_layers(weights: Weights, prefix: str) -> nn.Sequential:
    """Return the linear layers `{prefix}{number}`, in order of their numbers, with nothing between them."""
    layer_weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    numbers = sorted({int(name.split(".")[0]) for name in layer_weights})
    if not numbers:
        raise KeyError(prefix)
    layers = []
    for number in numbers:
        inside, outside = layer_weights[f"{number}.weight"].shape[::-1]
        layer = nn.Linear(inside, outside)
        layers.append(fill(layer, {part: layer_weights[f"{number}.{part}"] for part in ("weight", "bias")}))
    return nn.Sequential(*layers)


def count_of(weights: Weights, prefix: str) -> int:
    """Return how many numbered blocks there are under a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def heads_of(width: int, each: int) -> int:
    """Return the number of attention heads of a width.

    Raises:
        ValueError: a width that heads of `each` channels do not divide.
    """
    if width % each:
        raise ValueError(f"its width of {width} is no multiple of {each}, the width of a head")
    return width // each
