"""Samplers of k-diffusion's signature, written plainly; and that package's own, where it is installed."""

import importlib
import importlib.util
import sys
from types import ModuleType

import torch


def real_samplers():
    """Return the module of samplers of the package k-diffusion, or None.

    Its other modules want a dozen packages for training, so that only this one is loaded, with the one function of
    another that it takes.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or any(importlib.util.find_spec(name) is None for name in ("torchdiffeq", "torchsde")):
        return None
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.append_dims = lambda x, dims: x[(..., *(None,) * (dims - x.ndim))]
    package.utils = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Two calls a step, the second at the sigma that the next step begins with."""
    ones = x.new_ones([len(x)])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args or {})
        slope = (x - denoised) / sigmas[i]
        said(callback, x, i, sigmas[i], denoised)
        end = x + slope * (sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] > 0:
            slope_of_end = (end - model(end, sigmas[i + 1] * ones, **extra_args or {})) / sigmas[i + 1]
            end = x + (slope + slope_of_end) / 2 * (sigmas[i + 1] - sigmas[i])
        x = end
    return x


def two_step(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """DPM-Solver++(2M): the denoised sample is extrapolated from the one before."""
    before, step_before = None, None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        ahead = denoised
        if sigmas[i + 1] > 0:
            step = (sigmas[i] / sigmas[i + 1]).log()
            if before is not None:
                ahead = denoised + (denoised - before) * step / step_before / 2
            before, step_before = denoised, step
        x = ahead + sigmas[i + 1] / sigmas[i] * (x - ahead)
    return x


def ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0):
    """Euler down to less than the next sigma, and noise up to it."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        up = eta * (sigmas[i + 1] ** 2 * (1 - sigmas[i + 1] ** 2 / sigmas[i] ** 2)) ** 0.5
        down = (sigmas[i + 1] ** 2 - up**2) ** 0.5
        x = denoised + down / sigmas[i] * (x - denoised)
        if sigmas[i + 1] > 0:
            x = x + up * torch.randn_like(x)
    return x


def churning(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler from a level above the sigma."""
    for i in range(len(sigmas) - 1):
        above = 1.2 * sigmas[i]
        x = x + (above**2 - sigmas[i] ** 2) ** 0.5 * torch.randn_like(x)
        denoised = model(x, above * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        x = denoised + sigmas[i + 1] / above * (x - denoised)
    return x


def restarting(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler that goes back to the first sigma once, and down again."""
    for i in [0, 1, *range(len(sigmas) - 1)]:
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
        x = x + (sigmas[0] ** 2 - sigmas[2] ** 2) ** 0.5 * torch.randn_like(x) if i == 1 else x
    return x


def correcting(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Builds the latents of a step again, from those of the step before and both predictions, like UniPC."""
    before = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        if before is not None:
            mean = (before[1] + denoised) / 2
            x = mean + sigmas[i] / sigmas[i - 1] * (before[0] - mean)
        before = x, denoised
        x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
    return x


def copying(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler that shows the model a copy of its latents."""
    for i in range(len(sigmas) - 1):
        denoised = model(x.clone(), sigmas[i] * x.new_ones([len(x)]), **extra_args or {})
        said(callback, x, i, sigmas[i], denoised)
        x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
    return x


def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return heun(model, x, sigmas, extra_args, None, disable)


def needing_a_network(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Takes what a hook in the real model is to leave behind, like the CFG++ samplers of ComfyUI."""
    kept = {}
    extra_args["hooks"]["after"] = lambda denoised: kept.update(denoised=denoised)
    model(x, sigmas[0] * x.new_ones([len(x)]), **extra_args)
    return kept["denoised"]


def said(callback, x, i, sigma, denoised):
    if callback is not None:
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
