"""The zero-gap artefact: how far a reflection moves the latents where strong and weak are one (not in the paper).

Only the inversion's own error is left then. Its size is told as a share of the displacement that six pairs of exact
models have by theorem 1, for networks that predict noise, velocity and flow. Run: python examples/studies/zero_gap.py
"""

from __future__ import annotations

import math
from pathlib import Path

import exact_pairs
import torch
import toy
from exact_pairs import PAIRS, Kind, Network, Pair, Ring
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import Reflection, Trajectory, reflect_step
from w2sd_video.algorithm import drive
from w2sd_video.strength import log_snr

KINDS: dict[Kind, str] = {"epsilon": "DDIM", "v_prediction": "DDIM", "flow": "Euler"}
STEPS = (4, 10, 20, 50)
INVERSIONS = ("paper", "explicit", "current", "implicit")


def trajectory_of(kind: Kind, steps: int) -> Trajectory:
    """Return the levels of so many first-order steps."""
    scheduler = exact_pairs.scheduler_of(kind, KINDS[kind])
    scheduler.set_timesteps(steps)
    return Trajectory(scheduler)


def moved(trajectory: Trajectory, i: int, latents: torch.Tensor, inversion: str, strong: Ring, weak: Ring) -> float:
    """Return how far a reflection moves latents (1, samples, 2), root mean square."""
    kind = trajectory.prediction_type
    levels = {float(t): tuple(trajectory.level(k)) for k, t in enumerate(trajectory.timesteps)}
    network = Network({"strong": [((strong,), 1.0)], "weak": [((weak,), 1.0)]}, kind, levels)  # type: ignore[arg-type]
    reflecting = reflect_step(trajectory, latents, i, Reflection(inversion=inversion))  # type: ignore[arg-type]
    after = drive(reflecting, lambda asked: network(asked.latents, trajectory.timesteps[asked.step], asked.role))
    return float((after - latents).square().mean().sqrt())


def shares(pair: Pair, kind: Kind, steps: int, samples: int, seed: int) -> dict[str, list[tuple[float, float, float]]]:
    """Return, by inversion, log-SNR, artefact and true displacement of each level but the last."""
    trajectory, generator = trajectory_of(kind, steps), torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in INVERSIONS}
    for i in range(steps - 1):
        level = trajectory.level(i)
        clean = pair.strong.draw(samples, generator).double()
        latents = (level.alpha * clean + level.sigma * torch.randn(samples, 2, generator=generator).double())[None]
        true = moved(trajectory, i, latents, "current", pair.strong, pair.weak)
        for name in INVERSIONS:
            artefact = moved(trajectory, i, latents, name, pair.strong, pair.strong)
            found[name].append((log_snr(level), artefact, true))
    return found


def over_levels(rows: list[tuple[float, float, float]]) -> float:
    """Return the artefact as a share of the true displacement, both root mean squares over the levels."""
    return math.sqrt(sum(row[1] ** 2 for row in rows) / sum(row[2] ** 2 for row in rows))


def main(
    out: Path = Path("zero_gap.png"), seeds: PositiveInt = 3, samples: PositiveInt = 4000
) -> dict[tuple[str, str, int], list[float]]:
    """Measure the artefact of each inversion by prediction type and number of steps.

    Args:
        out: the figure.
        seeds: how often latents are drawn for each pair.
        samples: latents at each level.

    Returns:
        The share of each pair, by prediction type, inversion and number of steps.
    """
    toy.check_figure(out)
    table: dict[tuple[str, str, int], list[float]] = {}
    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 2.8), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        for steps in STEPS:
            rows: dict[str, list[list[tuple[float, float, float]]]] = {name: [] for name in INVERSIONS}
            for pair in PAIRS.values():
                of_seeds = [shares(pair, kind, steps, samples, seed) for seed in range(seeds)]
                for name in INVERSIONS:
                    rows[name] += [found[name] for found in of_seeds]
                    share = sum(over_levels(found[name]) for found in of_seeds) / seeds
                    table.setdefault((kind, name, steps), []).append(share)
            of_paper = torch.tensor(rows["paper"], dtype=torch.float64)  # pairs and seeds, levels, 3
            snr, share = of_paper[0, :, 0], (of_paper[..., 1] / of_paper[..., 2]).log().mean(0).exp()
            axis.plot(snr[snr.isfinite()], share[snr.isfinite()], "o-", markersize=3, label=f"T = {steps}")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(yscale="log", xlim=(-10, 6), ylim=(1e-2, 1e3), xlabel="log-SNR", title=f"paper, {kind}")
    axes[0].set_ylabel("artefact / true displacement")
    axes[0].legend()
    toy.write_figure(figure, out)
    print(
        f"share of the true displacement, all reflected levels; {len(PAIRS)} pairs, {seeds} seeds x {samples} latents"
    )
    toy.print_table(
        ["prediction", "inversion", *(f"T = {steps}" for steps in STEPS)],
        [
            (kind, name, *(toy.percent(table[kind, name, steps]) for steps in STEPS))
            for kind in KINDS
            for name in INVERSIONS
        ],
    )
    return table


if __name__ == "__main__":
    CLI(main, as_positional=False)
