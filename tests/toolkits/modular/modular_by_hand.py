"""Tiny modular pipelines, what is counted and kept of them, and a plain loop over their own blocks."""

import contextlib
import copy
import functools

import diffusers
import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks

DENOISERS = ("transformer", "transformer_2", "unet")


def run(pipe, call, **changes):
    return pipe(generator=torch.Generator().manual_seed(7), output="latents", **{**call, **changes})


def weaker(pipe, factor=1.1):
    """Return other weights for the pipeline: a module, or a pair of a two-stage model."""
    networks = [copy.deepcopy(getattr(pipe, name)) for name in DENOISERS if name in pipe.components]
    for network in networks:
        for parameter in network.parameters():
            parameter.data.mul_(factor)
    return networks[0] if len(networks) == 1 else tuple(networks)


@contextlib.contextmanager
def counted(*networks):
    """Give the networks that are evaluated, in order, however they were reached."""
    calls = []
    originals = {type(network): type(network).forward for network in networks}

    def counting(original):
        @functools.wraps(original)
        def forward(self, *args, **kwargs):
            calls.append(id(self))
            return original(self, *args, **kwargs)

        return forward

    for cls, original in originals.items():
        cls.forward = counting(original)
    try:
        yield calls
    finally:
        for cls, original in originals.items():
            cls.forward = original


def kept(pipe):
    """Return everything of a pipeline that a reflected call might leave changed."""

    def tree(blocks):
        return id(blocks), [(name, tree(block)) for name, block in blocks.sub_blocks.items()]

    guiders = [part for part in pipe.components.values() if hasattr(part, "prepare_inputs")]
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {
        "class": type(pipe),
        "blocks": tree(pipe._blocks),
        "attributes": {name: id(value) for name, value in vars(pipe).items()},
        "guiders": [(id(guider), {name: str(value) for name, value in vars(guider).items()}) for guider in guiders],
        "forwards": [[vars(module).get("forward") for module in network.modules()] for network in networks],
    }


def loops(blocks):
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        return [blocks]
    return [loop for block in blocks.sub_blocks.values() for loop in loops(block)]


def plain_run(pipe, call, strong, weak, reflected, inversion="paper"):
    """Run a pipeline whose loop is this one: its own blocks, and algorithm 1 of the paper by hand.

    `strong` and `weak` are functions that put the components of a role in place for one evaluation.
    """
    pipe = copy.copy(pipe)
    pipe._blocks = copy.deepcopy(pipe._blocks)

    def loop_step(blocks):
        def step(components, state, i, t):
            *predicting, stepping = blocks
            if i < reflected:
                state.latents = plain_reflection(pipe, predicting, state, i, t, strong, weak, inversion)
            for block in (*predicting, stepping):
                components, state = block(components, state, i=i, t=t)
            return components, state

        return step

    for loop in loops(pipe._blocks):
        loop.loop_step = loop_step(list(loop.sub_blocks.values()))
    return run(pipe, call)


def plain_reflection(pipe, predicting, state, i, t, strong, weak, inversion):
    """Down by strong's prediction, up by weak's, in noise; where there is no signal yet in the denoised sample."""
    scheduler, x = pipe.scheduler, state.latents

    def predicted(role, latents):
        copied = copy.copy(state)
        copied.latents = latents
        with role(pipe, i):
            for block in predicting:
                block(pipe, copied, i=i, t=t)
        return copied.noise_pred

    at_sigma = scheduler.timesteps.tolist().index(float(t))
    s, s_below = (float(sigma) for sigma in scheduler.sigmas[at_sigma : at_sigma + 2])
    explodes = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    a, a_below = (1.0, 1.0) if explodes else (1 - s, 1 - s_below)

    def read(latents, prediction):
        """Return the denoised sample and the noise: of predicted noise (Euler), or of the flow."""
        if explodes:
            return latents - s * prediction, prediction
        return latents - s * prediction, latents + a * prediction

    sample, noise = read(x, predicted(strong, x))
    is_first_frame = first_frame(state, x)
    lower = torch.where(is_first_frame, x, a_below * sample + s_below * noise)
    at = lower if inversion == "paper" else x
    # Euler's blocks scale latents for the level that they are told; those below it are at another.
    in_scale = at * ((1 + s**2) / (1 + s_below**2)) ** 0.5 if explodes and inversion == "paper" else at
    sample, noise = read(at, predicted(weak, in_scale))
    if a == 0:
        noise = (lower - a_below * sample) / s_below
    else:
        sample = (lower - s_below * noise) / a_below
    return torch.where(is_first_frame, x, a * sample + s * noise)


def first_frame(state, latents):
    """Where latents are those of an image that LTX goes on from, which are not stepped."""
    mask = getattr(state, "conditioning_mask", None)
    return torch.zeros_like(latents, dtype=torch.bool) if mask is None else (mask > 0).unsqueeze(-1).expand_as(latents)


def role(networks=(), guider=None):
    """Return what puts other networks, or a guider, in place of a pipeline's for one evaluation."""

    @contextlib.contextmanager
    def in_place(pipe, i):
        before = dict(vars(pipe))
        names = [name for name in DENOISERS if name in pipe.components]
        vars(pipe).update(zip(names, networks, strict=False))
        if guider is not None:
            pipe.guider = guider
        try:
            yield
        finally:
            vars(pipe).update(before)

    return in_place
