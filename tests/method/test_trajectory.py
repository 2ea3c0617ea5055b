"""Levels and first-order moves, against diffusers' own steps and against mathematics."""

import diffusers
import pytest
import torch

from w2sd_video import Trajectory, known_schedulers

T = 10

V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
KARRAS, TRAILING = {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}
ZERO_SNR = {"rescale_betas_zero_snr": True, **TRAILING, **V}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
UNCLIPPED = {"clip_sample": False}

SETTINGS = {
    "DDIMScheduler": [UNCLIPPED, V | UNCLIPPED, SAMPLE | UNCLIPPED, TRAILING | UNCLIPPED, ZERO_SNR | UNCLIPPED],
    "DDIMParallelScheduler": [UNCLIPPED],
    "DDPMScheduler": [{}, V, SAMPLE, TRAILING, ZERO_SNR],
    "DDPMParallelScheduler": [{}],
    "PNDMScheduler": [{}, {"skip_prk_steps": True}, V | {"skip_prk_steps": True}, TRAILING],
    "EulerDiscreteScheduler": [{}, V, KARRAS, TRAILING, ZERO_SNR, {"final_sigmas_type": "sigma_min"}],
    "EulerAncestralDiscreteScheduler": [{}, V, TRAILING, ZERO_SNR],
    "DPMSolverMultistepScheduler": [{}, V, SAMPLE, KARRAS, TRAILING, ZERO_SNR, FLOW],
    "DPMSolverSinglestepScheduler": [{}, V, KARRAS, {"solver_order": 3}, FLOW],
    "DPMSolverSDEScheduler": [{}, V, KARRAS, TRAILING],
    "DEISMultistepScheduler": [{}, V, KARRAS, TRAILING, FLOW],
    "UniPCMultistepScheduler": [{}, V, KARRAS, TRAILING, ZERO_SNR, FLOW],
    "LMSDiscreteScheduler": [{}, V, KARRAS, TRAILING],
    "HeunDiscreteScheduler": [{}, V, KARRAS, TRAILING],
    "FlowMatchEulerDiscreteScheduler": [{}, {"shift": 3.0}, {"invert_sigmas": True}, KARRAS],
    "CogVideoXDDIMScheduler": [{}, V, ZERO_SNR, {**ZERO_SNR, "snr_shift_scale": 1.0}],
    "CogVideoXDPMScheduler": [{}, V, ZERO_SNR],
}
CASES = [
    pytest.param(name, setting, id=f"{name}-{'-'.join(map(str, setting.values())) or 'default'}")
    for name, settings in SETTINGS.items()
    for setting in settings
]


def make(name, setting, steps=T):
    scheduler = getattr(diffusers, name)(**setting)
    scheduler.set_timesteps(steps)
    return scheduler


def pair(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 4, 8, 8, generator=generator, dtype=dtype).unbind()


def test_every_known_scheduler_is_tried():
    assert set(SETTINGS) == set(known_schedulers())


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_down_and_up_with_one_prediction_is_the_identity(name, setting):
    trajectory = Trajectory(make(name, setting))
    for i in range(len(trajectory)):
        latents, prediction = pair(i)
        alpha, sigma = trajectory.level(i)
        latents = latents * (alpha**2 + sigma**2) ** 0.5
        if trajectory.prediction_type == "sample" and trajectory.next_level(i).sigma == 0:
            with pytest.raises(ValueError, match="cannot invert"):
                trajectory.invert(latents, prediction, i)
            continue
        back = trajectory.invert(trajectory.denoise(latents, prediction, i), prediction, i)
        # A step that shrinks its latents greatly cannot give back more digits than it kept.
        shrinks = float(trajectory.denoise(latents, 0 * prediction, i).norm() / latents.norm())
        assert (back - latents).norm() / latents.norm() < 1e-6 * max(1.0, 1.0 / shrinks)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_the_fused_reflection_is_down_and_up_in_double_precision(name, setting):
    trajectory = Trajectory(make(name, setting))
    for i in range(len(trajectory) - 1):
        latents, strong = pair(i, torch.float64)
        _, weak = pair(i + 100, torch.float64)
        down_and_up = trajectory.invert(trajectory.denoise(latents, strong, i), weak, i)
        torch.testing.assert_close(trajectory.reflect(latents, strong, weak, i), down_and_up, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_levels_go_from_noise_to_signal_and_join(name, setting):
    scheduler = make(name, setting)
    trajectory = Trajectory(scheduler)
    snr = [
        alpha / sigma if sigma else float("inf") for alpha, sigma in map(trajectory.level, range(len(trajectory) + 1))
    ]
    # Some schedulers take a last step of no length, at the smallest sigma.
    assert snr == sorted(snr) and len(set(snr)) >= len(trajectory)
    if name != "DPMSolverSinglestepScheduler":
        assert len(trajectory) == T
    rounded = ("DDIM", "PNDM", "DPMSolverSinglestep", "CogVideoX")
    if not any(part in name for part in rounded):
        for i in range(len(trajectory) - 1):
            assert trajectory.next_level(i) == pytest.approx(trajectory.level(i + 1))


FIRST_ORDER = [
    pytest.param(name, setting, id=f"{name}-{'-'.join(map(str, setting.values()))}")
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "CogVideoXDDIMScheduler")
    for setting in SETTINGS[name]
]


@pytest.mark.parametrize(("name", "setting"), FIRST_ORDER)
def test_denoise_is_the_schedulers_own_first_order_step(name, setting):
    scheduler = make(name, setting)
    trajectory = Trajectory(scheduler)
    for i, timestep in enumerate(scheduler.timesteps):
        latents, prediction = pair(i)
        if name == "EulerDiscreteScheduler":
            scheduler.scale_model_input(latents, timestep)
        own = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        ours = trajectory.denoise(latents, prediction, i)
        assert (own - ours).norm() / own.norm() < 1e-5


def test_invert_is_the_inverse_ddim_step():
    """`DDIMInverseScheduler` maps up to the timestep that it is given."""
    settings = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False}
    scheduler = diffusers.DDIMScheduler(**settings)
    inverse = diffusers.DDIMInverseScheduler(**settings)
    scheduler.set_timesteps(T), inverse.set_timesteps(T)
    trajectory = Trajectory(scheduler)
    for i, timestep in enumerate(scheduler.timesteps):
        latents, prediction = pair(i)
        expected = inverse.step(prediction, int(timestep), latents, return_dict=False)[0]
        torch.testing.assert_close(trajectory.invert(latents, prediction, i), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_all_prediction_types_tell_the_same_step(prediction_type):
    """One sample and one noise, told to the scheduler in each language, give one and the same next latents."""
    sample, noise = pair(3, torch.float64)
    trajectory = Trajectory(make("DDIMScheduler", {"prediction_type": prediction_type, "clip_sample": False}))
    alpha, sigma = trajectory.level(4)
    language = {"epsilon": noise, "v_prediction": alpha * noise - sigma * sample, "sample": sample}
    next_alpha, next_sigma = trajectory.next_level(4)
    moved = trajectory.denoise(alpha * sample + sigma * noise, language[prediction_type], 4)
    torch.testing.assert_close(moved, next_alpha * sample + next_sigma * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_reading_a_prediction_finds_the_sample_and_the_noise(name, setting):
    trajectory = Trajectory(make(name, setting))
    sample, noise = pair(1, torch.float64)
    for i in range(len(trajectory)):
        level = trajectory.level(i)
        norm = (level.alpha**2 + level.sigma**2) ** 0.5
        prediction = {
            "epsilon": noise,
            "sample": sample,
            "v_prediction": (level.alpha * noise - level.sigma * sample) / norm,
            "flow": noise - sample,
            "inverted_flow": sample - noise,
        }[trajectory.prediction_type]
        latents = level.alpha * sample + level.sigma * noise
        readable = ["sample"] if level.alpha == 0 else ["sample", "epsilon"]
        for reading in readable:
            read = trajectory.read(latents, prediction, at=level, told_level=level, reading=reading)
            torch.testing.assert_close(read, {"sample": sample, "epsilon": noise}[reading], rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_a_small_displacement():
    trajectory = Trajectory(make("DDIMScheduler", UNCLIPPED, steps=50))
    latents, strong = pair(0)
    weak = strong + 1e-3
    exact = trajectory.reflect(latents.double(), strong.double(), weak.double(), 20) - latents.double()
    half = [x.to(torch.float16) for x in (latents, strong, weak)]
    down_and_up = trajectory.invert(trajectory.denoise(half[0], half[1], 20), half[2], 20) - half[0]
    fused = trajectory.reflect(*half, 20) - half[0]
    assert (fused - exact).abs().mean() < (down_and_up - exact).abs().mean()


def test_zero_signal_is_refused_for_noise_predictions_and_read_as_sample_for_v():
    scheduler = make("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    latents, prediction = pair()
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Trajectory(scheduler).denoise(latents, prediction, 0)
    trajectory = Trajectory(make("DDIMScheduler", ZERO_SNR))
    assert trajectory.level(0) == (0.0, 1.0)
    assert [trajectory.score_reading(i) for i in (0, 1)] == ["sample", "epsilon"]


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (diffusers.LCMScheduler, "consistency step"),
        (diffusers.TCDScheduler, "consistency step"),
        (diffusers.VQDiffusionScheduler, "discrete"),
        (diffusers.KDPM2DiscreteScheduler, "use one of .*DDIMScheduler.*UniPCMultistepScheduler"),
    ],
)
def test_other_schedulers_are_refused_with_a_reason(scheduler, said):
    made = scheduler(num_vec_classes=4) if scheduler is diffusers.VQDiffusionScheduler else scheduler()
    with pytest.raises(TypeError, match=said):
        Trajectory(made)


def test_timesteps_must_be_set_and_the_prediction_type_known():
    with pytest.raises(ValueError, match="set_timesteps"):
        Trajectory(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=r"'noise'.*allowed are epsilon"):
        Trajectory(make("DDIMScheduler", {"prediction_type": "noise"}))
