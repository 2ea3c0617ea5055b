"""The folder of a job: what it was made with, who works in it, what is there, and what failed.

A file of a job is proved by its record, ``<file>.json``, which is written last. What is not finished has a hidden name
with ``.part`` in it; all else that is hidden lies in ``.job``. ``job.json`` holds the identity of the job, and
``failed/`` a file for each task that failed, until it succeeds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from w2sd_video.messages import ConfigError
from w2sd_video.writing import PART, write_whole

HIDDEN, IDENTITY, FAILED = ".job", "job.json", "failed"
"""Names in a job's folder that are no files of the job."""


@dataclass(frozen=True)
class JobFolder:
    """A folder that several runs fill with the files of one job.

    Attributes:
        path: of the folder; it need not be there yet.
        identity: everything that the files depend on but their own task: settings, model files, versions. Plain data,
            nested by names.
    """

    path: Path
    identity: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """A short name for the identity, which goes into each record."""
        return key_of(self.identity)

    @contextmanager
    def opened(
        self, shard: int = 0, shards: int = 1, keys: Callable[[], Iterable[str | None]] | None = None
    ) -> Iterator[None]:
        """Keep the folder for this run, or for one of several that share the job.

        Args:
            shard: number of this one among them, counted from 0.
            shards: how many there are; only shards of one number may work at a time.
            keys: returns the keys of the identities that what is there was made with; None: those in its records.

        Raises:
            ConfigError: a folder of something else, of a job that was made with other settings, or in use.
        """
        with ExitStack() as stack:
            try:
                self.check_foreign()
                (self.path / HIDDEN).mkdir(parents=True, exist_ok=True)
                self._lock(stack, shard, shards)
                with self.writing(IDENTITY) as file:
                    self.check(keys)
                    if read_record(file) != self._plain:
                        _write_json(file, self._plain)
            except OSError as error:
                raise ConfigError(f"folder {self.path}: cannot be written: {error.strerror or error}") from error
            yield

    def check(self, keys: Callable[[], Iterable[str | None]] | None = None) -> None:
        """Compare the identity with that of what is there; `keys` as of `opened`.

        Raises:
            ConfigError: a folder of something else, or of a job that was made with other settings.
        """
        self.check_foreign()
        stored = read_record(self.path / IDENTITY)
        if stored != self._plain and any(key != self.key for key in (keys or self._keys)()):
            changes = ", ".join(differences(stored, self._plain)) if stored else f"{IDENTITY} that says how is damaged"
            raise ConfigError(
                f"folder {self.path}: its files were made otherwise ({changes}); name another folder, or go back"
            )

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished file; None if the file or its record is not there, or not whole.

        Raises:
            ConfigError: a file that another job, or none, has made.
        """
        record = read_record(Path(f"{self.path / name}.json"))
        if record is None:
            return None
        if record.get("job") != self.key:
            raise ConfigError(f"{self.path / name}: was made otherwise than the files beside it; move it away")
        return record if record.get("bytes") == _size(self.path / name) else None

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Write the record of a file that is there, and forget that it failed before."""
        whole = {**record, "job": self.key, "bytes": _size(self.path / name)}
        _write_json(Path(f"{self.path / name}.json"), whole)
        self._forget_failure(name)

    def write_note(self, name: str, data: Mapping[str, Any]) -> None:
        """Write plain data into the hidden folder, for the next start; `note` reads it."""
        with self.writing(f"{HIDDEN}/{name}") as file:
            _write_json(file, data)

    def note(self, name: str) -> dict[str, Any]:
        """Return what `write_note` has written; nothing if it is not there, or not whole."""
        return read_record(self.path / HIDDEN / name) or {}

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path of a file of the whole job, which no other shard writes meanwhile; unfinished ones are removed.

        Raises:
            ConfigError: another run that has stopped within such a block.
        """
        file = self.path / name
        try:
            with FileLock(self.path / HIDDEN / "moment.lock", timeout=60):
                for item in file.parent.glob(f".{file.name}{PART}*"):
                    item.unlink()
                yield file
        except Timeout as error:
            raise ConfigError(f"folder {self.path}: another run in it does not go on; end it") from error

    def write_failure(self, name: str, reason: str, about: Mapping[str, Any]) -> None:
        """Note why there is no file of a name; it is tried again at the next start."""
        (self.path / FAILED).mkdir(exist_ok=True)
        _write_json(self.path / FAILED / f"{name}.json", {"file": name, "reason": reason, **about})

    def failures(self) -> dict[str, str]:
        """Return why files failed, by their names."""
        records = (read_record(file) for file in sorted((self.path / FAILED).glob("*.json")))
        return {record["file"]: record["reason"] for record in records if record}

    def remove_leftovers(self, names: Collection[str]) -> None:
        """Remove what a run that was killed had not finished of some files, or of their records."""
        names = set(names)
        for folder in (self.path, self.path / FAILED):
            for item in folder.iterdir() if folder.is_dir() else ():
                owner = item.name[1:].rpartition(PART)[0]
                if item.name.startswith(".") and (owner in names or owner.removesuffix(".json") in names):
                    shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)

    def _forget_failure(self, name: str) -> None:
        (self.path / FAILED / f"{name}.json").unlink(missing_ok=True)
        try:
            (self.path / FAILED).rmdir()
        except OSError:
            pass  # it is not there, or other failures are in it

    def check_foreign(self) -> None:
        """Refuse a folder that holds something, but no job."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"folder {self.path}: is a file; name a folder for the job")
        is_job = (self.path / IDENTITY).exists() or (self.path / HIDDEN).exists()
        if not is_job and self.path.exists() and (others := sorted(item.name for item in self.path.iterdir())):
            raise ConfigError(
                f"folder {self.path}: holds other files ({others[0]}) and no job; name a new or an empty folder"
            )

    def _lock(self, stack: ExitStack, shard: int, shards: int) -> None:
        """Take the lock of a shard, and see that no run of another division of the job is at work."""
        own = self.path / HIDDEN / f"{shard}-of-{shards}.lock"
        others = [file for file in (self.path / HIDDEN).glob("*-of-*.lock") if not file.stem.endswith(f"-of-{shards}")]
        try:
            stack.enter_context(FileLock(own, timeout=0))  # first, so that of two that start at once none goes past
            for other in others:
                with FileLock(other, timeout=0):
                    pass
        except Timeout:
            who = "another run" if shards == 1 else f"another run of shard {shard}/{shards}, or of another division,"
            raise ConfigError(f"folder {self.path}: {who} is at work in it; wait for its end") from None

    @property
    def _plain(self) -> dict[str, Any]:
        """The identity as a file gives it back."""
        return json.loads(json.dumps(self.identity))

    def _keys(self) -> Iterator[str | None]:
        for item in self.path.glob("*.json"):
            if item.name != IDENTITY and (record := read_record(item)):
                yield record.get("job")


def key_of(data: Any) -> str:
    """Return a short name for plain data, the same for the same data: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_record(file: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds; None if it is not there, empty, cut off or no mapping."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Say in which values nested data differ: ``strength 1.0, now 0.5``."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys([*before, *now])
        parts = [differences(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in names]
        return [part for found in parts for part in found]
    return [] if before == now else [f"{name} {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
