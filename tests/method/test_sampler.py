"""The sampler against loops written out plainly, and against mathematics."""

import copy
import itertools

import diffusers
import pytest
import torch
from helpers import NOTHING

from w2sd_video import Reflection, Trajectory, reflect, sample

DDIM = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}


def ddim(**settings):
    return diffusers.DDIMScheduler(**DDIM | settings)


def noise(*shape, seed=0):
    return torch.randn(*(shape or (2, 3, 8)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(latents, timestep, role):
    """Return a smooth, non-linear prediction that depends on everything."""
    gain = {"base": 1.0, "strong": 1.1, "weak": 0.8}[role]
    return gain * torch.tanh(latents + 1e-3 * float(timestep)) + 0.05 * latents.roll(1, -1)


# --- plain loops -------------------------------------------------------------------------------------------------


def plain_paper_epsilon(latents, steps, reflected):
    """Algorithm 1, with DDIM down and up spelled out for a network that predicts noise."""
    scheduler = ddim()
    scheduler.set_timesteps(steps)
    products = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps]
    products.append(float(scheduler.final_alpha_cumprod))
    for i, t in enumerate(scheduler.timesteps):
        here, below = products[i], products[i + 1]
        if i < reflected:
            strong = network(latents, t, "strong")
            clean = (latents - (1 - here) ** 0.5 * strong) / here**0.5
            lower = below**0.5 * clean + (1 - below) ** 0.5 * strong
            weak = network(lower, t, "weak")
            clean = (lower - (1 - below) ** 0.5 * weak) / below**0.5
            latents = here**0.5 * clean + (1 - here) ** 0.5 * weak
        base = network(latents, t, "base")
        clean = (latents - (1 - here) ** 0.5 * base) / here**0.5
        latents = below**0.5 * clean + (1 - below) ** 0.5 * base
    return latents


@pytest.mark.parametrize("reflected", [0, 1, 5, 9])
def test_equals_algorithm_1_written_out(reflected):
    result = sample(network, noise(), ddim(), num_inference_steps=10, reflection_steps=reflected)
    torch.testing.assert_close(result.latents, plain_paper_epsilon(noise(), 10, reflected), rtol=1e-6, atol=1e-6)
    assert result.nfe == {"base": 10, "strong": reflected, "weak": reflected}


def plain_velocity(latents, steps, inversion, iterations=2, scheduler=None, reading="epsilon"):
    """The four inversions for a velocity network, by signal and noise; the first level may have no signal."""
    scheduler = scheduler or ddim(**V)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    alphas = [float(scheduler.alphas_cumprod[t]) ** 0.5 for t in timesteps]
    alphas.append(float(scheduler.final_alpha_cumprod) ** 0.5)
    sigmas = [(1 - alpha**2) ** 0.5 for alpha in alphas]

    def split(x, v, i):
        return alphas[i] * x - sigmas[i] * v, sigmas[i] * x + alphas[i] * v

    for i, t in enumerate(timesteps):
        if i < steps - 1:
            clean, dirt = split(latents, network(latents, t, "strong"), i)
            lower = alphas[i + 1] * clean + sigmas[i + 1] * dirt
            if inversion in ("paper", "explicit"):
                told = i if inversion == "paper" else i + 1
                weak_clean, weak_dirt = split(lower, network(lower, timesteps[told], "weak"), told)
                if alphas[i] > 0:
                    clean = (lower - sigmas[i + 1] * weak_dirt) / alphas[i + 1]
                    latents = alphas[i] * clean + sigmas[i] * weak_dirt
                else:
                    latents = (lower - alphas[i + 1] * weak_clean) / sigmas[i + 1]
            else:
                inverted = latents
                for _ in range(1 if inversion == "current" else iterations):
                    weak = network(inverted, t, "weak")
                    if reading == "epsilon":
                        weak_clean, weak_dirt = split(inverted, weak, i)
                        inverted = (
                            alphas[i] * (lower - sigmas[i + 1] * weak_dirt) / alphas[i + 1] + sigmas[i] * weak_dirt
                            if alphas[i] > 0
                            else (lower - alphas[i + 1] * weak_clean) / sigmas[i + 1]
                        )
                        continue
                    # x_{t-1} = cos x - sin v for the angle between the two levels, solved for x.
                    cos = alphas[i] * alphas[i + 1] + sigmas[i] * sigmas[i + 1]
                    sin = sigmas[i] * alphas[i + 1] - alphas[i] * sigmas[i + 1]
                    inverted = (lower + sin * weak) / cos
                latents = inverted
        clean, dirt = split(latents, network(latents, t, "base"), i)
        latents = alphas[i + 1] * clean + sigmas[i + 1] * dirt
    return latents


@pytest.mark.parametrize("settings", [V, ZERO_SNR], ids=["v", "zero-snr"])
@pytest.mark.parametrize(
    ("inversion", "reading"),
    [
        *((name, "epsilon") for name in ("paper", "explicit", "current", "implicit")),
        ("current", "native"),
        ("implicit", "native"),
    ],
)
def test_every_inversion_of_a_velocity_network_equals_a_plain_loop(inversion, reading, settings):
    result = sample(network, noise(), ddim(**settings), num_inference_steps=10, inversion=inversion, reading=reading)
    plain = plain_velocity(noise(), 10, inversion, scheduler=ddim(**settings), reading=reading)
    torch.testing.assert_close(result.latents, plain, rtol=1e-5, atol=1e-5)
    assert result.nfe["weak"] == (18 if inversion == "implicit" else 9)


def test_rounds_and_strength_equal_the_operator_with_step_functions():
    """`sample` at one step is `reflect` with the same two functions."""
    scheduler = ddim()
    scheduler.set_timesteps(10)
    trajectory = Trajectory(scheduler)
    t = scheduler.timesteps[0]
    reflected = reflect(
        lambda x, i: trajectory.denoise(x, network(x, t, "strong"), i),
        lambda x, i: trajectory.invert(x, network(x, t, "weak"), i),
        noise(),
        0,
        strength=0.7,
        rounds=3,
    )
    seen = []
    sample(
        lambda x, t, role: (seen.append(x) if role == "base" else None, network(x, t, role))[1],
        noise(),
        ddim(),
        num_inference_steps=10,
        reflection_steps=1,
        strength=0.7,
        rounds=3,
    )
    torch.testing.assert_close(seen[0], reflected)


# --- mathematics -------------------------------------------------------------------------------------------------


def gaussian_noise(scheduler, mean, variance):
    """Return the exact noise prediction for data from a Gaussian."""

    def predict(latents, timestep):
        product = scheduler.alphas_cumprod[int(timestep)].double()
        alpha, sigma = product**0.5, (1 - product) ** 0.5
        return sigma * (latents - alpha * mean) / (alpha**2 * variance + sigma**2)

    return predict


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_displacement_converges_to_theorem_1_at_first_order(inversion):
    """Theorem 1: the displacement over the step tends to the gap of the scores, with an error as large as the step."""
    errors = []
    for steps in (10, 20, 40, 80):
        scheduler = ddim(num_train_timesteps=8000, beta_start=0.00085 / 8, beta_end=0.012 / 8)
        scheduler.set_timesteps(steps)
        strong, weak = gaussian_noise(scheduler, 1.0, 0.25), gaussian_noise(scheduler, -0.5, 1.0)
        trajectory, i, latents = Trajectory(scheduler), steps // 2, noise()
        captured = {}

        def predict(x, t, role, strong=strong, weak=weak, captured=captured):
            captured.setdefault(role, x)
            return (weak if role == "weak" else strong)(x, t)

        scheduler_at = copy.deepcopy(scheduler)
        scheduler_at.timesteps = scheduler.timesteps[i:]
        sample(predict, latents, scheduler_at, reflection_steps=1, inversion=inversion)
        alpha, sigma = trajectory.level(i)
        next_alpha, next_sigma = trajectory.next_level(i)
        step = sigma - next_sigma * alpha / next_alpha
        gap = weak(latents, scheduler.timesteps[i]) - strong(latents, scheduler.timesteps[i])
        theorem = step * gap
        errors.append(float((captured["base"] - latents - theorem).norm() / step))
    if inversion == "current":  # both predictions at the same latents: the theorem's difference itself
        assert max(errors) < 1e-12
        return
    ratios = [one / other for one, other in itertools.pairwise(errors)]
    assert errors[-1] < errors[0] / 5 and all(1.7 < ratio < 2.4 for ratio in ratios), (errors, ratios)


def test_implicit_iterations_converge_to_the_true_inverse():
    """More iterations come nearer to latents from which the weak model's own step leads where the strong one's led."""
    scheduler = ddim(**V)
    scheduler.set_timesteps(10)
    trajectory, t = Trajectory(scheduler), scheduler.timesteps[0]
    lower = trajectory.denoise(noise(), network(noise(), t, "strong"), 0)
    missed = []
    for iterations in (1, 2, 4, 8):
        seen = []
        sample(
            lambda x, t, role, seen=seen: (seen.append(x) if role == "base" else None, network(x, t, role))[1],
            noise(),
            ddim(**V),
            num_inference_steps=10,
            reflection_steps=1,
            inversion="implicit",
            iterations=iterations,
            reading="native",
        )
        missed.append(float((trajectory.denoise(seen[0], network(seen[0], t, "weak"), 0) - lower).norm()))
    assert missed == sorted(missed, reverse=True) and missed[-1] < 1e-4 * missed[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_scaling_of_the_latents_does_not_matter(inversion, prediction):
    """DDIM keeps latents at unit variance, Euler lets them grow; with the same timesteps both walk the same path."""
    shared = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "prediction_type": prediction}
    euler = diffusers.EulerDiscreteScheduler(**shared)
    euler.set_timesteps(10)
    deterministic = {"num_inference_steps": 10, "inversion": inversion}
    by_ddim = sample(network, noise(), diffusers.DDIMScheduler(**shared, clip_sample=False), **deterministic)
    scale = float((euler.sigmas[0] ** 2 + 1) ** 0.5)
    by_euler = sample(network, noise() * scale, euler, **deterministic)
    torch.testing.assert_close(by_ddim.latents, by_euler.latents, rtol=2e-4, atol=2e-4)


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 0},
    "FlowMatchEulerDiscreteScheduler": {},
    "CogVideoXDDIMScheduler": {"prediction_type": "v_prediction", "clip_sample": False},
    "CogVideoXDPMScheduler": {"prediction_type": "v_prediction", "clip_sample": False},
}
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "CogVideoXDPMScheduler")
PREDICTS_NOISE = {name: {"prediction_type": "epsilon"} for name in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_without_strength_every_scheduler_walks_as_without_reflection(name):
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    before = copy.deepcopy(scheduler.__dict__)

    def run(**settings):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        return sample(network, noise(), scheduler, num_inference_steps=12, generator=generator, **settings).latents

    assert torch.equal(run(reflection_steps=0), run(strength=NOTHING))
    assert torch.equal(run(reflection_steps=0), run(strength=0.0))
    assert not torch.equal(run(reflection_steps=0), run())
    assert getattr(scheduler, "num_inference_steps", None) == before.get("num_inference_steps")


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("i", [0, 3])
def test_the_schedulers_step_keeps_the_displacement(name, i):
    """What a reflection adds must not be lost in the step that counts, as a corrector or a restart would lose it.

    The network is blind (its noise is a constant), so every solver is exact: a displacement only shrinks or grows as
    the signal does, from the step where it was made to the end.
    """
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name] | PREDICTS_NOISE.get(name, {}))
    scheduler.set_timesteps(12)
    trajectory = Trajectory(scheduler)
    total = len(trajectory)

    def run(strength):
        seen = []

        def blind(latents, timestep, role):
            if role == "base":
                seen.append(latents)
            return torch.full_like(latents, 0.5 if role == "weak" else 0.0)

        torch.manual_seed(0)
        window = (i / total, (i + 1) / total)
        settings = {"num_inference_steps": 12, "reflection_steps": window, "strength": strength, "inversion": "current"}
        final = sample(blind, noise(), scheduler, generator=torch.Generator().manual_seed(1), **settings).latents
        return final, seen[trajectory.calls[i]]

    (moved, moved_at), (still, still_at) = run(1.0), run(0.0)
    level = trajectory.level(i)
    if trajectory.prediction_type == "flow":
        grows = 1.0
    else:
        grows = trajectory.level(total).alpha * trajectory.input_scale(level) / level.alpha
    kept = float((moved - still).mean() / (grows * (moved_at - still_at)).mean())
    # A multistep solver takes part of a jump of the latents for a trend of its history, and carries it further.
    assert kept == pytest.approx(1.0, abs=0.3 if name in MULTISTEP else 0.01)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [
        (None, 10, range(9)),
        (0, 10, range(0)),
        (10, 10, range(10)),
        ((0.2, 0.5), 10, range(2, 5)),
        ((0, 1), 4, range(4)),
    ],
)
def test_which_steps_are_reflected(steps, total, expected):
    assert Reflection(steps).steps(total) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inversion": "exact"}, "paper, explicit, current, implicit, resample, resample-advanced; got 'exact'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"strength": float("nan")}, "strength must be a finite number"),
        ({"reflection_steps": -1}, "reflection_steps must be a whole number"),
        ({"reflection_steps": (0.5, 0.2)}, "0 <= start <= stop <= 1"),
        ({"reflection_steps": 11}, "from 0 to 10, the number of steps; got 11"),
        ({"reflection_steps": 10, "inversion": "explicit"}, "reflect at most 9 steps"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        sample(network, noise(), ddim(), num_inference_steps=10, **settings)
