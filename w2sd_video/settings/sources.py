"""Where a model's files are, and what its configs say before any weight is loaded."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2sd_video.backends import DENOISERS
from w2sd_video.settings.schema import ConfigError, ModelConfig

MINIATURE = "miniature:"
"""Start of the name of a model that comes with this package."""

_FILES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of weights: they tell a file on the hub, owner/name/file, from a path with a slip in it."""

_CLASS_CONDITIONAL = ("DiTPipeline", "DiTMoEPipeline")
"""Pipelines that take no prompt: of a pipeline that is not loaded, its name alone tells."""


def path_of(source: str) -> Path | None:
    """Return the folder or the file of weights that a source names; None for a hub id, or a file on the hub.

    Raises:
        ConfigError: a path where nothing is, or a name that is neither.
    """
    miniature = Path(__file__).parents[1] / "miniatures" / "weights" / source.removeprefix(MINIATURE)
    path = miniature if source.startswith(MINIATURE) else Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in _FILES):
        return path
    if source.startswith(MINIATURE):
        raise ConfigError(f"model {source!r}: no such miniature; there is no folder {path}")
    parts = source.split("/")
    on_hub = len(parts) == 2 or (len(parts) > 2 and Path(source).suffix in _FILES)
    if source.startswith(("/", ".", "~")) or not on_hub or not all(parts):
        raise ConfigError(f"model {source!r}: no such folder, and not a hub id like 'owner/name'")
    return None


def locate(source: str) -> str:
    """Return the path that a source names, of a file on the hub that of its download; a hub id stays as it is.

    Raises:
        OSError: the hub cannot be reached, or has no such file.
    """
    if path := path_of(source):
        return str(path)
    owner, name, *file = source.split("/")
    if not file:
        return source
    from huggingface_hub import hf_hub_download

    return hf_hub_download(f"{owner}/{name}", "/".join(file))


def read_json(source: str, file: str) -> dict[str, Any]:
    """Return a JSON file of a folder, or of a hub id in the local cache; nothing for what is not on this machine.

    Raises:
        ConfigError: a file that is no JSON.
    """
    path = path_of(source)
    if path:
        path = path / file
    elif source.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, file)
        path = Path(cached) if isinstance(cached, str) else None
    if not path or not path.is_file():
        return {}
    return _parsed(path, path.stat().st_mtime_ns)


@functools.lru_cache
def _parsed(path: Path, modified_ns: int) -> dict[str, Any]:
    """Parse a JSON file, once as long as it is not modified: a plan asks the same files many times."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model: {path} is not JSON, so the folder is damaged: {error}") from error


def component(source: str, name: str) -> dict[str, Any]:
    """Return the config of a pipeline's component; nothing for what is not on this machine."""
    return read_json(source, f"{name}/config.json")


def index_of(model: ModelConfig) -> dict[str, Any]:
    """Return the model_index.json of a pipeline: its class and components; nothing if it is not on this machine."""
    return read_json(model.pretrained, "model_index.json")


def denoiser_of(model: ModelConfig) -> dict[str, Any]:
    """Return the config of a pipeline's first denoiser; nothing if it is not on this machine."""
    return next((config for name in DENOISERS if (config := component(model.pretrained, name))), {})


def stages_of(model: ModelConfig) -> int | None:
    """Return how many denoisers a pipeline has; None if it is not on this machine."""
    index = index_of(model)
    return sum(bool(index.get(name) and index[name][0]) for name in DENOISERS) or None


def is_class_conditional(model: ModelConfig) -> bool:
    """Return whether a model is known to be asked for classes, and not for what a text says."""
    return model.family == "dit_moe" or index_of(model).get("_class_name") in _CLASS_CONDITIONAL


def class_names(id2label: Mapping[Any, str]) -> dict[str, int]:
    """Return the number of each class by each of its names, which commas separate."""
    return {name.strip(): int(number) for number, names in id2label.items() for name in names.split(",")}


def millions(path: Path) -> float | None:
    """Count the parameters in a safetensors file, or in all of a folder, by their headers, in millions."""
    count = 0
    for file in _weight_files(path):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count / 1e6 if count else None


def _weight_files(path: Path) -> list[Path]:
    """Return a component's files: not its half precision variant as well, where it has both."""
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    files = sorted(path.glob("*.safetensors"))
    return [
        file for file in files if ".fp16" not in file.name
    ] or files  # diffusers' name for it: model.fp16.safetensors
