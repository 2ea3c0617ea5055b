"""The arms: what each is, the settings that it has, and how many steps of each a budget allows."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from running import configured

from w2sd_video.evaluation.arms import ARMS, candidates, check_arms
from w2sd_video.messages import ConfigError
from w2sd_video.presets import PRESETS
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.evaluations import at_budget, evaluations, nfe_of, reflected_steps

MINIATURES = ["animatediff", "cogvideox", "pixart", "dit-moe", "animatediff-lora"]
TUNED = ("AutoGuidance", "skip-layer", "Z-Sampling", "FSG", "Re-Sampling", "advanced Re-Sampling", "W2SD")
"""Arms with several settings, but for plain guidance."""
RED, BLUE = "a red circle moving left", "a blue square moving up"


def _guidance_window(config):
    return (config.base.windows or {}).get("guidance_scale")


@pytest.mark.parametrize("name", MINIATURES)
def test_every_setting_takes_as_many_steps_as_its_budget_allows(name):
    config = configured(name)
    for arm in ARMS:
        for one in candidates(arm, config, 30):
            assert one.nfe == nfe_of(one.config) <= 30 < nfe_of(replace(one.config, steps=one.config.steps + 1))
            assert one.config.reflection_steps == 0 or len(reflected_steps(one.config)) > 0


@pytest.mark.parametrize("arm", ARMS)
def test_the_evaluations_of_an_arm_are_those_that_are_made(arm, pixart):
    for one in candidates(arm, configured("pixart"), 12)[::3]:
        assert sum(sample_clips(pixart, one.config, [RED], [0])[1].values()) == one.nfe, one.setting


def test_arms_that_no_step_fits_have_no_settings():
    assert at_budget(configured("animatediff"), 3) is None
    assert candidates("FSG", configured("animatediff"), 4) == []


def test_an_arm_is_what_it_is_called():
    config = configured("cogvideox")
    by_name = {arm: list(settings(config).values()) for arm, settings in ARMS.items()}
    plain = ARMS["CFG"](config)
    assert {one.base.guidance_scale for one in by_name["CFG"]} == {1, 1.5, 2, 3, 4, 5, 7}
    assert by_name["strong"] == [plain["guidance 3"]] and plain["guidance 3, late"].base.windows == {
        "guidance_scale": (0.5, 1.0)
    }
    assert by_name["weak"][0].base.weights == "weak"
    for arm in ("weak", "strong", "CFG", "AutoGuidance", "fast", "skip-layer"):
        assert all(one.reflection_steps == 0 for one in by_name[arm])
    for one in by_name["AutoGuidance"]:
        less = one.strong if one.autoguidance_gap == "strong" else replace(one.base, windows=None)
        assert one.weak == replace(less, weights="weak") and one.autoguidance > 0
        assert one.autoguidance_gap == "base" or one.strong.guidance_scale == 1 < one.base.guidance_scale
    (fast,) = by_name["fast"]
    assert (fast.autoguidance, fast.autoguidance_steps, fast.base) == (1.0, (0.5, 1.0), config.base)
    assert (fast.strong, fast.weak) == (config.strong, config.weak) and fast.autoguidance_gap == "strong"
    for one in by_name["skip-layer"]:
        assert one.weak.skip_layers and one.autoguidance > 0
        assert one.weak == replace(one.base, skip_layers=one.weak.skip_layers, windows=None)
    for one in [*by_name["Z-Sampling"], *by_name["FSG"]]:
        base = replace(one.base, windows=None)
        assert one.strong == base and one.weak == replace(base, guidance_scale=one.weak.guidance_scale)
        assert one.weak.guidance_scale < one.base.guidance_scale
    assert all(one.span > 1 for one in by_name["FSG"])
    assert {one.inversion for one in by_name["Re-Sampling"]} == {"resample"}
    assert by_name["W2SD as configured"] == [config]
    assert by_name["S2WD"] == [replace(config, strong=config.weak, weak=config.strong)]
    for arm in (*TUNED, "CFG"):
        windows = {one.reflection_steps or one.autoguidance_steps or _guidance_window(one) for one in by_name[arm]}
        assert windows >= {(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)}, arm
        assert {one.call.get("eta", 0) for one in ARMS[arm](configured("pixart")).values()} == {0, 1}, arm
        assert {one.call.get("eta", 0) for one in by_name[arm]} == {0}, "CogVideoX's scheduler makes nothing of it"
        assert "Re-Sampling" in arm or {one.reuse for one in by_name[arm]} == {1, 2}, arm
    varied = {(one.inversion, one.strength, one.rounds, one.reflection_steps) for one in by_name["W2SD"]}
    assert {each[0] for each in varied} == {"paper", "current"} and len({each[1] for each in varied}) > 1
    assert {each[3] for each in varied} >= {None, (0.0, 0.5), (0.5, 1.0)}


@pytest.mark.parametrize(
    "own",
    [
        PRESETS["fast"],
        {"reflection_steps": (0.0, 0.5), "inversion": "resample", "rounds": 3},
        {"reflection_steps": 2, "inversion": "implicit", "strength": 0.3, "reuse": 3, "carried": "linear", "span": 2},
        {"reflection_steps": 0, "autoguidance": 2.0, "reuse": 2, "reading": "sample"},
    ],
    ids=["fast", "Re-Sampling", "implicit", "AutoGuidance"],
)
def test_what_a_configuration_switches_on_is_no_part_of_the_other_arms(own):
    config = configured("pixart")
    for arm in ARMS:
        settings = ARMS[arm](replace(config, **own))
        if arm in ("W2SD as configured", "S2WD"):
            assert bool(settings) == (own["reflection_steps"] != 0)
        else:
            assert settings == ARMS[arm](config), arm


def test_a_mixture_takes_its_top_experts_so_that_strong_is_base():
    config = configured("dit-moe")
    (fast,) = ARMS["fast"](config).values()
    pipe = load(fast)
    pipe.set_progress_bar_config(disable=True)
    counted = sample_clips(pipe, replace(fast, steps=6), [RED], [0])[1]
    assert counted == evaluations(replace(fast, steps=6)) and sum(counted.values()) == 6 * 2 + 3 * 2


@pytest.mark.parametrize("name", MINIATURES)
def test_arms_that_are_tuned_have_as_many_settings_as_each_other(name):
    counts = {arm: len(ARMS[arm](configured(name))) for arm in (*TUNED, "CFG")}
    assert min(counts.values()) >= 0.8 * max(counts.values()) and min(counts.values()) >= 18, counts


def test_noise_of_the_steps_is_only_for_schedulers_that_take_it():
    config = configured("pixart")
    euler = replace(config, model=replace(config.model, scheduler="EulerDiscreteScheduler"))
    assert any("eta" in one.call for one in ARMS["CFG"](config).values())
    assert not any("eta" in one.call or one.solver for one in ARMS["CFG"](euler).values())
    assert any(one.solver and one.grid > 1 for one in ARMS["CFG"](config).values())
    assert all(one.config.steps <= 100 for one in candidates("CFG", config, 400) if one.config.grid > 1)


def test_guidance_whose_gap_is_reused_is_guidance_where_it_is_measured(pixart):
    """With a gap that is measured at every step, AutoGuidance by the unconditional half is plain guidance."""
    config = replace(ARMS["CFG"](configured("pixart"))["guidance 3, late, reuse 2"], steps=6)
    plain = replace(ARMS["CFG"](configured("pixart"))["guidance 3, late"], steps=6)
    anew, guided, reusing = (sample_clips(pixart, one, [RED], [0]) for one in (replace(config, reuse=1), plain, config))
    assert np.abs(anew[0].astype(int) - guided[0].astype(int)).max() <= 1
    assert (reusing[0] != guided[0]).any()
    assert sum(reusing[1].values()) < sum(guided[1].values()) == 9


def test_eta_makes_a_difference_and_zero_is_the_step_without_noise(pixart):
    arms = ARMS["W2SD"](configured("pixart"))
    quiet, noisy = (replace(arms[name], steps=4) for name in ("guidance 1, current", "guidance 1, current, eta 1"))
    clips = [
        sample_clips(pixart, one, [RED], [0])[0]
        for one in (quiet, replace(noisy, call={**noisy.call, "eta": 0.0}), noisy)
    ]
    assert (clips[0] == clips[1]).all() and (clips[0] != clips[2]).any()


@pytest.mark.parametrize("arm", ARMS)
def test_no_setting_of_an_arm_is_another_one_by_a_further_name(arm):
    """Nor is there noise of the steps beside a solver that adds none."""
    pixart = configured("pixart")
    for config in (pixart, replace(pixart, solver="UniPCMultistepScheduler"), replace(pixart, call={"eta": 1.0})):
        settings = list(ARMS[arm](config).values())
        assert all(one not in settings[:number] for number, one in enumerate(settings))
        assert not any(one.solver and "eta" in one.call for one in settings)


def test_an_unknown_arm_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown arm 'AutoGuidanc'; did you mean 'AutoGuidance'"):
        check_arms(["AutoGuidanc"])


@pytest.mark.parametrize("window", [3, 5, (0.5, 1.0)])
def test_a_window_that_few_steps_do_not_have_takes_more_of_them(window):
    config = replace(configured("animatediff"), reflection_steps=window)
    for arm in ARMS:
        for one in candidates(arm, config, 30):
            assert one.nfe <= 30 and (one.config.reflection_steps == 0 or len(reflected_steps(one.config)) > 0)
    assert at_budget(config, 40).steps > 5


def test_the_step_of_euler_ancestral_is_that_of_ddim_with_all_its_noise():
    """So one of them stands for both in a comparison."""
    ddim = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    ancestral = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    x = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scheduler in (ddim, ancestral):
        scheduler.set_timesteps(10)
    share = [ddim.alphas_cumprod[int(t)].double() for t in ddim.timesteps]

    def noise_in(x, alpha_squared):
        """Of data from a Gaussian around 1 with a spread of 0.5."""
        variance = alpha_squared / 4 + 1 - alpha_squared
        mean = 1 + alpha_squared.sqrt() / 4 / variance * (x - alpha_squared.sqrt())
        return (x - alpha_squared.sqrt() * mean) / (1 - alpha_squared).sqrt()

    other = x / share[0].sqrt()
    for t, alpha_squared in zip(ddim.timesteps, share, strict=True):
        x = ddim.step(noise_in(x, alpha_squared), t, x, eta=1.0, generator=seeded[0]).prev_sample
        scaled = ancestral.scale_model_input(other, t.float())
        torch.testing.assert_close(scaled, other * alpha_squared.sqrt(), rtol=1e-4, atol=1e-4)
        other = ancestral.step(noise_in(scaled, alpha_squared), t.float(), other, generator=seeded[1]).prev_sample
    torch.testing.assert_close(x, other, rtol=1e-5, atol=1e-5)
