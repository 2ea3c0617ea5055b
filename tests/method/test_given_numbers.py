"""Numbers that a user gives: numpy's are numbers, truth values are not, and every message names its argument."""

from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch

from w2sd_video import Branch, Reflection, StrengthSchedule, Trajectory, reflect, sample

WHOLE = ("rounds", "iterations", "span")
REAL = ("strength", "autoguidance")
NO_NUMBERS = [True, np.True_, None, 1j, torch.tensor(1.0), np.array(1.0), [1]]


def down(latents, t):
    return 0.9 * latents


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused_by_the_name_of_its_argument(value):
    refused = [(name, Reflection, {name: value}) for name in (*WHOLE, *REAL)]
    refused += [
        (name, lambda **settings: reflect(down, down, torch.zeros(2), 0, **settings), {name: value})
        for name in ("strength", "rounds")
    ]
    if value is not None and value != [1]:
        refused += [
            (name, Branch, {name: value}) for name in ("guidance_scale", "control_scale", "ip_adapter_scale", "experts")
        ]
        refused += [("skip_layers", Branch, {"skip_layers": [value]}), ("lora", Branch, {"lora": {"style": value}})]
    for name, make, settings in refused:
        with pytest.raises(TypeError, match=rf"^{name}.* (number|numbers)\b"):
            make(**settings)


def test_a_tensor_of_one_number_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"strength must be a number, got tensor\(0.5000\); pass its .item\(\)"):
        Reflection(strength=torch.tensor(0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_what_is_not_finite_is_refused_by_the_name_of_its_argument(value):
    for name in REAL:
        with pytest.raises(ValueError, match=f"{name} must be a finite number, got"):
            Reflection(**{name: value})
    with pytest.raises(ValueError, match="strength must be a finite number"):
        reflect(down, down, torch.zeros(2), 0, strength=value)
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        Branch(guidance_scale=(1.0, value))
    with pytest.raises(ValueError, match="window of reflection_steps must be a finite number"):
        Reflection((0.0, value))
    with pytest.raises(ValueError, match="log_snr of a strength schedule must be a finite number"):
        StrengthSchedule((value,), (1.0,))


def test_a_fraction_of_a_round_is_refused_at_once():
    for name in WHOLE:
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 1.5"):
            Reflection(**{name: 1.5})
    with pytest.raises(ValueError, match=r"rounds must be a whole number of at least 1, got 1.5"):
        reflect(down, down, torch.zeros(2), 0, rounds=1.5)
    with pytest.raises(ValueError, match=r"num_inference_steps must be a whole number of at least 1, got 2.5"):
        sample(lambda x, t, role: x, torch.zeros(2), diffusers.DDIMScheduler(), num_inference_steps=2.5)


def test_numbers_of_numpy_are_kept_as_pythons_own():
    given = Reflection(
        (np.float32(0.25), Fraction(1, 2)),
        strength=np.float32(0.5),
        rounds=np.int64(3),
        span=np.uint8(2),
        autoguidance=np.float64(1.5),
    )
    assert given == Reflection((0.25, 0.5), strength=0.5, rounds=3, span=2, autoguidance=1.5)
    assert [type(getattr(given, name)) for name in ("strength", "rounds", "autoguidance")] == [float, int, float]
    assert Reflection(np.int64(2)).steps(5) == range(2)

    branch = Branch(
        guidance_scale=[np.float32(4.0), np.int64(3)],
        lora={"style": np.float16(0.5)},
        experts=np.int64(2),
        control_scale=np.float32(0.5),
        skip_layers=[np.int64(1), "mid_block"],
    )
    plain = Branch(
        guidance_scale=(4.0, 3), lora={"style": 0.5}, experts=2, control_scale=0.5, skip_layers=(1, "mid_block")
    )
    assert branch == plain and repr(branch) == repr(plain) and "float" not in repr(branch)

    schedule = StrengthSchedule(np.array([-1.0, 1.0]), np.array([1, 0]))
    assert schedule == StrengthSchedule((-1.0, 1.0), (1.0, 0.0)) and type(schedule.strength[0]) is float


def test_a_strength_of_numpy_reflects_as_pythons_own():
    latents = torch.randn(3, 4)
    assert torch.equal(
        reflect(down, down, latents, 0, strength=np.float32(0.5), rounds=np.int64(2)),
        reflect(down, down, latents, 0, strength=0.5, rounds=2),
    )


@pytest.mark.parametrize(
    ("window", "total", "expected"),
    [
        ((0, 0.5), 5, range(3)),  # 2.5, half up; to even it would be 2
        ((0, 0.5), 3, range(2)),
        ((0.1, 0.5), 5, range(1, 3)),
        ((0.5, 1), 1, range(1, 1)),
        ((0, 0.145), 100, range(15)),  # 14.499999999999998 in floating point
        ((0, 0.29), 100, range(29)),  # 28.999999999999996
        ((0, 0.35), 10, range(4)),
        ((0, 2.5 / 7), 7, range(3)),
        ((0, 0.49), 5, range(2)),
    ],
)
def test_windows_round_half_up(window, total, expected):
    assert Reflection(window).steps(total) == expected


@pytest.mark.parametrize("span", [0, 6, -1, 1.5])
def test_a_span_that_there_is_not_is_refused_by_name(span):
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(5)
    trajectory, latents = Trajectory(scheduler), torch.zeros(2)
    for move in (trajectory.denoise, trajectory.invert, trajectory.renoise):
        with pytest.raises(ValueError, match="span must be"):
            move(latents, latents, 1, span=span)
    with pytest.raises(ValueError, match="span must be"):
        Reflection(1, span=span).steps(5)


def test_a_span_says_nothing_where_nothing_is_reflected():
    assert Reflection(0, span=9).steps(5) == range(0)
