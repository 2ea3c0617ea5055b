"""Operator, window, reuse, solver and prediction type in every combination, against a loop written plainly in numpy.

The networks are exact for mixtures of two peaks. The loop keeps all in terms of noise and of denoised samples, takes
its levels from the definition of each schedule, and knows nothing of the package.
"""

import math
from functools import partial
from itertools import product

import diffusers
import numpy as np
import pytest
import torch

from w2sd_video import sample
from w2sd_video.time_grid import set_timesteps

STEPS = 8
SHARES = {"base": 0.7, "strong": 0.7, "weak": 0.9}
"""Of the right one of two peaks, at -1 and 1 with a spread of 0.3."""
TRAINED = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Noisy(diffusers.DDIMScheduler):
    """DDIM with eta = 1."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, eta=1.0, generator=generator, return_dict=return_dict)


def scheduler_of(kind, solver):
    if kind == "flow":
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return {
            "first order": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
            "2M": lambda: diffusers.DPMSolverMultistepScheduler(**flow),
            "UniPC": lambda: diffusers.UniPCMultistepScheduler(**flow),
        }[solver]()
    how = {"prediction_type": kind, "timestep_spacing": "trailing"}
    return {
        "first order": lambda: diffusers.DDIMScheduler(**how, clip_sample=False),
        "eta": lambda: Noisy(**how, clip_sample=False),
        "2M": lambda: diffusers.DPMSolverMultistepScheduler(**how),
        "UniPC": lambda: diffusers.UniPCMultistepScheduler(**how),
    }[solver]()


def levels_of(kind, scheduler):
    if kind == "flow":
        return [(1 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]
    products = [*(TRAINED[round(1000 - 1000 * i / STEPS) - 1] for i in range(STEPS)), 1.0]
    return [(math.sqrt(product), math.sqrt(1 - product)) for product in products]


def levels_on_a_grid(kind, solver, grid):
    fractions = (1 - np.arange(STEPS) / STEPS) ** grid
    if kind == "flow":  # a solver takes the logarithm of the first, which is a little below 1
        sigmas = [*(0.999 * fractions if solver == "2M" else np.minimum(fractions, 1 - 1e-6)), 0.0]
        return [(1 - sigma, sigma) for sigma in sigmas]
    products = [*(TRAINED[round(1000 * fraction) - 1] for fraction in fractions), 1.0]
    return [(math.sqrt(product), math.sqrt(1 - product)) for product in products]


def denoised(x, level, role):
    """The mean of the data given latents at a level."""
    alpha, sigma = level
    variance = (0.3 * alpha) ** 2 + sigma**2
    peak = np.tanh(alpha * x / variance + math.log(SHARES[role] / (1 - SHARES[role])) / 2)
    return peak + 0.09 * alpha / variance * (x - alpha * peak)


def noise_in(x, level, role):
    return (x - level[0] * denoised(x, level, role)) / level[1]


# --- the plain loop ----------------------------------------------------------------------------------------------


def displacement(operator, x, i, levels, gap_at, span=1):
    """How far the latents move by an operator: down with strong, and back up with weak."""
    (a, s), (a2, s2) = levels[i], levels[i + span]

    def measured(of):
        strong = of(x, (a, s), "strong")
        if operator in ("paper", "explicit"):
            lower = a2 * denoised(x, (a, s), "strong") + s2 * noise_in(x, (a, s), "strong")
            if operator == "paper":
                return strong - of(lower, (a, s), "weak")
            return strong - of(lower, (a2, s2), "weak")
        gap = strong - of(x, (a, s), "weak")
        if operator == "implicit":
            gap = strong - of(x + moved(gap), (a, s), "weak")
        return gap

    def moved(gap):
        return (a * s2 / a2 - s) * gap if a > 0 else a2 * s / s2 * gap

    return moved(gap_at(a > 0, lambda: measured(noise_in if a > 0 else denoised)))


class Held:
    """A gap that is measured at every k-th step and at the last, and held or carried on between them."""

    def __init__(self, reuse, steps, linear):
        self.reuse, self.steps, self.linear, self.known = reuse, list(steps), linear, []

    def at(self, i, reading, measure):
        place = self.steps.index(i)
        same = [known for known in self.known if known[1] == reading]
        if place % self.reuse == 0 or i == self.steps[-1] or not same or self.known[-1][1] != reading:
            self.known = [*same, (i, reading, measure())][-2:]
            return self.known[-1][2]
        if self.linear and len(same) == 2:
            (j, _, g), (k, _, h) = same
            return h + (h - g) * (i - k) / (k - j)
        return same[-1][2]


def renoised(operator, x, i, levels, generator, span):
    """Re-Sampling: down with strong, and up by noise, which the advanced form mirrors where it is not like W2SD."""
    (a, s), (a2, s2) = levels[i], levels[i + span]
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).numpy()
    if operator == "resample-advanced":
        similarity = (noise * displacement("paper", x, i, levels, lambda reading, measure: measure(), span)).sum(1)
        noise = noise * np.where(similarity < 0, -1.0, 1.0)[:, None]
    lower = a2 * denoised(x, (a, s), "strong") + s2 * noise_in(x, (a, s), "strong")
    return a / a2 * lower + math.sqrt(max(s**2 - (a * s2 / a2) ** 2, 0)) * noise


def plain(kind, solver, levels, x, operator, steps, reuse, linear, generator, span=1, rounds=1):
    held, history, before = Held(reuse, steps, linear), [], None
    for i in range(STEPS):
        (a, s), (a2, s2) = levels[i], levels[i + 1]
        unmoved = x
        for _ in range(rounds if i in steps and operator != "AutoGuidance" else 0):
            if operator.startswith("resample"):
                x = x + 0.8 * (renoised(operator, x, i, levels, generator, span) - x)
            else:
                gap_at = held.at if reuse > 1 else lambda i, reading, measure: measure()
                x = x + 0.8 * displacement(operator, x, i, levels, partial(gap_at, i), span)
        moved = x - unmoved
        clean = denoised(x, (a, s), "base")
        if i in steps and operator == "AutoGuidance":
            reading = a > 0  # noise where there is signal; either is a multiple of the other
            share = -a / s if reading else 1.0
            gap = held.at(i, reading, lambda: share * (denoised(x, (a, s), "base") - denoised(x, (a, s), "weak")))  # noqa: B023
            clean = clean + 0.8 * gap / share
        if solver == "UniPC" and before is not None:
            x = corrected(before, history, clean, levels, i) + moved
        history.append(clean)
        before, order = x, min(2 if i else 1, STEPS - i)
        if solver == "first order":
            x = a2 * clean + s2 * (x - a * clean) / s
        elif solver == "eta":
            deviation = s2 / s * math.sqrt(1 - (a / a2) ** 2)
            fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64).numpy()
            x = a2 * clean + math.sqrt(max(s2**2 - deviation**2, 0)) * (x - a * clean) / s + deviation * fresh
        else:  # DPM-Solver++ 2M, which the predictor of UniPC is too
            if order == 2:
                h, last = (
                    log_ratio(levels[i + 1]) - log_ratio(levels[i]),
                    log_ratio(levels[i]) - log_ratio(levels[i - 1]),
                )
                clean = clean + (clean - history[-2]) * h / (2 * last)
            x = a2 * clean + s2 * (x - a * clean) / s
    return x


def log_ratio(level):
    return math.log(level[0] / level[1])


def corrected(x, history, clean, levels, i):
    """UniC (Zhao et al., arXiv 2302.04867, with B(h) = e^h - 1): the step that led here, once its end is known."""
    (a, s), (a2, s2) = levels[i - 1], levels[i]
    h = log_ratio((a2, s2)) - log_ratio((a, s))
    change = clean - history[-1]
    if i == 1:
        mean = history[-1] + change / 2  # the trapezoid
    else:
        r = (log_ratio(levels[i - 2]) - log_ratio((a, s))) / h
        first = math.expm1(-h) / -h - 1
        second = first / -h - 1 / 2
        weights = np.linalg.solve([[1.0, 1.0], [r, 1.0]], [first / math.expm1(-h), 2 * second / math.expm1(-h)])
        mean = history[-1] + weights[0] * (history[-2] - history[-1]) / r + weights[1] * change
    return s2 / s * x - a2 * math.expm1(-h) * mean


# --- the table ---------------------------------------------------------------------------------------------------

OPERATORS = ("paper", "explicit", "current", "implicit", "resample", "AutoGuidance")
WINDOWS = {"all": (0.0, 7 / 8), "middle": (0.25, 0.75), "late": (0.5, 1.0)}
REUSE = {"every step": (1, False), "held": (2, False), "linear": (3, True)}
KINDS = ("epsilon", "v_prediction", "flow")
SOLVERS = ("first order", "eta", "2M", "UniPC")


def makes_sense(operator, window, reuse, solver, kind):
    return not (
        (kind == "flow" and solver == "eta")
        or (operator == "explicit" and window == "late")  # no level below the last step's
        or (operator == "resample" and reuse != "every step")  # no gap
    )


CASES = [case for case in product(OPERATORS, WINDOWS, REUSE, SOLVERS, KINDS) if makes_sense(*case)]


GRID_CASES = list(product(("current", "AutoGuidance"), ("middle",), ("held",), ("2M", "UniPC"), KINDS))


MORE = {
    "paper, twice": ("paper", {"rounds": 2}),
    "current, three times": ("current", {"rounds": 3}),
    "paper, spanning": ("paper", {"span": 2}),
    "current, spanning": ("current", {"span": 3}),
    "implicit, spanning, twice": ("implicit", {"span": 2, "rounds": 2}),
    "Re-Sampling, spanning, twice": ("resample", {"span": 2, "rounds": 2}),
    "advanced Re-Sampling": ("resample-advanced", {}),
    "advanced Re-Sampling, spanning, twice": ("resample-advanced", {"span": 2, "rounds": 2}),
}
"""Operators with rounds and spans, in the middle of the steps."""


@pytest.mark.filterwarnings("ignore:inversion='paper'")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MORE)
def test_rounds_and_spans_equal_the_plain_loop(name, kind, solver):
    operator, more = MORE[name]
    if makes_sense(operator, "middle", "every step", solver, kind):
        compare(operator, "middle", "every step", solver, kind, 1.0, more)


@pytest.mark.filterwarnings("ignore:inversion='paper'")
@pytest.mark.parametrize(
    ("case", "grid"),
    [*((case, 1.0) for case in CASES), *((case, 1.4) for case in GRID_CASES)],
    ids=["-".join(case) for case in CASES] + ["-".join(case) + "-grid" for case in GRID_CASES],
)
def test_it_equals_the_plain_loop(case, grid):
    compare(*case, grid, {})


def compare(operator, window, reuse, solver, kind, grid, more):
    scheduler = scheduler_of(kind, solver)
    set_timesteps(scheduler, {"num_inference_steps": STEPS}, grid)
    levels = levels_of(kind, scheduler) if grid == 1.0 else levels_on_a_grid(kind, solver, grid)
    at = {float(t): levels[i] for i, t in enumerate(scheduler.timesteps)}

    def predict(latents, timestep, role):
        (alpha, sigma), x = at[float(timestep)], latents.numpy()
        clean = denoised(x, (alpha, sigma), role)
        epsilon = (x - alpha * clean) / sigma
        prediction = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * clean, "flow": epsilon - clean}[
            kind
        ]
        return torch.tensor(prediction)

    k, linear = REUSE[reuse]
    settings = {"reflection_steps": WINDOWS[window], "inversion": operator, "strength": 0.8}
    if operator == "AutoGuidance":
        settings = {"reflection_steps": 0, "autoguidance": 0.8, "autoguidance_steps": WINDOWS[window]}
    settings |= {"reuse": k, "carried": "linear" if linear else "held", **more}
    noise = torch.randn(32, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    result = sample(predict, noise, scheduler, num_inference_steps=STEPS, generator=seeded[0], grid=grid, **settings)
    steps = range(round(WINDOWS[window][0] * STEPS), round(WINDOWS[window][1] * STEPS))
    expected = plain(kind, solver, levels, noise.numpy(), operator, steps, k, linear, seeded[1], **more)
    np.testing.assert_allclose(result.latents.numpy(), expected, rtol=1e-4, atol=1e-4)
    unmoved = plain(kind, solver, levels, noise.numpy(), operator, (), 1, False, torch.Generator().manual_seed(1))
    assert np.abs(expected - unmoved).max() > 1e-3
