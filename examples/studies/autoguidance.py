"""AutoGuidance against W2SD at equal numbers of evaluations (table 15 of the paper), at several weights of each.

W2SD takes 3 T - 2 evaluations, AutoGuidance 2 T, so it gets more steps. A strength of W2SD is to first order the same
weight of AutoGuidance. Strong and weak model are exact mixtures with 70 % and 90 % at the right peak, so that an
error is the sampler's. Run: python examples/studies/autoguidance.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import sample

TRUTH, STRONG, WEAK = toy.two_peaks(0.5), toy.two_peaks(0.7), toy.two_peaks(0.9)
WEIGHTS = (0.5, 0.75, 1.0, 1.5, 2.0)
EVALUATIONS = (28, 148)


def draw(arm: str, weight: float, evaluations: int, noise: torch.Tensor) -> torch.Tensor:
    """Return the samples of an arm: "AutoGuidance", or W2SD by the inversion of that name."""
    settings = {"num_inference_steps": (evaluations + 2) // 3, "strength": weight, "inversion": arm}
    if arm == "AutoGuidance":
        settings = {"num_inference_steps": evaluations // 2, "reflection_steps": 0, "autoguidance": weight}
    result = sample(toy.roles(STRONG, STRONG, WEAK), noise, toy.SCHEDULER, **settings)
    if sum(result.nfe.values()) != evaluations:
        raise RuntimeError(f"{arm} took {result.nfe} evaluations, not {evaluations}")
    return result.latents


def main(
    out: Path = Path("autoguidance.png"), seeds: PositiveInt = 5, samples: PositiveInt = 5000
) -> dict[int, dict[str, list[list[float]]]]:
    """Measure the distance to the truth by arm and weight.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The distances by number of evaluations, arm, weight and seed.
    """
    toy.check_figure(out)
    truths = [TRUTH.draw(samples, toy.seeded(1000 + seed)) for seed in range(seeds)]
    figure, axes = plt.subplots(1, len(EVALUATIONS), figsize=(8, 3), sharey=True, squeeze=False)
    distances: dict[int, dict[str, list[list[float]]]] = {}
    for axis, evaluations in zip(axes[0], EVALUATIONS, strict=True):
        distances[evaluations] = {
            arm: [
                [toy.distance(draw(arm, w, evaluations, toy.noise(samples, 1, s)), truths[s]) for s in range(seeds)]
                for w in WEIGHTS
            ]
            for arm in ("AutoGuidance", "paper", "current")
        }
        print(f"Wasserstein-1 distance to the truth, {evaluations} evaluations, {seeds} seeds, {samples} samples each")
        label = {"AutoGuidance": "AutoGuidance", "paper": "W2SD, paper", "current": "W2SD, current"}
        toy.print_table(
            ["arm", *(f"weight {weight}" for weight in WEIGHTS)],
            [(label[arm], *map(toy.spread, by_weight)) for arm, by_weight in distances[evaluations].items()],
        )
        for arm, by_weight in distances[evaluations].items():
            means = [sum(values) / seeds for values in by_weight]
            axis.plot(WEIGHTS, means, "o-", color=toy.COLOURS[arm], label=label[arm])
        axis.set(title=f"{evaluations} evaluations", xlabel="weight, or strength", ylim=(0, None))
    axes[0, 0].set_ylabel("distance to the truth")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    toy.write_figure(figure, out)

    def best(evaluations: int, arm: str, seed: int) -> float:
        return min(values[seed] for values in distances[evaluations][arm])

    for arm in ("paper", "current"):
        wins = [best(n, arm, s) < best(n, "AutoGuidance", s) for n in EVALUATIONS for s in range(seeds)]
        print(f"W2SD by the inversion {arm!r}, both at their best weight: ", end="")
        print(f"ahead in {sum(wins)} of {len(wins)} comparisons.")
    most_evaluations = distances[EVALUATIONS[-1]]
    weight_one = WEIGHTS.index(1.0)
    toy.verdict(
        f"At {EVALUATIONS[-1]} evaluations the paper's W2SD is nearer to the truth than AutoGuidance of weight 1",
        [
            w2sd < rival
            for w2sd, rival in zip(
                most_evaluations["paper"][weight_one], most_evaluations["AutoGuidance"][weight_one], strict=True
            )
        ],
    )
    return distances


if __name__ == "__main__":
    CLI(main, as_positional=False)
