"""In which parametrisation a gap is to be taken, by prediction type, inversion and number of steps (not in the paper).

Six pairs of exact models, all steps but the last reflected by first-order steps, at strength 1 and at the strength that
is best for each pair on other noise. Each arm's sliced distance to the truth is told as a share of the strong model's
alone at as many steps: below 1 reflection helps. Run: python examples/studies/readings.py
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import exact_pairs
import torch
import toy
from exact_pairs import PAIRS, Kind
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt
from zero_gap import INVERSIONS, KINDS

STEPS = (4, 10, 20, 50)
STRENGTHS = (0.5, 1.0, 2.0)
READINGS = ("epsilon", "sample", "native")
Arm = tuple[str, str]
"""Inversion and reading."""


def arms_of(kind: Kind) -> list[Arm]:
    """Return the inversions and readings of a prediction type.

    Exact velocity says the same as exact noise but in its own reading, and noise has no third one.
    """
    readings = {"epsilon": READINGS[:2], "v_prediction": READINGS[2:], "flow": READINGS}[kind]
    return [(inversion, reading) for inversion in INVERSIONS for reading in readings]


def distances_of(kind: Kind, steps: int, noise: torch.Tensor, **settings: object) -> torch.Tensor:
    """Return the distance to the truth of what each pair samples."""
    drawn, _ = exact_pairs.sampled(
        exact_pairs.roles_of(list(PAIRS)), noise, steps, kind=kind, solver=KINDS[kind], **settings
    )
    return torch.tensor(exact_pairs.distances(drawn), dtype=torch.float64)


@cache
def alone(kind: Kind, steps: int, samples: int, seed: int) -> torch.Tensor:
    """Return the distances of the strong models."""
    return distances_of(kind, steps, toy.noise(samples, 2, seed), reflection_steps=0)


def ratios(kind: Kind, steps: int, arm: Arm, samples: int, seeds: int) -> tuple[list[float], list[float]]:
    """Return, by seed, the geometric mean over the pairs of distances, as shares of the strong model's.

    Args:
        kind: what is predicted.
        steps: T.
        arm: inversion and reading.
        samples: of each pair.
        seeds: of the noise.

    Returns:
        The shares at strength 1, and at each pair's best strength on other noise.
    """

    def shares(seed: int) -> torch.Tensor:
        """Return the shares by strength and pair."""
        noise = toy.noise(samples, 2, seed)
        settings = {"inversion": arm[0], "reading": arm[1]}
        found = [distances_of(kind, steps, noise, strength=strength, **settings) for strength in STRENGTHS]
        return torch.stack(found) / alone(kind, steps, samples, seed)

    best = shares(1000).argmin(0)
    found = [shares(seed).log() for seed in range(seeds)]
    at_one = [float(of_seed[STRENGTHS.index(1.0)].mean().exp()) for of_seed in found]
    return at_one, [float(of_seed.gather(0, best[None]).mean().exp()) for of_seed in found]


def main(
    out: Path = Path("readings.png"), seeds: PositiveInt = 3, samples: PositiveInt = 2048
) -> dict[tuple[bool, Kind, int], dict[Arm, list[float]]]:
    """Measure each inversion in each reading.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The shares of each seed, by whether the strength is tuned, prediction type, number of steps and arm.
    """
    toy.check_figure(out)
    found: dict[tuple[bool, Kind, int], dict[Arm, list[float]]] = {}
    for kind in KINDS:
        for steps in STEPS:
            for arm in arms_of(kind):
                for tuned, shares in zip((False, True), ratios(kind, steps, arm, samples, seeds), strict=True):
                    found.setdefault((tuned, kind, steps), {})[arm] = shares
    figure, axes = plt.subplots(2, len(KINDS), figsize=(10, 5.5), sharey=True, layout="constrained")
    for row, tuned in zip(axes, (False, True), strict=True):
        strength = f"the best of {', '.join(f'{s:g}' for s in STRENGTHS)} on other noise" if tuned else "1"
        print(f"strength {strength}: distance / strong alone, geometric mean of {len(PAIRS)} pairs ± standard error")
        print(f"over {seeds} seeds x {samples} samples")
        for axis, kind in zip(row, KINDS, strict=True):
            rows = [(*arm, *(toy.with_error(found[tuned, kind, t][arm], 2) for t in STEPS)) for arm in arms_of(kind)]
            toy.print_table([kind, "reading", *(f"T = {steps}" for steps in STEPS)], rows)
            print(flush=True)
            for arm in arms_of(kind):
                means = [sum(found[tuned, kind, steps][arm]) / seeds for steps in STEPS]
                style = {"epsilon": "-", "sample": ":", "native": "--"}[arm[1]]
                axis.plot(STEPS, means, style, color=toy.COLOURS[arm[0]], label=", ".join(arm))
            axis.axhline(1.0, color="black", linewidth=0.8)
            axis.set(xscale="log", yscale="log", ylim=(0.4, 4), title=kind + (", tuned" if tuned else ", strength 1"))
            axis.set_xticks(STEPS, map(str, STEPS))
            axis.minorticks_off()
        row[0].set_ylabel("distance / strong alone")
    for axis in axes[-1]:
        axis.set_xlabel("T, number of steps")
    axes[0, -1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    toy.write_figure(figure, out)
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
