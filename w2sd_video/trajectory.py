"""First-order moves between the noise levels (alpha, sigma) that a scheduler, or a row of sigmas, leads through.

Latents at a level are ``alpha * x0 + sigma * noise``. A first-order move is affine in the prediction,
``x' = A x + B p``, whether the network predicts the noise, the sample, the velocity or the flow.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, NamedTuple, get_args

import torch

from w2sd_video.argument_checks import check_prediction, real_number, whole_number
from w2sd_video.levels import Kind, Level, PredictionType, Steps, steps_on_sigmas
from w2sd_video.scheduler_levels import known_schedulers, prediction_type_of, reader_of, steps_of

__all__ = ["Affine", "Level", "Trajectory", "known_schedulers"]


class Affine(NamedTuple):
    """``latents * of_latents + prediction * of_prediction``."""

    of_latents: float
    of_prediction: float


class Trajectory:
    """The levels that a scheduler walks through, after its ``set_timesteps``, or sigmas do: see ``from_sigmas``.

    Steps are counted from the noisiest, 0 to ``len(trajectory) - 1``. A scheduler that calls the network more than
    once a step (Heun, PNDM, DPMSolverSDE, DPMSolverSinglestep) has fewer steps than timesteps: only a call on which
    it builds the next latents starts a step, and ``calls[i]`` is its index among ``scheduler.timesteps``.

    Attributes:
        prediction_type: "epsilon", "v_prediction", "sample", "flow" or "inverted_flow" (Mochi: the flow's negative).
        calls: index into ``scheduler.timesteps`` of each step.
        timesteps: the timestep that the network is told at each step.
        number_of_calls: how many timesteps the scheduler has.
        is_on_sigmas: whether it was made of sigmas, without a scheduler.

    All methods refuse steps and spans that are not whole numbers (TypeError, ValueError) or out of range (ValueError),
    latents and predictions that are no floating-point tensors (TypeError), and predictions of another shape than the
    latents (ValueError).

    Raises:
        TypeError: a scheduler that is not known; the message lists the known ones.
        ValueError: ``set_timesteps`` was not called, or the prediction type is not known.
    """

    def __init__(self, scheduler: Any) -> None:
        self._hold(steps_of(scheduler), prediction_type_of(scheduler))

    @classmethod
    def from_sigmas(cls, sigmas: Any, kind: Kind, *, prediction_type: PredictionType) -> Trajectory:
        """Return the levels of a toolkit that has sigmas and no scheduler of diffusers; each step is one call.

        Args:
            sigmas: the noise in the latents, falling: floating-point tensor or sequence, (steps + 1,); the last may be
                0. They are what the network is told: ``timesteps`` are the first so many of them.
            kind: "variance_exploding", ``x = x0 + sigma * noise`` (EDM, k-diffusion: Karras et al., arXiv 2206.00364);
                "variance_preserving", ``x = sqrt(1 - sigma²) * x0 + sigma * noise``, sigma at most 1; or "flow",
                ``x = (1 - sigma) * x0 + sigma * noise``, sigma at most 1.
            prediction_type: what the network predicts: "sample" (x0, as denoisers of k-diffusion return), "epsilon"
                (noise), "v_prediction" (``(alpha * noise - sigma * x0) / sqrt(alpha² + sigma²)``), "flow"
                (``noise - x0``) or "inverted_flow". Latents come to it as they are, also variance-exploding ones; it
                scales them itself, by the sigma that it is told.

        Raises:
            TypeError: no sequence of floating-point numbers; whole numbers are taken for timesteps.
            ValueError: an unknown kind or prediction type, sigmas that rise, are not finite, negative or too large,
                fewer than two of them, or a 0 before the last.
        """
        if prediction_type not in get_args(PredictionType):
            raise ValueError(
                f"prediction_type must be one of {', '.join(get_args(PredictionType))}; got {prediction_type!r}"
            )
        trajectory = cls.__new__(cls)
        trajectory._hold(steps_on_sigmas(sigmas, kind), prediction_type)
        trajectory.is_on_sigmas = True
        return trajectory

    def _hold(self, steps: Steps, prediction_type: PredictionType) -> None:
        self.prediction_type = prediction_type
        self.calls = list(steps.calls)
        self.timesteps = [steps.timesteps[call] for call in self.calls]
        self.number_of_calls = len(steps.timesteps)
        self.is_on_sigmas = False
        self._levels = list(steps.levels)
        self._next_levels = list(steps.next_levels)
        self._input_scaling = steps.input_scaling
        self._step_of_call = {call: step for step, call in enumerate(self.calls)}

    @staticmethod
    def check(scheduler: Any) -> None:
        """Refuse a scheduler that is not known, before its timesteps are set (TypeError, listing the known ones)."""
        reader_of(scheduler)

    @staticmethod
    def predicts_flow(scheduler: Any) -> bool:
        """Return whether the networks that a known scheduler steps with predict the flow."""
        return prediction_type_of(scheduler) in ("flow", "inverted_flow")

    @property
    def is_flow(self) -> bool:
        """Whether the levels are those of flow matching, ``(1 - sigma) * x0 + sigma * noise``."""
        return all(abs(level.alpha + level.sigma - 1.0) < 1e-6 for level in self._levels)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._levels)

    def step_of_call(self, call: int) -> int | None:
        """Return the step that a call of the scheduler starts; None where it goes on with one."""
        return self._step_of_call.get(call)

    def step_at(self, call: int) -> int:
        """Return the step that a call of the scheduler belongs to: it starts it, or goes on with it."""
        return bisect_right(self.calls, call) - 1

    def steps_from(self, call: int, end: int | None = None) -> list[int]:
        """Return the steps that start at a call of the scheduler or after it, and before the call ``end``."""
        return [step for step, start in enumerate(self.calls) if start >= call and (end is None or start < end)]

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

    def input_scale(self, level: Level, told_level: Level | None = None) -> float:
        """Return what latents at a level are divided by before the network sees them: 1 unless variance explodes.

        Euler's latents are brought to unit scale. A network on sigmas does that itself, by the level that it is told;
        latents at another level (None: they are at that one) are brought to the scale of it.
        """
        if self._input_scaling == "none" or (self._input_scaling == "by_network" and told_level is None):
            return 1.0
        scale_of_network = math.hypot(*told_level) if told_level and self._input_scaling == "by_network" else 1.0
        return math.hypot(*level) / scale_of_network

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
        gap = strong.to(working_dtype(strong)) - weak.to(working_dtype(weak))
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
        return gap.to(working_dtype(gap)) / self._share_of_prediction(i, reading)

    def as_reading(self, gap: torch.Tensor, i: int, reading: str) -> torch.Tensor:
        """Turn a gap of the network's predictions at step ``i`` into a reading, in float32."""
        return gap.to(working_dtype(gap)) * self._share_of_prediction(i, reading)

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
        return _combine(
            coefficients.of_latents / self.input_scale(at, told_level), latents, coefficients.of_prediction, prediction
        )

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
    if prediction_type not in get_args(PredictionType):
        raise ValueError(f"reading must be one of {', '.join(get_args(PredictionType))}; got {prediction_type!r}")
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


def working_dtype(latents: torch.Tensor) -> torch.dtype:
    """Return float32, or float64 for float64 latents: half precision would lose a small displacement."""
    return torch.promote_types(latents.dtype, torch.float32)


def _combine(a: float, latents: torch.Tensor, b: float, prediction: torch.Tensor) -> torch.Tensor:
    """Return ``a * latents + b * prediction`` in at least float32, cast back to the latents' dtype.

    Every move of a trajectory ends here, so that here is looked at what it was given.
    """
    check_prediction("a prediction", prediction, latents)
    dtype = working_dtype(latents)
    return (a * latents.to(dtype) + b * prediction.to(dtype)).to(latents.dtype)
