"""Prompts, and which of them are sampled together: those on which settings are chosen, and others for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
