"""The plan of a loop: what its turns are, whatever the scheduler, the settings and the part that is gone through."""

import diffusers
import pytest

from w2sd_video import Reflection
from w2sd_video.driver.loop_plan import planned, with_looks
from w2sd_video.driver.turns import ProbeRequest
from w2sd_video.inversions import Request
from w2sd_video.reuse import measuring_steps
from w2sd_video.trajectory import Trajectory

STEPS = 8
SCHEDULERS = [diffusers.DDIMScheduler, diffusers.HeunDiscreteScheduler, diffusers.FlowMatchEulerDiscreteScheduler]
SETTINGS = {
    "paper": {},
    "explicit": {"inversion": "explicit"},
    "implicit": {"inversion": "implicit", "iterations": 3, "reflection_steps": (0.25, 0.75)},
    "reuse": {"inversion": "current", "reuse": 3, "autoguidance": 0.5, "autoguidance_steps": (0.0, 0.6)},
    "off": {"reflection_steps": 0},
}
schedulers = pytest.mark.parametrize("scheduler", SCHEDULERS)
settings = pytest.mark.parametrize("settings", [Reflection(**of) for of in SETTINGS.values()], ids=list(SETTINGS))


def plan_of(scheduler, settings, begin=0, end=None, idle=(), changes=None):
    scheduler = scheduler()
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps
    calls = range(len(timesteps))[begin:end]
    of_roles = {"weak": changes or ()}
    trajectory = Trajectory(scheduler)
    return planned(trajectory, timesteps, calls, settings, lambda moments: idle, lambda *_: of_roles), timesteps


@schedulers
@settings
@pytest.mark.parametrize("part", [(0, None), (3, None), (2, 6)])
def test_every_call_ends_with_its_step_and_every_step_is_counted_once(scheduler, settings, part):
    plan, _ = plan_of(scheduler, settings, *part)
    assert [turn.call for turn in plan.turns if turn.takes_step] == list(plan.calls)
    for call in plan.calls:
        turns = [turn for turn in plan.turns if turn.call == call]
        assert [turn.takes_step for turn in turns] == [False] * (len(turns) - 1) + [True]
        assert [turn.begins_call for turn in turns] == [True] + [False] * (len(turns) - 1)
        assert plan.moment_at(call) in plan.moments.values()
    assert sum(turn.ends_step for turn in plan.turns) in (plan.total_steps, plan.total_steps + 1)
    assert [moment.step for moment in plan.moments.values()] == list(range(plan.total_steps))
    assert {
        plan.trajectory.step_at(turn.call) for turn in plan.turns if isinstance(turn.asked, Request)
    } <= plan.reflected


def test_a_loop_that_begins_in_the_midst_of_a_step_counts_from_the_next():
    plan, _ = plan_of(diffusers.HeunDiscreteScheduler, Reflection(), begin=1)
    assert plan.trajectory.step_of_call(1) is None and plan.total_steps == STEPS - 1
    assert plan.moment_at(1) == plan.moment_at(2) == plan.moments[1]
    assert [plan.moments[step].step for step in (1, 2)] == [0, 1]


def test_the_calls_that_reuse_a_gap_are_those_that_do_not_measure_one():
    """Of the reflection and of AutoGuidance, each by a count of its own; idle steps want none."""
    idle, changes = {2}, {4}
    plan, _ = plan_of(diffusers.DDIMScheduler, Reflection(**SETTINGS["reuse"]), idle=idle, changes=changes)
    reflected, pushed = sorted(set(range(STEPS - 1)) - idle), list(range(5))
    measuring = [measuring_steps(3, steps, changes) for steps in (reflected, pushed)]
    reusing = (set(reflected) - measuring[0]) | (set(pushed) - measuring[1])
    assert plan.reflected == set(reflected) and plan.reusing == {step: step for step in reusing}
    displaced = [turn.call for turn in plan.turns if isinstance(turn.asked, ProbeRequest)]
    assert displaced == sorted(set(reflected) - measuring[0])


def test_a_loop_after_the_last_step_is_left_alone_or_refused():
    assert not plan_of(diffusers.DDIMScheduler, Reflection(0), begin=STEPS)[0].turns
    with pytest.raises(ValueError, match=f"begins at timestep {STEPS} of {STEPS}: no step is left"):
        plan_of(diffusers.DDIMScheduler, Reflection(), begin=STEPS)


@schedulers
@settings
def test_a_loop_is_looked_at_between_the_turns_of_the_sampler_which_stay_as_they_were(scheduler, settings):
    plan, timesteps = plan_of(scheduler, settings)
    looked_at = with_looks(plan, timesteps, settings.is_on, True, 2)
    assert [turn for turn in looked_at.turns if any(turn is own for own in plan.turns)] == list(plan.turns)
    looks = [turn.asked.purpose for turn in looked_at.turns if not any(turn is own for own in plan.turns)]
    assert ("watch" in looks) == ("watch again" in looks) == settings.is_on
    assert ("ask" in looks) == (settings.inversion == "explicit")
    told = {float(turn.timestep) for turn in plan.turns}
    measured = [turn for turn in looked_at.turns if getattr(turn.asked, "purpose", "") == "measure"]
    assert {float(turn.timestep) for turn in measured} == told
