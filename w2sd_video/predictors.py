"""Predictions by role for a sampling loop of one's own: ``predictor(pipe, ...)``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch

from w2sd_video.branch import Branch
from w2sd_video.driver.parts import is_modular
from w2sd_video.reflection_settings import Role
from w2sd_video.reuse import Changes

Function = Callable[[torch.Tensor, torch.Tensor, Role], torch.Tensor]


class Predictor:
    """A function ``predict(latents, timestep, role)`` of a pipeline, and what a loop with it begins with.

    ``sample(predict, predict.latents, predict.scheduler, begin=predict.begin, ...)`` is what the pipeline's call would
    be, reflected; what the call does with its latents between its steps is left out.

    Attributes:
        latents: those that the pipeline's call begins with, in the form in which its loop has them.
        scheduler: a copy of the pipeline's, its timesteps set; of a toolkit without schedulers a ``Trajectory``.
        begin: index of the timestep that the call begins at; 0 but from an image or a clip (``strength``).
        idle_steps: the steps at which windows leave strong and weak alike: `sample` reflects at none of them.
    """

    def __init__(
        self,
        function: Function,
        latents: torch.Tensor,
        scheduler: Any,
        begin: int = 0,
        end: Callable[[], None] | None = None,
        changes: Callable[[], Changes] = dict,
        idle_steps: Collection[int] = (),
    ) -> None:
        self.latents = latents
        self.scheduler = scheduler
        self.begin = begin
        self._function = function
        self._end = end
        self._changes = changes
        self.idle_steps = idle_steps

    @property
    def changes(self) -> Changes:
        """The steps from which on a role's prediction is made otherwise, so that `sample` carries no gap on.

        There the second of Wan 2.2's two networks takes over, or a window begins or ends.

        Raises:
            ValueError: a pipeline of two networks that does not say when they change.
        """
        return self._changes()

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, role: Role) -> torch.Tensor:
        """Return a prediction.

        Args:
            latents: like ``self.latents``, scaled as the network wants them (``scheduler.scale_model_input``).
            timestep: one of ``self.scheduler.timesteps``; with a ``Trajectory`` these are sigmas.
            role: "base", "strong" or "weak".

        Returns:
            The prediction that the scheduler calls ``model_output``, after guidance, like the latents. No gradients.

        Raises:
            ValueError: another shape, timestep or role, or what this role's branch cannot have in this call.
            RuntimeError: a predictor that is closed.
        """
        if role not in get_args(Role):
            raise ValueError(f"role must be base, strong or weak, got {role!r}")
        return self._function(latents, timestep, role)

    def close(self) -> None:
        """Give the pipeline's networks back; ``with predictor(...) as predict:`` does so at its end."""
        if self._end is not None:
            self._end()

    def __enter__(self) -> Predictor:
        """Return the predictor itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()


_OPEN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def predictor(pipe: Any, *, strong: Branch, weak: Branch, base: Branch | None = None, **call: Any) -> Predictor:
    """Return ``predict(latents, timestep, role)`` of a pipeline, for ``sample`` or a loop of one's own.

    The pipeline is called with ``call``, and stopped before its first step: texts and images are encoded, its loop is
    watched and its guidance measured, all without a run of the network that denoises. For each prediction its own loop
    makes one turn more, in a thread of its own: conditioning, guidance, control, adapters and offloading are the
    pipeline's. So what can be reflected can be predicted with, and nothing else.

    Args:
        pipe: a pipeline of diffusers, modular ones too, or of DiffSynth-Studio.
        strong: setting of the prediction that reflection goes down by.
        weak: setting of the prediction that it comes back by.
        base: setting of the step that counts; None is the pipeline's own.
        **call: the arguments of the pipeline's call: prompts, sizes, ``num_inference_steps``, ``generator``, ...

    Returns:
        The function, with the latents and the scheduler that the pipeline's call begins with. It keeps the networks:
        a ``with`` block or ``close()`` gives them back. A pipeline has one predictor at a time; a new one closes the
        one before. Stock calls of the pipeline go on working meanwhile.

    Raises:
        TypeError, ValueError: as of ``reflection``: a pipeline, a setting or a call that cannot be had.
    """
    branches: dict[Role, Branch] = {"base": Branch() if base is None else base, "strong": strong, "weak": weak}
    for role, branch in branches.items():
        if not isinstance(branch, Branch):
            raise TypeError(f"{role} must be a Branch, got {branch!r}")
    if isinstance(pipe, type) or not callable(pipe) or not (hasattr(pipe, "scheduler") or is_modular(pipe)):
        raise TypeError(f"pipe must be a pipeline that was loaded, got {pipe!r:.80}")
    if any(cls.__module__.partition(".")[0] == "diffsynth" for cls in type(pipe).__mro__):
        from w2sd_video.driver.diffsynth_call import predictions

        function, latents, levels, changes, idle = predictions(pipe, branches, call)
        return Predictor(function, latents, levels, changes=lambda: changes, idle_steps=idle)
    from w2sd_video.driver.predicting import Loop

    before = _OPEN.pop(pipe, lambda: None)()
    if before is not None:
        before.close()
    if is_modular(pipe):
        from w2sd_video.driver.modular_predicting import led_blocks

        loop = Loop(pipe, branches, call, led_blocks)
    else:
        loop = Loop(pipe, branches, call)
    _OPEN[pipe] = weakref.ref(loop)
    steps = loop.changes, loop.idle_steps
    predict = Predictor(loop.predicted, loop.latents, loop.scheduler, loop.begin, loop.close, *steps)
    weakref.finalize(predict, loop.end)
    return predict
