"""In which parametrisation a gap is to be taken, by prediction type, inversion and number of steps (not in the paper).

Six pairs of exact models, all steps but the last reflected by first-order steps, at strength 1 and at the strength that
is best for each pair on other noise. Each arm's sliced distance to the truth is told as a share of the strong model's
alone at as many steps: below 1 reflection helps. Run: python examples/studies/readings.py
"""

from __future__ import annotations

import math
from pathlib import Path

import exact_pairs
import torch
import toy
from exact_pairs import PAIRS, Kind, Pair, plain
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt
from zero_gap import INVERSIONS, KINDS

STEPS = (4, 6, 10, 20, 50)
STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
READINGS = ("epsilon", "sample", "native")
Arm = tuple[str, str]
"""Inversion and reading."""


def arms_of(kind: Kind) -> list[Arm]:
    """Return the inversions and readings of a prediction type; a network's own noise has one reading less."""
    readings = READINGS[:2] if kind == "epsilon" else READINGS
    return [(inversion, reading) for inversion in INVERSIONS for reading in readings]


def distance_of(pair: Pair, kind: Kind, steps: int, noise: torch.Tensor, **settings: object) -> float:
    """Return the distance to the truth of what a pair samples."""
    roles = {"base": plain(pair.strong), "strong": plain(pair.strong), "weak": plain(pair.weak)}
    drawn, _ = exact_pairs.sampled(roles, noise, steps, kind=kind, solver=KINDS[kind], **settings)
    value = exact_pairs.distance(drawn)
    return value if math.isfinite(value) else math.inf


def ratios(kind: Kind, steps: int, arm: Arm, samples: int, seeds: int, tuned: bool) -> list[float]:
    """Return, by seed, the geometric mean over the pairs of an arm's distance, as a share of the strong model's."""
    inversion, reading = arm
    settings = {"inversion": inversion, "reading": reading}
    logs = torch.zeros(seeds, dtype=torch.float64)
    for pair in PAIRS.values():
        strength, other = 1.0, toy.noise(samples, 2, 1000)
        if tuned:
            strength = min(STRENGTHS, key=lambda s: distance_of(pair, kind, steps, other, strength=s, **settings))  # noqa: B023
        for seed in range(seeds):
            noise = toy.noise(samples, 2, seed)
            alone = distance_of(pair, kind, steps, noise, reflection_steps=0)
            logs[seed] += math.log(distance_of(pair, kind, steps, noise, strength=strength, **settings) / alone)
    return (logs / len(PAIRS)).exp().tolist()


def main(
    out: Path = Path("readings.png"), seeds: PositiveInt = 3, samples: PositiveInt = 4096
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
    figure, axes = plt.subplots(2, len(KINDS), figsize=(10, 5.5), sharey=True, layout="constrained")
    for row, tuned in zip(axes, (False, True), strict=True):
        strength = f"the best of {', '.join(f'{s:g}' for s in STRENGTHS)} on other noise" if tuned else "1"
        print(f"strength {strength}: distance / strong alone, geometric mean of {len(PAIRS)} pairs ± standard error")
        print(f"over {seeds} seeds x {samples} samples")
        for axis, kind in zip(row, KINDS, strict=True):
            for steps in STEPS:
                found[tuned, kind, steps] = {
                    arm: ratios(kind, steps, arm, samples, seeds, tuned) for arm in arms_of(kind)
                }
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
