"""What half as many evaluations again buy: settings at 1.5 times the plain cost, and their share of the full gain.

Six pairs of exact models, first-order steps, weight and strength 1, as many steps in every row. The gain is the fall of
the logarithm of the distance to the truth from the strong model alone; the full one is the largest of the rows that
cost two or three times as much. Run: python examples/studies/fast_preset.py
"""

from __future__ import annotations

from typing import Any

import exact_pairs
import torch
import toy
from exact_pairs import PAIRS, Kind
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from zero_gap import KINDS

STEPS = (10, 20, 40)
LATE, MIDDLE, EARLY = (0.5, 1.0), (0.25, 0.75), (0.0, 0.5)


def _push(steps: Any = None, **more: Any) -> dict[str, Any]:
    return {"reflection_steps": 0, "autoguidance": 1.0, "autoguidance_steps": steps, **more}


SETTINGS: dict[str, dict[str, Any]] = {
    "AutoGuidance, late half": _push(LATE),
    "AutoGuidance, middle": _push(MIDDLE),
    "AutoGuidance, early half": _push(EARLY),
    "AutoGuidance, every second step": _push(reuse=2),
    "AutoGuidance, every second step, linear": _push(reuse=2, carried="linear"),
    "AutoGuidance, every second step, as sample": _push(reuse=2, reading="sample"),
    "AutoGuidance, every second step of the last three quarters": _push((0.25, 1.0), reuse=2),
    "W2SD current, every second step of the late half": {"inversion": "current", "reflection_steps": LATE, "reuse": 2},
    "W2SD current, every second step of the middle": {"inversion": "current", "reflection_steps": MIDDLE, "reuse": 2},
    "W2SD current, every fourth step": {"inversion": "current", "reuse": 4},
    "W2SD current, the last quarter": {"inversion": "current", "reflection_steps": (0.75, 1.0)},
}
FULL: dict[str, dict[str, Any]] = {
    "AutoGuidance, all steps": _push(),
    "W2SD current, all steps but the last": {"inversion": "current"},
    "W2SD paper, all steps but the last": {"inversion": "paper"},
    "W2SD current, late half": {"inversion": "current", "reflection_steps": LATE},
}


def logs(kind: Kind, steps: int, samples: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean over the pairs of the logarithm of each setting's distance, and its cost as a share of T."""
    noise, found, costs = toy.noise(samples, 2, seed), {}, {}
    for name, setting in {"strong alone": {"reflection_steps": 0}, **SETTINGS, **FULL}.items():
        roles = exact_pairs.roles_of(list(PAIRS))
        drawn, cost = exact_pairs.sampled(roles, noise, steps, kind=kind, solver=KINDS[kind], **setting)
        found[name] = float(torch.tensor(exact_pairs.distances(drawn)).log().mean())
        costs[name] = cost / steps
    return found, costs


def main(seeds: PositiveInt = 5, samples: PositiveInt = 4096) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Measure each setting's distance, cost and share of the full gain.

    Args:
        seeds: how often everything is repeated.
        samples: points drawn in each row.

    Returns:
        The share of the full gain of each seed, by prediction type, number of steps and setting.
    """
    shares: dict[tuple[str, int], dict[str, list[float]]] = {}
    for kind in ("epsilon", "flow"):
        counted = f"{seeds} seeds x {samples} samples, {len(PAIRS)} pairs"
        print(f"{kind}: share of the full gain ± standard error over {counted}")
        costs: dict[str, float] = {}
        for steps in STEPS:
            table = shares.setdefault((kind, steps), {})
            for seed in range(seeds):
                found, costs = logs(kind, steps, samples, seed)
                alone, best = found["strong alone"], min(found[name] for name in FULL)
                for name in (*SETTINGS, *FULL):
                    table.setdefault(name, []).append((alone - found[name]) / (alone - best))
        toy.print_table(
            ["setting", "cost (of 40 steps)", *(f"T = {steps}" for steps in STEPS)],
            [
                (name, f"{costs[name]:.2f}", *(toy.percent(shares[kind, steps][name]) for steps in STEPS))
                for name in (*SETTINGS, *FULL)
            ],
        )
        print(flush=True)
    return shares


if __name__ == "__main__":
    CLI(main, as_positional=False)
