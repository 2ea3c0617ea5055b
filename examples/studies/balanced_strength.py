"""How near calibration's balanced strength comes to the best one, in the window that it is for (not in the paper).

Six pairs of exact models, 20 steps of DDIM, inversion current. The tuned strength is the best of 17 on other noise;
calibration sees samples of the truth in the place of real clips, and its own. Run:
python examples/studies/balanced_strength.py
"""

from __future__ import annotations

from typing import Any

import exact_pairs
import numpy as np
import torch
import toy
from exact_pairs import PAIRS, TRUTH, Pair
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt

from w2sd_video import Trajectory, Window
from w2sd_video.algorithm import drive
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import compare
from w2sd_video.calibration.tilt import balance

STEPS = 20
WINDOWS = {"all but the last": (0.0, 0.95), "early half": (0.0, 0.5), "middle": (0.25, 0.75), "late half": (0.5, 1.0)}
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.3, 4.0)
PICKS = ("strong alone", "strength 1", "balanced", "tuned")


def distances(noise: torch.Tensor, window: tuple[float, float], strength: float) -> list[float]:
    """Return each pair's distance to the truth; at a strength of 0 that of the strong model alone."""
    return exact_pairs.distances(drawn(noise, window, strength))


def drawn(noise: torch.Tensor, window: tuple[float, float], strength: float) -> torch.Tensor:
    """Return samples (pairs, count, 2)."""
    where: Any = window if strength else 0
    settings = {"strength": strength, "inversion": "current", "reflection_steps": where}
    return exact_pairs.sampled(exact_pairs.roles_of(list(PAIRS)), noise, STEPS, solver="DDIM", **settings)[0]


def moments(pair: Pair, clips: torch.Tensor, trajectory: Trajectory, seed: int) -> Moments:
    """Compare a pair on clips (count, 2)."""
    generator = toy.seeded(seed)

    def answer(asked: Any) -> torch.Tensor:
        alpha, sigma = trajectory.level(asked.step)
        model, latents = getattr(pair, asked.role), asked.latents[None]
        return ((latents - alpha * exact_pairs.denoised((model,), latents, alpha, sigma)) / sigma)[0]

    return drive(compare(trajectory, clips, 1, lambda like: torch.randn(like.shape, generator=generator)), answer)


def balanced(window: tuple[float, float], samples: int, seed: int) -> list[float]:
    """Return each pair's balanced strength in a window."""
    scheduler = exact_pairs.scheduler_of("epsilon", "DDIM")
    scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(scheduler)
    of_arm = [drawn(toy.noise(samples, 2, 100 + seed), window, strength) for strength in (0.0, 1.0)]
    found = []
    for number, pair in enumerate(PAIRS.values()):
        clips = (TRUTH.draw(samples, toy.seeded(200 + seed)), of_arm[0][number], of_arm[1][number])
        real, alone, reflected = (moments(pair, each, trajectory, 300 + seed) for each in clips)
        found.append(balance(real, alone, reflected, resamples=2, within=real.within(Window(*window)))[0].value)
    return found


def main(seeds: PositiveInt = 3, samples: PositiveInt = 2048) -> dict[str, dict[str, list[list[float]]]]:
    """Calibrate and tune each pair in each window.

    Args:
        seeds: how often everything is repeated.
        samples: points that are compared, sampled and measured.

    Returns:
        Distances to the truth by window, how the strength was picked, seed and pair.
    """
    found: dict[str, dict[str, list[list[float]]]] = {name: {pick: [] for pick in PICKS} for name in WINDOWS}
    strengths: dict[str, list[list[float]]] = {name: [] for name in WINDOWS}
    for name, window in WINDOWS.items():
        for seed in range(seeds):
            search = torch.tensor([distances(toy.noise(samples, 2, 400 + seed), window, s) for s in STRENGTHS])
            tuned = [STRENGTHS[k] for k in search.argmin(0).tolist()]
            strengths[name].append(balanced(window, samples, seed))
            picked = zip(PICKS, ([0.0] * len(PAIRS), [1.0] * len(PAIRS), strengths[name][-1], tuned), strict=True)
            for pick, of_pairs in picked:
                noise = toy.noise(samples, 2, seed)
                values = [distances(noise, window, strength)[k] for k, strength in enumerate(of_pairs)]
                found[name][pick].append(values)
    print(f"distance to the truth, geometric mean of {len(PAIRS)} pairs, {seeds} seeds x {samples} samples")
    toy.print_table(
        ["window", *PICKS],
        [(name, *(toy.with_error(np.exp(np.log(found[name][p]).mean(1))) for p in PICKS)) for name in WINDOWS],
    )
    print("\nlate half, by pair")
    late = found["late half"]
    toy.print_table(
        ["pair", *PICKS, "balanced strength"],
        [
            (pair, *(toy.with_error(np.array(late[p])[:, k]) for p in PICKS), _mean(strengths["late half"], k))
            for k, pair in enumerate(PAIRS)
        ],
    )
    return found


def _mean(strengths: list[list[float]], k: int) -> str:
    return toy.with_error((of_pairs[k] for of_pairs in strengths), 2)


if __name__ == "__main__":
    CLI(main, as_positional=False)
