"""A loop of W2SD written plainly, with nothing of the package in it."""

import diffusers
import tiny
import torch

from w2sd_video import Branch

STEPS = 5
STRONG, WEAK = Branch(guidance_scale=4.0), Branch(guidance_scale=1.0)

SYSTEMS = {
    "animatediff": tiny.animatediff,
    "animatediff_sdxl": tiny.animatediff_sdxl,
    "cogvideox": tiny.cogvideox,
    "cogvideox_rotary": lambda: tiny.cogvideox(rotary=True),
    "pixart": tiny.pixart,
    "dit": tiny.dit,
    "wan": tiny.wan,
    "wan_two_stage": lambda: tiny.wan(two_stage=True),
    "stable_diffusion": tiny.stable_diffusion,
    "stable_diffusion_xl": tiny.stable_diffusion_xl,
    "flux": tiny.flux,
}


def run(pipe, call, **changes):
    """Return the final latents: what the scheduler's last step gave (DiT would decode them)."""
    arguments = {**call, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), **changes}
    if isinstance(pipe, diffusers.DiTPipeline):
        return torch.as_tensor(pipe(**arguments, output_type="np").images)
    result = pipe(**arguments, output_type="latent")
    return result.frames if hasattr(result, "frames") else result.images


def plain_loop(latents, scheduler, levels, predict, read):
    """Algorithm 1, `paper` inversion: `levels[i]` is (alpha, sigma), `read(x, p, i)` gives the sample and the noise."""
    steps = len(scheduler.timesteps)
    old_sample = None
    for i, t in enumerate(scheduler.timesteps):
        (alpha, sigma), (alpha_below, sigma_below) = levels[i], levels[i + 1]
        if i < steps - 1:
            unreflected = latents
            clean, noise = read(latents, predict(latents, t, "strong"), i)
            lower = alpha_below * clean + sigma_below * noise
            weak_clean, weak_noise = read(lower, predict(lower, t, "weak"), i)
            if alpha > 0:
                latents = alpha * (lower - sigma_below * weak_noise) / alpha_below + sigma * weak_noise
            else:
                latents = (lower - alpha_below * weak_clean) / sigma_below
            if isinstance(scheduler, diffusers.UniPCMultistepScheduler) and i > 0:
                # Its corrector scales the latents of the step before by sigma over sigma: what is added goes in there.
                scheduler.last_sample = scheduler.last_sample + (latents - unreflected) * levels[i - 1][1] / sigma
        prediction = predict(latents, t, "base")
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            back = scheduler.timesteps[i - 1] if i else None
            generator = plain_loop.generator
            latents, old_sample = scheduler.step(prediction, old_sample, t, back, latents, generator=generator)
        else:
            latents = scheduler.step(prediction, t, latents).prev_sample
    return latents


def alphas_of(scheduler):
    products = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [
        float(scheduler.final_alpha_cumprod)
    ]
    return [(product**0.5, (1 - product) ** 0.5) for product in products]


def read_noise(levels):
    return lambda x, p, i: ((x - levels[i][1] * p) / levels[i][0], p)


def read_velocity(levels):
    return lambda x, p, i: (levels[i][0] * x - levels[i][1] * p, levels[i][1] * x + levels[i][0] * p)


def read_flow(levels):
    return lambda x, p, i: (x - levels[i][1] * p, x + levels[i][0] * p)


def guided(network, scales):
    """`predict(x, t, role)` at each role's scale, from `network(x, t, conditional)`."""

    def predict(x, t, role):
        scale = scales[role]
        cond = network(x, t, True)
        return cond if scale == 1 else network(x, t, False) * (1 - scale) + scale * cond

    return predict


def noise_like(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


SCALES = {"base": 3.0, "strong": 4.0, "weak": 1.0}


def close(result, plain):
    assert (result - plain).norm() / plain.norm() < 2e-4
