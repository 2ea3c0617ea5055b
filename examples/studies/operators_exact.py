"""Which operator pays at equal evaluations: all of them on six pairs of exact models (not in the paper).

Each arm is given the same number of settings, drawn at random from what it leaves open, at as many steps as the budget
allows. The best of them on some noise is measured on other noise, for each pair by itself; all of it is done a few
times over, so that the luck of a search is in the standard errors. Run: python examples/studies/operators_exact.py
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import exact_pairs
import torch
import toy
from exact_pairs import PAIRS, Kind, roles_of
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

BUDGETS = (10, 20, 40)
GRIDS = (1.0, 1.3, 1.6)
SOLVERS: dict[Kind, tuple[str, ...]] = {
    "epsilon": ("Euler", "2M", "UniPC", "ancestral", "2M SDE"),
    "v_prediction": ("Euler", "2M", "UniPC", "ancestral", "2M SDE"),
    "flow": ("Euler", "2M", "UniPC", "2M SDE"),
}
Setting = dict[str, Any]
"""Arguments of `exact_pairs.sampled`; "guided" has the scales of base, strong and weak, None being the weak model."""


def _step(rng: random.Random, kind: Kind) -> Setting:
    """Return how the steps that count are taken."""
    return {"solver": rng.choice(SOLVERS[kind]), "grid": rng.choice(GRIDS)}


def _window(rng: random.Random) -> tuple[float, float]:
    return rng.choice([(a, b) for a in (0.0, 0.25, 0.5) for b in (0.5, 0.75, 1.0) if a < b])


def _weight(rng: random.Random) -> float:
    return round(math.exp(rng.uniform(math.log(0.2), math.log(4.0))), 2)


def _alone(rng: random.Random, kind: Kind) -> Setting:
    return {"reflection_steps": 0, **_step(rng, kind)}


def _autoguidance(*opened: str, weak: float | None = None) -> Callable[[random.Random, Kind], Setting]:
    """Return a drawing of AutoGuidance, or of guidance where weak is the strong model without condition (scale 0)."""

    def draw(rng: random.Random, kind: Kind) -> Setting:
        setting: Setting = {"reflection_steps": 0, "autoguidance": _weight(rng), "guided": (1.0, 1.0, weak)}
        if "window" in opened:
            setting["autoguidance_steps"] = _window(rng)
        if "grid" in opened:
            setting["grid"] = rng.choice(GRIDS)
        if "solver" in opened:
            setting["solver"] = rng.choice(SOLVERS[kind])
        if "reuse" in opened:
            setting |= {"reuse": rng.choice((1, 2, 3)), "reading": "sample", "carried": rng.choice(("held", "linear"))}
        return setting

    return draw


def _w2sd(inversion: str, *, reuse: bool = False) -> Callable[[random.Random, Kind], Setting]:
    """Return a drawing of W2SD by an inversion."""

    def draw(rng: random.Random, kind: Kind) -> Setting:
        start, stop = _window(rng)
        setting = {
            "inversion": inversion,
            "iterations": 1 + (inversion == "implicit"),
            "strength": _weight(rng),
            "reflection_steps": (start, min(stop, 0.75) if inversion == "explicit" else stop),
            "reading": rng.choice(("epsilon", "sample")),
            **_step(rng, kind),
        }
        return setting | ({"reuse": rng.choice((2, 3)), "carried": rng.choice(("held", "linear"))} if reuse else {})

    return draw


def _published(rng: random.Random, kind: Kind) -> Setting:
    return {"inversion": "paper", "strength": _weight(rng)}


def _z_sampling(rng: random.Random, kind: Kind) -> Setting:
    return {
        **_w2sd(rng.choice(("paper", "current")))(rng, kind),
        "guided": (rng.choice((1.0, 1.5, 2.0)), rng.choice((1.0, 2.0, 4.0)), 0.0),
    }


def _re_sampling(rng: random.Random, kind: Kind) -> Setting:
    window = {"reflection_steps": _window(rng), "rounds": rng.choice((1, 2))}
    return {"inversion": "resample", **window, "guided": (rng.choice((1.0, 1.5, 2.0)), 1.0, None), **_step(rng, kind)}


ARMS: dict[str, Callable[[random.Random, Kind], Setting]] = {
    "strong alone": _alone,
    "guidance": _autoguidance("window", "grid", "solver", weak=0.0),
    "AutoGuidance, weight only": _autoguidance(),
    "+ window": _autoguidance("window"),
    "+ window, grid": _autoguidance("window", "grid"),
    "+ window, grid, solver": _autoguidance("window", "grid", "solver"),
    "+ window, grid, solver, gap held": _autoguidance("window", "grid", "solver", "reuse"),
    "W2SD as published, strength only": _published,
    "W2SD paper": _w2sd("paper"),
    "W2SD explicit": _w2sd("explicit"),
    "W2SD current": _w2sd("current"),
    "W2SD implicit": _w2sd("implicit"),
    "W2SD current, gap held": _w2sd("current", reuse=True),
    "Z-Sampling": _z_sampling,
    "Re-Sampling": _re_sampling,
}
"""How a setting of each arm is drawn; those with a + are AutoGuidance."""


def drawn_by(
    pairs: Sequence[str], noise: torch.Tensor, steps: int, setting: Setting, **how: Any
) -> tuple[torch.Tensor, int]:
    """Return samples of some pairs by a setting, and the evaluations each took."""
    rest = {name: value for name, value in setting.items() if name != "guided"}
    roles = roles_of(pairs, setting.get("guided", (1.0, 1.0, None)))
    return exact_pairs.sampled(roles, noise, steps, **rest, **how)


def steps_within(budget: int, setting: Setting) -> int:
    """Return the most steps that a setting can take within a budget of evaluations."""
    first_order = {name: value for name, value in setting.items() if name not in ("solver", "grid", "strength")}
    return _steps_within(budget, tuple(sorted(first_order.items())))


@cache
def _steps_within(budget: int, setting: tuple[tuple[str, Any], ...]) -> int:
    first = list(PAIRS)[:1]
    return bisect_right(
        range(1, budget + 1), budget, key=lambda steps: drawn_by(first, torch.zeros(1, 2), steps, dict(setting))[1]
    )


def search(arm: str, budget: int, kind: Kind, settings: int, samples: int, number: int) -> dict[str, float]:
    """Return, by pair, the distance on other noise of the setting that was best on some."""
    rng = random.Random(f"{arm} {number}")
    drawn = [ARMS[arm](rng, kind) for _ in range(settings)]
    choices = [(setting, steps) for setting in drawn if (steps := steps_within(budget, setting)) >= 2]

    def measured(pairs: Sequence[str], choice: tuple[Setting, int], seed: int, count: int) -> list[float]:
        setting, steps = choice
        points, _ = drawn_by(pairs, toy.noise(count, 2, seed), steps, setting, kind=kind, seed=seed)
        return exact_pairs.distances(points)

    by_choice = torch.tensor([measured(list(PAIRS), choice, 1000 + number, samples) for choice in choices])
    found: dict[str, float] = {}
    best = dict(zip(PAIRS, by_choice.argmin(0).tolist(), strict=True))
    for chosen in set(best.values()):
        pairs = [name for name in PAIRS if best[name] == chosen]
        both = [measured(pairs, choices[chosen], 2 * number + k, 2 * samples) for k in range(2)]
        found |= {name: sum(values) / 2 for name, *values in zip(pairs, *both, strict=True)}
    return found


def floor(samples: int) -> float:
    """Return the distance of the truth's own samples to it."""
    drawn = [exact_pairs.distances(exact_pairs.TRUTH.draw(2 * samples, toy.seeded(k))[None])[0] for k in range(5)]
    return sum(drawn) / len(drawn)


def main(
    out: Path = Path("operators_exact.png"),
    kind: Kind = "epsilon",
    searches: PositiveInt = 3,
    settings: PositiveInt = 16,
    samples: PositiveInt = 2048,
    arms: list[str] = list(ARMS),  # noqa: B006
    budgets: list[int] = list(BUDGETS),  # noqa: B006
) -> dict[str, dict[int, list[float]]]:
    """Search each arm at each budget, and measure what was found on other noise.

    Args:
        out: the figure.
        kind: what the models predict.
        searches: how often everything is repeated, from other settings and other noise.
        settings: drawn for each arm in a search.
        samples: points that a setting is judged by; twice as many measure the best, from two seeds.
        arms: of `ARMS`.
        budgets: evaluations a sample.

    Returns:
        Geometric means of the distances over the pairs, by arm, budget and search.
    """
    toy.check_figure(out)
    found: dict[str, dict[int, list[float]]] = {}
    by_pair: dict[str, list[dict[str, float]]] = {}
    for arm in arms:
        for budget in budgets:
            results = [search(arm, budget, kind, settings, samples, number) for number in range(searches)]
            found.setdefault(arm, {})[budget] = [
                math.exp(sum(math.log(value) for value in result.values()) / len(result)) for result in results
            ]
            if budget == budgets[len(budgets) // 2]:
                by_pair[arm] = results
        print(arm, *(toy.with_error(found[arm][budget]) for budget in budgets), flush=True)
    print(
        f"\n{kind}: sliced Wasserstein-2 distance, geometric mean of {len(PAIRS)} pairs ± standard error over "
        f"{searches} searches of {settings} settings on {samples} samples, measured on 2 x {2 * samples} others; "
        f"the truth's own samples: {floor(samples):.3f}"
    )
    toy.print_table(
        ["arm", *(f"{budget} NFE" for budget in budgets)],
        [(arm, *(toy.with_error(found[arm][budget]) for budget in budgets)) for arm in arms],
    )
    print(f"\nby pair, {budgets[len(budgets) // 2]} NFE")
    toy.print_table(
        ["arm", *PAIRS],
        [(arm, *(toy.with_error(result[name] for result in by_pair[arm]) for name in PAIRS)) for arm in arms],
    )
    toy.write_figure(draw(found, budgets), out)
    return found


def draw(found: dict[str, dict[int, list[float]]], budgets: list[int]) -> plt.Figure:
    """Return the distance over the evaluations, with standard errors."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for k, (arm, by_budget) in enumerate(found.items()):
        values = torch.tensor([by_budget[budget] for budget in budgets], dtype=torch.float64)
        error = values.std(1) / len(values[0]) ** 0.5 if len(values[0]) > 1 else torch.zeros(len(budgets))
        label = f"AutoGuidance {arm}" if arm.startswith("+") else arm
        axis.errorbar(budgets, values.mean(1), error, fmt="o-", markersize=3, color=colours[k], label=label)
    axis.set(xscale="log", yscale="log", xlabel="NFE", ylabel="distance to the truth")
    axis.set_xticks(budgets, map(str, budgets))
    axis.minorticks_off()
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    CLI(main, as_positional=False)
