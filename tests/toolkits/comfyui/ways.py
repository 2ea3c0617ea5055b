"""The two ways in, a stock sampling for each, and the plain loop that both are compared with."""

from itertools import pairwise

import comfy.samplers
import networks
import torch

from w2sd_video.backends.comfyui import NODE_CLASS_MAPPINGS

POSITIVE, NEGATIVE = networks.text(0), networks.text(1)
STEPS, CFG = 4, 3.0


def node(name, **inputs):
    return NODE_CLASS_MAPPINGS[name].execute(**inputs)[0]


class ByGuider:
    """W2SD Guider and W2SD Sampler in SamplerCustomAdvanced."""

    @staticmethod
    def stock(model, latent, name="euler", denoise=1.0, positive=POSITIVE, negative=NEGATIVE):
        sigmas = networks.levels(model, STEPS, denoise=denoise)
        guider = networks.guider(model, positive, negative, CFG)
        return networks.custom(guider, networks.sampler(name), sigmas, latent)

    @staticmethod
    def reflected(strong, weak, settings, latent, name="euler", denoise=1.0, **inputs):
        inputs = {"strong_cfg": 1.0, "weak_cfg": 1.0, "positive": POSITIVE, "negative": NEGATIVE, "cfg": CFG, **inputs}
        guider = node("W2SDGuider", strong=strong, weak=weak, **inputs)
        sampler = node("W2SDSampler", sampler=networks.sampler(name), settings=settings)
        return networks.custom(guider, sampler, networks.levels(strong, STEPS, denoise=denoise), latent)


class ByModel:
    """W2SD Model in KSampler."""

    @staticmethod
    def stock(model, latent, name="euler", denoise=1.0, positive=POSITIVE, negative=NEGATIVE):
        return networks.ksampler(model, positive, negative, latent, STEPS, CFG, name, denoise)

    @staticmethod
    def reflected(strong, weak, settings, latent, name="euler", denoise=1.0, **inputs):
        inputs = {"strong_cfg": 1.0, "weak_cfg": 1.0, "positive": POSITIVE, "negative": NEGATIVE, "cfg": CFG, **inputs}
        positive, negative, cfg = (inputs.pop(name) for name in ("positive", "negative", "cfg"))
        model = node("W2SDModel", strong=strong, weak=weak, settings=settings, **inputs)
        return networks.ksampler(model, positive, negative, latent, STEPS, cfg, name, denoise)


WAYS = [ByGuider, ByModel]


def looked_into(model, cfg, sigmas, latent, look, positive=POSITIVE, negative=NEGATIVE):
    """Run a function as the sampler of a stock guider, and return what SamplerCustomAdvanced makes of its result."""
    guider = networks.guider(model, positive, negative, cfg)
    return networks.custom(guider, comfy.samplers.KSAMPLER(look), sigmas, latent)


def plain_loop(
    strong,
    weak,
    latent,
    reflected,
    inversion,
    denoise=1.0,
    prompts=(POSITIVE, NEGATIVE),
    weak_prompts=None,
    pushed=STEPS,
    gap="strong",
    base=None,
):
    """Euler's steps, the first ones reflected, those from `pushed` on with AutoGuidance of weight 1.

    Nothing of ours is in it; each evaluation is a stock sampling of its own. `base` makes the steps that count in the
    place of `strong`.
    """
    base = strong if base is None else base
    sigmas = networks.levels(strong, STEPS, denoise=denoise)
    is_flow = float(strong.get_model_object("model_sampling").sigma_max) == 1.0

    def x0(model, cfg, x, sigma, prompts=prompts):
        seen = []

        def look(denoiser, noise, _, extra_args, callback, disable):
            seen.append(denoiser(x, sigma * torch.ones(len(x)), **extra_args))
            return noise

        looked_into(model, cfg, sigmas, latent, look, *prompts)
        return seen[0]

    def moved(x, sample, sigma, told, to):
        """Move latents of `sigma` to another level along a prediction that was made for `told`."""
        a, b, c = (1 - s if is_flow else torch.tensor(1.0) for s in (sigma, told, to))
        if b == 0:  # nothing but noise: the sample alone says something
            return to / sigma * x + (c - a * to / sigma) * sample
        noise = (seen_at - b * sample) / told
        return (x - sigma * noise) * c / a + to * noise if a > 0 else None

    def loop(denoiser, x, sigmas, extra_args, callback, disable):
        nonlocal seen_at
        for i, (sigma, to) in enumerate(pairwise(sigmas)):
            if i < reflected:
                strong_sample = x0(strong, 1.0, x, sigma)
                seen_at = x
                down = moved(x, strong_sample, sigma, sigma, to)
                seen_at = x
                if inversion == "paper":  # the network scales what it sees for the level that it is told
                    seen_at = down if is_flow else down * ((1 + sigma**2) / (1 + to**2)).sqrt()
                weak_sample = x0(weak, 1.0, seen_at, sigma, weak_prompts or prompts)
                if is_flow and sigma == 1:
                    x = (down - (1 - to) * weak_sample) * sigma / to
                else:
                    x = moved(down, weak_sample, to, sigma, sigma)
            sample = x0(base, CFG, x, sigma)
            if i >= pushed:
                sample = sample + (sample if gap == "base" else x0(strong, 1.0, x, sigma)) - x0(weak, 1.0, x, sigma)
            x = x + (to - sigma) * (x - sample) / sigma
        return x

    seen_at = None
    return looked_into(strong, CFG, sigmas, latent, loop)
