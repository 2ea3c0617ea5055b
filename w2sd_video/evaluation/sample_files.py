"""The files of an evaluation's samples: one a batch, whole or not at all, which is never made twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.evaluation.samples import Samples
from w2sd_video.evaluation.splits import Split
from w2sd_video.jobs.folder import key_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import keys_in, read_arrays, write_arrays

_NO_SETTINGS = {"prompts": None, "seed": None, "output": None, "compare": None, "fps": None}
"""What a configuration says beside how a sample is made: left out of a sample's key, so that it is found again."""
_COLUMNS = ("prompt", "seed", "seconds", "error")
"""What is known of each sample, measured or not."""


@dataclass(frozen=True)
class Batch:
    """Samples of one setting that are made together and kept in one file: the work of one task.

    Attributes:
        config: the setting.
        split: whose prompts are sampled.
        number: which batch of the split, counted from 0.
        size: samples a batch; the last may have fewer.
    """

    config: RenderConfig
    split: Split
    number: int
    size: int

    @property
    def name(self) -> str:
        """The same for the same samples, and fit for a file."""
        return f"{key_of_setting(self.config)}-{self.split.name}-{self.number:04d}"

    @property
    def places_and_seeds(self) -> list[tuple[int, int]]:
        """See `Split.batch`."""
        return self.split.batch(self.number, self.size)


def batches_of(config: RenderConfig, split: Split, size: int) -> list[Batch]:
    """Return all batches of a setting on a split."""
    return [Batch(config, split, number, size) for number in range(math.ceil(split.samples / size))]


@dataclass(frozen=True)
class SampleFiles:
    """The files of an evaluation's samples: one a batch, and clips to look at.

    Attributes:
        folder: of the evaluation.
        key: of everything that all samples depend on.
        scores: names of the metrics that judge each clip.
        features: names of the features by which metrics compare sets of clips; see ``Distance.space``.
    """

    folder: Path
    key: str
    scores: tuple[str, ...]
    features: tuple[str, ...]

    def clip_file(self, config: RenderConfig, number: int) -> Path:
        """Return the file of the clip of a prompt that is shown, by its number among all prompts."""
        ending = "png" if config.frames == 1 else "mp4"
        return self.folder / "clips" / f"{key_of_setting(config)}-{number}.{ending}"

    def file(self, batch: Batch) -> Path:
        """Return the file of what is measured of a batch."""
        return self.folder / "samples" / f"{batch.name}.npz"

    def read(self, batch: Batch) -> Samples | None:
        """Return what was measured of a batch; None if it is not there, damaged, or of something else."""
        arrays = read_arrays(self.file(batch))
        if arrays is None or str(arrays.pop("key", "")) != self.key:
            return None
        scores, features = (
            {name.removeprefix(kind): arrays.pop(name) for name in list(arrays) if name.startswith(kind)}
            for kind in ("score ", "features ")
        )
        if sorted(arrays) != sorted(_COLUMNS):
            return None
        samples = Samples(**arrays, scores=scores, features=features)
        count, is_measured = len(batch.places_and_seeds), bool(samples.there.any())
        expected = (self.scores, self.features) if is_measured else ((), ())
        is_whole = (
            (sorted(scores), sorted(features)) == tuple(map(sorted, expected))
            and all(len(column) == count for column in (*arrays.values(), *scores.values(), *features.values()))
            and list(zip(samples.prompt.tolist(), samples.seed.tolist(), strict=True)) == batch.places_and_seeds
        )
        return samples if is_whole else None

    def write(self, batch: Batch, samples: Samples) -> None:
        """Write what was measured of a batch, whole or not at all."""
        arrays: dict[str, Any] = {name: getattr(samples, name) for name in _COLUMNS} | {"key": np.array(self.key)}
        arrays |= {f"score {name}": values for name, values in samples.scores.items()}
        arrays |= {f"features {name}": values.astype(np.float32) for name, values in samples.features.items()}
        write_arrays(self.file(batch), arrays)

    def keys(self) -> Iterator[str]:
        """Yield the keys that the files that are there were made with; of what is damaged none."""
        return keys_in(self.folder / "samples")


def key_of_setting(config: RenderConfig) -> str:
    """Return a name for everything about a configuration that changes its samples."""
    return key_of(asdict(replace(config, **_NO_SETTINGS)))  # type: ignore[arg-type]
