"""Two gaps, each alone and together (table 6 of the paper): a gap of weights and a gap of guidance.

A model conditioned on the class "right" should draw from the two peaks at x = 4, equally. The strong one draws 20 %
from the wrong class (as weak conditioning does) and 70 % from the upper peaks (as unbalanced data do). The weak model
of the guidance gap is unconditional; that of the weight gap has 90 % at the upper peaks; the third has both faults.
All are exact mixtures. Run: python examples/studies/cumulative.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import sample


def model(right: float, upper: float) -> toy.Mixture:
    """Return the four peaks with the shares of the right and of the upper ones."""
    return toy.four_peaks((1 - right) * (1 - upper), (1 - right) * upper, right * (1 - upper), right * upper)


STRONG = model(right=0.8, upper=0.7)
WEAK = {
    "strong alone": STRONG,
    "weight gap": model(right=0.8, upper=0.9),
    "guidance gap": model(right=0.5, upper=0.7),
    "both gaps": model(right=0.5, upper=0.9),
}


def main(
    out: Path = Path("cumulative.png"), seeds: PositiveInt = 5, samples: PositiveInt = 5000
) -> dict[str, list[float]]:
    """Measure the shares of the right and of the upper peaks by gap.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The share of samples at a wrong peak, by arm and seed.
    """
    toy.check_figure(out)
    truth = model(right=1.0, upper=0.5)
    points: dict[str, list[torch.Tensor]] = {}
    for name, weak in WEAK.items():
        predict = toy.roles(STRONG, STRONG, weak)
        steps = 0 if weak is STRONG else None
        points[name] = [
            sample(
                predict, toy.noise(samples, 2, seed), toy.SCHEDULER, num_inference_steps=50, reflection_steps=steps
            ).latents
            for seed in range(seeds)
        ]
    errors = {name: [truth.misplaced(drawn) for drawn in samples_by_seed] for name, samples_by_seed in points.items()}

    print(f"{seeds} seeds, {samples} samples each, T = 50")
    toy.print_table(
        ["arm", "right class (1 is right)", "upper peaks (0.5 is right)", "share at a wrong peak"],
        [
            (
                name,
                *(
                    toy.spread(float((drawn[:, axis] > 0).float().mean()) for drawn in samples_by_seed)
                    for axis in (0, 1)
                ),
                toy.spread(errors[name]),
            )
            for name, samples_by_seed in points.items()
        ],
    )
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.4), sharex=True, sharey=True)
    for axis, (name, samples_by_seed) in zip(axes, points.items(), strict=True):
        axis.hist2d(*samples_by_seed[0].T.numpy(), bins=60, range=[(-6, 6)] * 2, cmap="Greys", vmax=0.01 * samples)
        axis.set(title=name, aspect="equal")
    toy.write_figure(figure, out)
    toy.verdict(
        "Each gap alone improves on the strong model, and both together on each",
        [
            both < min(weights, guidance) and max(weights, guidance) < strong
            for strong, weights, guidance, both in zip(*errors.values(), strict=True)
        ],
    )
    return errors


if __name__ == "__main__":
    CLI(main, as_positional=False)
