"""Solver, noise and time grid under the same push: which takes the steps best at equal evaluations (not in the paper).

Six pairs of exact models; AutoGuidance of weight 1 and W2SD of strength 1, both in the late half of the steps. UniPC is
DPM-Solver++ 2M with a corrector, which costs no evaluation. Run: python examples/studies/solvers_exact.py
"""

from __future__ import annotations

import math
from typing import Any

import exact_pairs
import toy
from exact_pairs import PAIRS
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from operators_exact import BUDGETS, GRIDS, SOLVERS, steps_within

OPERATORS: dict[str, dict[str, Any]] = {
    "AutoGuidance": {"reflection_steps": 0, "autoguidance": 1.0, "autoguidance_steps": (0.5, 1.0)},
    "W2SD current": {"inversion": "current", "reflection_steps": (0.5, 1.0)},
}
KINDS: tuple[exact_pairs.Kind, ...] = ("epsilon", "flow")


def mean_distance(samples: int, seed: int, budget: int, kind: exact_pairs.Kind, setting: dict[str, Any]) -> float:
    """Return the geometric mean over the pairs of the distance to the truth."""
    roles, steps = exact_pairs.roles_of(list(PAIRS)), steps_within(budget, setting)
    drawn, _ = exact_pairs.sampled(roles, toy.noise(samples, 2, seed), steps, kind=kind, seed=seed, **setting)
    distances = exact_pairs.distances(drawn)
    return math.exp(sum(map(math.log, distances)) / len(distances))


def main(seeds: PositiveInt = 3, samples: PositiveInt = 4096) -> dict[tuple[str, str, str, float], list[list[float]]]:
    """Measure each operator by each solver on each grid.

    Args:
        seeds: how often everything is repeated.
        samples: points drawn of each pair.

    Returns:
        Distances by prediction type, operator, solver and grid: of each budget, of each seed.
    """
    found: dict[tuple[str, str, str, float], list[list[float]]] = {}
    for kind in KINDS:
        for operator, setting in OPERATORS.items():
            for solver in SOLVERS[kind]:
                for grid in GRIDS:
                    how = setting | {"solver": solver, "grid": grid}
                    found[kind, operator, solver, grid] = [
                        [mean_distance(samples, seed, budget, kind, how) for seed in range(seeds)] for budget in BUDGETS
                    ]
    print(f"distance to the truth, geometric mean of {len(PAIRS)} pairs, {seeds} seeds x {samples} samples")
    toy.print_table(
        ["prediction", "operator", "solver", "grid", *(f"{budget} NFE" for budget in BUDGETS)],
        [(*key[:3], f"{key[3]:g}", *map(toy.with_error, by_budget)) for key, by_budget in found.items()],
    )
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
