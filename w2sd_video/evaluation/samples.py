"""What was measured of samples, as arrays of one entry a sample."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from w2sd_video._moved import names_of
from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.splits import Split

__getattr__ = names_of(__name__)


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


def over_rounds(read: Callable[[Split], Samples], rounds: Sequence[Split]) -> Samples:
    """Return what was measured of a setting in several parts of a split, as if they were one."""
    return joined([read(split) for split in rounds])


def failed(places_and_seeds: list[tuple[int, int]], error: str, seconds: float = 0.0) -> Samples:
    """Return what is known of samples that there are none of, `seconds` being all that they took."""
    return samples_of(places_and_seeds, seconds / len(places_and_seeds), error, {}, {})


def samples_of(
    places_and_seeds: list[tuple[int, int]],
    seconds: float,
    error: str,
    scores: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
) -> Samples:
    """Return what is known of samples that were made together, each with its seconds."""
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
