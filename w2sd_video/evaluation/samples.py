"""Sampling the arms and measuring what they make, batch by batch: each is kept when done, and never made twice."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.messages import first_line
from w2sd_video.metrics import Metric, Score
from w2sd_video.rendering.outputs import write_clips
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.schema import RenderConfig

SEEDS = 10**4
"""Seed s of prompt k is sampled from the noise of ``SEEDS * s + k``."""
_NO_SETTINGS = {"prompts": None, "seed": None, "output": None, "compare": None, "fps": None}
"""What a configuration says beside how a sample is made: left out of a sample's key, so that it is found again."""


@dataclass(frozen=True)
class Split:
    """Prompts on which settings are chosen, or others on which the chosen ones are reported.

    Attributes:
        name: "tuning" or "report".
        prompts: distinct ones.
        first: number of the first among all prompts.
        seeds: samples a prompt.
    """

    name: str
    prompts: Sequence[str]
    first: int
    seeds: int

    def batches(self, size: int) -> Iterator[list[tuple[int, int]]]:
        """Return what is sampled together: the place of a prompt in the split, and the seed of its noise."""
        places_and_seeds = [
            (k, SEEDS * s + self.first + k) for s in range(self.seeds) for k in range(len(self.prompts))
        ]
        return (places_and_seeds[start : start + size] for start in range(0, len(places_and_seeds), size))


@dataclass(frozen=True)
class Samples:
    """What was measured of the samples of one setting.

    Attributes:
        prompt: place of each sample's prompt in its split, (n,).
        seed: of each sample's noise, (n,).
        seconds: that each took, its share of a batch, (n,).
        error: why there is no sample, (n,) of text; empty where there is one.
        scores: by metric, (n,); NaN where there is no sample.
        features: by metric, (n, d); NaN where there is no sample.
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


class Laboratory:
    """Samples settings and measures them, or reads what was measured before."""

    def __init__(
        self,
        folder: Path,
        pipe: Callable[[], Any],
        metrics: Sequence[Metric],
        inputs: Mapping[str, Any],
        batch: int,
        shown: int,
    ) -> None:
        """Start anew the table of samples, which fills as they come.

        Args:
            folder: of the evaluation; it exists.
            pipe: returns the pipeline, which is not asked for before there is something to sample.
            metrics: what is measured.
            inputs: further arguments of the pipeline's call.
            batch: samples a batch.
            shown: of how many prompts of the report a clip is kept.
        """
        self._folder, self._pipe, self._metrics, self._inputs = folder, pipe, metrics, inputs
        self._batch, self._shown = batch, shown
        for name in ("samples", "clips"):
            (folder / name).mkdir(exist_ok=True)
        self._table = folder / "results.csv"
        self._scores = [metric.name for metric in metrics if isinstance(metric, Score)]
        head = ["arm", "setting", "budget", "steps", "nfe", "split", "prompt", "seed", "seconds", "error"]
        with self._table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(head + self._scores)

    def measure(self, candidate: Candidate, split: Split, on_batch: Callable[[int], object]) -> Samples:
        """Return what is measured of a setting on a split; `on_batch` is told how many samples were done."""
        parts = []
        for number, places_and_seeds in enumerate(split.batches(self._batch)):
            file = self._folder / "samples" / f"{key_of(candidate.config)}-{split.name}-{number:04d}.npz"
            if not file.exists():
                _write(file, self._measure_batch(candidate, split, places_and_seeds))
            parts.append(_read(file))
            self._append(candidate, split, parts[-1])
            on_batch(len(places_and_seeds))
        return _joined(parts)

    def clip_file(self, candidate: Candidate, place: int) -> Path:
        """Return the file of the clip of one of the first prompts of the report."""
        ending = "png" if candidate.config.frames == 1 else "mp4"
        return self._folder / "clips" / f"{key_of(candidate.config)}-{place}.{ending}"

    def _measure_batch(self, candidate: Candidate, split: Split, places_and_seeds: list[tuple[int, int]]) -> Samples:
        """Sample a batch; if it fails sample by sample, and record those that fail alone."""
        started = time.perf_counter()
        try:
            prompts = [split.prompts[place] for place, _ in places_and_seeds]
            clips, _ = sample_clips(
                self._pipe(), candidate.config, prompts, [seed for _, seed in places_and_seeds], self._inputs
            )
        except Exception as error:  # whatever a foreign pipeline raises is written down with its sample
            if len(places_and_seeds) > 1:
                return _joined(
                    [self._measure_batch(candidate, split, [place_and_seed]) for place_and_seed in places_and_seeds]
                )
            return _failed(places_and_seeds[0], first_line(error), time.perf_counter() - started)
        seconds = (time.perf_counter() - started) / len(places_and_seeds)
        for (place, seed), clip in zip(places_and_seeds, clips, strict=True):
            if split.name == "report" and place < self._shown and seed < SEEDS:  # of the first seed of each prompt
                write_clips(self.clip_file(candidate, place), {"": clip}, candidate.config.fps)
        scores, features = {}, {}
        for metric in self._metrics:
            if isinstance(metric, Score):
                scores[metric.name] = metric.of(clips, prompts)
            else:
                features[metric.name] = metric.features(clips)
        place_of, seed_of = np.array(places_and_seeds).T
        return Samples(
            place_of,
            seed_of,
            np.full(len(places_and_seeds), seconds),
            np.full(len(places_and_seeds), ""),
            scores,
            features,
        )

    def _append(self, candidate: Candidate, split: Split, samples: Samples) -> None:
        columns_of_setting = [
            candidate.arm,
            candidate.setting,
            candidate.budget,
            candidate.config.steps,
            candidate.nfe,
            split.name,
        ]
        with self._table.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            for i, place in enumerate(samples.prompt):
                measured = [f"{samples.scores[name][i]:.6g}" if name in samples.scores else "" for name in self._scores]
                seconds = f"{samples.seconds[i]:.4f}"
                rows.writerow(
                    [*columns_of_setting, split.prompts[place], samples.seed[i], seconds, samples.error[i], *measured]
                )


def key_of(config: RenderConfig) -> str:
    """Return a name for everything about a configuration that changes its samples."""
    settings = asdict(replace(config, **_NO_SETTINGS))  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _failed(place_and_seed: tuple[int, int], error: str, seconds: float) -> Samples:
    place, seed = place_and_seed
    return Samples(np.array([place]), np.array([seed]), np.array([seconds]), np.array([error]), {}, {})


def _joined(parts: Sequence[Samples]) -> Samples:
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


def _write(file: Path, samples: Samples) -> None:
    unfinished = file.with_name(f".{file.stem}.part.npz")
    arrays = {name: getattr(samples, name) for name in ("prompt", "seed", "seconds", "error")}
    arrays |= {f"score {name}": values for name, values in samples.scores.items()}
    arrays |= {f"features {name}": values.astype(np.float32) for name, values in samples.features.items()}
    np.savez(unfinished, **arrays)
    os.replace(unfinished, file)


def _read(file: Path) -> Samples:
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    scores = {name.removeprefix("score "): arrays.pop(name) for name in list(arrays) if name.startswith("score ")}
    features = {
        name.removeprefix("features "): arrays.pop(name) for name in list(arrays) if name.startswith("features ")
    }
    return Samples(**arrays, scores=scores, features=features)
