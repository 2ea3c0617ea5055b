"""2-D mixture (figure 5 of the paper): densities and paths of networks trained on unbalanced data.

The truth has four peaks, equally likely; the strong network's data neglect some of them, the weak one's neglect them
more. Run: python examples/studies/mixture_2d.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import sample
from w2sd_video.sampler import Predict

TRUTH = toy.four_peaks(0.25, 0.25, 0.25, 0.25)
STRONG, WEAK = toy.four_peaks(0.4, 0.25, 0.2, 0.15), toy.four_peaks(0.6, 0.2, 0.15, 0.05)


def main(
    out: Path = Path("mixture_2d.png"), seeds: PositiveInt = 3, samples: PositiveInt = 5000, steps: PositiveInt = 3000
) -> dict[str, list[float]]:
    """Train both networks for each seed, and sample in four ways from the same noise.

    Args:
        out: the figure.
        seeds: how often everything is repeated, data and training included.
        samples: points drawn in each arm.
        steps: training steps of a network.

    Returns:
        The share of samples at a wrong peak, by arm and seed.
    """
    toy.check_figure(out)
    shares: dict[str, list[torch.Tensor]] = {}
    errors: dict[str, list[float]] = {}
    for seed in range(seeds):
        strong, weak = (toy.train(data.draw(5000, toy.seeded(seed)), seed, steps) for data in (STRONG, WEAK))
        noise = toy.noise(samples, 2, 1000 + seed)
        points = {"truth": TRUTH.draw(samples, toy.seeded(2000 + seed)), **toy.four_arms(strong, weak, noise)}
        for name, drawn in points.items():
            shares.setdefault(name, []).append(TRUTH.counted(drawn))
            errors.setdefault(name, []).append(TRUTH.misplaced(drawn))

    print(f"{seeds} seeds, {samples} samples each, T = 50")
    peaks = [f"share at {tuple(int(x) for x in peak)}" for peak in TRUTH.peaks]
    toy.print_table(
        ["arm", *peaks, "share at a wrong peak"],
        [
            (
                name,
                *(toy.spread(peak_shares[k] for peak_shares in shares_by_seed) for k in range(4)),
                toy.spread(errors[name]),
            )
            for name, shares_by_seed in shares.items()
        ],
    )
    toy.write_figure(draw(points, noise[:12], strong, weak), out)
    toy.verdict(
        "W2SD brings the shares nearer to the truth than the strong model alone, S2WD takes them further away",
        [
            w2sd < strong < s2wd
            for strong, w2sd, s2wd in zip(errors["strong"], errors["W2SD"], errors["S2WD"], strict=True)
        ],
    )
    return errors


def draw(points: dict[str, torch.Tensor], noise: torch.Tensor, strong: toy.Network, weak: toy.Network) -> plt.Figure:
    """Return the densities, and the paths from a few points of noise."""
    figure, axes = plt.subplots(2, 3, figsize=(7, 4.6), sharex=True, sharey=True, layout="constrained")
    *axes, last = axes.flat
    for axis, (name, drawn) in zip(axes, points.items(), strict=True):
        axis.hist2d(*drawn.T.numpy(), bins=60, range=[(-6, 6)] * 2, cmap="Greys", vmax=0.01 * len(drawn))
        axis.set(title=name, aspect="equal")
    for name, reflected in (("strong", 0), ("W2SD", 49)):
        path = follow(noise, toy.roles(strong, strong, weak), reflected)
        lines = last.plot(*path.permute(2, 0, 1).numpy(), color=toy.COLOURS[name], linewidth=0.8)
        lines[0].set_label(name)
    last.set(title="paths", aspect="equal")
    last.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def follow(noise: torch.Tensor, predict: Predict, reflection_steps: int) -> torch.Tensor:
    """Return the latents (steps + 1, samples, 2) on the way from noise to samples."""
    path = [noise]
    sample(
        predict,
        noise,
        toy.SCHEDULER,
        num_inference_steps=50,
        reflection_steps=reflection_steps,
        callback=lambda step, latents: path.append(latents),
    )
    return torch.stack(path)


if __name__ == "__main__":
    CLI(main, as_positional=False)
