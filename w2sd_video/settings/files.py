"""Configurations that are read: packaged ones, YAML, and the sidecars of renders."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from w2sd_video.messages import ConfigError, reason_of, shortened, suggest
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.yaml_text import parse_yaml
from w2sd_video.text_files import parse_json, read_text

_OF_MINIATURES = "miniature-"
"""Begins the names of their configurations."""


def packaged_configs() -> list[str]:
    """Return the names of the configurations that come with the package."""
    files = resources.files("w2sd_video.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_config(name: str) -> dict[str, Any]:
    """Read a configuration by the name of a packaged one, or from a YAML file, or from a render's sidecar JSON.

    Raises:
        ConfigError: no such configuration, not YAML or JSON, or a key that does not exist.
    """
    if name in packaged_configs():
        text = resources.files("w2sd_video.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        text = _text_of_config(name)
    try:
        data = parse_json(text) if name.endswith(".json") else parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"config {name}: not valid YAML or JSON: {error}") from error
    if name.endswith(".json") and isinstance(data, dict) and isinstance(data.get("config"), dict):
        data = data["config"]
    _check_keys(data if data is not None else {}, RenderConfig, f"config {name}")
    return data or {}


def _text_of_config(name: str) -> str:
    try:
        if Path(name).exists():
            return read_text(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"config {shortened(name)}: cannot be read as text: {reason_of(error)}") from error
    known = packaged_configs()
    suggestion = suggest(name, known, f"the packaged ones are {_listed(known)}")
    raise ConfigError(f"unknown config {shortened(name)!r}: no such file; {suggestion}")


def _listed(names: Sequence[str]) -> str:
    """Return names of configurations as a shell would take them: what all miniatures begin with stands once."""
    of_miniatures = [name.removeprefix(_OF_MINIATURES) for name in names if name.startswith(_OF_MINIATURES)]
    others = [name for name in names if not name.startswith(_OF_MINIATURES)]
    return ", ".join([*others, f"{_OF_MINIATURES}{{{','.join(of_miniatures)}}}"])


def _check_keys(data: Any, kind: type, where: str) -> None:
    """Refuse keys that `kind`, a dataclass, does not have, and nulls that have no meaning, at every depth."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: must be a mapping of keys to values, not {data!r}")
    hints = typing.get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}; {suggest(str(key), hints)}")
        if value is None and type(None) not in typing.get_args(hints[key]) and key != "prompts":
            raise ConfigError(f"{where}: {key}: must not be null; leave it out for what it is by itself")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(value, typing.cast(type, hints[key]), f"{where}: {key}")
