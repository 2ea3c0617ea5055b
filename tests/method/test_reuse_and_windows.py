"""Readings, windows, reuse and three rows, each against a loop written plainly in numpy for an exact network."""

import diffusers
import numpy as np
import pytest
import torch

from w2sd_video import Reflector, sample
from w2sd_video.reflection_settings import Reflection
from w2sd_video.reuse import HeldGap, measuring_steps
from w2sd_video.strength import StrengthSchedule, log_snr
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Window

STEPS = 10
MEANS = {"base": 1.0, "strong": 1.0, "weak": -0.5}
"""Each role knows data from a Gaussian of its own mean and a spread of 0.5."""
SPREAD = 0.5
SCHEDULERS = {
    "epsilon": diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"),
    "v_prediction": diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing", prediction_type="v_prediction"
    ),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
}


def denoised(x, alpha, sigma, role):
    """The mean of the data given latents, exactly."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    return MEANS[role] + alpha * SPREAD**2 / variance * (x - alpha * MEANS[role])


def levels_of(kind):
    scheduler = SCHEDULERS[kind]
    scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(scheduler)
    return scheduler, [tuple(trajectory.level(i)) for i in range(STEPS + 1)]


def in_terms_of(kind, x, x0, alpha, sigma):
    epsilon = (x - alpha * x0) / sigma
    return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "flow": epsilon - x0}[kind]


def predict_for(kind, levels, scheduler, log=None):
    at = {float(t): levels[i] for i, t in enumerate(scheduler.timesteps)}

    def predict(latents, timestep, role):
        if log is not None:
            log.append(role)
        alpha, sigma = at[float(timestep)]
        x = latents.double().numpy()
        return torch.tensor(in_terms_of(kind, x, denoised(x, alpha, sigma, role), alpha, sigma)).to(latents)

    return predict


def plain(kind, levels, x, *, reading, steps, strength=1.0, reuse=1, linear=False, push=0.0, pushed=(), gap_of="base"):
    """W2SD with ``current``, and AutoGuidance, in numpy: a gap in a reading, measured at some steps."""

    def read_at(i):
        return "sample" if reading == "epsilon" and levels[i][0] == 0 else reading

    def share(i, reading):
        """What of a gap in x0 there is in a reading at a level: epsilon = (x - alpha x0) / sigma, and so on."""
        alpha, sigma = levels[i]
        return {"sample": 1.0, "epsilon": -alpha / sigma, "native": {
            "epsilon": -alpha / sigma, "v_prediction": -alpha**2 / sigma - sigma, "flow": -alpha / sigma - 1
        }[kind]}[reading]  # fmt: skip

    def displacement(i, reading):
        """How far latents move for a gap of 1: B / A of the step in that reading."""
        (a, s), (a2, s2) = levels[i], levels[i + 1]
        if reading == "sample":
            return (a2 - s2 * a / s) / (s2 / s)
        if reading == "epsilon" or kind == "epsilon":
            return (s2 - a2 * s / a) / (a2 / a)
        if kind == "flow":
            return s2 - s  # x' = x + (s2 - s) flow
        return (s2 * a - a2 * s) / (a2 * a + s2 * s)

    known = {"reflection": [], "push": []}

    def gap(name, wanted, i, measure):
        """The gap at a step, and the reading in which it was measured."""
        order = sorted(wanted)
        place = order.index(i)
        if place % reuse == 0 or i == order[-1] or known[name][-1][2] != read_at(i):
            known[name].append((i, share(i, read_at(i)) * measure(), read_at(i)))
        elif linear and len(known[name]) > 1 and known[name][-1][2] == known[name][-2][2]:
            (j, g, read), (k, h, _) = known[name][-1], known[name][-2]
            return g + (g - h) * (i - j) / (j - k), read
        return known[name][-1][1:]

    def difference(role, x, alpha, sigma):
        return lambda: denoised(x, alpha, sigma, role) - denoised(x, alpha, sigma, "weak")

    evaluations = 0
    for i in range(STEPS):
        (a, s), (a2, s2) = levels[i], levels[i + 1]
        if i in steps:
            before = len(known["reflection"])
            g, read = gap("reflection", steps, i, difference("strong", x, a, s))
            evaluations += 2 * (len(known["reflection"]) - before)
            x = x + strength * displacement(i, read) * g
        x0 = denoised(x, a, s, "base")
        evaluations += 1
        if i in pushed:
            before = len(known["push"])
            g, read = gap("push", pushed, i, difference(gap_of, x, a, s))
            evaluations += (1 + (gap_of == "strong")) * (len(known["push"]) - before)
            x0 = x0 + push * g / share(i, read)
        x = a2 * x0 + s2 * (x - a * x0) / s
    return x, evaluations


def noise():
    return torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


CASES = {
    "all steps": ({"reflection_steps": 9}, {"steps": range(9)}),
    "a window": ({"reflection_steps": (0.3, 0.8), "strength": 0.7}, {"steps": range(3, 8), "strength": 0.7}),
    "reuse 2": ({"reflection_steps": 9, "reuse": 2}, {"steps": range(9), "reuse": 2}),
    "reuse 3, linear": (
        {"reflection_steps": (0.0, 0.8), "reuse": 3, "carried": "linear"},
        {"steps": range(8), "reuse": 3, "linear": True},
    ),
    "AutoGuidance late": (
        {"reflection_steps": 0, "autoguidance": 0.8, "autoguidance_steps": (0.5, 1.0)},
        {"steps": (), "push": 0.8, "pushed": range(5, 10)},
    ),
    "AutoGuidance every third step": (
        {"reflection_steps": 0, "autoguidance": 0.8, "reuse": 3},
        {"steps": (), "push": 0.8, "pushed": range(10), "reuse": 3},
    ),
    "AutoGuidance by strong and weak, and a reflection": (
        {"reflection_steps": 3, "autoguidance": 0.5, "autoguidance_gap": "strong", "autoguidance_steps": 6},
        {"steps": range(3), "push": 0.5, "pushed": range(6), "gap_of": "strong"},
    ),
}


@pytest.mark.parametrize("reading", ["epsilon", "sample", "native"])
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("case", CASES)
def test_every_setting_equals_a_loop_in_numpy(case, kind, reading):
    settings, plainly = CASES[case]
    scheduler, levels = levels_of(kind)
    result = sample(
        predict_for(kind, levels, scheduler), noise(), scheduler, num_inference_steps=STEPS, inversion="current",
        reading=reading, **settings,
    )  # fmt: skip
    expected, evaluations = plain(kind, levels, noise().numpy(), reading=reading, **plainly)
    np.testing.assert_allclose(result.latents.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert sum(result.nfe.values()) == evaluations


def test_reuse_costs_a_gap_at_every_kth_step_and_at_the_last():
    scheduler, levels = levels_of("epsilon")
    log = []
    sample(
        predict_for("epsilon", levels, scheduler, log), noise(), scheduler, num_inference_steps=STEPS,
        inversion="current", reuse=4, rounds=2,
    )  # fmt: skip
    assert log.count("strong") == log.count("weak") == 2 * 3  # at steps 0, 4 and 8 of 9, and 8 is the last
    assert log.count("base") == STEPS


@pytest.mark.parametrize(
    "settings",
    [{"reflection_steps": Window(-4.0, 2.0, "log_snr")}, {"strength": StrengthSchedule((0.0, 2.0), (1.0, 0.0))}],
    ids=["window", "strength"],
)
def test_the_explicit_inversion_reflects_where_the_levels_leave_the_last_step_out(settings):
    scheduler, levels = levels_of("epsilon")
    settings = {"reflection_steps": STEPS, "inversion": "explicit", **settings}
    predict = predict_for("epsilon", levels, scheduler)
    result = sample(predict, noise(), scheduler, num_inference_steps=STEPS, **settings)
    assert 0 < result.nfe["weak"] < STEPS
    everywhere = settings | {"strength": 1.0, "reflection_steps": Window(-4.0, 20.0, "log_snr")}
    with pytest.raises(ValueError, match="reflect at most 9 steps"):
        sample(predict, noise(), scheduler, num_inference_steps=STEPS, **everywhere)


def test_a_gap_is_measured_anew_where_another_network_takes_over():
    scheduler, levels = levels_of("epsilon")
    settings = {"inversion": "current", "reuse": 4, "carried": "linear"}
    predict = predict_for("epsilon", levels, scheduler)
    told = []

    def predicted(latents, timestep, role):
        told.extend([scheduler.timesteps.tolist().index(float(timestep))] * (role == "weak"))
        return predict(latents, timestep, role)

    sample(predicted, noise(), scheduler, num_inference_steps=STEPS, stage_changes=[6], **settings)
    assert told == [0, 4, 6, 8]
    del told[:]
    reflector = Reflector(
        lambda latents, step, role: predicted(latents, scheduler.timesteps[step], role), Trajectory(scheduler),
        Reflection(**settings), stage_changes=[6],
    )  # fmt: skip
    for step in range(STEPS):
        reflector(noise(), step)
    assert told == [0, 4, 6, 8]
    with pytest.raises(ValueError, match="stage_changes must be steps from 0 to 9, got 10"):
        sample(predict, noise(), scheduler, num_inference_steps=STEPS, stage_changes=[10], **settings)


def test_a_window_of_log_snrs_is_the_same_steps_whatever_their_number():
    for steps in (10, 25):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(steps)
        trajectory = Trajectory(scheduler)
        middle = [i for i in range(steps) if -2.0 <= log_snr(trajectory.level(i)) < 1.0]
        settings = Reflection(Window(-2.0, 1.0, "log_snr"), inversion="current")
        reached = [i for i in settings.steps(steps) if settings.reflects_at(trajectory.level(i))]
        assert reached == middle and middle


def test_a_weight_for_each_level_is_off_where_it_is_zero():
    scheduler, levels = levels_of("epsilon")
    bell = StrengthSchedule((-4.0, -1.0, 0.0, 1.0, 4.0), (0.0, 0.0, 1.0, 0.0, 0.0))
    log = []
    sample(
        predict_for("epsilon", levels, scheduler, log), noise(), scheduler, num_inference_steps=STEPS,
        reflection_steps=0, autoguidance=bell,
    )  # fmt: skip
    on = sum(-1.0 < 2 * np.log(alpha / sigma) < 1.0 for alpha, sigma in levels[:STEPS])
    assert log.count("weak") == on and 0 < on < STEPS


def test_what_makes_no_sense_is_refused():
    for settings, words in (
        ({"reading": "noise"}, "reading must be one of epsilon, sample, native"),
        ({"reuse": 0}, "reuse must be at least 1"),
        ({"reuse": 2, "inversion": "resample"}, "has no gap to reuse"),
        ({"carried": "cubic"}, "carried must be one of held, linear"),
        ({"autoguidance_steps": (0.5, 2.0), "autoguidance": 1.0}, "a window of autoguidance_steps"),
        ({"autoguidance_gap": "weak"}, "autoguidance_gap must be one of base, strong"),
    ):
        with pytest.raises(ValueError, match=words):
            Reflection(**settings)
    with pytest.raises(ValueError, match="start <= stop"):
        Window(2.0, 1.0, "log_snr")
    with pytest.raises(ValueError, match="autoguidance_steps must be from 0 to 10"):
        Reflection(0, autoguidance=1.0, autoguidance_steps=11).pushed_steps(10)


def test_a_change_at_a_step_that_wants_no_gap_counts_for_the_next_that_does():
    steps = [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert measuring_steps(4, [0, 1, 2, 7, 8, 9], {4}) == {0, 7, 9}
    assert measuring_steps(4, [0, 1, 2], {4}) == {0, 2}
    held = HeldGap(4, "linear", steps, {5})
    for step in (0, 6):
        assert held.at(step, "epsilon") is None
        held.keep(step, "epsilon", torch.tensor(float(step) ** 2))
    assert held.at(7, "epsilon") == torch.tensor(36.0), "what was measured before the change is no line to go on"
