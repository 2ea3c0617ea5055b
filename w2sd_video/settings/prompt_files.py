"""Files of prompts: a prompt a line (.txt), objects (.jsonl), a table (.csv), or VBench's list of objects (.json)."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2sd_video.messages import ConfigError, shortened
from w2sd_video.text_files import parse_json, read_text

KEYS = ("prompt", "seed", "negative_prompt", "name", "inputs")
"""What an object or a row can say of a sample; inputs is a mapping, or a column or key ``inputs.image`` for each."""
_PROMPT_KEYS = ("prompt", "prompt_en", "text")
"""Names of the prompt: ours, VBench's, and that of many lists of captions."""


@dataclass(frozen=True)
class PromptLine:
    """A prompt, and what its file says of it; None where it says nothing.

    Attributes:
        prompt: what to show.
        seed: of its first sample.
        negative_prompt: what not to show.
        name: for the names of its files.
        inputs: files of pictures and videos, by the arguments of the pipeline's call; as the file names them, from the
            folder that it is in.
        about: what else the file says (VBench's dimension), kept beside the samples.
        where: the file and the line, for errors.
    """

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    name: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but a prompt that a sample depends on."""
        return self.seed is None and self.negative_prompt is None and not self.inputs


def read_prompt_file(path: str) -> list[PromptLine]:
    """Return what a file of prompts holds, read as its ending says; any other ending is a text file.

    In a text file empty lines and those that begin with # are left out.

    Raises:
        ConfigError: a file that cannot be read, holds no prompt, or says something that has no meaning.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError(f"prompts {shortened(path)}: cannot be read: {error}") from error
    readers = {".jsonl": _of_json_lines, ".csv": _of_table, ".json": _of_json}
    reader = readers.get(Path(path).suffix.lower(), _of_text)
    folder = Path(path).parent
    lines = [_line(data, f"prompts {path}: {where}", folder) for where, data in reader(text, f"prompts {path}")]
    if not lines:
        raise ConfigError(f"prompts {path}: holds no prompt; write one a line")
    return lines


def _of_text(text: str, file: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"line {number}", line.strip()


def _of_json_lines(text: str, file: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json(line, f"{file}: line {number}")


def _of_json(text: str, file: str) -> Iterator[tuple[str, Any]]:
    data = _json(text, file)
    if not isinstance(data, list):
        raise ConfigError(f"{file}: must be a list of prompts, or of objects with a prompt each")
    for number, item in enumerate(data, 1):
        yield f"item {number}", item


def _of_table(text: str, file: str) -> Iterator[tuple[str, Any]]:
    rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        if rows.fieldnames is None or not set(_PROMPT_KEYS) & set(rows.fieldnames):
            raise ConfigError(f"{file}: its first line must name the columns, and one of them must be prompt")
        for row in rows:
            if None in row or None in row.values():
                raise ConfigError(f"{file}: line {rows.line_num}: has more or fewer columns than the first")
            yield f"line {rows.line_num}", {name: value for name, value in row.items() if value.strip()}
    except csv.Error as error:
        raise ConfigError(f"{file}: line {rows.line_num}: not CSV: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error


def _line(data: Any, where: str, folder: Path) -> PromptLine:
    """Check what a line, an object or a row says."""
    if isinstance(data, str):
        data = {"prompt": data}
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: must be a prompt or an object with one, not {data!r}")
    data = dict(data)
    prompts = [data.pop(key) for key in _PROMPT_KEYS if data.get(key) is not None]
    prompts = [str(prompt) if type(prompt) is int else prompt for prompt in prompts]  # the number of a class
    if len(prompts) != 1 or not isinstance(prompts[0], str) or not prompts[0].strip():
        raise ConfigError(f"{where}: must have one prompt, a text under {', '.join(_PROMPT_KEYS)}; has {prompts or ''}")
    texts = {name: _text(data.pop(name, None), f"{where}: {name}") for name in ("negative_prompt", "name")}
    seed = _seed(data.pop("seed", None), where)
    inputs = {name: str(folder / file) for name, file in _inputs(data, where).items()}
    for key in data:
        if near := difflib.get_close_matches(str(key), [*KEYS, "inputs.image"], n=1, cutoff=0.75):
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
    return PromptLine(prompts[0].strip(), seed, **texts, inputs=inputs, about=data, where=where)


def _text(value: Any, where: str) -> str | None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise ConfigError(f"{where} {value!r}: must be a text that is not empty")
    return value


def _seed(value: Any, where: str) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,99}\s*", value):
        value = int(value)
    if value is not None and not (type(value) is int and 0 <= value <= 2**62):
        raise ConfigError(f"{where}: seed {shortened(repr(value))}: must be a whole number from 0 to 2**62")
    return value


def _inputs(data: dict[str, Any], where: str) -> dict[str, str]:
    """Take the inputs out of an object: a mapping, or a key for each."""
    inputs = data.pop("inputs", None) or {}
    if not isinstance(inputs, dict):
        raise ConfigError(f"{where}: inputs {inputs!r}: must be a mapping of arguments to files")
    inputs = dict(inputs)
    for key in [key for key in data if str(key).startswith("inputs.")]:
        inputs[key.removeprefix("inputs.")] = data.pop(key)
    for name, file in inputs.items():
        if not (isinstance(file, str) and file.strip()):
            raise ConfigError(f"{where}: inputs.{name} {file!r}: must be the name of a file")
    return inputs
