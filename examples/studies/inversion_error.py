"""Noise added to the inverted latents (table 13 of the paper), written as a loop on ``reflect`` and ``Trajectory``.

The noise has the size k relative to the latents, k = 0, 0.005 and 0.010 as in the paper, and larger. Strong and weak
model are exact mixtures with 70 % and 90 % at the right peak. Run: python examples/studies/inversion_error.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import Trajectory, reflect

TRUTH, STRONG, WEAK = toy.two_peaks(0.5), toy.two_peaks(0.7), toy.two_peaks(0.9)
SIZES = (0.0, 0.005, 0.010, 0.02, 0.05, 0.1, 0.2)


def walk(latents: torch.Tensor, size: float | None, steps: int = 50) -> torch.Tensor:
    """Sample by W2SD with noisy inversions, or by the strong model alone where the size is None."""
    scheduler = copy.deepcopy(toy.SCHEDULER)
    scheduler.set_timesteps(steps)
    trajectory = Trajectory(scheduler)
    generator = toy.seeded(0)

    def down(latents: torch.Tensor, i: int) -> torch.Tensor:
        return trajectory.denoise(latents, STRONG(latents, trajectory.timesteps[i]), i)

    def up(latents: torch.Tensor, i: int) -> torch.Tensor:
        inverted = trajectory.invert(latents, WEAK(latents, trajectory.timesteps[i]), i)
        noise = torch.randn(inverted.shape, generator=generator, dtype=inverted.dtype)
        return inverted + size * inverted.square().mean().sqrt() * noise

    for i in range(steps):
        if size is not None and i < steps - 1:
            latents = reflect(down, up, latents, i)
        latents = down(latents, i)
    return latents


def main(
    out: Path = Path("inversion_error.png"), seeds: PositiveInt = 5, samples: PositiveInt = 10_000
) -> dict[float | None, list[float]]:
    """Measure the distance to the truth by the size of the noise.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn for each size.

    Returns:
        The distances by size of the noise (None: the strong model alone) and seed.
    """
    toy.check_figure(out)
    distances: dict[float | None, list[float]] = {}
    widths: dict[float | None, list[float]] = {}
    for size in (None, *SIZES):
        points = [walk(toy.noise(samples, 1, seed).double(), size) for seed in range(seeds)]
        distances[size] = [
            toy.distance(drawn, TRUTH.draw(samples, toy.seeded(1000 + s))) for s, drawn in enumerate(points)
        ]
        widths[size] = [float(drawn.abs().std()) / TRUTH.spread for drawn in points]

    print(f"{seeds} seeds, {samples} samples each, T = 50")
    toy.print_table(
        ["arm", "Wasserstein-1 distance to the truth", "width of the peaks (1 is right)"],
        [
            (
                "strong alone" if size is None else f"W2SD, k = {size}",
                toy.spread(distances[size]),
                toy.spread(widths[size]),
            )
            for size in distances
        ],
    )
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
    labels = ("distance to the truth", "width of the peaks (1 is right)")
    for axis, label, by_size in zip(axes, labels, (distances, widths), strict=True):
        mean = {size: sum(values) / seeds for size, values in by_size.items()}
        axis.plot(SIZES, [mean[size] for size in SIZES], "o-", color=toy.COLOURS["W2SD"], label="W2SD")
        axis.axhline(mean[None], color=toy.COLOURS["strong"], label="strong alone")
        axis.set_xscale("symlog", linthresh=0.005)
        axis.set_xlim(0, SIZES[-1])
        axis.set_xticks((0, 0.005, 0.02, 0.1), ("0", "0.005", "0.02", "0.1"))
        axis.set(xlabel="k, relative size of the noise", ylabel=label)
    axes[0].legend()
    toy.write_figure(figure, out)
    toy.verdict(
        "Noise of k = 0.010 takes W2SD further from the truth than the strong model alone",
        [noisy > strong for noisy, strong in zip(distances[0.010], distances[None], strict=True)],
    )
    return distances


if __name__ == "__main__":
    CLI(main, as_positional=False)
