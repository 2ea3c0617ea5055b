"""Equal time (figure 13 of the paper): T/2 steps of which T/4 are reflected, against T plain steps.

Both take T evaluations. So does AutoGuidance with T/2 steps, which the paper doesn't compare here. Strong and weak
model are exact mixtures with 70 % and 90 % at the right peak. Run: python examples/studies/equal_time.py
"""

from __future__ import annotations

from pathlib import Path

import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import sample

TRUTH, STRONG, WEAK = toy.two_peaks(0.5), toy.two_peaks(0.7), toy.two_peaks(0.9)
STEPS = (8, 16, 32, 52, 100)
ARMS = ("strong", "W2SD", "AutoGuidance")


def settings(arm: str, evaluations: int) -> dict[str, float]:
    """Return the settings of ``sample`` with which an arm takes so many evaluations (a multiple of 4)."""
    if arm == "strong":
        return {"num_inference_steps": evaluations, "reflection_steps": 0}
    if arm == "W2SD":
        return {"num_inference_steps": evaluations // 2, "reflection_steps": evaluations // 4}
    return {"num_inference_steps": evaluations // 2, "reflection_steps": 0, "autoguidance": 1.0}


def main(
    out: Path = Path("equal_time.png"), seeds: PositiveInt = 5, samples: PositiveInt = 5000
) -> dict[int, dict[str, list[float]]]:
    """Measure the distance to the truth by the number of evaluations.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn in each arm.

    Returns:
        The distances by number of evaluations, arm and seed.

    Raises:
        RuntimeError: an arm took another number of evaluations than the others.
    """
    toy.check_figure(out)
    distances: dict[int, dict[str, list[float]]] = {steps: {arm: [] for arm in ARMS} for steps in STEPS}
    for seed in range(seeds):
        noise, truth = toy.noise(samples, 1, seed), TRUTH.draw(samples, toy.seeded(1000 + seed))
        for steps in STEPS:
            for arm in ARMS:
                result = sample(toy.roles(STRONG, STRONG, WEAK), noise, toy.SCHEDULER, **settings(arm, steps))
                if sum(result.nfe.values()) != steps:
                    raise RuntimeError(f"{arm} took {result.nfe} evaluations, not {steps}")
                distances[steps][arm].append(toy.distance(result.latents, truth))

    is_ahead = {
        steps: [w2sd < strong for w2sd, strong in zip(arms["W2SD"], arms["strong"], strict=True)]
        for steps, arms in distances.items()
    }
    print(f"Wasserstein-1 distance to the truth, {seeds} seeds, {samples} samples each")
    toy.print_table(
        ["evaluations", *ARMS, "W2SD ahead of strong, seeds"],
        [(steps, *(toy.spread(distances[steps][arm]) for arm in ARMS), sum(is_ahead[steps])) for steps in STEPS],
    )
    figure, axis = plt.subplots(figsize=(5, 3))
    for arm in ARMS:
        means = [sum(distances[steps][arm]) / seeds for steps in STEPS]
        axis.plot(STEPS, means, "o-", color=toy.COLOURS[arm], label=arm)
    axis.set(xlabel="evaluations of the network", ylabel="distance to the truth", ylim=(0, None))
    axis.legend()
    toy.write_figure(figure, out)
    autoguidance_ahead = all(
        distances[n]["AutoGuidance"][s] < distances[n]["W2SD"][s] for n in STEPS for s in range(seeds)
    )
    print(f"AutoGuidance is nearer to the truth than W2SD everywhere: {'yes' if autoguidance_ahead else 'no'}.")
    toy.verdict(
        "From about the paper's T = 50 on, W2SD is nearer to the truth than the strong model alone in equal time",
        [all(of_seed) for of_seed in zip(is_ahead[52], is_ahead[100], strict=True)],
    )
    return distances


if __name__ == "__main__":
    CLI(main, as_positional=False)
