"""Reflection in a sampling loop that somebody else has written: one call before each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch

from w2sd_video.algorithm import drive, reflected_steps, shift_history
from w2sd_video.argument_checks import check_callable, check_finite, check_latents, check_like, whole_number
from w2sd_video.inversions import Request, reflect_step
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.reuse import HeldGap, steps_of_changes
from w2sd_video.sampler import drawing_from
from w2sd_video.trajectory import Trajectory

PredictAtStep = Callable[[torch.Tensor, int, Role], torch.Tensor]


class Reflector:
    """Reflects the latents of a loop, step by step: ``latents = reflector(latents, i)`` before step ``i`` is taken.

    The steps stay the loop's own. A loop is gone through once; another sampling gets a reflector of its own.

    Args:
        predict: ``(latents, step, role) -> prediction``, after guidance, at the timestep of the step that is named (at
            "explicit" that is not the step that is reflected); role is "strong" or "weak". The latents are as the
            network wants them: scaled, where the trajectory is that of a scheduler that scales its input. The
            prediction is what the trajectory's ``prediction_type`` says, and like the latents.
        trajectory: the levels that the loop goes through: ``Trajectory.from_sigmas(...)``, or the ``Trajectory`` of a
            scheduler of diffusers whose timesteps are set.
        settings: where and how to reflect; without AutoGuidance, which belongs to the step.
        scheduler: whatever takes the steps, if it keeps its last latents (``last_sample``, as UniPC's corrector does,
            Wan's among them): they are displaced too, or the corrector would undo the reflection.
        generator: for Re-Sampling; a list has one a sample.
        stage_changes: steps from which on another network answers (the second of Wan 2.2's two), where a gap that is
            reused is measured anew.

    Attributes:
        nfe: calls of ``predict`` so far by role.

    Raises:
        TypeError: no function, no trajectory or no settings.
        ValueError: more reflected steps than steps, a change of stage at none of them, or AutoGuidance.
    """

    def __init__(
        self,
        predict: PredictAtStep,
        trajectory: Trajectory,
        settings: Reflection | None = None,
        *,
        scheduler: Any = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        stage_changes: Collection[int] = (),
    ) -> None:
        settings = Reflection() if settings is None else settings
        check_callable("predict", predict)
        for name, value, kind in (("trajectory", trajectory, Trajectory), ("settings", settings, Reflection)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if "weak" in settings.roles and settings.autoguidance and settings.autoguidance_steps != 0:
            raise ValueError("autoguidance belongs to the step, which is the loop's own; leave it out, or use sample")
        self.nfe: Counter[str] = Counter(strong=0, weak=0)
        self._predict = predict
        self._trajectory = trajectory
        self._settings = settings
        self._scheduler = scheduler
        self._draw = drawing_from(generator)
        self._steps = reflected_steps(trajectory, settings)
        fresh = steps_of_changes(stage_changes, trajectory)
        self._held = HeldGap(settings.reuse, settings.carried, sorted(self._steps), fresh)

    def __call__(self, latents: torch.Tensor, i: int) -> torch.Tensor:
        """Return the latents to take step ``i`` from, counted from the noisiest: the reflected ones, or the same.

        Args:
            latents: at the level of the step, in the scaling of the loop; floating-point, of any shape.
            i: the step.

        Raises:
            TypeError: latents that are no floating-point tensor.
            ValueError: a step that there is not, latents that are not finite, or a prediction that is not like them.
        """
        check_latents(latents)
        if whole_number("a step", i, 0) >= len(self._trajectory):
            raise ValueError(f"a step must be from 0 to {len(self._trajectory) - 1}, got {i}")
        if i not in self._steps:
            return latents
        check_finite(f"the latents before step {i}", latents)
        with torch.no_grad():
            asking = reflect_step(self._trajectory, latents, i, self._settings, self._draw, self._held)
            reflected = drive(asking, self._answer)
            if self._scheduler is not None:
                shift_history(self._scheduler, self._trajectory, self._trajectory.calls[i], reflected - latents)
        return reflected

    def _answer(self, request: Request) -> torch.Tensor:
        self.nfe[request.role] += 1
        seen = request.latents / request.input_scale
        prediction = self._predict(seen, request.step, request.role)
        check_like(f"predict as {request.role!r} at step {request.step}", prediction, seen)
        return prediction
