"""Calibration: the probe against networks called directly, known answers, and the command line."""

import json
import math

import diffusers
import numpy as np
import pytest
import tiny
import torch
from helpers import state
from tiny.dit_moe import dit_moe

from w2sd_video import Branch, Trajectory, calibrate
from w2sd_video.algorithm import drive
from w2sd_video.calibration.gap import calibrate as judge
from w2sd_video.calibration.ideal_prediction import corrected_cosines, ideal_of, posterior_noise
from w2sd_video.calibration.latents import check_encodable, encode
from w2sd_video.calibration.moments import Moments
from w2sd_video.calibration.noised_clips import compare, moments_of_clips
from w2sd_video.calibration.tilt import balance, tilt
from w2sd_video.miniatures import world
from w2sd_video.render import main as render
from w2sd_video.rendering.video import write_picture, write_video
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import ConfigError
from w2sd_video.strength import StrengthSchedule
from w2sd_video.trajectory import Level

SEEDS = (5, 6)


def probed(pipe, call, shape, strong, weak, draws=2, **changes):
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    arguments = call | {"prompt": ["a cat", "a dog"]} | changes
    return clips, moments_of_clips(pipe, arguments, clips, strong=strong, weak=weak, seeds=SEEDS, draws=draws)


def noise_of(shape, levels, draws):
    """The noise of every level and draw, each clip's from its own generator."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return [
        [torch.stack([torch.randn(shape[1:], generator=one) for one in generators]) for _ in range(draws)]
        for _ in range(levels)
    ]


def moments_of(noise, strong, weak):
    products = [(noise - strong) ** 2, (strong - weak) ** 2, (noise - strong) * (strong - weak)]
    return [product.double().flatten(1).mean(1).numpy() for product in products]


def assert_same(moments, expected):
    """`expected` is (levels, draws, [error, gap, product], clips)."""
    error, gap, product = np.moveaxis(np.array(expected), 2, 0)
    for found, wanted in ((moments.error, error), (moments.gap, gap), (moments.product, product)):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_guided_predictions_are_those_of_the_network():
    pipe, call = tiny.stable_diffusion()
    before, shape = state(pipe), (2, 4, 8, 8)
    clips, found = probed(pipe, call, shape, Branch(guidance_scale=4.0), Branch(guidance_scale=0.5))
    assert state(pipe) == before
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    text, empty = (pipe.text_encoder(_tokens(pipe, texts))[0] for texts in (["a cat", "a dog"], ["", ""]))
    expected = []
    for timestep, noises in zip(scheduler.timesteps, noise_of(shape, len(scheduler.timesteps), 2), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        rows = []
        for noise in noises:
            latents = product.sqrt() * clips + (1 - product).sqrt() * noise
            cond, uncond = (pipe.unet(latents, timestep, states).sample for states in (text, empty))
            rows.append(moments_of(noise, uncond + 4.0 * (cond - uncond), uncond + 0.5 * (cond - uncond)))
        expected.append(rows)
    assert found.steps == tuple(range(len(expected))) and found.total == len(expected)
    assert_same(found, expected)


def _tokens(pipe, texts):
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids


@torch.no_grad()
def test_velocities_are_read_as_noise_and_the_level_without_signal_is_left_out():
    pipe, call = tiny.cogvideox()
    second = tiny.cogvideox_transformer(seed=3)
    shape = (2, 3, 4, 4, 4)
    clips, found = probed(pipe, call, shape, Branch(), Branch(weights=second), draws=1, guidance_scale=1.0)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    length = call.get("max_sequence_length", 226)
    text, _ = pipe.encode_prompt(["a cat", "a dog"], None, False, max_sequence_length=length)
    assert scheduler.alphas_cumprod[scheduler.timesteps[0]] == 0 and found.steps == (1, 2) and found.total == 3
    expected = []
    for timestep, (noise,) in zip(scheduler.timesteps[1:], noise_of(shape, 2, 1), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        latents = alpha * clips + sigma * noise
        velocities = [network(latents, text, timestep.expand(2)).sample for network in (pipe.transformer, second)]
        expected.append([moments_of(noise, *(sigma * latents + alpha * velocity for velocity in velocities))])
    assert_same(found, expected)


@torch.no_grad()
def test_flows_are_read_as_noise():
    pipe, call = tiny.wan()
    shape = (2, 4, 3, 4, 4)
    clips, found = probed(pipe, call, shape, Branch(guidance_scale=3.0), Branch(guidance_scale=1.0), draws=1)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    text, empty = pipe.encode_prompt(
        ["a cat", "a dog"], ["", ""], True, max_sequence_length=call.get("max_sequence_length", 512)
    )
    expected = []
    for i, (noise,) in zip(found.steps, noise_of(shape, len(found.steps), 1), strict=True):
        sigma, timestep = scheduler.sigmas[i], scheduler.timesteps[i].expand(2)
        latents = (1 - sigma) * clips + sigma * noise
        cond, uncond = (pipe.transformer(latents, timestep, states).sample for states in (text, empty))
        flows = uncond + 3.0 * (cond - uncond), cond
        expected.append([moments_of(noise, *(latents + (1 - sigma) * flow for flow in flows))])
    assert_same(found, expected)


@torch.no_grad()
def test_a_pipeline_that_steps_both_halves_of_guidance_is_given_both():
    pipe, call = tiny.dit()
    clips = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": [1, 2]}
    found = moments_of_clips(
        pipe, call | labels, clips, strong=Branch(guidance_scale=3.0), weak=Branch(guidance_scale=1.0), seeds=SEEDS
    )
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    none, expected = torch.full((2,), pipe.transformer.config.num_embeds_ada_norm), []
    for timestep, (noise,) in zip(scheduler.timesteps, noise_of(clips.shape, len(scheduler.timesteps), 1), strict=True):
        product = scheduler.alphas_cumprod[timestep]
        latents = product.sqrt() * clips + (1 - product).sqrt() * noise
        outputs = (
            pipe.transformer(latents, timestep=timestep.expand(2), class_labels=label).sample[:, :4]
            for label in (torch.tensor([1, 2]), none)
        )
        cond, uncond = outputs
        expected.append([moments_of(noise, uncond + 3.0 * (cond - uncond), cond)])
    assert_same(found, expected)


def test_a_clip_s_noise_is_its_own_whatever_it_is_evaluated_with():
    pipe, call = tiny.pixart()
    clips, together = probed(pipe, call, (2, 4, 8, 8), Branch(), Branch(guidance_scale=1.0))
    alone = [
        moments_of_clips(
            pipe,
            call | {"prompt": [text]},
            clips[k : k + 1],
            strong=Branch(),
            weak=Branch(guidance_scale=1.0),
            seeds=SEEDS[k : k + 1],
            draws=2,
        )
        for k, text in enumerate(("a cat", "a dog"))
    ]
    np.testing.assert_allclose(Moments.joined(alone).product, together.product, rtol=1e-3, atol=1e-7)


def test_clips_of_another_shape_are_refused_and_the_pipeline_is_left_as_it_was():
    pipe, call = tiny.stable_diffusion()
    before = state(pipe)
    with pytest.raises(ValueError, match=r"have the shape \(2, 4, 6, 6\), the pipeline's own have \(2, 4, 8, 8\)"):
        probed(pipe, call, (2, 4, 6, 6), Branch(), Branch(guidance_scale=1.0))
    assert state(pipe) == before


def gaussian(strong, weak, clips=400, width=2.0):
    """Judge two predictors on Gaussian data, given as functions of the ideal prediction for it."""
    trajectory = four_levels()

    def answer(request):
        ideal = of_width(width, trajectory.level(request.step)) * request.latents
        return (strong if request.role == "strong" else weak)(ideal)

    torch.manual_seed(0)
    data = width * torch.randn(clips, 64)
    return trajectory, judge(drive(compare(trajectory, data, 2, torch.randn_like), answer))


def four_levels():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    return Trajectory(scheduler)


def of_width(width, level):
    """What the ideal prediction of the noise is of the latents, for data of N(0, width²)."""
    return level.sigma / (level.alpha**2 * width**2 + level.sigma**2)


@pytest.mark.parametrize(("strong", "weak"), [(1.5, 2.5), (1.5, 1.2), (0.7, 0.4), (0.7, 2.0)])
def test_the_tilt_is_that_of_gaussians(strong, weak):
    """Real clips have width 1: samples that are too wide come nearer to them by a weak model that is wider still."""
    trajectory = four_levels()

    def answer(request):
        return of_width(strong if request.role == "strong" else weak, trajectory.level(request.step)) * request.latents

    torch.manual_seed(0)
    data = torch.randn(400, 64), strong * torch.randn(400, 64)
    overall, levels = tilt(*(drive(compare(trajectory, one, 2, torch.randn_like), answer) for one in data))
    expected = []
    for level in map(trajectory.level, range(4)):
        one, other = of_width(strong, level), of_width(weak, level)
        error = 1 - 2 * one * level.sigma + one**2 * (level.alpha**2 + level.sigma**2)
        expected.append((other**2 - one**2) * level.alpha**2 * (1 - strong**2) / error)
    assert [found.value for found in levels] == pytest.approx(expected, rel=0.15, abs=0.01)
    assert overall.value == pytest.approx(np.mean(expected), rel=0.1)
    assert overall.low < np.mean(expected) < overall.high
    widths = [one.high - one.low for one in levels]
    assert all(one.low < one.value < one.high for one in levels) and overall.high - overall.low < np.mean(widths)
    helps = (weak > strong) == (strong > 1)
    assert overall.low > 0 if helps else overall.high < 0


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_a_bank_of_gaussian_clips_tells_their_ideal_prediction(width):
    torch.manual_seed(0)
    bank = width * torch.randn(40000, 2, 1)
    for level in (Level(0.3, 0.954), Level(0.8, 0.6), Level(1.0, 3.0)):
        latents = level.alpha * width * torch.randn(50, 2, 1) + level.sigma * torch.randn(50, 2, 1)
        found, effective = posterior_noise(latents, bank, level)
        assert (found - of_width(width, level) * latents).abs().mean() < 0.02
        shape = (level.alpha * width / level.sigma) ** 2  # of a Gaussian's weights about the prior's centre
        centred = posterior_noise(torch.zeros(1, 2, 1), bank, level)[1]
        assert centred.item() == pytest.approx(40000 * (1 + 2 * shape) / (1 + shape) ** 2, rel=0.1)
        assert effective.median() > 100


def towards(ideal_of, clips=400, spread=0.3):
    """The corrected cosines where the gap is 0.2 of the ideal prediction and noise of its own beside it."""
    trajectory = four_levels()

    def answer(request):
        ideal = of_width(2.0, trajectory.level(request.step)) * request.latents
        return 0.9 * ideal if request.role == "strong" else 0.7 * ideal + spread * noise.pop(0)

    torch.manual_seed(0)
    data = 2.0 * torch.randn(clips, 64)
    noise = [torch.randn(clips, 64) for _ in range(8)]
    return trajectory, corrected_cosines(drive(compare(trajectory, data, 2, torch.randn_like, ideal=ideal_of), answer))


def exact(latents, level):
    return of_width(2.0, level) * latents, torch.full((len(latents),), 99.0)


def true_cosine(level, spread=0.3):
    explained = level.sigma**2 / (4 * level.alpha**2 + level.sigma**2)
    return math.sqrt(0.04 * explained / (0.04 * explained + spread**2)), explained


def test_the_cosine_without_the_noise_s_own_variance_is_that_of_gaussians():
    trajectory, found = towards(exact)
    for i, one in enumerate(found):
        cosine, explained = true_cosine(trajectory.level(i))
        error = 0.1**2 * explained + (1 - explained)
        assert one.low - 0.03 < cosine < one.high + 0.03 and one.value == pytest.approx(cosine, abs=0.2)
        assert one.distance == pytest.approx(0.1**2 * explained / error, rel=0.3)
        assert one.fit == pytest.approx(1, abs=0.15) and one.effective == 99 and one.is_estimate


def test_any_other_estimate_of_the_ideal_only_loosens_the_bound():
    def poor(latents, level):
        return exact(latents, level)[0] + 0.1 * torch.randn_like(latents), torch.ones(len(latents))

    _, loose = towards(poor)
    trajectory, tight = towards(exact)
    for i, (one, other) in enumerate(zip(loose, tight, strict=True)):
        assert one.value >= true_cosine(trajectory.level(i))[0] - 0.05 and one.distance < other.distance
        assert one.fit < 0.8 and not one.is_estimate


def test_an_estimate_that_leads_away_from_the_ideal_bounds_nothing():
    def opposite(latents, level):
        return 0.5 * exact(latents, level)[0], torch.ones(len(latents))

    assert all(one.distance == 0 and one.value == 1 for one in towards(opposite)[1][:2])


def test_a_cosine_cannot_be_corrected_without_an_estimate():
    with pytest.raises(ValueError, match="no estimate of the ideal"):
        corrected_cosines(made(np.ones(8), np.ones(8), np.ones(8)))


def tilted(tilts, draws=2):
    """Moments of clips whose weak error exceeds strong's, which is 1, by what is given, (levels, clips)."""
    gap = np.repeat(np.array(tilts, float)[:, None], draws, 1)
    levels = tuple(Level(0.5, 0.8 - i / 10) for i in range(len(gap)))
    return Moments(levels, tuple(range(len(gap))), len(gap), np.ones_like(gap), gap, np.zeros_like(gap))


def test_the_strength_at_which_the_tilt_vanishes_is_on_a_straight_line():
    spread = np.random.default_rng(0).normal(0, 0.05, 40)
    spread -= spread.mean()
    real = tilted([[0.5] * 40, [0.8] * 40])
    alone, reflected = (tilted([0.5 - t + spread, 0.8 - t + spread]) for t in (0.3, 0.1))
    strength, levels, left = balance(real, alone, reflected)
    assert strength.value == pytest.approx(1.5) and levels == pytest.approx([1.5, 1.5])
    error = 1.96 * spread.std() / math.sqrt(40)
    assert (left.low, left.value, left.high) == pytest.approx((0.1 - error, 0.1, 0.1 + error), abs=error / 5)
    # The same captions are redrawn in both, so that the fall is 0.2 in each of them.
    assert (strength.low, strength.high) == pytest.approx((1.5 - error / 0.2, 1.5 + error / 0.2), abs=error)


@pytest.mark.parametrize(
    ("before", "after", "strength"), [(0.2, -0.2, 0.5), (-0.1, -0.3, -0.5), (0.1, 0.2, 4.0), (-0.1, 0.1, -1.0)]
)
def test_a_tilt_may_vanish_at_a_negative_strength_or_never(before, after, strength):
    real, alone, reflected = (tilted([[1 - t] * 8]) for t in (0.0, before, after))
    found, levels, _ = balance(real, alone, reflected)
    assert found.value == pytest.approx(strength) and levels == pytest.approx([max(strength, 0)])


def test_the_strength_of_a_gap_along_the_truth_is_found():
    # Strong falls 10 % short of the ideal prediction, weak 30 %: half of the gap is missing.
    trajectory, found = gaussian(lambda ideal: 0.9 * ideal, lambda ideal: 0.7 * ideal)
    for level in found.levels:
        alpha, sigma = trajectory.level(level.step)
        explained = sigma**2 / (4 * alpha**2 + sigma**2)
        error = 0.1**2 * explained + (1 - explained)
        assert level.strength == pytest.approx(0.5, abs=0.1) and level.low < 0.5 < level.high
        assert level.verdict == "helps" and level.warranted == level.strength
        assert level.strong_error == pytest.approx(error, rel=0.05)
        assert level.weak_error == pytest.approx(0.3**2 * explained + (1 - explained), rel=0.05)
        assert level.gap == pytest.approx(0.2**2 * explained, rel=0.05)
        assert level.cosine == pytest.approx(0.1 * explained / math.sqrt(error * explained), rel=0.2)
        assert level.gain == pytest.approx(level.cosine**2)
        assert level.gain_at_one == pytest.approx(0, abs=0.1)  # as far beyond the truth as strong falls short of it
    assert found.window == (0, 1) and found.constant == pytest.approx(0.5, abs=0.1)
    assert found.gain > found.gain_at_one[0]
    value, low, high = found.gain_at_one
    assert low < value < high and value == pytest.approx(np.mean([level.gain_at_one for level in found.levels]))


def test_swapped_roles_point_the_wrong_way():
    _, found = gaussian(lambda ideal: 0.7 * ideal, lambda ideal: 0.9 * ideal)
    for level in found.levels:
        assert level.strength == pytest.approx(-1.5, abs=0.1) and level.verdict == "points the wrong way"
    assert found.window is None and set(found.schedule.strength) == {0.0}
    assert found.gain_at_one[2] < 0


def test_a_gap_across_the_truth_does_nothing():
    _, found = gaussian(lambda ideal: 0.9 * ideal, lambda ideal: 0.9 * ideal + 0.3 * torch.randn_like(ideal))
    assert [level.verdict for level in found.levels].count("does nothing") >= 3
    assert all(level.low < 0.05 and level.high > -0.05 for level in found.levels)


def made(error, gap, product, levels=1, draws=1):
    """Moments that are the same at each level and draw, of clips that are given."""
    arrays = (np.tile(np.array(one, float), (levels, draws, 1)) for one in (error, gap, product))
    return Moments(tuple(Level(0.5, 0.8 - i / 10) for i in range(levels)), tuple(range(levels)), levels, *arrays)


def test_a_clip_is_the_unit_of_the_interval_and_not_a_draw():
    rng = np.random.default_rng(0)
    values = np.ones(20), np.ones(20), rng.normal(1, 1, 20)
    found = judge(made(*values))
    once, often = found.levels[0], judge(made(*values, draws=50)).levels[0]
    assert (once.low, once.high) == pytest.approx((often.low, often.high))
    error = values[2].std() / math.sqrt(20)
    assert once.high - once.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    value, low, high = found.gain_at_one  # 2 product - 1
    assert (low, high) == pytest.approx((value - 2 * 1.96 * error, value + 2 * 1.96 * error), abs=error / 3)


def test_strengths_are_clipped_and_the_window_leaves_out_what_harms():
    moments = made(np.full(8, 10.0), np.ones(8), np.full(8, 1.0), levels=4)
    product = moments.product.copy()
    product[0], product[1] = -1.0, 9.0
    found = judge(Moments(moments.levels, moments.steps, 4, moments.error, moments.gap, product))
    assert found.schedule.strength == (0.0, 4.0, 1.0, 1.0)
    assert (found.window, found.constant) == ((0.25, 0.5), 4.0)


def test_the_window_and_its_strength_are_the_best_there_are():
    moments = made(np.full(8, 10.0), np.ones(8), np.ones(8), levels=4)
    moments.product[:] = np.array([-0.5, 0.4, 1.2, -0.1])[:, None, None]
    found = judge(moments)
    gains = {
        (start, stop, strength): sum(2 * strength * p - strength**2 for p in (-0.5, 0.4, 1.2, -0.1)[start:stop]) / 10
        for start in range(4)
        for stop in range(start + 1, 5)
        for strength in np.arange(0, 4, 0.05)
    }
    start, stop, strength = max(gains, key=gains.get)
    assert found.window == (start / 4, stop / 4) and found.constant == pytest.approx(strength)
    # Clips that are all alike leave no doubt, so the schedule has both good levels, each at its own strength.
    assert found.gain == pytest.approx((0.4**2 + 1.2**2) / 10 / 4)
    at_one = np.mean([2 * p - 1 for p in (-0.5, 0.4, 1.2, -0.1)]) / 10
    assert found.gain_at_one == pytest.approx((at_one,) * 3)


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        (made(np.ones(7), np.ones(7), np.ones(7)), "7 clips: at least 8 are needed"),
        (made(np.ones(8), np.zeros(8), np.zeros(8)), "strong and weak predict the same"),
        (made(np.full(8, np.nan), np.ones(8), np.ones(8)), "not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(moments, said):
    with pytest.raises(ValueError, match=said):
        judge(moments)


def _framewise(pipe, latents):
    return torch.stack(
        [pipe.vae.decode(one.transpose(0, 1)).sample for one in latents / pipe.vae.config.scaling_factor]
    )


DECODERS = {
    "stable_diffusion": lambda pipe, x: pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[:, None],
    "stable_diffusion_3": lambda pipe, x: pipe.vae.decode(
        x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    ).sample[:, None],
    "animatediff": _framewise,
    "latte": _framewise,
    "cogvideox": lambda pipe, x: pipe.decode_latents(x).transpose(1, 2),
    "wan": lambda pipe, x: pipe.vae.decode(
        x * torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
        + torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    ).sample.transpose(1, 2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", [*DECODERS, "stable_diffusion_xl", "pixart", "dit", "dit_moe"])
def test_encoded_clips_have_the_layout_and_the_scale_of_the_pipeline_s_latents(name):
    pipe, call = dit_moe() if name == "dit_moe" else getattr(tiny, name)()
    asked = {"class_labels": [1, 2]} if "class_labels" in call else {"prompt": ["a cat", "a dog"]}
    frames = call.get("num_frames") or call.get("video_length") or 1
    seen = {}
    step = pipe.scheduler.step

    def kept(*args, **kwargs):
        seen.setdefault("latents", args[2] if len(args) > 2 else kwargs["sample"])
        return step(*args, **kwargs)

    pipe.scheduler.step = kept
    pipe(**call | asked, output_type="np")
    del pipe.scheduler.step
    side = seen["latents"].shape[-1] * 2 ** (len(getattr(pipe.vae.config, "block_out_channels", [1] * 4)) - 1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, frames, side, side, 3), dtype=np.uint8)
    check_encodable(pipe)
    if name == "wan":
        pipe.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[2.0, 0.5, 1.5, 3.0])
    elif name != "cogvideox":
        pipe.vae.register_to_config(shift_factor=0.3 if name == "stable_diffusion_3" else None, scaling_factor=0.4)
    else:
        pipe.vae.register_to_config(scaling_factor=0.4)
        pipe.vae_scaling_factor_image = 0.4
    latents = encode(pipe, pixels)
    halves = 2 if name == "dit" else 1  # it steps both halves of guidance
    assert (halves * len(latents), *latents.shape[1:]) == seen["latents"].shape
    if name in DECODERS:
        x = torch.from_numpy(pixels).movedim(-1, 1 if frames > 1 and name in ("cogvideox", "wan") else 2) / 127.5 - 1
        if name not in ("cogvideox", "wan"):
            x = x.flatten(0, 1)
        straight = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample
        straight = straight.transpose(1, 2) if x.ndim == 5 else straight.unflatten(0, (2, frames))
        torch.testing.assert_close(DECODERS[name](pipe, latents), straight, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_vae_that_says_so_has_its_scale_inverted():
    pipe, _ = tiny.cogvideox()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3), dtype=np.uint8)
    pipe.vae.register_to_config(scaling_factor=0.4, invert_scale_latents=False)
    straight = encode(pipe, pixels)
    pipe.vae.register_to_config(invert_scale_latents=True)
    torch.testing.assert_close(encode(pipe, pixels), straight / 0.4**2)


@pytest.mark.parametrize("name", ["flux", "ltx", "mochi", "sana"])
def test_pipelines_whose_latents_we_cannot_make_are_refused(name):
    with pytest.raises(ConfigError, match="what can be are pipelines of Stable Diffusion, PixArt"):
        check_encodable(getattr(tiny, name)()[0])


def test_videos_for_a_model_of_images_are_refused():
    pipe, _ = tiny.stable_diffusion()
    with pytest.raises(ConfigError, match="4 frames each, but a StableDiffusionPipeline makes images"):
        encode(pipe, np.zeros((2, 4, 16, 16, 3), np.uint8))


QUICK = ["--number-of-clips", "8", "--draws", "1"]


def test_a_miniature_is_calibrated_and_its_strengths_are_rendered(tmp_path, capsys):
    file = tmp_path / "strength.json"
    argv = ["--config", "miniature-cogvideox", *QUICK, "--levels", "3", "-o", str(file)]
    assert calibrate.main(argv) == 0
    printed, written = capsys.readouterr().out, file.read_text()
    assert "| step | log SNR |" in printed and "mean over the levels" in printed and "- Verdict: " in printed
    assert "Left out: 1 step(s) without signal" in printed
    told = json.loads(written)
    assert told["counts"] == {"clips": 8, "draws": 1, "seed": 0, "source": "world"}
    assert told["pair"]["weak"]["weights"] == "weak" and len(told["levels"]) == len(told["tilts"]) == 2
    assert StrengthSchedule.read(file).strength == tuple(told["strengths"] if told["tilt"]["low"] > 0 else [0, 0])
    assert -1 <= told["balanced"]["low"] <= told["balanced"]["value"] <= told["balanced"]["high"] <= 4
    assert calibrate.main([*argv, "--batch", "3", "--no-samples"]) == 0  # over the earlier one
    again = json.loads(file.read_text())
    assert again["tilt"] is None and "Tilt" not in capsys.readouterr().out
    assert StrengthSchedule.read(file).strength == tuple(
        min(one["strength"], 4) if one["low"] > 0 else 0 for one in again["levels"]
    )
    assert [one["gap"] for one in again["levels"]] == pytest.approx([one["gap"] for one in told["levels"]], rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strength.json"]

    file.write_text(json.dumps(told | {"strength": [0.0, 1.0]}))  # the last of three steps is reflected
    steps = ["--steps", "3", "--reflection-steps", "3", "--strength", str(file)]
    render(["a red circle moving left", "--config", "miniature-cogvideox", *steps, "-o", str(tmp_path / "clip.gif")])
    assert json.loads((tmp_path / "clip.gif.json").read_text())["nfe"]["W2SD"] == {"base": 6, "strong": 1, "weak": 1}


def fill(folder, count, frames=8, size=32, captions=True):
    folder.mkdir()
    for k in range(count):
        clip = np.random.default_rng(k).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
        if frames == 1:
            write_picture(folder / f"{k}.png", clip[0])
        else:
            write_video(folder / (f"{k}.mp4" if size > 32 else f"{k}"), clip)
        if captions:
            (folder / f"{k}.txt").write_text(f"a red {('circle', 'square')[k % 2]} moving left\n")
    return folder


@torch.no_grad()
def test_the_command_corrects_the_cosine_by_clips_of_the_same_captions(tmp_path, capsys):
    argv = ["--config", "miniature-pixart", *QUICK, "--levels", "2", "--no-samples", "-o", str(tmp_path / "s.json")]
    assert calibrate.main([*argv, "--ideal", "20"]) == 0
    assert "| effective clips | fit |" in capsys.readouterr().out
    told = json.loads((tmp_path / "s.json").read_text())
    for one, level in zip(told["cosines"], told["levels"], strict=True):
        assert abs(one["value"]) >= abs(level["cosine"]) and 1 <= one["effective"] <= 20


def test_each_clip_has_a_bank_of_its_own_caption():
    pipe, _ = tiny.pixart()
    config = parse(["--config", "miniature-pixart"]).config
    captions, nothing = ["a red circle moving left", "a blue square moving up"], Level(0.5, 1e4)
    seen = ideal_of(pipe, config, captions, 4)(torch.zeros(2, 4, 16, 16), nothing)[0] * -1e4 / 0.5
    for one, caption in zip(seen, captions, strict=True):
        clips = np.stack([world.clip(caption, 6 * 10**6 + k, 1) for k in range(4)])
        torch.testing.assert_close(one, encode(pipe, clips).mean(0), atol=1e-3, rtol=1e-2)


def test_a_folder_is_calibrated(tmp_path, capsys):
    clips = fill(tmp_path / "clips", 8)
    argv = ["--clips", str(clips), "--no-samples", "--draws", "1", "--levels", "2", "-o", str(tmp_path / "s.json")]
    assert calibrate.main(argv) == 0
    assert "8 clips, 1 draws" in capsys.readouterr().out


def test_captions_are_those_beside_the_clips_or_the_configuration_s(tmp_path):
    from w2sd_video.calibration.real_clips import clips_of_folder

    config = parse(["a blue square moving up", "--config", "miniature-animatediff"]).config
    told = clips_of_folder(fill(tmp_path / "told", 3), config)
    assert [clip.caption for clip in told] == [f"a red {shape} moving left" for shape in ("circle", "square", "circle")]
    assert told[0].read().shape == (8, 32, 32, 3)
    untold = clips_of_folder(fill(tmp_path / "untold", 3, frames=1, captions=False), config)
    assert {clip.caption for clip in untold} == {"a blue square moving up"}
    assert untold[0].read().shape == (1, 32, 32, 3)
    assert clips_of_folder(fill(tmp_path / "videos", 1, size=64), config)[0].read().shape == (8, 64, 64, 3)


def _corrupt(folder):
    (folder / "3.mp4").write_bytes(b"no video")
    (folder / "3").rename(folder.parent / "3")


def _without_a_frame(folder):
    write_picture(folder / "3" / "frame-0002.png", np.zeros((16, 16, 3), np.uint8))


def _without_a_caption(folder):
    (folder / "3.txt").unlink()


def _of_an_unknown_word(folder):
    (folder / "3.txt").write_text("a purple circle moving left")


BAD = {
    "none": (lambda path: path / "nothing", "no such folder"),
    "empty": (lambda path: fill(path / "clips", 0), "holds no clips"),
    "few": (lambda path: fill(path / "clips", 7), "7 found; at least 8 are needed"),
    "size": (lambda path: fill(path / "clips", 8, size=64), "8 frame(s) of 64 x 64 pixels, but the model is asked for"),
    "frames": (lambda path: fill(path / "clips", 8, frames=4), "4 frame(s) of 32 x 32 pixels, but the model is asked"),
    "corrupt": (lambda path: _changed(fill(path / "clips", 8), _corrupt), "3.mp4: not a video that can be decoded"),
    "frame": (lambda path: _changed(fill(path / "clips", 8), _without_a_frame), "frame-0002.png is of another size"),
    "caption": (lambda path: _changed(fill(path / "clips", 8), _without_a_caption), "there is no 3.txt"),
    "word": (lambda path: _changed(fill(path / "clips", 8), _of_an_unknown_word), "unknown word 'purple'"),
}


def _changed(folder, change):
    change(folder)
    return folder


def refused(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        calibrate.main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1
    return error


@pytest.mark.parametrize("name", BAD)
def test_bad_clips_are_one_line_before_a_model_is_loaded(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("w2sd_video.calibration.pair.load", lambda config: pytest.fail("a model was loaded"))
    make, said = BAD[name]
    error = refused(["--clips", str(make(tmp_path)), "-o", str(tmp_path / "s.json")], capsys)
    assert said in error and not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "nothing"], "unknown config 'nothing'"),
        (["--config", "cogvideox-5b-guidance"], "name a folder of videos or images with --clips"),
        (["--weak.weights", "null"], "strong and weak are the same setting"),
        (["--ideal", "9", "--clips", "."], "only the miniatures' world makes so many clips"),
        (["--ideal", "0"], "ideal 0: must be from 1 to 100000"),
        (["--draws", "0"], "draws 0: must be from 1 to 1000"),
        (["--number-of-clips", "4"], "4 found; at least 8 are needed"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_bad_input_is_one_line(argv, said, tmp_path, capsys):
    assert said in refused([*argv, "-o", str(tmp_path / "s.json")], capsys)


def test_a_pair_whose_gap_is_nothing_is_refused(tmp_path, capsys):
    same = ["--weak.weights", "null", "--weak.guidance_scale", "1.0", "--weak.prompt", "a red circle moving left"]
    argv = [
        "--clips",
        str(fill(tmp_path / "clips", 8)),
        "--draws",
        "1",
        "--levels",
        "1",
        "-o",
        str(tmp_path / "s.json"),
    ]
    for k in range(8):
        (tmp_path / "clips" / f"{k}.txt").write_text("a red circle moving left")
    with pytest.raises(SystemExit):
        calibrate.main([*argv, *same, "--draws", "1", "--levels", "1"])
    assert "the pair has no gap" in capsys.readouterr().err and not (tmp_path / "s.json").exists()


def test_a_file_that_is_no_calibration_is_left_alone(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text('{"log_snr": [1]}')
    assert "exists and is no calibration" in refused([*QUICK, "-o", str(file)], capsys)
    assert file.read_text() == '{"log_snr": [1]}'
    assert "there is no folder" in refused([*QUICK, "-o", str(tmp_path / "none" / "s.json")], capsys)
