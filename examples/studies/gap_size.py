"""Size and sign of the gap (figures 11 and 12 of the paper): weak models from better to far worse than the strong one.

All models are exact mixtures. The truth has half of its mass at the right peak, the strong model 70 %, the weak ones
from 40 to 99 %; below 70 % the gap points the wrong way. Run: python examples/studies/gap_size.py
"""

from __future__ import annotations

from pathlib import Path

import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video import sample

TRUTH, STRONG = toy.two_peaks(0.5), toy.two_peaks(0.7)
STEPS = 50
WEAK = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)


def main(
    out: Path = Path("gap_size.png"), seeds: PositiveInt = 3, samples: PositiveInt = 5000
) -> dict[float | str, list[float]]:
    """Measure the share at the right peak and the distance to the truth by the weak model.

    Args:
        out: the figure.
        seeds: how often everything is repeated.
        samples: points drawn with each weak model.

    Returns:
        The distances by the weak model's share at the right peak (or "strong alone"), and seed.
    """
    toy.check_figure(out)
    shares: dict[float | str, list[float]] = {}
    distances: dict[float | str, list[float]] = {}
    for weak in ("strong alone", *WEAK):
        predict = toy.roles(STRONG, STRONG, STRONG if weak == "strong alone" else toy.two_peaks(weak))
        reflected = 0 if weak == "strong alone" else STEPS - 1
        for seed in range(seeds):
            drawn = sample(
                predict,
                toy.noise(samples, 1, seed),
                toy.SCHEDULER,
                num_inference_steps=STEPS,
                reflection_steps=reflected,
            ).latents
            shares.setdefault(weak, []).append(float((drawn > 0).float().mean()))
            distances.setdefault(weak, []).append(toy.distance(drawn, TRUTH.draw(samples, toy.seeded(1000 + seed))))

    print(f"{seeds} seeds, {samples} samples each, T = {STEPS}; the gap is zero at 0.7")
    toy.print_table(
        ["weak model's share at the right peak", "samples at the right peak", "Wasserstein-1 distance to the truth"],
        [(weak, toy.spread(shares[weak]), toy.spread(distances[weak])) for weak in shares],
    )
    figure, axis = plt.subplots(figsize=(6, 3))
    alone = distances["strong alone"]
    axis.plot(WEAK, [sum(distances[weak]) / seeds for weak in WEAK], "o-", color=toy.COLOURS["W2SD"], label="W2SD")
    axis.axhline(sum(alone) / seeds, color=toy.COLOURS["strong"], label="strong alone")
    axis.axvline(0.7, color="black", linestyle=":", label="zero gap")
    axis.set(xlabel="weak model's share at the right peak", ylabel="distance to the truth")
    axis.legend()
    toy.write_figure(figure, out)
    toy.verdict(
        "With weak models of 0.8 and 0.9 W2SD is nearer to the truth than the strong model, with 0.5 and 0.6 further",
        [
            max(distances[0.8][s], distances[0.9][s]) < alone[s] < min(distances[0.5][s], distances[0.6][s])
            for s in range(seeds)
        ],
    )
    return distances


if __name__ == "__main__":
    CLI(main, as_positional=False)
