"""Direction of the gaps over a training (figure 19 of the paper): cos(strong - weak, truth - strong) by noise level.

The data are four peaks in the plane, whose exact score is the truth. Two kinds of pair: networks trained on unbalanced
data, both after as many epochs; and two checkpoints of one training on the right data.
Run: python examples/studies/cos_gaps.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

DATA = {
    "truth": toy.four_peaks(0.25, 0.25, 0.25, 0.25),
    "strong": toy.four_peaks(0.4, 0.25, 0.2, 0.15),
    "weak": toy.four_peaks(0.6, 0.2, 0.15, 0.05),
}
STEPS_PER_EPOCH = 4
"""2,048 points of data, in batches of 512."""
EPOCHS = (100, 300, 500)
TIMESTEPS = (100, 300, 500, 700, 900)


def checkpoints(data: toy.Mixture, seed: int) -> list[toy.Network]:
    """Return the networks after each of the epochs of one training."""
    networks: list[toy.Network] = []

    def keep(step: int, network: toy.Network) -> None:
        if step in [epoch * STEPS_PER_EPOCH for epoch in EPOCHS]:
            networks.append(copy.deepcopy(network).requires_grad_(False))

    points = data.draw(512 * STEPS_PER_EPOCH, toy.seeded(seed))
    toy.train(points, seed, STEPS_PER_EPOCH * EPOCHS[-1], checkpoint=keep)
    return networks


def cosine(strong: toy.Model, weak: toy.Model, timestep: int, generator: torch.Generator) -> float:
    """Return the mean cosine of both gaps over noised samples of the truth."""
    clean = DATA["truth"].draw(4000, generator)
    t = torch.tensor(timestep)
    noisy = toy.SCHEDULER.add_noise(clean, torch.randn(clean.shape, generator=generator), t)
    prediction = strong(noisy, t)
    # Noise predictions are negative scores, and so are both differences.
    gap, to_truth = prediction - weak(noisy, t), DATA["truth"](noisy, t) - prediction
    return float(torch.cosine_similarity(gap, to_truth, dim=1).mean())


def main(out: Path = Path("cos_gaps.png"), seeds: PositiveInt = 3) -> dict[str, list[list[float]]]:
    """Train for each seed, and measure the cosine by pair and noise level.

    Args:
        out: the figure.
        seeds: how often everything is repeated, data and training included.

    Returns:
        The cosines by pair, noise level and seed.
    """
    toy.check_figure(out)
    cosines: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        trained = {name: checkpoints(data, seed) for name, data in DATA.items()}
        pairs: dict[str, tuple[toy.Model, toy.Model]] = {"unbalanced, exact": (DATA["strong"], DATA["weak"])}
        for k, epochs in enumerate(EPOCHS):
            pairs[f"unbalanced, {epochs} epochs"] = (trained["strong"][k], trained["weak"][k])
        for late, early in ((1, 0), (2, 0), (2, 1)):
            name = f"one training, {EPOCHS[late]} over {EPOCHS[early]} epochs"
            pairs[name] = (trained["truth"][late], trained["truth"][early])
        for name, (strong, weak) in pairs.items():
            by_level = cosines.setdefault(name, [[] for _ in TIMESTEPS])
            for values, timestep in zip(by_level, TIMESTEPS, strict=True):
                values.append(cosine(strong, weak, timestep, toy.seeded(1000 + seed)))

    print(f"cosine of the gaps, {seeds} seeds, 4000 noised points each")
    toy.print_table(
        ["pair", *(f"t = {timestep}" for timestep in TIMESTEPS)],
        [(name, *(toy.spread(values, 2) for values in by_level)) for name, by_level in cosines.items()],
    )
    figure, axis = plt.subplots(figsize=(6, 3))
    for name, by_level in cosines.items():
        style = "s--" if name.startswith("one") else "o-"
        axis.plot(TIMESTEPS, [sum(values) / seeds for values in by_level], style, label=name, markersize=3)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="timestep", ylabel="cos(Δ1, Δ2)")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    toy.write_figure(figure, out)
    for kind in ("one training", "unbalanced"):
        cosines_of_kind = [by_level for name, by_level in cosines.items() if name.startswith(kind)]
        means = [
            [sum(by_level[k][s] for k in range(len(TIMESTEPS))) for by_level in cosines_of_kind] for s in range(seeds)
        ]
        toy.verdict(
            f"Pairs of the kind {kind!r} have a positive cosine, averaged over the levels, at every checkpoint",
            [min(row) > 0 for row in means],
        )
    return cosines


if __name__ == "__main__":
    CLI(main, as_positional=False)
