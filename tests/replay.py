"""A stock run of a pipeline, whose network can be asked again at other latents.

Nothing here knows of reflection: hooks keep what a pipeline gives its networks at each step, and what it gives its
scheduler. The same arguments with other latents in their place are then the network of a plain loop.
"""

from __future__ import annotations

import copy
import functools
import inspect
from contextlib import ExitStack, contextmanager

import torch

DENOISERS = ("transformer", "transformer_2", "unet")


def denoisers_of(pipe):
    """The networks that a pipeline denoises with, by their names in it."""
    found = {name: getattr(pipe, name, None) for name in DENOISERS}
    return {name: denoiser for name, denoiser in found.items() if denoiser is not None}


class Replay:
    """The networks and the scheduler of one stock run.

    Attributes:
        latents: what the first step began with.
        scheduler: a copy of the scheduler as it was before the first step.
        timesteps: of each step.
        generator: where the run's random numbers were before the first step.
        output: what the pipeline returned.
    """

    def __init__(self, system, pipe, call, run):
        self._system = system
        self._pipe = pipe
        self._call = call
        self._steps = [[]]
        self.timesteps = []
        self._controlnet = getattr(pipe, "controlnet", None)
        networks = [*denoisers_of(pipe).values(), *([self._controlnet] if self._controlnet else [])]
        with ExitStack() as stack:
            for network in networks:
                hook = network.register_forward_pre_hook(self._keep_arguments, with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(_step_replaced(pipe, self._keep_step))
            self.output = run(pipe, call)

    def predict(self, latents, i, scale):
        """Return the prediction at latents, with all that the pipeline gave its networks at step ``i``.

        A scale of None is the pipeline's own guidance, at its own scale.
        """
        residuals, outputs = {}, []
        for network, arguments in self._steps[i]:
            first = next(iter(arguments))
            arguments = arguments | {first: self._system.put(latents, arguments[first]), "return_dict": False}
            if network is self._controlnet:
                down, middle = network(**arguments)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
                continue
            if self._system.guidance == "embedded" and scale is not None:
                arguments["guidance"] = torch.full_like(arguments["guidance"], scale * self._system.guidance_unit)
            outputs.append(network(**arguments | residuals)[0])
        prediction = self._system.sign * self._guided(outputs, scale, network)
        if prediction.shape[1] != latents.shape[1]:
            prediction = prediction[:, : latents.shape[1]]
        return torch.cat([prediction] * (len(latents) // len(prediction)))

    def _guided(self, outputs, scale, network):
        if self._system.guidance == "embedded":
            return outputs[0]
        if self._system.guidance.startswith("batch"):
            outputs = outputs[0].chunk(2)
        cond, uncond = reversed(outputs) if self._system.guidance == "batch" else outputs
        return self._system.own_guidance(cond, uncond, self._own_scale(network) if scale is None else scale)

    def _own_scale(self, network):
        second = network is getattr(self._pipe, "transformer_2", None)
        return self._call["guidance_scale_2" if second else "guidance_scale"]

    def finish(self, latents, run):
        """Return what the pipeline makes of final latents: a stock run whose every step gives these."""

        def final(step, *args, **kwargs):
            result = step(*args, **kwargs)
            if isinstance(result, tuple):
                return (latents, *result[1:])
            result.prev_sample = latents
            return result

        with _step_replaced(self._pipe, final):
            return run(self._pipe, self._call)

    def _keep_arguments(self, network, args, kwargs):
        names = inspect.signature(type(network).forward).bind(network, *args, **kwargs).arguments
        self._steps[-1].append((network, {name: value for name, value in names.items() if name != "self"}))

    def _keep_step(self, step, *args, **kwargs):
        arguments = inspect.signature(step).bind(*args, **kwargs).arguments
        if not self.timesteps:
            self.scheduler = _copied(step.__self__)
            self.latents = arguments["sample"].clone()
            self.generator = _at_the_same_state(arguments.get("generator"))
        self.timesteps.append(arguments["timestep"])
        self._steps.append([])
        return step(*args, **kwargs)


@contextmanager
def _step_replaced(pipe, function):
    """Have a scheduler's ``step`` answered by ``function(step, *args, **kwargs)``."""
    step = pipe.scheduler.step
    pipe.scheduler.step = functools.wraps(step)(functools.partial(function, step))
    try:
        yield
    finally:
        del pipe.scheduler.step


def _copied(scheduler):
    shallow = copy.copy(scheduler)
    del shallow.step
    return copy.deepcopy(shallow)


def _at_the_same_state(generator):
    if generator is None:
        return None
    return torch.Generator().set_state(generator.get_state())
