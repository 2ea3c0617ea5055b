"""Which samplers on sigmas can be reflected: each is tried, without a network, on a few numbers.

A sampler that begins a step calls the model on the latents that it steps from. Changing these in place there displaces
the sampler, with all its history and noise, if it really goes on from them; whether it does, a trial shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Sampler = Callable[..., torch.Tensor]
"""``(model, x, sigmas, extra_args=, callback=, disable=, **options) -> x``."""


def starting_calls(
    sampler: Sampler,
    name: str,
    model: Any,
    sigmas: torch.Tensor,
    reflected: Sequence[int],
    extra_args: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[int]:
    """Return which call of the model begins each step, counted from 0, or refuse a sampler that cannot be reflected.

    The model of the trial denoises to a constant, or finds a constant noise: what is added to the latents then shrinks
    or grows in a way that solvers of either kind, multistep ones too, take exactly. An entry that is displaced at a
    step must from there on be as far off as one that was displaced before the first step. The random numbers of torch
    are left as they were.

    Args:
        sampler: takes ``(model, x, sigmas, extra_args=, callback=, disable=, **options)``.
        name: of the sampler, for messages.
        model: the real one, whose attributes a sampler may ask for; it is not called.
        sigmas: noise levels, (steps + 1,).
        reflected: the steps whose latents are to be displaced.
        extra_args: keyword arguments of the model.
        options: keyword arguments of the sampler.

    Raises:
        ValueError: a sampler that has no call of the model at each sigma followed by its callback (churn, restarts,
            levels of its own), that loses a displacement, or that does not run without a real model.
    """
    sigmas = sigmas.detach().cpu().double()

    def run(denoise: Denoise, displaced_at: Sequence[int]) -> _Trial:
        trial = _Trial(model, denoise, displaced_at)
        trial.run(sampler, name, sigmas, extra_args, options, len(reflected) + 1)
        return trial

    for denoise in (_to_a_constant, _of_a_constant_noise):
        still = run(denoise, ())
        starts = still.starts(name, sigmas)
        moved = run(denoise, [starts[step] for step in reflected])
        if moved.starts(name, sigmas) != starts:
            raise ValueError(f"sampler {name} cannot be reflected: how often it calls the model hangs on its latents")
        if _keeps_displacements(moved.states(starts) - still.states(starts), reflected):
            return starts
    raise ValueError(
        f"sampler {name} cannot be reflected: it loses what is added to its latents, for it builds them again from "
        "earlier ones (a corrector), or steps from others than it shows the model; use euler, heun, dpmpp_2m or any "
        "other that goes on from them"
    )


Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _to_a_constant(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 0.3)


def _of_a_constant_noise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x - 0.7 * sigma[:, None]


class _Trial:
    """A run of a sampler on a few numbers, and the model of it.

    The first entry of its latents is displaced before the run, if any is, and one more at each of some calls.
    """

    def __init__(self, model: Any, denoise: Denoise, displaced_at: Sequence[int]) -> None:
        self._model = model
        self._denoise = denoise
        self._displaced_at = displaced_at
        self._called_at: list[torch.Tensor] = []
        self._seen: list[torch.Tensor] = []
        self._callbacks: list[tuple[Any, int]] = []
        self._final = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the real model."""
        return getattr(self._model, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        """Denoise, after displacing what is to be displaced at this call."""
        call = len(self._seen)
        self._seen.append(x.clone())
        self._called_at.append(sigma)
        if call in self._displaced_at:
            x[:, 1 + self._displaced_at.index(call)] += 1.0
        return self._denoise(x, sigma)

    def run(
        self,
        sampler: Sampler,
        name: str,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any],
        options: Mapping[str, Any],
        entries: int,
    ) -> None:
        """Run a sampler, with one seed whenever it is run."""
        x = torch.zeros(1, entries, dtype=torch.float64)
        x[:, 0] = float(bool(self._displaced_at))
        if options.get("noise_sampler") is not None:  # one of the user's makes noise of the shape of the real latents
            options = {**options, "noise_sampler": lambda *levels: torch.zeros_like(x)}
        # Samplers put hooks of theirs into these dictionaries.
        copied = {key: dict(value) if isinstance(value, dict) else value for key, value in extra_args.items()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            try:
                self._final = sampler(
                    self, x, sigmas, extra_args=copied, callback=self._note, disable=True, **options
                ).clone()
            except Exception as error:
                raise ValueError(
                    f"sampler {name} cannot be reflected: a trial without a real model, in double precision, fails, so "
                    "that whether it keeps what is added to its latents cannot be known "
                    f"({type(error).__name__}: {error})"
                ) from error

    def starts(self, name: str, sigmas: torch.Tensor) -> list[int]:
        """Return which call begins each step, or refuse a sampler that has none at each sigma."""
        steps = len(sigmas) - 1
        if [step for step, _ in self._callbacks] != list(range(steps)):
            raise ValueError(
                f"sampler {name} cannot be reflected: it must call back once a step, 0 to {steps - 1} in order, with "
                "the step as 'i' (restarts and levels of its own do not)"
            )
        for step, call in self._callbacks:
            sigma = float(self._called_at[call].max()) if call >= 0 else float("nan")
            if not abs(sigma - float(sigmas[step])) <= 1e-4 * float(sigmas[step]):
                raise ValueError(
                    f"sampler {name} cannot be reflected: at step {step} it calls the model at sigma {sigma:g}, and "
                    f"not at the {float(sigmas[step]):g} of the sigmas (churn? leave s_churn at 0)"
                )
        return [call for _, call in self._callbacks]

    def states(self, starts: Sequence[int]) -> torch.Tensor:
        """Return the latents at the beginning of each step and at the end, (steps + 1, entries)."""
        return torch.cat([*(self._seen[call] for call in starts), self._final])

    def _note(self, progress: Mapping[str, Any]) -> None:
        self._callbacks.append((progress.get("i"), len(self._seen) - 1))


def _keeps_displacements(change: torch.Tensor, reflected: Sequence[int]) -> bool:
    """Return whether entries displaced at a step go on as the first one, displaced before all, (steps + 1, entries)."""
    for entry, step in enumerate(reflected, 1):
        first, later = change[step, 0], change[step + 1 :, 0]
        if not abs(first) > 1e-9:
            return False  # nothing of the first is left to compare with
        if not torch.allclose(change[step + 1 :, entry], later / first, rtol=1e-4, atol=1e-6):
            return False
    return True
