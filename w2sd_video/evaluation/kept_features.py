"""Features of real clips: found in batches, and kept, for they are the same at the next start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from w2sd_video.calibration.real_clips import Clip
from w2sd_video.evaluation.laboratory import spaces_of
from w2sd_video.jobs.folder import HIDDEN, key_of
from w2sd_video.messages import ConfigError, first_line
from w2sd_video.metrics import Distance
from w2sd_video.settings.identity import library_versions
from w2sd_video.writing import read_arrays, write_arrays

_AT_ONCE, _BYTES_AT_ONCE = 256, 2**26
"""Clips that are read and looked at together, at most, and how large they may be together."""


class KeptFeatures:
    """Features of real clips that are known from before, and those that are found now.

    Args:
        folder: of the evaluation, which need not be there before `write`.
        about: all that the features depend on but the clips: where each metric's weights are, what the world draws.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._file = folder / HIDDEN / "real.npz"
        self._about = {**about, "versions": library_versions()}
        self._known = read_arrays(self._file) or {}
        self._used: dict[str, np.ndarray] = {}

    def of(self, clips: Sequence[Clip], distances: Sequence[Distance], what: str) -> dict[str, np.ndarray]:
        """Return the features of clips by their space, (n, d).

        Args:
            clips: read where they are not known.
            distances: whose features.
            what: the clips are, for the bar.

        Raises:
            ConfigError: a clip that a metric cannot take.
            VideoError: a clip that cannot be read.
        """
        fingerprints = [_fingerprint(clip) for clip in clips]
        keys = {metric.space: key_of([metric.space, self._about, fingerprints]) for metric in distances}
        missing = [metric for metric in distances if keys[metric.space] not in self._known]
        found = features_of(clips, missing, what)
        features = {space: self._known[key] if space not in found else found[space] for space, key in keys.items()}
        self._used |= {keys[space]: rows for space, rows in features.items()}
        return features

    def write(self) -> None:
        """Keep all that was asked for, in the folder, which is there now."""
        if self._used.keys() - self._known.keys():
            write_arrays(self._file, {**self._known, **self._used})


def features_of(clips: Sequence[Clip], distances: Sequence[Distance], what: str) -> dict[str, np.ndarray]:
    """Return the features of clips by their space, (n, d), as `KeptFeatures.of` does, of whatever is kept nothing."""
    parts: dict[str, list[np.ndarray]] = {metric.space: [] for metric in distances}
    with tqdm(total=len(clips), desc=what, leave=False, disable=not distances) as bar:
        for names, frames in _batches(clips) if distances else ():
            for space, features in spaces_of(distances).items():
                try:
                    parts[space].append(features(frames))
                except ValueError:
                    parts[space] += [
                        _alone(name, clip[None], features) for name, clip in zip(names, frames, strict=True)
                    ]
            bar.update(len(names))
    return {space: np.concatenate(rows) for space, rows in parts.items()}


def _alone(name: str, frames: np.ndarray, features: Any) -> np.ndarray:
    try:
        return features(frames)
    except ValueError as error:
        raise ConfigError(f"real clips: {name}: {first_line(error)}") from error


def _batches(clips: Sequence[Clip]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the names and the frames of clips, those of one shape that follow on each other together."""
    read = ((clip.name, clip.read()) for clip in clips)
    names: list[str] = []
    frames: list[np.ndarray] = []
    for name, clip in read:
        is_full = len(frames) == _AT_ONCE or (frames and (len(frames) + 1) * clip.nbytes > _BYTES_AT_ONCE)
        if frames and (is_full or clip.shape != frames[0].shape):
            yield names, np.stack(frames)
            names, frames = [], []
        names.append(name)
        frames.append(clip)
    if frames:
        yield names, np.stack(frames)


def _fingerprint(clip: Clip) -> Any:
    """Return what tells whether a clip is the same: of a file, or a folder of frames, size and time of each file."""
    path = Path(clip.name)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [clip.name, [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
