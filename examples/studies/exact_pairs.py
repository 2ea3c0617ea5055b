"""Six pairs of exact models in the plane, in noise, velocity or flow: every error in what they sample is the sampler's.

The truth has eight equally likely peaks on a circle; eight more on a smaller one belong to another class. A model is an
exact prediction for its own mixture: strong and weak are wrong in one way each pair, weak more so, and a model without
the condition believes in both classes equally.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import diffusers
import torch

from w2sd_video import Trajectory, sample
from w2sd_video.time_grid import set_timesteps

Kind = Literal["epsilon", "v_prediction", "flow"]
SPREAD = 0.12
PROJECTIONS = 32


@dataclass(frozen=True)
class Ring:
    """A mixture of 16 Gaussian peaks: the even ones are the class that is asked for, at a radius of 1.4."""

    shares: tuple[float, ...]
    spread: float = SPREAD
    shift: float = 0.0

    @cached_property
    def peaks(self) -> torch.Tensor:
        """Return the peaks (16, 2)."""
        angles, radii = torch.arange(16) * (math.tau / 16), torch.tensor([1.4, 0.7]).repeat(8)[:, None]
        return radii * torch.stack([angles.cos(), angles.sin()], 1) + torch.tensor([self.shift, 0.0])

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return samples (count, 2)."""
        which = torch.multinomial(torch.tensor(self.shares), count, replacement=True, generator=generator)
        return self.peaks[which] + self.spread * torch.randn(count, 2, generator=generator)


Models = tuple[Ring, ...]
"""A model for each of several pairs, which are sampled at once: latents are (pairs, samples, 2)."""


@cache
def _stacked(models: Models, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return peaks (pairs, 16, 2), shares (pairs, 1, 16) and squared spreads (pairs, 1, 1)."""
    peaks = torch.stack([model.peaks for model in models]).to(dtype)
    shares = torch.tensor([[model.shares] for model in models], dtype=dtype)
    return peaks, shares, torch.tensor([[[model.spread**2]] for model in models], dtype=dtype)


def denoised(models: Models, latents: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Return the mean of the data given latents (pairs, samples, 2), by each pair's model."""
    peaks, shares, spread = _stacked(models, latents.dtype)
    variance = alpha**2 * spread + sigma**2
    logits = shares.log() - (alpha**2 / 2) * peaks.square().sum(2).unsqueeze(1) / variance
    logits = torch.baddbmm(logits, latents, peaks.mT * (alpha / variance))
    mean = logits.softmax(2) @ peaks
    return mean + alpha * spread / variance * (latents - alpha * mean)


def _ring(
    asked_for: Callable[[int], float] = lambda k: 1.0, leak: float = 0.0, spread: float = 1.0, shift: float = 0.0
) -> Ring:
    """Return a mixture by the weights of its eight peaks, the share of the other class, and its width."""
    weights = [asked_for(k) for k in range(8)]
    shares = [(1 - leak) * weight / sum(weights) for weight in weights]
    return Ring(tuple(x for share in shares for x in (share, leak / 8)), SPREAD * spread, shift)


@dataclass(frozen=True)
class Pair:
    """A strong and a weak model, and the strong one without its condition."""

    strong: Ring
    weak: Ring
    unconditional: Ring


def _tilted(size: float, phase: float = 0.0) -> Callable[[int], float]:
    return lambda k: math.exp(size * math.cos(math.tau * k / 8 + phase))


TRUTH = _ring()
PAIRS = {
    "mixed": Pair(_ring(_tilted(0.5), 0.08, 1.1), _ring(_tilted(1.2), 0.25, 1.4), _ring(_tilted(0.5), 0.5, 1.1)),
    "askew": Pair(
        _ring(_tilted(0.5), 0.05),
        _ring(lambda k: _tilted(1.0)(k) * _tilted(0.5, 1.6)(k), 0.15),
        _ring(_tilted(0.5), 0.5),
    ),
    "other class": Pair(_ring(leak=0.2), _ring(leak=0.4), _ring(leak=0.5)),
    "too wide": Pair(_ring(spread=2.0, leak=0.02), _ring(spread=3.5, leak=0.05), _ring(spread=2.0, leak=0.5)),
    "missing peak": Pair(
        _ring(lambda k: 0.3 if k == 2 else 1.0, 0.02),
        _ring(lambda k: 0.05 if k == 2 else 1.0, 0.05),
        _ring(lambda k: 0.3 if k == 2 else 1.0, 0.5),
    ),
    "shifted": Pair(_ring(shift=0.2, leak=0.02), _ring(shift=0.5, leak=0.05), _ring(shift=0.2, leak=0.5)),
}
"""By what is wrong with them: shares, class and width at once; shares, weak's in another direction too; and so on."""


def scheduler_of(kind: Kind, solver: str = "Euler") -> Any:
    """Return a scheduler of diffusers for a kind of prediction, without a shift, from the last timestep on.

    Args:
        kind: what is predicted.
        solver: "Euler" (DDIM for noise and velocity), "2M" (DPM-Solver++), "UniPC", "DDIM", "DDIM, eta 1",
            "ancestral" or "2M SDE".
    """
    if kind == "flow":
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return {
            "Euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
            "2M": lambda: diffusers.DPMSolverMultistepScheduler(**flow),
            "2M SDE": lambda: diffusers.DPMSolverMultistepScheduler(**flow, algorithm_type="sde-dpmsolver++"),
            "UniPC": lambda: diffusers.UniPCMultistepScheduler(**flow),
        }[solver]()
    settings = {"prediction_type": kind, "timestep_spacing": "trailing"}
    return {
        "Euler": lambda: diffusers.EulerDiscreteScheduler(**settings),
        "DDIM": lambda: diffusers.DDIMScheduler(**settings, clip_sample=False),
        "DDIM, eta 1": lambda: Noisy(**settings, clip_sample=False),
        "2M": lambda: diffusers.DPMSolverMultistepScheduler(**settings),
        "2M SDE": lambda: diffusers.DPMSolverMultistepScheduler(**settings, algorithm_type="sde-dpmsolver++"),
        "ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**settings),
        "UniPC": lambda: diffusers.UniPCMultistepScheduler(**settings),
    }[solver]()


Role = list[tuple[Models, float]]
"""Models and their weights, of which the role's prediction is the sum: guidance has two."""
Roles = dict[str, Role]


class Noisy(diffusers.DDIMScheduler):
    """DDIM that adds as much noise at each step as DDPM does (eta = 1)."""

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """Take a step."""
        return super().step(model_output, timestep, sample, eta=1.0, generator=generator, return_dict=return_dict)


@dataclass
class Network:
    """The three roles of a sampling by exact models, and how often a model was evaluated.

    Attributes:
        roles: "base", "strong" and "weak".
        kind: what is predicted.
        levels: (alpha, sigma) as the network sees them, by timestep.
        evaluations: of models; several of one model at the same latents are one.
    """

    roles: Roles
    kind: Kind
    levels: dict[float, tuple[float, float]]
    evaluations: Counter[str] = field(default_factory=Counter)
    _seen: tuple[Any, ...] = (None, None)

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, role: str) -> torch.Tensor:
        """Return what a role predicts."""
        at, known = float(timestep), {}
        if self._seen[0] is not None and self._seen[0][0] == at and torch.equal(self._seen[0][1], latents):
            known = self._seen[1]
        self._seen = ((at, latents), known)
        alpha, sigma = self.levels[at]
        total = torch.zeros_like(latents)
        for models, weight in self.roles[role]:
            if models not in known:
                known[models] = denoised(models, latents, alpha, sigma)
                self.evaluations[role] += 1
            total += weight * known[models]
        return as_prediction(self.kind, latents, total, alpha, sigma)


def as_prediction(
    kind: Kind, latents: torch.Tensor, denoised: torch.Tensor, alpha: float, sigma: float
) -> torch.Tensor:
    """Return what a network of a kind says where the mean of the data is `denoised`."""
    noise = (latents - alpha * denoised) / sigma
    if kind == "epsilon":
        return noise
    return noise - denoised if kind == "flow" else alpha * noise - sigma * denoised


@cache
def levels_of(kind: Kind, solver: str, steps: int, grid: float) -> dict[float, tuple[float, float]]:
    """Return the levels as a network sees them, by timestep."""
    scheduler = scheduler_of(kind, solver)
    set_timesteps(scheduler, {"num_inference_steps": steps}, grid)
    trajectory = Trajectory(scheduler)
    seen = {}
    for i, timestep in enumerate(trajectory.timesteps):
        level, scale = trajectory.level(i), trajectory.input_scale(trajectory.level(i))
        seen[float(timestep)] = (level.alpha / scale, level.sigma / scale)
    return seen


def roles_of(names: Sequence[str], guided: tuple[float, float, float | None] = (1.0, 1.0, None)) -> Roles:
    """Return the roles of some pairs, by the guidance scales of base, strong and weak; None is the weak model.

    What has no weight is not evaluated: weak at a scale of 0 is the strong model without its condition.
    """
    of_pair = {
        name: tuple(getattr(PAIRS[pair], name) for pair in names) for name in ("strong", "weak", "unconditional")
    }

    def at(scale: float) -> Role:
        both = ((of_pair["strong"], scale), (of_pair["unconditional"], 1 - scale))
        return [(models, weight) for models, weight in both if weight]

    base, strong, weak = guided
    return {"base": at(base), "strong": at(strong), "weak": [(of_pair["weak"], 1.0)] if weak is None else at(weak)}


def sampled(
    roles: Roles,
    noise: torch.Tensor,
    steps: int,
    *,
    kind: Kind = "epsilon",
    solver: str = "Euler",
    grid: float = 1.0,
    seed: int = 0,
    **settings: Any,
) -> tuple[torch.Tensor, int]:
    """Return samples (pairs, count, 2) from unit noise (count, 2), and the evaluations each took."""
    noise = noise.repeat(len(roles["base"][0][0]), 1, 1)
    scheduler = scheduler_of(kind, solver)
    network = Network(roles, kind, levels_of(kind, solver, steps, grid))
    set_timesteps(scheduler, {"num_inference_steps": steps}, grid)
    result = sample(
        network,
        noise * getattr(scheduler, "init_noise_sigma", 1.0),
        scheduler,
        num_inference_steps=steps,
        grid=grid,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )
    return result.latents, network.evaluations.total()


@cache
def _directions() -> torch.Tensor:
    angles = torch.arange(PROJECTIONS) * (math.pi / PROJECTIONS)
    return torch.stack([angles.cos(), angles.sin()])


@cache
def _truth_along(count: int) -> torch.Tensor:
    """Return quantiles of the truth along each direction, (count, directions)."""
    many = TRUTH.draw(400_000, torch.Generator().manual_seed(10**6)) @ _directions()
    at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.stack([torch.quantile(column[:400_000].double(), at) for column in many.T], 1).float()


def distances(samples: torch.Tensor) -> list[float]:
    """Return the sliced Wasserstein-2 distance to the truth of each pair's samples (pairs, count, 2)."""
    along = (samples.float() @ _directions()).sort(1).values
    found = (along - _truth_along(samples.shape[1])).square().mean((1, 2)).sqrt()
    return torch.where(found.isfinite(), found, math.inf).tolist()
