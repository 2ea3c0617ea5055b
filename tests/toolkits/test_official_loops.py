"""The changed lines of docs/guide/official-loops.md, put into loops built like the official ones."""

import re
from pathlib import Path

import torch
from official_loops import LOOPS, CogNetwork, FlowUniPC, Guider, made, patched

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "official-loops.md").read_text()
DIFFS = dict(re.findall(r"^## (.*?)\n.*?```diff\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
REFLECTED, STEPS = 3, 6


def changed(name, **replaced):
    """The names of a loop with the page's lines in it; some words of these may be others."""
    diff = DIFFS[name]
    for old, new in {"tqdm(timesteps)": "timesteps", "seq_len}": "7}", **replaced}.items():
        diff = diff.replace(old, new)
    return made("from w2sd_video import Reflection, Reflector, Trajectory\n" + patched(LOOPS[name], diff))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def close(result, plain):
    assert (result - plain).norm() / plain.norm() < 1e-5


def flow_gap(latents, strong, weak, s, below):
    """The displacement that the two flows mean: in noises, and in samples where there is no signal."""
    if s < 1:
        return latents + (below - (1 - below) * s / (1 - s)) * (1 - s) * (1 - s) / (1 - below) * (strong - weak)
    return latents + (1 - below) / below * s * (weak - strong)


def test_the_page_has_all_loops():
    assert list(DIFFS) == list(LOOPS)
    for name, source in LOOPS.items():
        assert patched(source, DIFFS[name].replace("tqdm(timesteps)", "timesteps").replace("seq_len}", "7}")) != source


TEXT, NULL = [torch.tensor([0.7])], [torch.tensor([-0.4])]


def generated(names):
    model = names["WanT2V"]()
    return model.generate(noise(4, 3, 4, 4), TEXT, NULL, (3.0, 4.0), STEPS), model


def test_wan_with_two_stages_and_unipc():
    stock, _ = generated(made(LOOPS["Wan 2.2"]))
    off, _ = generated(changed("Wan 2.2", **{"reflection_steps=3": "reflection_steps=0"}))
    assert torch.equal(off, stock)
    result, model = generated(changed("Wan 2.2"))

    scheduler, latents = FlowUniPC(5.0), noise(4, 3, 4, 4)[None]
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()
    evaluations = {"high": 0, "low": 0}

    @torch.no_grad()
    def network(latents, i, text):
        is_high = float(scheduler.timesteps[i]) >= 875
        evaluations["high" if is_high else "low"] += 1
        stage = model.high_noise_model if is_high else model.low_noise_model
        return torch.stack(stage([latents[0]], t=scheduler.timesteps[i][None], context=text, seq_len=7))

    calls = len(model.high_noise_model.told), len(model.low_noise_model.told)
    for i in range(STEPS):
        scale = 4.0 if float(scheduler.timesteps[i]) >= 875 else 3.0
        if i < REFLECTED:
            weak, uncond = network(latents, i, TEXT), network(latents, i, NULL)
            evaluations["high" if scale == 4.0 else "low"] += 1  # the loop does not share the conditional one
            moved = flow_gap(latents, uncond + scale * (weak - uncond), weak, sigmas[i], sigmas[i + 1])
            if i:
                scheduler.last_sample = scheduler.last_sample + (moved - latents) * sigmas[i - 1] / sigmas[i]
            latents = moved
        cond, uncond = network(latents, i, TEXT), network(latents, i, NULL)
        latents = scheduler.step(uncond + scale * (cond - uncond), scheduler.timesteps[i], latents).prev_sample
    close(result, latents[0])
    assert (result - stock).norm() / stock.norm() > 0.01
    assert calls == (evaluations["high"], evaluations["low"]) and min(calls) > 0


def test_wan_without_the_scheduler_would_lose_its_reflections():
    """The corrector builds the latents again: what the page says of scheduler= is so."""
    result, _ = generated(changed("Wan 2.2"))
    lost, _ = generated(changed("Wan 2.2", **{"scheduler=sample_scheduler,": ""}))
    assert (result - lost).norm() / result.norm() > 0.01


def test_hunyuan():
    texts = noise(1, 2, 3), noise(1, 5)

    def video(names, dtype=torch.float32):
        pipe = names["HunyuanVideoPipeline"]()
        return pipe(noise(1, 4, 3, 4, 4).to(dtype), *texts, 6.0, STEPS), pipe

    stock, _ = video(made(LOOPS["HunyuanVideo"]))
    off, _ = video(changed("HunyuanVideo", **{"reflection_steps=3": "reflection_steps=0"}))
    assert torch.equal(off, stock)
    result, pipe = video(changed("HunyuanVideo"))

    latents, sigmas = noise(1, 4, 3, 4, 4), pipe.scheduler.sigmas.tolist()

    @torch.no_grad()
    def network(latents, i, guidance):
        told = torch.tensor([guidance]).to(torch.bfloat16) * 1000.0
        time = pipe.scheduler.timesteps[i].repeat(1)
        ones = torch.ones(3)
        return pipe.transformer(latents, time, texts[0], ones, texts[1], ones, ones, told, True)["x"]

    assert len(pipe.transformer.told) == STEPS + 2 * REFLECTED
    for i in range(STEPS):
        if i < REFLECTED:
            strong, weak = network(latents, i, 6.0), network(latents, i, 1.0)
            latents = flow_gap(latents, strong, weak, sigmas[i], sigmas[i + 1])
        latents = latents + (sigmas[i + 1] - sigmas[i]) * network(latents, i, 6.0)
    close(result, latents)
    assert (result - stock).norm() / stock.norm() > 0.01
    half, _ = video(changed("HunyuanVideo"), torch.float16)  # the loop begins in half precision, and steps in float32
    assert (half - result).norm() / result.norm() < 0.02


def test_cogvideo():
    cond, uc = {"crossattn": torch.tensor([0.7])}, {"crossattn": torch.tensor([-0.4])}

    def video(names):
        denoiser = CogNetwork(4)
        sampler = names["VideoDDIMSampler"](STEPS, Guider(6.0))
        return sampler(denoiser, noise(1, 4, 3, 4, 4), cond, uc), denoiser, sampler

    stock, *_ = video(made(LOOPS["CogVideo"]))
    off, *_ = video(changed("CogVideo", **{"reflection_steps=3": "reflection_steps=0"}))
    assert torch.equal(off, stock)
    result, denoiser, sampler = video(changed("CogVideo"))
    assert [len(told) for told in denoiser.told].count(1) == REFLECTED
    assert len(denoiser.told) == STEPS + 2 * REFLECTED

    x = noise(1, 4, 3, 4, 4)
    _, _, alphas, _, _, _, times = sampler.prepare_sampling_loop(x, cond, uc)

    @torch.no_grad()
    def denoised(x, i, text):
        return denoiser(x, alphas[i : i + 1], text, idx=times[-(i + 1)][None])

    for i in range(STEPS):
        (a, s), (a_below, s_below) = ((float(b), float((1 - b**2) ** 0.5)) for b in alphas[i : i + 2])
        if i < REFLECTED:
            weak, poor = denoised(x, i, cond), denoised(x, i, uc)
            strong = poor + 6.0 * (weak - poor)
            lower = a_below * strong + s_below * (x - a * strong) / s
            # back by the weak noise at this level, or by the weak sample where there is no signal
            noise_of_weak = (x - a * weak) / s
            x = (
                a * (lower - s_below * noise_of_weak) / a_below + s * noise_of_weak
                if a
                else (lower - a_below * weak) / s_below
            )
        cond_x0, uncond_x0 = denoised(x, i, cond), denoised(x, i, uc)
        x0 = uncond_x0 + 6.0 * (cond_x0 - uncond_x0)
        x = a_below * x0 + s_below * (x - a * x0) / s
    close(result, x)
    assert (result - stock).norm() / stock.norm() > 0.01
