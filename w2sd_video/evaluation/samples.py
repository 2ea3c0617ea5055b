"""Sampling the arms and measuring what they make, batch by batch: each is kept when done, and never made twice."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.jobs.folder import key_of as key_of_data
from w2sd_video.messages import first_line, is_disk_full
from w2sd_video.metrics import Distance, Metric, Score
from w2sd_video.rendering.outputs import write_clips
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import keys_in, read_arrays, write_arrays

SEEDS = 10**4
"""Seed s of prompt k is sampled from the noise of ``SEEDS * s + k``."""
SHOWN = ("report", "vote")
"""Names of the splits of which clips are kept to look at."""
_NO_SETTINGS = {"prompts": None, "seed": None, "output": None, "compare": None, "fps": None}
"""What a configuration says beside how a sample is made: left out of a sample's key, so that it is found again."""


_COLUMNS = ("prompt", "seed", "seconds", "error")
"""What is known of each sample, measured or not."""


@dataclass(frozen=True)
class Split:
    """Prompts on which settings are chosen, or others on which the chosen ones are reported.

    Attributes:
        name: "tuning" or "report"; of a search for settings also others.
        prompts: distinct ones.
        first: number of the first among all prompts.
        seeds: samples a prompt.
    """

    name: str
    prompts: Sequence[str]
    first: int
    seeds: int

    def batch(self, number: int, size: int) -> list[tuple[int, int]]:
        """Return what is sampled together: the place of a prompt in the split, and the seed of its noise.

        Args:
            number: which batch, counted from 0.
            size: samples a batch; the last may have fewer.
        """
        ranks = range(number * size, min((number + 1) * size, self.samples))
        places_and_seeds = ((rank % len(self.prompts), rank // len(self.prompts)) for rank in ranks)
        return [(place, SEEDS * seed + self.first + place) for place, seed in places_and_seeds]

    @property
    def samples(self) -> int:
        """How many samples there are of a setting."""
        return self.seeds * len(self.prompts)


@dataclass(frozen=True)
class Samples:
    """What was measured of the samples of one setting.

    Attributes:
        prompt: place of each sample's prompt in its split, (n,).
        seed: of each sample's noise, (n,).
        seconds: that each took, its share of a batch, (n,).
        error: why there is no sample, (n,) of text; empty where there is one.
        scores: by metric, (n,); NaN where there is no sample.
        features: by the name of their space, (n, d); NaN where there is no sample.
    """

    prompt: np.ndarray
    seed: np.ndarray
    seconds: np.ndarray
    error: np.ndarray
    scores: dict[str, np.ndarray]
    features: dict[str, np.ndarray]

    @property
    def there(self) -> np.ndarray:
        """Which samples did not fail, (n,) of bool."""
        return self.error == ""


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


def rounds_of(tuning: Split, rounds: int) -> list[Split]:
    """Return the prompts on which settings are chosen in parts, each about as large as all before it.

    Args:
        tuning: all of them; they stay one part under their own name if one is asked for.
        rounds: how many parts; fewer where there are not as many prompts.
    """
    if rounds == 1:
        return [tuning]
    count = len(tuning.prompts)
    ends = sorted({max(1, round(count / 2**k)) for k in range(rounds)})
    starts = [0, *ends[:-1]]
    return [
        Split(f"tuning-{start}-{end}", tuning.prompts[start:end], tuning.first + start, tuning.seeds)
        for start, end in zip(starts, ends, strict=True)
    ]


def over_rounds(read: Callable[[Split], Samples], rounds: Sequence[Split]) -> Samples:
    """Return what was measured of a setting in several parts of a split, as if they were one."""
    parts = [(read(split), split.first - rounds[0].first) for split in rounds]
    return joined([replace(samples, prompt=samples.prompt + place) for samples, place in parts])


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


class Laboratory:
    """Samples a batch, measures it and keeps what was measured: the worker of an evaluation.

    Args:
        files: where it is kept.
        pipe: the pipeline.
        metrics: what is measured.
        inputs: further arguments of the pipeline's call.
        shown: of how many prompts of the report a clip is kept.
    """

    def __init__(
        self, files: SampleFiles, pipe: Any, metrics: Sequence[Metric], inputs: Mapping[str, Any], shown: int
    ) -> None:
        self._files, self._pipe, self._metrics, self._inputs, self._shown = files, pipe, metrics, inputs, shown

    def __call__(self, batch: Batch) -> None:
        """Make a batch anew, and keep it, also where samples of it failed."""
        with threads_for(batch.config.model.pretrained):
            self._files.write(batch, self._measured(batch, batch.places_and_seeds))

    def _measured(self, batch: Batch, places_and_seeds: list[tuple[int, int]]) -> Samples:
        """Sample together; if that fails sample by sample, and record those that fail alone.

        Raises:
            OSError: a full disk.
        """
        config, split, started = batch.config, batch.split, time.perf_counter()
        prompts, seeds = [split.prompts[place] for place, _ in places_and_seeds], [seed for _, seed in places_and_seeds]
        try:
            clips, _ = sample_clips(self._pipe, config, prompts, seeds, self._inputs)
        except Exception as error:  # whatever a foreign pipeline raises is written down with its sample
            if is_disk_full(error):
                raise
            if len(places_and_seeds) == 1:
                return failed(places_and_seeds, first_line(error), time.perf_counter() - started)
            error.__traceback__ = None  # which holds the tensors that memory may have been lacking for
            return joined([self._measured(batch, [place_and_seed]) for place_and_seed in places_and_seeds])
        seconds = (time.perf_counter() - started) / len(places_and_seeds)
        for (place, seed), clip in zip(places_and_seeds, clips, strict=True):
            if split.name in SHOWN and place < self._shown and seed < SEEDS:  # of the first seed of each prompt
                write_clips(self._files.clip_file(config, split.first + place), {"": clip}, config.fps)
        scores = {metric.name: metric.of(clips, prompts) for metric in self._metrics if isinstance(metric, Score)}
        features = {space: features_of(clips) for space, features_of in spaces_of(self._metrics).items()}
        return _samples(places_and_seeds, seconds, "", scores, features)


def spaces_of(metrics: Sequence[Metric]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what finds the features that metrics compare, by the name of their space: once for all of a space."""
    return {metric.space: metric.features for metric in reversed(metrics) if isinstance(metric, Distance)}


def results_table(measured: Iterable[tuple[Candidate, Split, Samples]], scores: Sequence[str]) -> str:
    """Return the table of all samples as CSV: what each is of, how long it took, and its scores."""
    text = io.StringIO()
    rows = csv.writer(text)
    head = ["arm", "setting", "budget", "steps", "nfe", "split", "prompt", "seed", "seconds", "error"]
    rows.writerow([*head, *scores])
    for candidate, split, samples in measured:
        setting = [candidate.arm, candidate.setting, candidate.budget, candidate.config.steps, candidate.nfe]
        for i, place in enumerate(samples.prompt):
            values = [f"{samples.scores[name][i]:.6g}" if name in samples.scores else "" for name in scores]
            sample = [split.prompts[place], samples.seed[i], f"{samples.seconds[i]:.4f}", samples.error[i]]
            rows.writerow([*setting, split.name, *sample, *values])
    return text.getvalue()


def key_of_setting(config: RenderConfig) -> str:
    """Return a name for everything about a configuration that changes its samples."""
    return key_of_data(asdict(replace(config, **_NO_SETTINGS)))  # type: ignore[arg-type]


key_of = key_of_setting
"""Its name in version 0.2."""


def failed(places_and_seeds: list[tuple[int, int]], error: str, seconds: float = 0.0) -> Samples:
    """Return what is known of samples that there are none of, `seconds` being all that they took."""
    return _samples(places_and_seeds, seconds / len(places_and_seeds), error, {}, {})


def _samples(
    places_and_seeds: list[tuple[int, int]],
    seconds: float,
    error: str,
    scores: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
) -> Samples:
    place, seed = np.array(places_and_seeds).T
    count = len(places_and_seeds)
    return Samples(place, seed, np.full(count, seconds), np.full(count, error), scores, features)


def joined(parts: Sequence[Samples]) -> Samples:
    """Put samples together, with NaN for what was not measured of those that failed."""
    counts = [len(part.prompt) for part in parts]
    return Samples(
        np.concatenate([part.prompt for part in parts]),
        np.concatenate([part.seed for part in parts]),
        np.concatenate([part.seconds for part in parts]),
        np.concatenate([part.error for part in parts]),
        _stacked([part.scores for part in parts], counts),
        _stacked([part.features for part in parts], counts),
    )


def _stacked(parts: Sequence[dict[str, np.ndarray]], counts: Sequence[int]) -> dict[str, np.ndarray]:
    shapes = {name: values.shape[1:] for part in parts for name, values in part.items()}
    return {
        name: np.concatenate(
            [part.get(name, np.full((n, *shape), np.nan)) for part, n in zip(parts, counts, strict=True)]
        )
        for name, shape in shapes.items()
    }
