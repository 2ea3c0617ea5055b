"""What strong and weak predict of known clips with noise added, asked through the pipeline's own loop.

The pipeline is called as for sampling, so that its guidance, text, ControlNet and conditioning are what they are there;
but a ``ClipWalk`` takes the place of its scheduler and hands it noised clips instead of the latents of a next step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from w2sd_video.algorithm import StepRequest, asked_by
from w2sd_video.branch import Branch
from w2sd_video.calibration.moments import Moments
from w2sd_video.driver.call import walking
from w2sd_video.driver.loop_plan import Plan, first_looks
from w2sd_video.driver.rehearsal import CallState
from w2sd_video.driver.step_call import StepCall, without_variance
from w2sd_video.driver.turns import Turn
from w2sd_video.driver.walk import Walk
from w2sd_video.gaps.swaps import attributes_put_back
from w2sd_video.inversions import Draw, Request
from w2sd_video.levels import Level
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.sampler import drawing_from
from w2sd_video.trajectory import Trajectory

Ideal = Callable[[torch.Tensor, Level], tuple[torch.Tensor, torch.Tensor]]
"""Of noised clips (clips, ...) and their level: an estimate of E[ε | them], and how many clips are behind each."""


def compare(
    trajectory: Trajectory,
    clips: torch.Tensor,
    draws: int,
    draw: Draw,
    begin: int = 0,
    ideal: Ideal | None = None,
) -> Generator[Request, torch.Tensor, Moments]:
    """Yield requests for the predictions of strong and weak at every level, and return how they compare.

    Levels without signal (alpha = 0) are left out, for no prediction can be read as noise there.

    Args:
        trajectory: the levels.
        clips: latents without noise, (clips, ...).
        draws: of noise, for each clip and level.
        draw: makes noise like the clips.
        begin: the first step whose level is asked about.
        ideal: an estimate of the ideal prediction, to be compared with strong's too.
    """
    steps = [i for i in range(begin, len(trajectory)) if trajectory.level(i).alpha > 0]
    products = []
    for i in steps:
        level, scale = trajectory.level(i), trajectory.input_scale(trajectory.level(i))
        read = functools.partial(trajectory.read, at=level, told_level=level, reading="epsilon")
        for _ in range(draws):
            noise = draw(clips)
            latents = level.alpha * clips + level.sigma * noise
            strong = read(latents, (yield Request(latents, i, scale, "strong")))
            weak = read(latents, (yield Request(latents, i, scale, "weak", shares_latents=True)))
            error, gap = noise - strong, strong - weak
            products += [_mean_product(*pair) for pair in ((error, error), (gap, gap), (error, gap))]
            if ideal is not None:
                ideal_prediction, effective = ideal(latents, level)
                to_ideal = ideal_prediction - strong
                products += [_mean_product(to_ideal, to_ideal), _mean_product(error, to_ideal), effective.numpy()]
    products_per_draw = 3 if ideal is None else 6
    arrays = np.array(products).reshape(len(steps), draws, products_per_draw, len(clips)).transpose(2, 0, 1, 3)
    levels = tuple(trajectory.level(i) for i in steps)
    towards_ideal = None if ideal is None else arrays[3:]
    return Moments(levels, tuple(steps), len(trajectory), arrays[0], arrays[1], arrays[2], towards_ideal)


class ClipWalk(Walk):
    """A walk through the noise levels of known clips: for each level and draw a turn of strong and one of weak.

    Args:
        scheduler: the pipeline's, told its timesteps by the pipeline.
        settings: say which roles are evaluated.
        state: see ``Walk``.
        clips: latents in the layout of the pipeline's own, without noise.
        draws: of noise, for each clip and level.
        draw: makes the noise, float32 on the CPU.
        ideal: see ``compare``.
        on_moments: called with the moments when the last level is compared.
    """

    def __init__(
        self,
        scheduler: Any,
        settings: Reflection,
        state: CallState,
        *,
        clips: torch.Tensor,
        draws: int,
        draw: Draw,
        ideal: Ideal | None,
        on_moments: Callable[[Moments], None],
    ) -> None:
        super().__init__(scheduler, settings, state)
        self._clips = clips
        self._draws = draws
        self._draw = draw
        self._ideal = ideal
        self._on_moments = on_moments

    def _planned(self, calls: range) -> Plan:
        """Lay out one turn for the pipeline's own latents, of which nothing is asked, and those of the comparison."""
        begin, trajectory, timesteps = calls.start, Trajectory(self.wrapped), self.wrapped.timesteps
        first = next(i for i, call in enumerate(trajectory.calls) if call >= begin)
        no_clips = torch.zeros(0, 1)
        self._comparison = compare(trajectory, self._clips, self._draws, self._draw, first, self._ideal)
        first_latents = StepRequest(no_clips, begin, "base")
        turns = first_looks(begin, timesteps[begin], 0, self._settings.is_on, self._state.measures)
        turns.append(Turn(begin, timesteps[begin], first_latents, takes_step=True, ends_step=True))
        for request in asked_by(compare(trajectory, no_clips, self._draws, torch.zeros_like, first)):
            call = trajectory.calls[request.step]
            turns.append(Turn(call, trajectory.timesteps[request.step], request, ends_step=True))
        return Plan(trajectory, calls, turns, total_steps=len(turns))

    def _answer(self, turn: Turn, step_call: StepCall) -> Any:
        """Begin with the first level in the place of the pipeline's own latents, then compare level after level."""
        latents = step_call.latents
        if turn.takes_step:
            self._check_shape(latents)
            return self._hand_back(self._noised(next(self._comparison), latents), step_call)
        try:
            prediction = without_variance(step_call.prediction, latents)[: len(self._clips)]
            noised = self._noised(self._comparison.send(prediction.to(self._clips)), latents)
            return self._hand_back(noised, step_call)
        except StopIteration as end:
            self._on_moments(end.value)
            return self._hand_back(latents, step_call)

    def _check_shape(self, latents: torch.Tensor) -> None:
        clips = self._clips
        if latents.shape[1:] != clips.shape[1:] or len(latents) not in (len(clips), 2 * len(clips)):
            raise ValueError(
                f"the clips' latents have the shape {tuple(clips.shape)}, the pipeline's own have "
                f"{tuple(latents.shape)}; give clips of the size and the number of frames that it is called with"
            )

    def _noised(self, request: Request, latents: torch.Tensor) -> torch.Tensor:
        """Return the noised clips as the pipeline's latents are: twice, if it steps both halves of guidance (DiT)."""
        return torch.cat([request.latents] * (len(latents) // len(self._clips))).to(latents)


def moments_of_clips(
    pipe: Any,
    arguments: Mapping[str, Any],
    clips: torch.Tensor,
    *,
    strong: Branch,
    weak: Branch,
    seeds: Iterable[int],
    draws: int = 1,
    ideal: Ideal | None = None,
) -> Moments:
    """Compare what two branches predict of known clips, at the levels of the pipeline's own timesteps.

    Args:
        pipe: any pipeline that ``reflection`` takes.
        arguments: of its call: prompts, one a clip, ``num_inference_steps``, sizes, ``guidance_scale`` above 1 if a
            branch is guided.
        clips: latents in the layout and scaling of the pipeline's own, without noise, (clips, ...).
        strong: the setting that denoises in a reflection.
        weak: the setting that inverts.
        seeds: of the noise, one a clip.
        draws: of noise, for each clip and level.
        ideal: see ``compare``.

    Returns:
        The moments of every level with signal (alpha > 0).

    Raises:
        ValueError: clips of another shape than the pipeline's latents, and all that ``reflection`` refuses.
    """
    clips = clips.to("cpu", torch.float32)
    draw = drawing_from([torch.Generator().manual_seed(seed) for seed in seeds])
    moments: list[Moments] = []
    branches: dict[Role, Branch] = {"base": strong, "strong": strong, "weak": weak}
    walk_of = functools.partial(ClipWalk, clips=clips, draws=draws, draw=draw, ideal=ideal, on_moments=moments.append)
    with attributes_put_back(pipe.scheduler), walking(pipe, branches, Reflection(), walk_of):
        pipe(**{**arguments, "output_type": "latent"})
    if not moments:
        raise RuntimeError(f"{type(pipe).__name__} ended its loop before the last noise level")
    return moments[0]


def _mean_product(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return ⟨first, second⟩ / elements of each clip, (clips,), in double precision."""
    return (first.double() * second.double()).flatten(1).mean(1).numpy(force=True)
