"""1-D mixture (figures 1 and 4 of the paper): reflection between two networks trained on unbalanced data.

The truth has peaks at -4 and 4, equally likely. Of the strong network's data 70 % lie at the right peak, of the weak
one's 90 %. S2WD swaps the roles of the reflection. Run: python examples/studies/mixture_1d.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

TRUTH, STRONG, WEAK = toy.two_peaks(0.5), toy.two_peaks(0.7), toy.two_peaks(0.9)


def main(
    out: Path = Path("mixture_1d.png"), seeds: PositiveInt = 5, samples: PositiveInt = 5000, steps: PositiveInt = 3000
) -> dict[str, list[float]]:
    """Train both networks for each seed, and sample in four ways from the same noise.

    Args:
        out: the figure.
        seeds: how often everything is repeated, data and training included.
        samples: points drawn in each arm.
        steps: training steps of a network.

    Returns:
        The share of samples at the right peak, by arm and seed.
    """
    toy.check_figure(out)
    points: dict[str, list[torch.Tensor]] = {}
    for seed in range(seeds):
        strong, weak = (toy.train(data.draw(5000, toy.seeded(seed)), seed, steps) for data in (STRONG, WEAK))
        arms = toy.four_arms(strong, weak, toy.noise(samples, 1, 1000 + seed))
        for name, drawn in {"truth": TRUTH.draw(samples, toy.seeded(2000 + seed)), **arms}.items():
            points.setdefault(name, []).append(drawn)

    shares = {
        name: [float((drawn > 0).float().mean()) for drawn in samples_by_seed]
        for name, samples_by_seed in points.items()
    }
    print(f"{seeds} seeds, {samples} samples each, T = 50")
    toy.print_table(
        ["arm", "share at the right peak", "Wasserstein-1 distance to the truth"],
        [
            (
                name,
                toy.spread(shares[name]),
                toy.spread(toy.distance(drawn, TRUTH.draw(samples, toy.seeded(3000))) for drawn in samples_by_seed),
            )
            for name, samples_by_seed in points.items()
        ],
    )
    figure, axis = plt.subplots(figsize=(6, 3))
    toy.plot_densities(axis, {name: torch.cat(samples_by_seed) for name, samples_by_seed in points.items()})
    toy.write_figure(figure, out)
    toy.verdict(
        "W2SD brings the share nearer to the truth than the strong model alone, S2WD takes it further away",
        [
            abs(w2sd - 0.5) < abs(strong - 0.5) < abs(s2wd - 0.5)
            for strong, w2sd, s2wd in zip(shares["strong"], shares["W2SD"], shares["S2WD"], strict=True)
        ],
    )
    return shares


if __name__ == "__main__":
    CLI(main, as_positional=False)
