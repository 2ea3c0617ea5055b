"""Prompts, and which of them are sampled together: those on which settings are chosen, and others for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

SEEDS = 10**4
"""Seed s of prompt k is sampled from the noise of ``SEEDS * s + k``."""


@dataclass(frozen=True)
class Split:
    """Prompts on which settings are chosen, or others on which the chosen ones are reported.

    Attributes:
        name: "tuning" or "report"; of a search for settings also others.
        prompts: distinct ones.
        first: number of the first among all prompts.
        seeds: samples a prompt.
        start: the first of the samples that are meant, counted over the prompts and then over the seeds.
        stop: the end of them; all from `start` on unless given.
    """

    name: str
    prompts: Sequence[str]
    first: int
    seeds: int
    start: int = 0
    stop: int | None = None

    def batch(self, number: int, size: int) -> list[tuple[int, int]]:
        """Return what is sampled together: the place of a prompt in the split, and the seed of its noise.

        Args:
            number: which batch, counted from 0.
            size: samples a batch; the last may have fewer.
        """
        ranks = self._ranks[number * size : (number + 1) * size]
        places_and_seeds = ((rank % len(self.prompts), rank // len(self.prompts)) for rank in ranks)
        return [(place, SEEDS * seed + self.first + place) for place, seed in places_and_seeds]

    @property
    def samples(self) -> int:
        """How many samples there are of a setting."""
        return len(self._ranks)

    @property
    def prompts_up_to_here(self) -> int:
        """Of how many prompts, the first of them, there are samples up to its end."""
        return min(self._ranks.stop, len(self.prompts))

    @property
    def _ranks(self) -> range:
        return range(self.seeds * len(self.prompts))[self.start : self.stop]


def rounds_of(tuning: Split, rounds: int) -> list[Split]:
    """Return the samples on which settings are chosen in parts, each about as large as all before it.

    First come few seeds of all prompts, for prompts differ more than seeds; of one seed, few prompts.

    Args:
        tuning: all of them; they stay one part under their own name if one is asked for.
        rounds: how many parts; fewer where there are not as many samples.
    """
    if rounds == 1:
        return [tuning]
    ends = sorted({max(1, round(tuning.samples / 2**k)) for k in range(rounds)})
    return [
        replace(tuning, name=f"tuning-{start}-to-{stop}", start=start, stop=stop)
        for start, stop in pairwise([0, *ends])
    ]
