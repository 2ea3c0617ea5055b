"""What a sample depends on besides its prompt and its seed: settings, model files, versions.

Files are told apart by their content, so that a copy is the same and a model that was mended is what it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from w2sd_video.messages import ConfigError
from w2sd_video.settings.schema import ROLES, RenderConfig
from w2sd_video.settings.sources import path_of, read_json, sources_of

OF_A_SAMPLE = ("prompts", "seed", "output", "inputs")
"""Settings that each sample has of its own."""
_ROUNDING = ("device",)
"""Settings that change nothing but rounding."""
_NOTES = ("parameters", "memory")
"""Settings of a model that change no sample: for estimates, and for where its parts lie."""

HASHES = "hashes.json"
"""Name of the file in the hidden folder of a job that holds what is known of the model's files."""
Hashes = dict[str, list[Any]]
"""What is known of files by their paths: size in bytes, time of the last change in ns, and hash of the content."""


def identity_of(config: RenderConfig, hashes: Hashes | None = None) -> dict[str, Any]:
    """Return everything that a configuration's samples depend on but their prompts, seeds and inputs, as plain data.

    Args:
        config: a checked configuration.
        hashes: hashes that are known from before, used where a file's size and time are still the same; new ones are
            added.

    Raises:
        ConfigError: a file that cannot be read.
    """
    hashes = {} if hashes is None else hashes
    settings = {
        name: value for name, value in asdict(config).items() if name not in (*OF_A_SAMPLE, *_ROUNDING, "model")
    }
    for name in ("strength", "autoguidance"):
        settings[name] = _hashed(settings[name], hashes)
    for role in ROLES:
        windows = settings[role]["windows"] or {}
        windows |= {name: _hashed(window, hashes) for name, window in windows.items()}
    model = {name: value for name, value in asdict(config.model).items() if name not in _NOTES}
    files = {source: _files_of(source, hashes) for source in sorted(set(sources_of(config.model)))}
    plain = {"settings": settings, "model": model, "files": files, "versions": library_versions()}
    return json.loads(json.dumps(plain))


def _hashed(value: Any, hashes: Hashes) -> Any:
    """Return the hash of a file of strengths; of what is no name of one the value itself."""
    return file_hash(Path(value), hashes) if isinstance(value, str) else value


def library_versions() -> dict[str, str]:
    """Return the versions that samples depend on."""
    return {name: metadata.version(name) for name in ("w2sd-video", "torch", "diffusers", "transformers")}


def file_hash(path: Path, hashes: Hashes) -> str:
    """Return the SHA-256 of a file, in 32 digits; one that is known is taken if size and time are still the same.

    Raises:
        ConfigError: a file that cannot be read.
    """
    try:
        status = path.stat()
        known = hashes.get(str(path.absolute()))
        if known and known[:2] == [status.st_size, status.st_mtime_ns]:
            return str(known[2])
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    digest = sha256.hexdigest()[:32]
    hashes[str(path.absolute())] = [status.st_size, status.st_mtime_ns, digest]
    return digest


def _files_of(source: str, hashes: Hashes) -> dict[str, str] | str:
    """Return the hash of each file of a source, by its path in there; of a hub id the commit of it."""
    path = path_of(source)
    if path is None:
        return _revision_of(source)
    if path.is_file():
        return file_hash(path, hashes)
    return {str(file.relative_to(path)): file_hash(file, hashes) for file in _files_in(path)}


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a model's folder; of a pipeline's those of its components, and not what else lies there."""
    index = folder / "model_index.json"
    if not index.is_file():
        return _visible(folder)
    names = [name for name in read_json(str(folder), index.name) if not name.startswith("_")]
    return [index, *(file for name in sorted(names) for file in _visible(folder / name))]


def _visible(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _revision_of(source: str) -> str:
    """Return the commit of a hub id that is in the cache, or else what the hub says; "unknown" without either."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    repository = "/".join(source.split("/")[:2])
    ref = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / "main"
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    try:
        return HfApi().model_info(repository, timeout=10).sha or "unknown"
    except (OSError, HTTPError, OfflineModeIsEnabled):
        return "unknown"
