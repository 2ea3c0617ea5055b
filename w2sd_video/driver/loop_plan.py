"""What a pipeline's loop is to go through, laid out before it begins: the turns, and what is known of its steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from w2sd_video.algorithm import Step, StepRequest, asked_by_call, pushed_steps, reflected_steps, w2sd
from w2sd_video.driver.measuring import PROBE_TURNS
from w2sd_video.driver.turns import WATCH_TURNS, Turn, asks, probes, repeats, with_later_watches, with_measures
from w2sd_video.inversions import Draw, Request
from w2sd_video.reflection_settings import Reflection
from w2sd_video.reuse import Changes
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment

IdleSteps = Callable[[Mapping[int, Moment]], Collection[int]]
"""From the steps of a loop to those at which windows leave strong and weak alike."""
GapChanges = Callable[[Trajectory, Mapping[int, Moment]], Changes]
"""From the levels and the steps of a loop to the steps from which on a role's prediction is made otherwise."""


@dataclass(frozen=True)
class Plan:
    """One loop over calls of a scheduler.

    Attributes:
        trajectory: the scheduler's levels.
        calls: those of the scheduler that the loop goes through.
        turns: what it goes through for them, in order; none where there is no step to lead.
        total_steps: how many steps begin in these calls.
        moments: these steps, by their numbers in the trajectory.
        idle: those at which windows leave strong and weak alike.
        changes: those from which on a role's prediction is made otherwise; left empty where no gap is reused.
        reflected: those at which there is a reflection.
        reusing: the calls that have a gap which was measured before, of a reflection or of AutoGuidance, and the
            numbers of their steps in the loop.
    """

    trajectory: Trajectory
    calls: range
    turns: Sequence[Turn] = ()
    total_steps: int = 0
    moments: Mapping[int, Moment] = field(default_factory=dict)
    idle: Collection[int] = ()
    changes: Changes = field(default_factory=dict)
    reflected: frozenset[int] = frozenset()
    reusing: Mapping[int, int] = field(default_factory=dict)

    def sampling(
        self, latents: torch.Tensor, settings: Reflection, draw: Draw = torch.randn_like
    ) -> Generator[Request | StepRequest | Step, torch.Tensor, torch.Tensor]:
        """Return the algorithm over these calls, from the latents of the first on."""
        steps = self.calls.start, self.changes, self.idle, self.calls.stop
        return w2sd(self.trajectory, latents, settings, draw, *steps)

    def moment_at(self, call: int) -> Moment | None:
        """Return the step that a call belongs to; the first one, where a loop begins in the midst of one before."""
        step = self.trajectory.step_at(call)
        return self.moments.get(max(step, min(self.moments, default=step)))

    def is_reflected(self, call: int) -> bool:
        """Return whether there is a reflection at the step that a call belongs to."""
        return self.trajectory.step_at(call) in self.reflected

    def input_scale(self, call: int) -> float:
        """Return what the loop has its latents divided by at a call."""
        return self.trajectory.input_scale(self.trajectory.level(self.trajectory.step_at(call)))


def planned(
    trajectory: Trajectory,
    timesteps: torch.Tensor,
    calls: range,
    settings: Reflection,
    idle_steps: IdleSteps,
    gap_changes: GapChanges,
) -> Plan:
    """Lay out the turns that the sampler asks for; steps are counted from the first of the calls.

    A loop that begins after the last step, and is not to be reflected, has none.

    Args:
        trajectory: the scheduler's levels.
        timesteps: the scheduler's, of all calls.
        calls: those that the loop goes through.
        settings: where and how to reflect.
        idle_steps: tells the steps at which windows leave strong and weak alike.
        gap_changes: tells those from which on a gap is another one; asked where gaps are reused.

    Raises:
        ValueError: no step that begins in the calls, and what ``w2sd`` refuses.
    """
    if not settings.is_on and not trajectory.steps_from(calls.start):
        return Plan(trajectory, calls)
    steps = trajectory.steps_from(calls.start, calls.stop)
    if not steps:
        raise ValueError(f"the pipeline begins at timestep {calls.start} of {calls.stop}: no step is left")
    moments = {step: Moment(place, len(steps), trajectory.level(step)) for place, step in enumerate(steps)}
    idle = idle_steps(moments)
    changes = gap_changes(trajectory, moments) if settings.reuse > 1 else {}
    reflected = reflected_steps(trajectory, settings, calls.start, idle, calls.stop)
    pushed = pushed_steps(trajectory, settings, calls.start, calls.stop)
    plan = Plan(trajectory, calls, (), len(steps), moments, idle, changes, reflected)
    turns: list[Turn] = []
    reusing: dict[int, int] = {}
    for call, asked in asked_by_call(plan.sampling(torch.zeros(0), settings)).items():
        step = trajectory.step_of_call(call)
        pushes = any(isinstance(each, StepRequest) and each.role == "weak" for each in asked)
        reuses_reflection = step in reflected and isinstance(asked[0], StepRequest)
        if step is not None and (reuses_reflection or (step in pushed and not pushes)):
            reusing[call] = moments[step].step
        turns += _turns_of(call, asked, trajectory, timesteps, reuses_reflection)
    return replace(plan, turns=turns, reusing=reusing)


def _turns_of(
    call: int,
    asked: Sequence[Request | StepRequest],
    trajectory: Trajectory,
    timesteps: torch.Tensor,
    reuses_reflection: bool,
) -> list[Turn]:
    """Return the turns for one call of the scheduler, of which the last takes its step.

    A reflection that reuses its gap asks for nothing, and yet what is evaluated next is at other latents than the
    loop's: there is one turn more, in which they are displaced.
    """
    last = len(asked) - 1
    ends_step = trajectory.step_of_call(call + 1) is not None or call + 1 == trajectory.number_of_calls
    before = probes(call, timesteps[call], "displace", 1) if reuses_reflection else []
    return before + [
        Turn(
            call,
            trajectory.timesteps[each.step] if isinstance(each, Request) else timesteps[each.call],
            each,
            begins_call=number == 0 and not reuses_reflection,
            takes_step=number == last,
            ends_step=number == last and ends_step,
        )
        for number, each in enumerate(asked)
    ]


def with_looks(plan: Plan, timesteps: torch.Tensor, watches: bool, measures: bool, stages: int) -> Plan:
    """Return a plan with the turns in which its loop is looked at, before the first step and at later ones.

    Args:
        plan: of what the sampler asks for.
        timesteps: the scheduler's, of all calls.
        watches: whether the loop is watched.
        measures: whether the layout of guidance is measured.
        stages: how many denoisers there are; each has a layout of its own.
    """
    if not plan.turns:
        return plan
    begin, timestep = plan.calls.start, timesteps[plan.calls.start]
    turns = [*first_looks(begin, timestep, plan.total_steps, watches, measures), *_asks(plan, timestep), *plan.turns]
    if measures and stages > 1:
        turns = with_measures(turns, timestep)
    return replace(plan, turns=with_later_watches(turns, timesteps, begin) if watches else turns)


def first_looks(begin: int, timestep: torch.Tensor, steps: int, watches: bool, measures: bool) -> list[Turn]:
    """Return the turns at the first call in which a loop of so many steps is watched, and its layout measured."""
    watching = probes(begin, timestep, "watch", WATCH_TURNS) + repeats(begin, timestep, steps + 1) if watches else []
    return watching + (probes(begin, timestep, "measure", PROBE_TURNS) if measures else [])


def _asks(plan: Plan, timestep: torch.Tensor) -> list[Turn]:
    """Return the turns in which is seen whether the network is told another timestep, if it will have to be."""
    told = [
        turn.timestep
        for turn in plan.turns
        if isinstance(turn.asked, Request) and turn.asked.step != plan.trajectory.step_at(turn.call)
    ]
    return asks(plan.calls.start, timestep, told[-1]) if told else []
