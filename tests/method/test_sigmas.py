"""Trajectories on sigmas, without a scheduler: against mathematics, diffusers' steps, and plain loops."""

import itertools
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

from w2sd_video import Reflection, Trajectory, reflect_step, sample
from w2sd_video.algorithm import drive
from w2sd_video.sampler import drawing_from

SIGMAS = {
    "variance_exploding": [14.6, 7.3, 3.1, 1.2, 0.4, 0.0],
    "variance_preserving": [0.998, 0.9, 0.7, 0.4, 0.1, 0.0],
    "flow": [0.97, 0.9, 0.7, 0.4, 0.1, 0.0],
}
PREDICTIONS = ("sample", "epsilon", "v_prediction", "flow", "inverted_flow")
CASES = [(kind, prediction) for kind in SIGMAS for prediction in PREDICTIONS]


def alpha_of(kind, sigma):
    return {"variance_exploding": 1.0, "variance_preserving": (1 - sigma**2) ** 0.5, "flow": 1 - sigma}[kind]


def words(prediction_type, clean, dirt, alpha, sigma):
    """Say a sample and a noise as a network of some kind would."""
    return {
        "sample": clean,
        "epsilon": dirt,
        "v_prediction": (alpha * dirt - sigma * clean) / (alpha**2 + sigma**2) ** 0.5,
        "flow": dirt - clean,
        "inverted_flow": clean - dirt,
    }[prediction_type]


def pair(seed=0, dtype=torch.float64):
    return torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype).unbind()


def make(kind, prediction_type="sample", sigmas=None):
    return Trajectory.from_sigmas(sigmas or SIGMAS[kind], kind, prediction_type=prediction_type)


# --- the algebra -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIGMAS)
def test_levels_are_those_of_the_kind_and_join(kind):
    trajectory = make(kind)
    assert len(trajectory) == trajectory.number_of_calls == 5
    for i, sigma in enumerate(SIGMAS[kind]):
        assert trajectory.level(i) == pytest.approx((alpha_of(kind, sigma), sigma))
    assert [trajectory.next_level(i) for i in range(5)] == [trajectory.level(i + 1) for i in range(5)]
    assert [float(t) for t in trajectory.timesteps] == pytest.approx(SIGMAS[kind][:-1])


@pytest.mark.parametrize(("kind", "prediction_type"), CASES)
def test_all_predictions_tell_the_same_step_and_the_same_readings(kind, prediction_type):
    trajectory = make(kind, prediction_type)
    clean, dirt = pair()
    for i, (sigma, lower) in enumerate(itertools.pairwise(SIGMAS[kind])):
        alpha, level = alpha_of(kind, sigma), trajectory.level(i)
        latents, prediction = alpha * clean + sigma * dirt, words(prediction_type, clean, dirt, alpha, sigma)
        moved = trajectory.denoise(latents, prediction, i)
        torch.testing.assert_close(moved, alpha_of(kind, lower) * clean + lower * dirt, rtol=1e-9, atol=1e-9)
        for reading, expected in (("sample", clean), ("epsilon", dirt)):
            read = trajectory.read(latents, prediction, at=level, told_level=level, reading=reading)
            torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "prediction_type"), CASES)
def test_down_and_up_is_the_identity_and_the_fused_reflection_is_down_and_up(kind, prediction_type):
    trajectory = make(kind, prediction_type)
    for i in range(len(trajectory)):
        latents, strong = pair(i)
        _, weak = pair(i + 100)
        if prediction_type == "sample" and i == len(trajectory) - 1:
            with pytest.raises(ValueError, match="cannot invert"):
                trajectory.invert(latents, strong, i)
            continue
        lower = trajectory.denoise(latents, strong, i)
        torch.testing.assert_close(trajectory.invert(lower, strong, i), latents, rtol=1e-9, atol=1e-9)
        down_and_up = trajectory.invert(lower, weak, i)
        torch.testing.assert_close(trajectory.reflect(latents, strong, weak, i), down_and_up, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "prediction_type"), CASES)
def test_a_gap_is_one_displacement_whatever_the_network_predicts(kind, prediction_type):
    """Strong and weak at one latent, read as noise: the displacement is that of the two noises themselves."""
    trajectory, noises = make(kind, prediction_type), make(kind, "epsilon")
    for i, sigma in enumerate(SIGMAS[kind][:-1]):
        latents, strong = pair(i)
        _, weak = pair(i + 100)
        alpha = alpha_of(kind, sigma)
        said = [words(prediction_type, (latents - sigma * dirt) / alpha, dirt, alpha, sigma) for dirt in (strong, weak)]
        level = trajectory.level(i)
        read = [trajectory.read(latents, p, at=level, told_level=level, reading="epsilon") for p in said]
        moved = trajectory.reflect(latents, *read, i, reading="epsilon")
        torch.testing.assert_close(moved, noises.reflect(latents, strong, weak, i), rtol=1e-8, atol=1e-8)
        gap = trajectory.as_reading(said[0] - said[1], i, "epsilon")
        torch.testing.assert_close(gap, strong - weak, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(trajectory.as_prediction(gap, i, "epsilon"), said[0] - said[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SIGMAS)
def test_half_precision_keeps_a_small_displacement(kind, dtype):
    trajectory = make(kind, "epsilon")
    latents, strong = (x.to(dtype) for x in pair())
    weak = strong + 4e-3
    exact = trajectory.reflect(latents.double(), strong.double(), weak.double(), 2) - latents.double()
    fused = trajectory.reflect(latents, strong, weak, 2) - latents
    down_and_up = trajectory.invert(trajectory.denoise(latents, strong, 2), weak, 2) - latents
    assert fused.dtype == dtype
    assert (fused - exact).abs().mean() < (down_and_up - exact).abs().mean()
    once_rounded = trajectory.denoise(latents.double(), strong.double(), 2).to(dtype)
    assert (trajectory.denoise(latents, strong, 2) - once_rounded).abs().mean() < 1e-4


# --- diffusers' own steps ------------------------------------------------------------------------------------------


def close(ours, own, tolerance=1e-6):
    assert (ours - own).norm() / own.norm() < tolerance


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("karras", [False, True])
def test_euler_on_sigmas_is_diffusers_euler(prediction_type, karras):
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction_type, use_karras_sigmas=karras)
    scheduler.set_timesteps(12)
    trajectory = Trajectory.from_sigmas(scheduler.sigmas, "variance_exploding", prediction_type=prediction_type)
    for i, timestep in enumerate(scheduler.timesteps):
        latents, prediction = pair(i, torch.float32)
        scheduler.scale_model_input(latents, timestep)
        close(trajectory.denoise(latents, prediction, i), scheduler.step(prediction, timestep, latents)[0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_on_sigmas_is_diffusers_flow_matching(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    trajectory = Trajectory.from_sigmas(scheduler.sigmas, "flow", prediction_type="flow")
    for i, timestep in enumerate(scheduler.timesteps):
        latents, prediction = pair(i, torch.float32)
        close(trajectory.denoise(latents, prediction, i), scheduler.step(prediction, timestep, latents)[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_preserving_sigmas_are_ddim(prediction_type):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction_type, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    sigmas = [(1 - float(scheduler.alphas_cumprod.double()[t])) ** 0.5 for t in scheduler.timesteps] + [0.0]
    trajectory = Trajectory.from_sigmas(sigmas, "variance_preserving", prediction_type=prediction_type)
    for i, timestep in enumerate(scheduler.timesteps[:-1]):
        latents, prediction = pair(i, torch.float32)
        close(trajectory.denoise(latents, prediction, i), scheduler.step(prediction, timestep, latents)[0])


def network(latents, told, role):
    """Return a smooth, non-linear prediction that depends on everything."""
    gain = {"base": 1.0, "strong": 1.1, "weak": 0.8}[role]
    return gain * torch.tanh(latents + 0.1 * float(told)) + 0.05 * latents.roll(1, -1)


@pytest.mark.parametrize("settings", [{"inversion": name} for name in ("paper", "explicit", "current", "implicit")])
def test_sampling_on_sigmas_is_sampling_with_eulers_scheduler(settings):
    """A network that scales its input by itself, and one that is given it scaled, walk one path."""
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    sigma_of = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), strict=False))

    def noise_of_scaled(latents, timestep, role):
        return network(latents, sigma_of[float(timestep)], role)

    def denoised(latents, sigma, role):
        return latents - sigma * network(latents / (sigma**2 + 1) ** 0.5, sigma, role)

    start = pair()[0] * float(scheduler.sigmas[0])
    with_scheduler = sample(noise_of_scaled, start, scheduler, **settings)
    on_sigmas = sample(
        denoised, start, make("variance_exploding", "sample", scheduler.sigmas.double().tolist()), **settings
    )
    close(on_sigmas.latents, with_scheduler.latents)
    assert on_sigmas.nfe == with_scheduler.nfe


# --- loops ---------------------------------------------------------------------------------------------------------


def plain_flow(latents, sigmas, inversion, reflected):
    """Algorithm 1 with Euler on flow sigmas, spelled out for a network of flows; gaps are of the noise."""
    for i, (sigma, lower_sigma) in enumerate(itertools.pairwise(sigmas)):
        if i < reflected:
            lower = latents + (lower_sigma - sigma) * network(latents, sigma, "strong")
            told = lower_sigma if inversion == "explicit" else sigma
            at = latents if inversion == "current" else lower
            dirt = at + (1 - told) * network(at, told, "weak")
            clean = (lower - lower_sigma * dirt) / (1 - lower_sigma)
            latents = (1 - sigma) * clean + sigma * dirt
        latents = latents + (lower_sigma - sigma) * network(latents, sigma, "base")
    return latents


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current"])
@pytest.mark.parametrize("reflected", [0, 2, 4])
def test_sampling_equals_a_loop_written_out(inversion, reflected):
    sigmas = SIGMAS["flow"]
    steps = []
    result = sample(
        network,
        pair()[0],
        make("flow", "flow"),
        reflection_steps=reflected,
        inversion=inversion,
        callback=lambda step, latents: steps.append(step),
    )
    torch.testing.assert_close(
        result.latents, plain_flow(pair()[0], sigmas, inversion, reflected), rtol=1e-6, atol=1e-6
    )
    assert result.nfe == {"base": 5, "strong": reflected, "weak": reflected}
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SIGMAS)
def test_sampling_in_half_precision_rounds_what_it_hands_over_and_nothing_else(kind, dtype):
    """The same sampling in double precision, rounded where the network and the next step see it, is the same."""
    trajectory, precision = make(kind, "epsilon"), torch.finfo(dtype).eps

    def smooth(latents, sigma, role):
        return torch.tanh(latents.double() * (0.9 if role == "weak" else 1.0)).to(latents.dtype)

    noise = (pair()[0] * float(trajectory.timesteps[0])).to(dtype)
    rounded = sample(smooth, noise, trajectory, inversion="current").latents
    exact = sample(smooth, noise.double(), trajectory, inversion="current").latents
    assert rounded.dtype == dtype
    assert (rounded - exact).norm() / exact.norm() < 4 * precision


def test_reflect_step_runs_on_sigmas_from_pure_noise_on():
    """At sigma 1 a flow has no signal, and the gap is that of the denoised samples."""
    trajectory = make("flow", "sample", [1.0, 0.8, 0.0])
    latents, strong = pair()
    _, weak = pair(7)
    asked = []

    def answer(request):
        asked.append((request.role, request.step, request.input_scale))
        return weak if request.role == "weak" else strong

    moved = drive(reflect_step(trajectory, latents, 0, Reflection(inversion="current"), torch.randn_like), answer)
    lower = latents + (0.8 - 1.0) * (latents - strong)
    torch.testing.assert_close(moved, (lower - 0.2 * weak) / 0.8)
    assert asked == [("strong", 0, 1.0), ("weak", 0, 1.0)]


def test_a_weak_network_told_another_level_gets_latents_of_its_scale():
    """Variance-exploding latents below a step are smaller than those of the sigma that the paper's inversion tells."""
    trajectory, latents = make("variance_exploding"), pair()[0] * 14.6
    seen = {}

    def answer(request):
        seen[request.role] = request.latents / request.input_scale
        return torch.zeros_like(request.latents)

    drive(reflect_step(trajectory, latents, 0, Reflection(inversion="paper"), torch.randn_like), answer)
    assert torch.equal(seen["strong"], latents)
    ratio = ((14.6**2 + 1) / (7.3**2 + 1)) ** 0.5
    torch.testing.assert_close(seen["weak"], trajectory.denoise(latents, 0 * latents, 0) * ratio)


@pytest.mark.parametrize("generator", [None, "one", "each", "a list of one"])
def test_noise_is_that_of_diffusers(generator):
    from diffusers.utils.torch_utils import randn_tensor

    def made():
        torch.manual_seed(3)
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        return {"one": generators[0], "each": generators, "a list of one": generators[:1]}.get(generator)

    like = torch.zeros(2, 3, 4, dtype=torch.float16)
    drawn = drawing_from(made())(like)
    assert torch.equal(drawn, randn_tensor((2, 3, 4), made(), torch.device("cpu"), torch.float16))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigmas", "error", "said"),
    [
        ([1.0, 2.0, 0.0], ValueError, "must fall from noise to signal, but rise from 1 to 2 at step 0"),
        ([3.0, 0.0, 0.0], ValueError, "must be above 0, but for the last one"),
        ([1.0, -1.0], ValueError, "must be above 0, but for the last one"),
        ([1.0], ValueError, "at least 2, one more than the steps, got 1"),
        ([float("nan"), 0.0], ValueError, "a sigma must be a finite number"),
        (torch.tensor([[1.0, 0.0]]), ValueError, r"one dimension, \(steps \+ 1,\), got \(1, 2\)"),
        (torch.tensor([999, 500, 0]), TypeError, "whole numbers from 999: timesteps"),
        (np.array([999, 500, 0]), TypeError, "whole numbers from 999: timesteps"),
        ([999, 500, 0], TypeError, "whole numbers from 999: timesteps"),
        (["a", "b"], TypeError, "a sigma must be a number, got 'a'"),
        (5.0, TypeError, "a tensor or a sequence of numbers, got float"),
        (None, TypeError, "a tensor or a sequence of numbers, got NoneType"),
    ],
)
def test_sigmas_that_cannot_be_right(sigmas, error, said):
    with pytest.raises(error, match=said):
        Trajectory.from_sigmas(sigmas, "variance_exploding", prediction_type="sample")


def test_kinds_and_predictions_that_cannot_be_right():
    with pytest.raises(
        ValueError, match=r"kind must be one of variance_exploding, variance_preserving, flow; got 've'"
    ):
        Trajectory.from_sigmas([1.0, 0.0], "ve", prediction_type="sample")
    with pytest.raises(ValueError, match=r"prediction_type must be one of epsilon, sample, .*; got 'x0'"):
        Trajectory.from_sigmas([1.0, 0.0], "flow", prediction_type="x0")
    with pytest.raises(ValueError, match=r"from 0 to 1, got 14.6; a ratio r of sigma to alpha is r / sqrt"):
        Trajectory.from_sigmas([14.6, 0.0], "variance_preserving", prediction_type="sample")
    with pytest.raises(ValueError, match=r"of kind 'flow' must be from 0 to 1, got 14.6"):
        Trajectory.from_sigmas([14.6, 0.0], "flow", prediction_type="sample")


def test_numpys_and_torchs_sigmas_are_sigmas():
    for sigmas in (np.array([3.0, 0.0]), torch.tensor([3.0, 0.0], dtype=torch.float16), (3.0, 0), [np.float32(3), 0.0]):
        trajectory = Trajectory.from_sigmas(sigmas, "variance_exploding", prediction_type="sample")
        assert [trajectory.level(i) for i in (0, 1)] == [(1.0, 3.0), (1.0, 0.0)]


def test_sampling_refuses_a_trajectory_of_a_scheduler_and_another_number_of_steps():
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match=r"pass the scheduler, or Trajectory.from_sigmas"):
        sample(network, pair()[0], Trajectory(scheduler))
    with pytest.raises(ValueError, match="num_inference_steps is 7, but there are 5 steps between the sigmas"):
        sample(network, pair()[0], make("flow"), num_inference_steps=7)


def test_sampling_on_sigmas_imports_no_diffusers():
    code = """
import sys
sys.modules["diffusers"] = None  # importing it is an error
import torch
from w2sd_video import Reflection, Reflector, Trajectory, known_schedulers, reflect_step, sample
assert "DDIMScheduler" in known_schedulers()
trajectory = Trajectory.from_sigmas([1.0, 0.6, 0.3, 0.0], "flow", prediction_type="flow")
noise = torch.randn(2, 3)
settings = [{}, {"autoguidance": 0.5}, {"inversion": "resample"}, {"inversion": "resample-advanced"}]
for more in settings:
    for generator in (None, torch.Generator(), [torch.Generator(), torch.Generator()]):
        assert sample(lambda x, sigma, role: x, noise, trajectory, generator=generator, **more).nfe["base"] == 3
assert torch.equal(Reflector(lambda x, step, role: x, trajectory, Reflection(2, inversion="current"))(noise, 0), noise)
import w2sd_video.backends.k_diffusion
"""
    subprocess.run([sys.executable, "-c", code], check=True)
