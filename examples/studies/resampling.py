"""Re-Sampling and its advanced form (figures 21 and 22, algorithm 3 of the paper), a loop on ``reflect``.

Re-Sampling climbs back by adding noise instead of by a weak model. The advanced form keeps only noise that is similar
to the displacement of W2SD: here noise of the other sign is mirrored, which gives the same distribution as drawing
until it is. Strong and weak model are exact mixtures in the plane. Run: python examples/studies/resampling.py
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

TRUTH = toy.four_peaks(0.25, 0.25, 0.25, 0.25)
STRONG, WEAK = toy.four_peaks(0.4, 0.25, 0.2, 0.15), toy.four_peaks(0.6, 0.2, 0.15, 0.05)
ARMS = ("strong", "Re-Sampling", "advanced Re-Sampling", "W2SD")


def walk(arm: str, latents: torch.Tensor, generator: torch.Generator, steps: int = 50) -> torch.Tensor:
    """Sample by one of the arms."""
    scheduler = copy.deepcopy(toy.SCHEDULER)
    scheduler.set_timesteps(steps)
    trajectory = Trajectory(scheduler)

    def down(latents: torch.Tensor, i: int) -> torch.Tensor:
        return trajectory.denoise(latents, STRONG(latents, trajectory.timesteps[i]), i)

    def up(latents: torch.Tensor, i: int) -> torch.Tensor:
        return trajectory.invert(latents, WEAK(latents, trajectory.timesteps[i]), i)

    for i in range(steps):
        if i < steps - 1 and arm != "strong":
            noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
            reflected = reflect(down, up, latents, i)
            if arm == "advanced Re-Sampling":
                similarity = (noise * (reflected - latents)).sum(1, keepdim=True)
                noise = torch.where(similarity >= 0, noise, -noise)
            if arm != "W2SD":
                reflected = trajectory.renoise(down(latents, i), noise, i)
            latents = reflected
        latents = down(latents, i)
    return latents


def main(
    out: Path = Path("resampling.png"), seeds: PositiveInt = 5, samples: PositiveInt = 5000
) -> dict[str, list[float]]:
    """Measure the shares of the peaks, and the width of the peaks, by arm.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The share of samples at a wrong peak, by arm and seed.
    """
    toy.check_figure(out)
    points = {
        arm: [walk(arm, toy.noise(samples, 2, seed), toy.seeded(1000 + seed)) for seed in range(seeds)] for arm in ARMS
    }
    errors = {arm: [TRUTH.misplaced(drawn) for drawn in samples_by_seed] for arm, samples_by_seed in points.items()}
    print(f"{seeds} seeds, {samples} samples each, T = 50; the truth itself: ", end="")
    print(toy.spread(TRUTH.misplaced(TRUTH.draw(samples, toy.seeded(2000 + seed))) for seed in range(seeds)))
    toy.print_table(
        [
            "arm",
            "share at a wrong peak",
            "share at the neglected peak (0.25 is right)",
            "width of the peaks (1 is right)",
        ],
        [
            (
                arm,
                toy.spread(errors[arm]),
                toy.spread(float(TRUTH.counted(drawn)[-1]) for drawn in samples_by_seed),
                toy.spread(float(drawn.abs().std(0).mean()) / TRUTH.spread for drawn in samples_by_seed),
            )
            for arm, samples_by_seed in points.items()
        ],
    )
    figure, axes = plt.subplots(1, len(ARMS), figsize=(8, 2.4), sharex=True, sharey=True)
    for axis, (arm, samples_by_seed) in zip(axes, points.items(), strict=True):
        axis.hist2d(*samples_by_seed[0].T.numpy(), bins=60, range=[(-6, 6)] * 2, cmap="Greys", vmax=0.01 * samples)
        axis.set_title(arm, fontsize=8)
        axis.set_aspect("equal")
    toy.write_figure(figure, out)
    pairs = zip(errors["advanced Re-Sampling"], errors["Re-Sampling"], strict=True)
    toy.verdict(
        "Advanced Re-Sampling is nearer to the truth than Re-Sampling is",
        [advanced < plain for advanced, plain in pairs],
    )
    return errors


if __name__ == "__main__":
    CLI(main, as_positional=False)
