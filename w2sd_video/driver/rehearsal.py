"""What a pipeline gives its denoiser, learnt before the first step, and what is known of the running call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from w2sd_video.driver.halves import Arguments, are_equal
from w2sd_video.reflection_settings import Role

COND, UNCOND = "cond", "uncond"

_FOLLOWS_LATENTS = ("timestep", "residual", "controlnet", "block_samples")


class RehearsalOver(BaseException):
    """Ends a rehearsal: the denoiser's arguments are known. Not an error, so no ``except Exception`` may take it."""


class Rehearsal:
    """The arguments of every evaluation of the denoiser in one step of a pipeline, by the name of the call.

    Guidance in two calls has the names "cond" and "uncond"; where a pipeline gives none, the conditional call is the
    first one, as all that we know have it. A single call is named None. ``control`` are the arguments of a ControlNet.
    """

    def __init__(self) -> None:
        self.calls: dict[str | None, Arguments] = {}
        self.control: Arguments = {}
        self._recorded: list[tuple[str | None, Arguments]] = []

    def record(self, name: str | None, arguments: Arguments, is_last: bool) -> None:
        """Keep the arguments of a call; end the rehearsal if it is known to be the last one."""
        self._recorded.append((name if name in (COND, UNCOND) else None, arguments))
        names = [name for name, _ in self._recorded]
        if len(names) == 2 and names == [None, None]:
            names = [COND, UNCOND]
        self.calls = dict(zip(names, (arguments for _, arguments in self._recorded), strict=True))
        if is_last or len(names) > 2:
            raise RehearsalOver

    @property
    def layout(self) -> str:
        """Return "single" for one evaluation a step, "calls" for a conditional and an unconditional one; "unknown"."""
        if len(self._recorded) == 1:
            return "single"
        return "calls" if set(self.calls) == {COND, UNCOND} and len(self._recorded) == 2 else "unknown"

    def changes(self, name: str | None, other: Rehearsal, other_name: str | None, latents_name: str) -> Arguments:
        """Return the arguments that turn a call of this rehearsal into one of another: its text.

        Both began from the same noise, so that what differs is the text; what is computed from latents is left out.
        """
        return _changes(self.calls[name], other.calls[other_name], latents_name)

    def control_changes(self, other: Rehearsal, latents_name: str) -> Arguments:
        """Return the same for the ControlNet."""
        return _changes(self.control, other.control, latents_name)


def _changes(shown: Arguments, wanted: Arguments, latents_name: str) -> Arguments:
    return {
        key: wanted.get(key)
        for key in {**shown, **wanted}
        if key != latents_name
        and not any(part in key for part in _FOLLOWS_LATENTS)
        and not are_equal(shown.get(key), wanted.get(key))
    }


@contextmanager
def same_random_state(generators: Any) -> Iterator[None]:
    """Put every generator back to where it was, the global ones too."""
    listed = generators if isinstance(generators, (list, tuple)) else [generators]
    states = [(generator, generator.get_state()) for generator in listed if generator is not None]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


@dataclass
class CallState:
    """What scheduler and denoiser of a pipeline tell each other in the running call.

    Attributes:
        role: the role that the next evaluation answers for.
        request: counts the sampler's requests, so that evaluations of one request can be told from the next.
        shares_latents: the request is a weak one at the latents and timestep of the strong one before it.
        nfe: network evaluations by role.
        rehearsing: set while the pipeline only shows what it gives its denoiser.
        rehearsals: what it showed, by the text of the branch (None: its own).
        guidance_scale: the argument of the pipeline's call, if it is a number.
        step_taken: whether the scheduler's own step was the last to be taken.
        call: the index of that step in a stock loop.
        thread: the thread that the call runs in.
        aside: whether a callback of the user's is running, which sees and evaluates what it would in a stock loop.
    """

    role: Role = "base"
    request: int = 0
    shares_latents: bool = False
    nfe: Counter[str] = field(default_factory=Counter)
    rehearsing: Rehearsal | None = None
    rehearsals: dict[Any, Rehearsal] = field(default_factory=dict)
    guidance_scale: float | None = None
    step_taken: bool = False
    call: int = 0
    thread: int = field(default_factory=threading.get_ident)
    aside: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether what runs is no part of the pipeline's own loop: a callback, or another thread."""
        return self.aside or threading.get_ident() != self.thread


def zeros_for(samples: torch.Tensor, arguments: Arguments) -> Any:
    """Return the form of a denoiser's output, without evaluating it."""
    return output_like(torch.zeros_like(samples), arguments)


def output_like(prediction: torch.Tensor, arguments: Arguments) -> Any:
    """Return a prediction in the form that the arguments of a denoiser ask for."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return (prediction,) if arguments.get("return_dict") is False else Transformer2DModelOutput(sample=prediction)
