"""Strengths by noise level, AutoGuidance, long reflections and Re-Sampling, against loops written out plainly."""

import json

import diffusers
import pytest
import tiny
import torch

from w2sd_video import Branch, Reflection, Reflector, StrengthSchedule, Trajectory, reflect, reflection, sample
from w2sd_video.inversions import reflect_step
from w2sd_video.strength import log_snr
from w2sd_video.trajectory import Level

DDIM = {"beta_schedule": "scaled_linear", "clip_sample": False}
STEPS = 6


def noise(*shape):
    return torch.randn(shape or (2, 3, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(latents, timestep, role):
    gain = {"base": 1.0, "strong": 1.1, "weak": 0.8}[role]
    return gain * torch.tanh(latents + 1e-3 * float(timestep)) + 0.05 * latents.roll(1, -1)


# --- strengths ---------------------------------------------------------------------------------------------------


def test_strengths_are_interpolated_in_log_snr_and_constant_beyond():
    schedule = StrengthSchedule(log_snr=(-2.0, 0.0, 4.0), strength=(3.0, 1.0, 0.0))
    for value, expected in [(-2.0, 3.0), (-1.0, 2.0), (0.0, 1.0), (1.0, 0.75), (4.0, 0.0), (9.0, 0.0), (-9.0, 3.0)]:
        ratio = torch.tensor(value / 2).exp().item()
        assert schedule.at(Level(ratio, 1.0)) == pytest.approx(expected)
    assert schedule.at(Level(0.0, 1.0)) == 3.0 and schedule.at(Level(1.0, 0.0)) == 0.0


def test_one_schedule_means_the_same_in_every_scaling():
    """The levels of DDIM, Euler and flow matching at one signal-to-noise ratio."""
    schedule = StrengthSchedule((-3.0, 3.0), (2.0, 0.0))
    assert schedule.at(Level(0.6, 0.8)) == pytest.approx(schedule.at(Level(1.0, 0.8 / 0.6)))
    assert schedule.at(Level(0.6, 0.8)) == pytest.approx(schedule.at(Level(3 / 7, 4 / 7)))


def test_a_constant_schedule_is_a_constant_strength():
    scheduler = diffusers.DDIMScheduler(**DDIM)
    constant = sample(network, noise(), scheduler, num_inference_steps=STEPS, strength=0.4)
    schedule = StrengthSchedule((0.0,), (0.4,))
    assert torch.equal(
        sample(network, noise(), scheduler, num_inference_steps=STEPS, strength=schedule).latents, constant.latents
    )


def test_each_step_has_the_strength_of_its_level_and_none_where_it_is_0():
    """Two steps of the six have a strength; the loop of the test reflects them with it by hand."""
    scheduler = diffusers.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(scheduler)
    strengths = {1: 0.7, 2: -0.3}
    schedule = StrengthSchedule(
        tuple(log_snr(trajectory.level(i)) for i in range(STEPS)), tuple(strengths.get(i, 0.0) for i in range(STEPS))
    )
    result = sample(network, noise(), scheduler, num_inference_steps=STEPS, strength=schedule)
    latents = noise()
    for i, t in enumerate(scheduler.timesteps):
        if i in strengths:
            lower = trajectory.denoise(latents, network(latents, t, "strong"), i)
            inverted = trajectory.invert(lower, network(lower, t, "weak"), i)
            latents = latents + strengths[i] * (inverted - latents)
        latents = scheduler.step(network(latents, t, "base"), t, latents).prev_sample
    torch.testing.assert_close(result.latents, latents, rtol=1e-6, atol=1e-6)
    assert result.nfe == {"base": STEPS, "strong": 2, "weak": 2}


@pytest.mark.parametrize(
    "settings", [{}, {"inversion": "resample"}, {"inversion": "explicit", "reuse": 2, "rounds": 2}]
)
def test_at_strength_0_nothing_is_evaluated_or_drawn(settings):
    """Noise that a reflection drew would change that of the steps, which is the same generator's."""

    def run(**settings):
        scheduler, generator = diffusers.EulerAncestralDiscreteScheduler(), torch.Generator().manual_seed(3)
        return sample(network, noise(), scheduler, num_inference_steps=STEPS, generator=generator, **settings)

    off, at_0 = run(reflection_steps=0), run(strength=0.0, reflection_steps=STEPS, **settings)
    assert torch.equal(off.latents, at_0.latents) and at_0.nfe == off.nfe == {"base": STEPS, "strong": 0, "weak": 0}
    assert run(strength=0.0, autoguidance=1.0).nfe == {"base": STEPS, "strong": 0, "weak": STEPS}
    with pytest.raises(ValueError, match="reflection_steps must be from 0 to 6"):
        run(strength=0.0, reflection_steps=STEPS + 1)


def test_a_gap_is_not_reused_from_steps_without_a_strength():
    """Of six steps the first, third, fourth and fifth have a strength; every second of these measures, and the last."""
    scheduler = diffusers.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(STEPS)
    levels = tuple(log_snr(Trajectory(scheduler).level(i)) for i in range(STEPS))
    schedule = StrengthSchedule(levels, (1.0, 0.0, 1.0, 1.0, 1.0, 0.0))
    asked = []

    def predict(latents, timestep, role):
        asked.append((role, scheduler.timesteps.tolist().index(int(timestep))))
        return network(latents, timestep, role)

    sample(predict, noise(), scheduler, num_inference_steps=STEPS, strength=schedule, reuse=2, inversion="current")
    assert [step for role, step in asked if role == "weak"] == [0, 3, 4]


def test_a_loop_of_ones_own_is_asked_nothing_at_strength_0():
    scheduler = diffusers.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(STEPS)

    def never(*args):
        pytest.fail("evaluated")

    reflector = Reflector(never, Trajectory(scheduler), Reflection(strength=0.0))
    assert reflector(noise(), 0) is not None and not +reflector.nfe
    assert torch.equal(reflect(never, never, noise(), 0, strength=0.0), noise())
    assert list(reflect_step(Trajectory(scheduler), noise(), 0, Reflection(strength=0.0))) == []


def test_a_file_serves_pipelines_of_any_number_of_steps(tmp_path):
    pipe, call = tiny.stable_diffusion()
    file = tmp_path / "strength.json"
    file.write_text(
        json.dumps(StrengthSchedule((-20.0, -2.0, -1.9, 20.0), (1.0, 1.0, 0.0, 0.0)).plain() | {"pair": "x"})
    )
    gap = {"strong": Branch(guidance_scale=4.0), "weak": Branch(guidance_scale=1.0)}
    for steps in (5, 10):
        arguments = call | {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(7)}
        pipe.scheduler.set_timesteps(steps)
        levels = [Trajectory(pipe.scheduler).level(i) for i in range(steps - 1)]
        noisy = sum(2 * torch.tensor(level.alpha / level.sigma).log() < -2 for level in levels)
        with reflection(pipe, **gap, strength=file) as by_file:
            result = pipe(**arguments, output_type="latent").images
        arguments["generator"] = torch.Generator().manual_seed(7)
        with reflection(pipe, **gap, reflection_steps=int(noisy)) as by_window:
            expected = pipe(**arguments, output_type="latent").images
        assert torch.equal(result, expected)
        assert by_file.nfe == by_window.nfe and by_file.reflected_steps == noisy > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "needs the lists log_snr and strength"),
        ("no json", "is no strength schedule"),
        ('{"log_snr": [0, 1], "strength": [1]}', "got 1 for 2"),
        ('{"log_snr": [], "strength": []}', "got 0 for 0"),
        ('{"log_snr": [1, 0], "strength": [1, 1]}', "must rise"),
        ('{"log_snr": [0, "a"], "strength": [1, 1]}', "must be a number"),
        ('{"log_snr": [0, 1], "strength": [1, NaN]}', "must be a finite number"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_name_of_the_file(tmp_path, text, said):
    file = tmp_path / "strength.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"strength.json.*{said}"):
        StrengthSchedule.read(file)
    with pytest.raises(ValueError, match=r"nothing.json.*cannot be read"):
        StrengthSchedule.read(tmp_path / "nothing.json")


# --- AutoGuidance ------------------------------------------------------------------------------------------------


def test_autoguidance_pushes_the_step_that_counts_away_from_the_weak_prediction():
    scheduler = diffusers.DDIMScheduler(**DDIM)
    result = sample(network, noise(), scheduler, num_inference_steps=STEPS, reflection_steps=0, autoguidance=1.5)
    latents = noise()
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        prediction = 2.5 * network(latents, t, "base") - 1.5 * network(latents, t, "weak")
        latents = scheduler.step(prediction, t, latents).prev_sample
    torch.testing.assert_close(result.latents, latents)
    assert result.nfe == {"base": STEPS, "strong": 0, "weak": STEPS}


@pytest.mark.parametrize("build", [tiny.stable_diffusion_xl, tiny.pixart, tiny.cogvideox, tiny.wan, tiny.dit])
def test_autoguidance_by_scale_is_guidance_at_another_scale(build):
    """Away from the conditional prediction: c + w (g - c) for g = u + s (c - u) is guidance at s + w (s - 1)."""
    pipe, call = build()

    def run(**changes):
        arguments = call | {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7)} | changes
        if isinstance(pipe, diffusers.DiTPipeline):
            return torch.as_tensor(pipe(**arguments, output_type="np").images)
        result = pipe(**arguments, output_type="latent")
        return result.frames if hasattr(result, "frames") else result.images

    expected = run(guidance_scale=3.0 + 0.5 * (3.0 - 1.0))
    weak = Branch(guidance_scale=1.0)
    with reflection(pipe, strong=Branch(), weak=weak, reflection_steps=0, autoguidance=0.5) as guided:
        result = run(guidance_scale=3.0)
    assert (result - expected).norm() / expected.norm() < 1e-4
    assert guided.nfe == {"base": STEPS, "strong": 0, "weak": STEPS}  # cond is evaluated once
    assert guided.reflected_steps == 0 and guided.steps == STEPS


def test_to_first_order_a_reflection_is_autoguidance():
    """The two differ by the square of the step: halving the steps' length quarters the difference of one step."""

    def difference(steps):
        scheduler = diffusers.DDIMScheduler(**DDIM)
        settings = {"num_inference_steps": steps, "inversion": "current"}

        def predict(latents, timestep, role):
            return network(latents, timestep, "weak" if role == "weak" else "strong")

        one = {}
        for name, extra in (("reflected", {"reflection_steps": 1}), ("pushed", {"autoguidance": 1.0})):
            seen = []
            extra = {"reflection_steps": 0} | extra
            sample(predict, noise(), scheduler, callback=lambda i, x, seen=seen: seen.append(x), **settings | extra)
            one[name] = seen[0]
        return float((one["reflected"] - one["pushed"]).norm())

    assert difference(100) / difference(200) > 1.8


def test_both_together_and_bad_values():
    both = sample(
        network,
        noise(),
        diffusers.DDIMScheduler(**DDIM),
        num_inference_steps=STEPS,
        reflection_steps=2,
        autoguidance=1.0,
    )
    assert both.nfe == {"base": STEPS, "strong": 2, "weak": 2 + STEPS}
    with pytest.raises(ValueError, match="autoguidance must be a finite number, got nan"):
        Reflection(autoguidance=float("nan"))


# --- long reflections, Re-Sampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current"])
def test_a_long_reflection_goes_down_several_steps_in_one(inversion):
    scheduler = diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction")
    reading = "native" if inversion == "current" else "epsilon"
    settings = {"num_inference_steps": STEPS, "reflection_steps": 2, "inversion": inversion, "reading": reading}
    result = sample(network, noise(), scheduler, span=3, **settings)
    scheduler.set_timesteps(STEPS)
    alphas = [float(scheduler.alphas_cumprod[t]) ** 0.5 for t in scheduler.timesteps]
    sigmas = [(1 - alpha**2) ** 0.5 for alpha in alphas]
    latents = noise()
    for i, t in enumerate(scheduler.timesteps):
        if i < 2:
            velocity, j = network(latents, t, "strong"), i + 3
            clean, dirt = alphas[i] * latents - sigmas[i] * velocity, sigmas[i] * latents + alphas[i] * velocity
            lower = alphas[j] * clean + sigmas[j] * dirt
            if inversion == "current":
                weak = network(latents, t, "weak")
                cos, sin = alphas[i] * alphas[j] + sigmas[i] * sigmas[j], sigmas[i] * alphas[j] - alphas[i] * sigmas[j]
                latents = (lower + sin * weak) / cos
            else:
                told = i if inversion == "paper" else j
                dirt = sigmas[told] * lower + alphas[told] * network(lower, scheduler.timesteps[told], "weak")
                latents = alphas[i] * (lower - sigmas[j] * dirt) / alphas[j] + sigmas[i] * dirt
        latents = scheduler.step(network(latents, t, "base"), t, latents).prev_sample
    torch.testing.assert_close(result.latents, latents, rtol=1e-5, atol=1e-5)
    assert result.nfe == {"base": STEPS, "strong": 2, "weak": 2}


def test_a_long_reflection_stops_at_the_end():
    scheduler = diffusers.DDIMScheduler(**DDIM)
    settings = {"num_inference_steps": STEPS, "reflection_steps": (2 / STEPS, 3 / STEPS)}
    whole, longer = (sample(network, noise(), scheduler, **settings, span=span) for span in (STEPS - 2, STEPS))
    assert torch.equal(whole.latents, longer.latents)
    with pytest.raises(ValueError, match=f"span must be from 1 to {STEPS}, the number of steps; got {STEPS + 1}"):
        sample(network, noise(), scheduler, **settings, span=STEPS + 1)
    with pytest.raises(ValueError, match="reflect at most 3 steps"):
        Reflection(reflection_steps=4, inversion="explicit", span=3).steps(STEPS)
    with pytest.raises(ValueError, match="span must be at least 1, got 0"):
        Reflection(span=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(**DDIM),
        diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_resampling_gives_back_latents_with_the_statistics_of_their_level(scheduler):
    """With the exact prediction for data from a Gaussian, what is noised again is distributed as it was."""
    scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(scheduler)
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = trajectory.level(2)
    below = trajectory.level_below(2)
    data = 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64) + 1.0
    lower = below.alpha * data + below.sigma * torch.randn(200_000, generator=generator, dtype=torch.float64)
    again = trajectory.renoise(lower, torch.randn(200_000, generator=generator, dtype=torch.float64), 2)
    assert float(again.mean()) == pytest.approx(alpha, abs=0.02 * max(1.0, sigma))
    assert float(again.std()) == pytest.approx((0.25 * alpha**2 + sigma**2) ** 0.5, rel=0.01)


def test_resampling_evaluates_no_weak_model_and_draws_from_the_samples_own_seed():
    pipe, call = tiny.stable_diffusion()

    def run(prompts, *seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = call | {"prompt": prompts, "num_inference_steps": STEPS, "generator": generators}
        return pipe(**arguments, output_type="latent").images

    words = ["a red circle moving left", "a blue square moving up"]
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="resample") as run_of:
        together, alone = run(words, 1, 2), run(words[1:], 2)
    assert run_of.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": 0}
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
