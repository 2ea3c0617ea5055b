"""In which parametrisation a gap is to be taken, by prediction type, inversion and number of steps (not in the paper).

Six pairs of exact models, strength 1, all steps but the last reflected by first-order steps; each arm's sliced
distance to the truth is told as a share of the strong model's alone at as many steps. Below 1 reflection helps.
Run: python examples/studies/readings.py
"""

from __future__ import annotations

import math
from pathlib import Path

import exact_pairs
import toy
import torch
from exact_pairs import PAIRS, Kind, plain
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt
from zero_gap import INVERSIONS, KINDS

STEPS = (4, 6, 10, 20, 50)
READINGS = ("epsilon", "sample", "native")
Arm = tuple[str, str]
"""Inversion and reading."""


def arms_of(kind: Kind) -> list[Arm]:
    """Return the inversions and readings of a prediction type; a network's own noise has one reading less."""
    readings = READINGS[:2] if kind == "epsilon" else READINGS
    return [(inversion, reading) for inversion in INVERSIONS for reading in readings]


def ratios(kind: Kind, steps: int, samples: int, seed: int) -> dict[Arm, float]:
    """Return the geometric mean over the pairs of each arm's distance, as a share of the strong model's."""
    logs: dict[Arm, list[float]] = {}
    for pair in PAIRS.values():
        roles = {"base": plain(pair.strong), "strong": plain(pair.strong), "weak": plain(pair.weak)}
        noise = toy.noise(samples, 2, seed)

        def distance(**settings: object) -> float:
            drawn, _ = exact_pairs.sampled(roles, noise, steps, kind=kind, solver=KINDS[kind], **settings)  # noqa: B023
            return exact_pairs.distance(drawn)

        alone = distance(reflection_steps=0)
        for inversion, reading in arms_of(kind):
            arm = distance(inversion=inversion, reading=reading)
            logs.setdefault((inversion, reading), []).append(math.log(arm / alone))
    return {arm: math.exp(sum(values) / len(values)) for arm, values in logs.items()}


def main(
    out: Path = Path("readings.png"), seeds: PositiveInt = 3, samples: PositiveInt = 4096
) -> dict[tuple[Kind, int], dict[Arm, list[float]]]:
    """Measure each inversion in each reading.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The shares of each seed, by prediction type, number of steps and arm.
    """
    toy.check_figure(out)
    found: dict[tuple[Kind, int], dict[Arm, list[float]]] = {}
    print(f"distance / strong alone, geometric mean of {len(PAIRS)} pairs, {seeds} seeds x {samples} samples")
    figure, axes = plt.subplots(1, len(KINDS), figsize=(10, 3), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        for steps in STEPS:
            of_seeds = [ratios(kind, steps, samples, seed) for seed in range(seeds)]
            found[kind, steps] = {arm: [of_seed[arm] for of_seed in of_seeds] for arm in arms_of(kind)}
        toy.print_table(
            [kind, "reading", *(f"T = {steps}" for steps in STEPS)],
            [(*arm, *(toy.with_error(found[kind, steps][arm], 2) for steps in STEPS)) for arm in arms_of(kind)],
        )
        print()
        for inversion, reading in arms_of(kind):
            means = [torch.tensor(found[kind, steps][inversion, reading]).mean() for steps in STEPS]
            style = {"epsilon": "-", "sample": ":", "native": "--"}[reading]
            axis.plot(STEPS, means, style, color=toy.COLOURS[inversion], label=f"{inversion}, {reading}")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", ylim=(0.3, 10), xlabel="T, number of steps", title=kind)
        axis.set_xticks(STEPS, map(str, STEPS))
        axis.minorticks_off()
    axes[0].set_ylabel("distance / strong alone")
    axes[-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    toy.write_figure(figure, out)
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
