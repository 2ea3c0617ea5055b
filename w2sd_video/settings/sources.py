"""Where a model's files are, and what its configs say before any weight is loaded."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2sd_video.backends import DENOISERS
from w2sd_video.messages import ConfigError, first_line, shortened, suggest
from w2sd_video.miniatures import CALL, folders, not_trained
from w2sd_video.settings.schema import ModelConfig
from w2sd_video.text_files import parse_json, read_text

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
    if source.startswith(MINIATURE):
        return _miniature(source)
    try:
        path = Path(source).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix in _FILES):
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, the home of nobody, a null character
        raise ConfigError(f"model {shortened(source)!r}: {first_line(error)}") from error
    parts = source.split("/")
    on_hub = len(parts) == 2 or (len(parts) > 2 and path.suffix in _FILES)
    if source.startswith(("/", ".", "~")) or not on_hub or not all(parts):
        raise ConfigError(f"model {shortened(source)!r}: no such folder, and not a hub id like 'owner/name'")
    _check_hub_id(source, parts)
    return None


def _miniature(source: str) -> Path:
    name, *parts = source.removeprefix(MINIATURE).split("/")
    is_name = all(part.isidentifier() for part in (name, *parts))
    for weights in folders() if is_name else ():
        if (weights / name / "model_index.json").is_file() and (path := weights.joinpath(name, *parts)).is_dir():
            return path
    known = {file.parent.name for weights in folders() for file in weights.glob("*/model_index.json")}
    if name in CALL and name not in known:
        raise ConfigError(f"model {shortened(source)!r}: {not_trained(name)}")
    raise ConfigError(f"model {shortened(source)!r}: no such miniature; {suggest(name, sorted(known))}")


def world_of(model: ModelConfig) -> str:
    """Return the world that a miniature shows: "sprites", "scenes" or "fashion"; nothing of another model."""
    if not model.pretrained.startswith(MINIATURE):
        return ""
    name = model.pretrained.removeprefix(MINIATURE)
    return next((world for world in ("scenes", "fashion") if name.startswith(world)), "sprites")


def _check_hub_id(source: str, parts: list[str]) -> None:
    """Refuse what the hub has no name for, before it is asked."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id("/".join(parts[:2]))
    except HFValidationError as error:
        raise ConfigError(
            f"model {shortened(source)!r}: no such folder, and no id on the hub: owner/name of letters, digits, '-', "
            "'_' and '.', without '--' and '..', of at most 96"
        ) from error
    if ".." in parts or not "".join(parts).isprintable():
        raise ConfigError(f"model {shortened(source)!r}: no such file, and no name of one on the hub")


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
        ConfigError: a file that is no JSON, or no mapping.
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
        parsed = parse_json(read_text(path), finite=False)  # schedulers' configs have -Infinity
    except ValueError as error:
        raise ConfigError(f"model: {path} is not JSON, so the folder is damaged: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"model: {path} holds no mapping of keys to values, so the folder is damaged")
    return parsed


def component(source: str, name: str) -> dict[str, Any]:
    """Return the config of a pipeline's component; nothing for what is not on this machine."""
    return read_json(source, f"{name}/config.json")


def index_of(model: ModelConfig) -> dict[str, Any]:
    """Return the model_index.json of a pipeline: its class and components; nothing if it is not on this machine.

    Raises:
        ConfigError: one that names no class, or a component that is no library and class.
    """
    index = read_json(model.pretrained, "model_index.json")
    where = f"model: the model_index.json of {model.pretrained} is damaged:"
    if index and not isinstance(index.get("_class_name"), str):
        raise ConfigError(f"{where} it names no pipeline (_class_name)")
    for name in (*DENOISERS, "scheduler"):
        if name in index and not _is_library_and_class(index[name]):
            raise ConfigError(f"{where} {name} must be a library and a class, not {index[name]!r}")
    return index


def _is_library_and_class(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) <= 2 and all(part is None or isinstance(part, str) for part in entry)


def denoiser_of(model: ModelConfig) -> dict[str, Any]:
    """Return the config of a pipeline's first denoiser; nothing if it is not on this machine."""
    return next((config for name in DENOISERS if (config := component(model.pretrained, name))), {})


def scheduler_of(model: ModelConfig) -> str:
    """Return the class of a pipeline's scheduler; nothing if the pipeline is not on this machine."""
    return model.scheduler or (index_of(model).get("scheduler") or ["", ""])[1] or ""


def is_told_guidance(model: ModelConfig) -> bool:
    """Return whether guidance is distilled into the network, which is told the scale and evaluated once."""
    return bool(denoiser_of(model).get("guidance_embeds"))


def sources_of(model: ModelConfig) -> Iterator[str]:
    """Yield all that a model is loaded from: hub ids, folders and files."""
    named = (model.pretrained, model.motion_adapter, model.controlnet, model.ip_adapter, model.vae)
    for source in (*named, *model.weights.values(), *model.lora.values(), *model.components.values()):
        if source:
            yield source


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
    """Count the parameters in a safetensors file, or in all of a folder, by their headers, in millions.

    Raises:
        ConfigError: a file that is damaged, or shorter than its header says.
    """
    count = 0
    for file in _weight_files(path):
        size = file.stat().st_size
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length) if length < size else b"")
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            count += sum(math.prod(tensor["shape"]) for tensor in tensors)
            is_whole = (
                8 + length + max((tensor.get("data_offsets", (0, 0))[1] for tensor in tensors), default=0) <= size
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"model: {file} is damaged, no .safetensors file; get it again") from error
        if not is_whole:
            raise ConfigError(f"model: {file} is truncated; get it again")
    return count / 1e6 if count else None


def _weight_files(path: Path) -> list[Path]:
    """Return a component's files: not its half precision variant as well, where it has both."""
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    files = sorted(path.glob("*.safetensors"))
    return [
        file for file in files if ".fp16" not in file.name
    ] or files  # diffusers' name for it: model.fp16.safetensors
