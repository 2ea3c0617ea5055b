"""Noise levels (alpha, sigma) of any known diffusers scheduler, and first-order moves between them.

Latents at a level are ``alpha * x0 + sigma * noise``. A first-order move is affine in the prediction,
``x' = A x + B p``, whether the network predicts the noise, the sample, the velocity or the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from w2sd_video.argument_checks import check_prediction, real_number, whole_number

_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow", "inverted_flow")
"""What networks predict."""


class Level(NamedTuple):
    """Signal and noise scales: latents are ``alpha * x0 + sigma * noise``."""

    alpha: float
    sigma: float


class Affine(NamedTuple):
    """``latents * of_latents + prediction * of_prediction``."""

    of_latents: float
    of_prediction: float


@dataclass(frozen=True)
class _Steps:
    """What a scheduler's timesteps mean: the calls that start a step, and the levels it leads from and to."""

    calls: Sequence[int]
    levels: Sequence[Level]
    next_levels: Sequence[Level]
    scaled_input: bool = False


class Trajectory:
    """The levels that a scheduler walks through, after its ``set_timesteps``.

    Steps are counted from the noisiest, 0 to ``len(trajectory) - 1``. A scheduler that calls the network more than
    once a step (Heun, PNDM, DPMSolverSDE, DPMSolverSinglestep) has fewer steps than timesteps: only a call on which
    it builds the next latents starts a step, and ``calls[i]`` is its index among ``scheduler.timesteps``.

    Attributes:
        prediction_type: "epsilon", "v_prediction", "sample", "flow" or "inverted_flow" (Mochi: the flow's negative).
        calls: index into ``scheduler.timesteps`` of each step.
        timesteps: the timestep that the network is told at each step.
        number_of_calls: how many timesteps the scheduler has.

    All methods refuse steps and spans that are not whole numbers (TypeError, ValueError) or out of range (ValueError),
    latents and predictions that are no floating-point tensors (TypeError), and predictions of another shape than the
    latents (ValueError).

    Raises:
        TypeError: a scheduler that is not known; the message lists the known ones.
        ValueError: ``set_timesteps`` was not called, or the prediction type is not known.
    """

    def __init__(self, scheduler: Any) -> None:
        read_steps = _reader(scheduler)
        if not (getattr(scheduler, "num_inference_steps", None) or getattr(scheduler, "custom_timesteps", False)):
            raise ValueError(f"call {type(scheduler).__name__}.set_timesteps(...) before building a Trajectory")
        steps = read_steps(scheduler)
        self.prediction_type = _prediction_type(scheduler)
        self.calls = list(steps.calls)
        self.timesteps = [scheduler.timesteps[call] for call in self.calls]
        self._levels = list(steps.levels)
        self._next_levels = list(steps.next_levels)
        self._scaled_input = steps.scaled_input
        self._step_of_call = {call: step for step, call in enumerate(self.calls)}
        self.number_of_calls = len(scheduler.timesteps)

    @staticmethod
    def check(scheduler: Any) -> None:
        """Refuse a scheduler that is not known, before its timesteps are set (TypeError, listing the known ones)."""
        _reader(scheduler)

    @staticmethod
    def predicts_flow(scheduler: Any) -> bool:
        """Return whether the networks that a known scheduler steps with predict the flow."""
        return _prediction_type(scheduler) in ("flow", "inverted_flow")

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._levels)

    def step_of_call(self, call: int) -> int | None:
        """Return the step that a call of the scheduler starts; None where it goes on with one."""
        return self._step_of_call.get(call)

    def steps_from(self, call: int) -> list[int]:
        """Return the steps that start at a call of the scheduler or after it."""
        return [step for step, start in enumerate(self.calls) if start >= call]

    def level(self, i: int) -> Level:
        """Return (alpha, sigma) of the latents before step ``i``; ``level(len(self))`` is the final one."""
        return self._next_levels[-1] if self._step(i, len(self)) == len(self) else self._levels[i]

    def next_level(self, i: int) -> Level:
        """Return (alpha, sigma) of the latents after step ``i``.

        It is ``level(i + 1)``, but for schedulers that round: DDIM steps by a whole number of training timesteps.
        """
        return self._next_levels[self._step(i, len(self) - 1)]

    def level_below(self, i: int, span: int = 1) -> Level:
        """Return (alpha, sigma) of the latents ``span`` steps after those before step ``i``, the final one at most.

        Raises:
            ValueError: a span that is no whole number from 1 to the number of steps.
        """
        if whole_number("span", span, 1) > len(self):
            raise ValueError(f"span must be from 1 to {len(self)}, the number of steps; got {span}")
        return self.next_level(i) if span == 1 else self.level(min(i + span, len(self)))

    def input_scale(self, level: Level) -> float:
        """Return what latents at a level are divided by before the network sees them (1 unless Euler-like)."""
        return math.hypot(*level) if self._scaled_input else 1.0

    def denoise(self, latents: torch.Tensor, prediction: torch.Tensor, i: int, span: int = 1) -> torch.Tensor:
        """Take step ``i`` down with a prediction made at it: the deterministic first-order step (DDIM, Euler).

        A ``span`` above 1 goes as far as that many steps, in one; there must be as many (ValueError).
        """
        move = self._move(i, self.prediction_type, span)
        return _combine(move.of_latents, latents, move.of_prediction, prediction)

    def invert(self, latents: torch.Tensor, prediction: torch.Tensor, i: int, span: int = 1) -> torch.Tensor:
        """Undo step ``i``: the latents from which ``denoise`` with the same prediction and span leads to these.

        Raises:
            ValueError: a step that forgets where it came from (the last one, of a network that predicts the sample).
        """
        move = self._invertible_move(i, self.prediction_type, span)
        return _combine(1 / move.of_latents, latents, -move.of_prediction / move.of_latents, prediction)

    def reflect(
        self,
        latents: torch.Tensor,
        strong: torch.Tensor,
        weak: torch.Tensor,
        i: int,
        *,
        strength: float = 1.0,
        reading: str | None = None,
        span: int = 1,
    ) -> torch.Tensor:
        """Denoise step ``i`` with one prediction and invert it with another, as one update.

        It is ``x + strength * (B / A) * (strong - weak)``: nothing cancels, whatever the precision of the latents.

        Args:
            latents: tensor of any shape, at ``level(i)``.
            strong: the prediction to denoise with, like ``latents``.
            weak: the prediction to invert with, like ``latents``.
            i: the step.
            strength: scale of the displacement.
            reading: what both predictions are ("epsilon" or "sample", see ``read``); by default what the network
                predicts.
            span: how many steps it goes down and back, in one.

        Raises:
            ValueError: a step that cannot be inverted with predictions of this kind.
        """
        for name, prediction in (("strong", strong), ("weak", weak)):
            check_prediction(name, prediction, latents)
        gap = strong.to(_working_dtype(strong)) - weak.to(_working_dtype(weak))
        return self.displaced(latents, gap, i, strength=strength, reading=reading, span=span)

    def displaced(
        self,
        latents: torch.Tensor,
        gap: torch.Tensor,
        i: int,
        *,
        strength: float = 1.0,
        reading: str | None = None,
        span: int = 1,
    ) -> torch.Tensor:
        """Move latents along a gap, strong less weak, as far as denoising and inverting step ``i`` would.

        Args:
            latents: tensor of any shape, at ``level(i)``.
            gap: the difference of two predictions, like ``latents``, or in float32.
            i: the step.
            strength: scale of the displacement.
            reading: what the predictions are, as of ``reflect``.
            span: how many steps it goes down and back, in one.

        Raises:
            ValueError: a step that cannot be inverted with predictions of this kind.
        """
        move = self._invertible_move(i, reading or self.prediction_type, span)
        check_prediction("gap", gap, latents)
        strength = real_number("strength", strength)
        return _combine(1.0, latents, strength * move.of_prediction / move.of_latents, gap)

    def as_prediction(self, gap: torch.Tensor, i: int, reading: str) -> torch.Tensor:
        """Turn a gap of predictions at step ``i`` from a reading into what the network predicts, in float32."""
        return gap.to(_working_dtype(gap)) / self._share_of_prediction(i, reading)

    def as_reading(self, gap: torch.Tensor, i: int, reading: str) -> torch.Tensor:
        """Turn a gap of the network's predictions at step ``i`` into a reading, in float32."""
        return gap.to(_working_dtype(gap)) * self._share_of_prediction(i, reading)

    def _share_of_prediction(self, i: int, reading: str) -> float:
        """Return what a prediction counts in a reading of it."""
        if reading == self.prediction_type:
            return 1.0
        level, scale = self.level(i), self.input_scale(self.level(i))
        of_input = Level(level.alpha / scale, level.sigma / scale)
        return _readings(self.prediction_type, of_input)[_known_reading(reading)].of_prediction

    def renoise(self, latents: torch.Tensor, noise: torch.Tensor, i: int, span: int = 1) -> torch.Tensor:
        """Add noise to latents below step ``i``, so that they are at ``level(i)`` again (Re-Sampling)."""
        level, lower_level = self.level(i), self.level_below(i, span)
        signal_ratio = level.alpha / lower_level.alpha
        return _combine(
            signal_ratio, latents, math.sqrt(max(level.sigma**2 - (signal_ratio * lower_level.sigma) ** 2, 0.0)), noise
        )

    def read(
        self, latents: torch.Tensor, prediction: torch.Tensor, *, at: Level, told_level: Level, reading: str
    ) -> torch.Tensor:
        """Turn a prediction into the noise or the sample that it means **at the level the network was told**.

        The network saw the latents, which are at the level ``at``, beside the timestep of ``told_level``. Where
        the two differ a velocity has no meaning of its own, but the noise read at the level told has.
        """
        scale = self.input_scale(told_level)
        level_of_input = Level(told_level.alpha / scale, told_level.sigma / scale)
        coefficients = _readings(self.prediction_type, level_of_input)[_known_reading(reading)]
        return _combine(coefficients.of_latents / self.input_scale(at), latents, coefficients.of_prediction, prediction)

    def score_reading(self, i: int) -> str:
        """Return how predictions at step ``i`` are read as scores: "epsilon", but "sample" where alpha is 0.

        Latents without signal are the noise itself, and only the denoised sample says anything of the network.
        """
        return "epsilon" if self.level(i).alpha > 0.0 else "sample"

    def _step(self, i: int, most: int) -> int:
        """Return a step, or refuse what is none: no number (TypeError), or out of range (ValueError)."""
        if whole_number("a step", i, 0) > most:
            raise ValueError(f"a step must be from 0 to {most}, got {i}")
        return i

    def _invertible_move(self, i: int, reading: str, span: int) -> Affine:
        move = self._move(i, reading, span)
        if move.of_latents == 0.0:
            raise ValueError(f"step {i} keeps nothing of its latents, so a {reading} prediction cannot invert it")
        return move

    def _move(self, i: int, reading: str, span: int) -> Affine:
        """Return the step from ``level(i)`` to ``level_below(i, span)`` as an affine map of latents and prediction."""
        readings = _readings(reading, self._levels[self._step(i, len(self) - 1)])
        sample, epsilon = readings["sample"], readings["epsilon"]
        alpha, sigma = self.level_below(i, span)
        return Affine(
            alpha * sample.of_latents + sigma * epsilon.of_latents,
            alpha * sample.of_prediction + sigma * epsilon.of_prediction,
        )


def _known_reading(reading: str) -> str:
    if reading not in ("epsilon", "sample"):
        raise ValueError(f"reading must be epsilon or sample, got {reading!r}")
    return reading


def _readings(prediction_type: str, level: Level) -> dict[str, Affine]:
    """Return sample and noise as affine maps of latents at a level and a prediction of some type."""
    if prediction_type not in _PREDICTION_TYPES:
        raise ValueError(f"reading must be one of {', '.join(_PREDICTION_TYPES)}; got {prediction_type!r}")
    alpha, sigma = level
    square = alpha**2 + sigma**2
    norm = math.sqrt(square)
    if prediction_type == "epsilon":
        if alpha == 0.0:
            raise ValueError(
                "the first level has zero signal (zero terminal SNR), where a noise prediction says nothing of the "
                "sample; use a v_prediction model, or a schedule without rescale_betas_zero_snr"
            )
        return {"sample": Affine(1 / alpha, -sigma / alpha), "epsilon": Affine(0.0, 1.0)}
    if prediction_type == "sample":
        return {"sample": Affine(0.0, 1.0), "epsilon": Affine(1 / sigma, -alpha / sigma)}
    if prediction_type == "v_prediction":
        return {"sample": Affine(alpha / square, -sigma / norm), "epsilon": Affine(sigma / square, alpha / norm)}
    sign = -1.0 if prediction_type == "inverted_flow" else 1.0
    total = alpha + sigma
    return {
        "sample": Affine(1 / total, -sign * sigma / total),
        "epsilon": Affine(1 / total, sign * alpha / total),
    }


def _working_dtype(latents: torch.Tensor) -> torch.dtype:
    """Return float32, or float64 for float64 latents: half precision would lose a small displacement."""
    return torch.promote_types(latents.dtype, torch.float32)


def _combine(a: float, latents: torch.Tensor, b: float, prediction: torch.Tensor) -> torch.Tensor:
    """Return ``a * latents + b * prediction`` in at least float32, cast back to the latents' dtype.

    Every move of a trajectory ends here, so that here is looked at what it was given.
    """
    check_prediction("a prediction", prediction, latents)
    dtype = _working_dtype(latents)
    return (a * latents.to(dtype) + b * prediction.to(dtype)).to(latents.dtype)


def _levels_from_cumulative_alphas(scheduler: Any, calls: Sequence[int], previous: Sequence[int | None]) -> _Steps:
    """Variance-preserving levels, alpha = sqrt(cumulative alpha); a previous timestep of None is the final level."""
    products = scheduler.alphas_cumprod.double()
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))

    def level(product: float) -> Level:
        return Level(math.sqrt(product), math.sqrt(1.0 - product))

    levels = [level(float(products[int(scheduler.timesteps[call])])) for call in calls]
    next_levels = [level(final if timestep is None else float(products[timestep])) for timestep in previous]
    return _Steps(calls, levels, next_levels)


def _whole_stride(scheduler: Any, calls: Sequence[int]) -> list[int | None]:
    """Return the timestep after each step where the scheduler counts down by a whole number of training timesteps."""
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    next_timesteps = [int(scheduler.timesteps[call]) - stride for call in calls]
    return [timestep if timestep >= 0 else None for timestep in next_timesteps]


def _ddim_steps(scheduler: Any) -> _Steps:
    calls = range(len(scheduler.timesteps))
    return _levels_from_cumulative_alphas(scheduler, calls, _whole_stride(scheduler, calls))


def _ddpm_steps(scheduler: Any) -> _Steps:
    """Return DDPM's steps: they end at the next timestep of the list, and the last one at alpha = 1."""
    calls = range(len(scheduler.timesteps))
    next_timesteps: list[int | None] = [int(timestep) for timestep in scheduler.timesteps[1:]]
    return _levels_from_cumulative_alphas(scheduler, calls, [*next_timesteps, None])


def _pndm_steps(scheduler: Any) -> _Steps:
    """Return PNDM's steps: four calls each for three Runge-Kutta steps, or two calls for the first linear one."""
    total = len(scheduler.timesteps)
    runge_kutta = len(scheduler.prk_timesteps)
    skipped = runge_kutta or min(2, total)
    calls = [*range(0, runge_kutta, 4), *([] if runge_kutta else [0]), *range(skipped, total)]
    return _levels_from_cumulative_alphas(scheduler, calls, _whole_stride(scheduler, calls))


def _sigma_steps(scheduler: Any, calls: Sequence[int], to_level: Callable[[float], Level], scaled: bool) -> _Steps:
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    levels = [to_level(sigmas[call]) for call in calls]
    return _Steps(calls, levels, [to_level(sigmas[call + 1]) for call in calls], scaled)


def _variance_exploding(sigma: float) -> Level:
    return Level(1.0, sigma)


def _variance_preserving(sigma: float) -> Level:
    return Level(1 / math.hypot(1.0, sigma), sigma / math.hypot(1.0, sigma))


def _flow(sigma: float) -> Level:
    return Level(1.0 - sigma, sigma)


def _inverted_flow(sigma: float) -> Level:
    return Level(sigma, 1.0 - sigma)


def _euler_steps(scheduler: Any) -> _Steps:
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), _variance_exploding, scaled=True)


def _heun_steps(scheduler: Any) -> _Steps:
    """Return every second call: between two, the scheduler corrects the step from a provisional end of it."""
    return _sigma_steps(scheduler, range(0, len(scheduler.timesteps), 2), _variance_exploding, scaled=True)


def _dpm_solver_steps(scheduler: Any) -> _Steps:
    to_level = _flow if getattr(scheduler.config, "use_flow_sigmas", False) else _variance_preserving
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), to_level, scaled=False)


def _singlestep_steps(scheduler: Any) -> _Steps:
    """Return the calls of order 1: the others start again from the latents that the last such call was given."""
    to_level = _flow if getattr(scheduler.config, "use_flow_sigmas", False) else _variance_preserving
    calls = [call for call, order in enumerate(scheduler.order_list[: len(scheduler.timesteps)]) if order == 1]
    return _sigma_steps(scheduler, calls, to_level, scaled=False)


def _explodes(scheduler: Any) -> bool:
    """Return whether a flow-matching scheduler's latents are ``x0 + sigma * noise``, as those of Cosmos, up to 80.

    The flow of such latents is the noise itself.
    """
    return max(float(sigma) for sigma in scheduler.sigmas) > 1.0


def _flow_match_steps(scheduler: Any) -> _Steps:
    if _explodes(scheduler):
        return _sigma_steps(scheduler, range(len(scheduler.timesteps)), _variance_exploding, scaled=False)
    to_level = _inverted_flow if getattr(scheduler.config, "invert_sigmas", False) else _flow
    return _sigma_steps(scheduler, range(len(scheduler.timesteps)), to_level, scaled=False)


_READERS: dict[str, Callable[[Any], _Steps]] = {
    "CogVideoXDDIMScheduler": _ddim_steps,
    "CogVideoXDPMScheduler": _ddim_steps,
    "DDIMParallelScheduler": _ddim_steps,
    "DDIMScheduler": _ddim_steps,
    "DDPMParallelScheduler": _ddpm_steps,
    "DDPMScheduler": _ddpm_steps,
    "DEISMultistepScheduler": _dpm_solver_steps,
    "DPMSolverMultistepScheduler": _dpm_solver_steps,
    "DPMSolverSDEScheduler": _heun_steps,
    "DPMSolverSinglestepScheduler": _singlestep_steps,
    "EulerAncestralDiscreteScheduler": _euler_steps,
    "EulerDiscreteScheduler": _euler_steps,
    "FlowMatchEulerDiscreteScheduler": _flow_match_steps,
    "HeunDiscreteScheduler": _heun_steps,
    "LMSDiscreteScheduler": _euler_steps,
    "PNDMScheduler": _pndm_steps,
    "UniPCMultistepScheduler": _dpm_solver_steps,
}
"""How levels are read, by the name of the class: there is no common way, and not every diffusers has every class."""

_CONSISTENCY = "a consistency step renoises a one-step sample, which has no inverse"
_DISCRETE = "its tokens are discrete, so there is no latent to displace"
"""Reasons that no reading of the levels would help."""

_REFUSED: dict[str, str] = {
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "FlowMatchLCMScheduler": _CONSISTENCY,
    "LCMScheduler": _CONSISTENCY,
    "SCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "AmusedScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
}
"""Schedulers that are refused with a reason of their own; a class derived from one is, too."""


def known_schedulers() -> list[str]:
    """Return the names of the schedulers whose levels are known."""
    return sorted(_READERS)


def _reader(scheduler: Any) -> Callable[[Any], _Steps]:
    """Return the function that reads a scheduler's levels, found by its class or a base class of it."""
    for base in type(scheduler).__mro__:
        if base.__name__ in _REFUSED:
            raise TypeError(f"{base.__name__} cannot be reflected: {_REFUSED[base.__name__]}")
        if base.__name__ in _READERS:
            return _READERS[base.__name__]
    raise TypeError(
        f"{type(scheduler).__name__} is not a scheduler whose noise levels are known; "
        f"use one of {', '.join(known_schedulers())}"
    )


def _prediction_type(scheduler: Any) -> str:
    """Return what the network predicts, by the scheduler's configuration; that of flow matching does not say."""
    if any(base.__name__ == "FlowMatchEulerDiscreteScheduler" for base in type(scheduler).__mro__):
        if _explodes(scheduler):
            return "epsilon"
        return "inverted_flow" if getattr(scheduler.config, "invert_sigmas", False) else "flow"
    prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
    readings = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "flow_prediction": "flow"}
    if prediction_type not in readings:
        raise ValueError(f"prediction_type {prediction_type!r} is not known; allowed are {', '.join(readings)}")
    return readings[prediction_type]
