"""Another scheduler for a pipeline: one that steps what its network predicts, along its own noise levels."""

from __future__ import annotations

import copy
import dis
import inspect
import itertools
import sys
from typing import Any

import numpy as np
import torch

from w2sd_video.driver.signatures import codes_of
from w2sd_video.messages import suggest
from w2sd_video.time_grid import put_levels
from w2sd_video.trajectory import Trajectory, known_schedulers

ADDING_NOISE = ("DDIMScheduler", "DDIMParallelScheduler")
"""Schedulers whose steps add the noise of an ``eta``."""
_GIVEN_TO_STEPS = {"self", "model_output", "timestep", "sample"}
"""What the loop of every pipeline gives a scheduler's step."""


def solver_of(pipe: Any, name: str | None) -> Any:
    """Return a scheduler of a class by the configuration of a pipeline's own; that one itself where none is named.

    Raises:
        ValueError: a class that cannot step what this pipeline's network predicts, or not along its noise levels.
    """
    own = pipe.scheduler
    if name is None or name == type(own).__name__:
        return own
    if name not in known_schedulers():
        raise ValueError(f"solver {name!r}: is no scheduler that is known; {suggest(name, known_schedulers())}")
    import diffusers

    kind, config = getattr(diffusers, name), dict(own.config)
    if not _is_stepped_by(pipe, kind):
        raise ValueError(f"solver {name}: {type(pipe).__name__} does not give its step what it needs")
    taken = inspect.signature(kind).parameters
    if config.get("invert_sigmas"):
        raise ValueError(
            f"solver {name}: this pipeline's network is told inverted noise levels, which it does not have"
        )
    if config.get("timestep_type") == "continuous" and "timestep_type" not in taken:
        raise ValueError(
            f"solver {name}: this pipeline's network is told the logarithms of noise levels (timestep_type="
            "'continuous', as Stable Video Diffusion's), and this one tells it numbers of training steps"
        )
    changes: dict[str, Any] = {"clip_sample": False} if "clip_sample" in taken else {}
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if Trajectory.predicts_flow(own) and kind is diffusers.FlowMatchEulerDiscreteScheduler:
        changes |= {"shift": shift}
    elif Trajectory.predicts_flow(own):
        if "use_flow_sigmas" not in taken:
            raise ValueError(f"solver {name}: steps no flow predictions, which this pipeline's network makes")
        changes |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    elif kind is diffusers.FlowMatchEulerDiscreteScheduler:
        raise ValueError(f"solver {name}: steps flow predictions only, which this pipeline's network does not make")
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in taken:
        raise ValueError(f"solver {name}: cannot begin without any signal in the latents, as this pipeline does")
    solver = kind.from_config(own.config, **changes)
    if _has_other_levels(solver, own):  # as CogVideoX's, whose schedulers shift them by a setting that others ignore
        solver = kind.from_config(own.config, **changes, trained_betas=_betas_of(own))
    try:
        stops_in_noise = _stops_in_noise(solver)
    except AssertionError as error:
        shift = config.get("time_shift_type")
        raise ValueError(
            f"solver {name}: has no dynamic shift of type {shift!r}, which this pipeline's own has"
        ) from error
    if stops_in_noise and not _stops_in_noise(own):
        raise ValueError(f"solver {name}: ends on this pipeline's noise levels before the noise is gone")
    if lacking := _asked_of_scheduler(type(pipe), own, solver):
        raise ValueError(
            f"solver {name}: has no {lacking}, which {type(pipe).__name__} asks of its scheduler (a "
            f"{type(own).__name__} has it); leave the solver out"
        )
    solver.__class__ = _taking_levels_of(own, kind)
    return solver


def adds_noise(kind: type) -> bool:
    """Return whether the step of a class of schedulers does something with an ``eta`` (CogVideoX's has it in vain)."""
    return any(base.__name__ in ADDING_NOISE for base in kind.__mro__)


def check_eta(eta: Any, kind: Any, where: str = "eta") -> None:
    """Refuse noise of each step that a class of schedulers would leave out in silence.

    Raises:
        ValueError: naming it, and those that add it.
    """
    if eta and not adds_noise(kind):
        raise ValueError(
            f"{where} {eta}: {kind.__name__} adds no such noise to its steps; leave it out, or take "
            f"{' or '.join(ADDING_NOISE)}"
        )


def _taking_levels_of(own: Any, kind: Any) -> type:
    """Return a class of solvers that take what the call of a pipeline sets the levels of its own scheduler with.

    A shift that depends on the size (``mu``) is for schedulers that shift so, as that of flow matching has it, which
    ignores it otherwise. Levels (``sigmas``) that a solver cannot be given are put in the place of its own.
    """
    taken, of_own = (inspect.signature(cls.set_timesteps).parameters for cls in (kind, type(own)))
    further = {name: of_own[name] for name in ("sigmas", "mu") if name in of_own and name not in taken}
    known = inspect.signature(kind.set_timesteps)

    class Solver(kind):
        in_place_of = type(own).__name__

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            sigmas, mu = kwargs.pop("sigmas", None), kwargs.pop("mu", None)
            if mu is not None and "mu" in taken and self.config.get("use_dynamic_shifting"):
                kwargs["mu"] = mu
            if sigmas is None:
                kind.set_timesteps(self, *args, **kwargs)
            elif "sigmas" in taken and kwargs.keys() <= taken.keys():  # CogView4 gives timesteps too
                kind.set_timesteps(self, *args, **kwargs, sigmas=np.asarray(sigmas))  # of a list UniPC makes no product
            else:
                given = {"sigmas": sigmas, "mu": mu, "timesteps": kwargs.pop("timesteps", None)}
                levels = copy.deepcopy(own)
                levels.set_timesteps(**{name: value for name, value in given.items() if value is not None})
                kind.set_timesteps(self, len(sigmas), *args[1:], **kwargs)
                put_levels(self, *_of_flow(levels, kind.__name__))

    Solver.set_timesteps.__signature__ = known.replace(  # type: ignore[attr-defined]
        parameters=[*known.parameters.values(), *further.values()]
    )
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Solver, name, getattr(kind, name))
    return Solver


def _of_flow(scheduler: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return timesteps and levels of flow matching, the first a little below 1: a solver takes its logarithm.

    Raises:
        ValueError: levels above 1, which are none of flow matching.
    """
    timesteps, sigmas = (each.double().cpu().numpy() for each in (scheduler.timesteps, scheduler.sigmas))
    if sigmas[0] > 1.0:
        raise ValueError(
            f"solver {name}: cannot walk the noise levels that this pipeline gives its scheduler, the first "
            f"{sigmas[0]:g}; leave the solver out"
        )
    return timesteps, np.minimum(sigmas[: len(timesteps)], 1 - 1 / scheduler.config.num_train_timesteps)


def _asked_of_scheduler(cls: type, own: Any, solver: Any) -> str | None:
    """Return what the code of a pipeline asks of its scheduler that a solver does not have, and its own has.

    Code that asks first which of two things there is chooses by itself.
    """
    for value in itertools.chain(*(vars(base).values() for base in cls.__mro__)):
        for code in codes_of(value):
            if any(isinstance(word, str) and hasattr(own, word) != hasattr(solver, word) for word in code.co_consts):
                continue
            for part, further in itertools.pairwise(dis.get_instructions(code)):
                name = further.argval
                if part.argval == "scheduler" and further.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                    if hasattr(own, name) and not hasattr(solver, name):
                        return str(name)
    return None


def _stops_in_noise(scheduler: Any) -> bool:
    """Return whether the last step of a scheduler ends at the level that it starts from (DEIS on flow)."""
    walked = copy.deepcopy(scheduler)
    walked.set_timesteps(4, **({"mu": 1.0} if walked.config.get("use_dynamic_shifting") else {}))
    sigmas = getattr(walked, "sigmas", None)
    return sigmas is not None and bool(sigmas[-1] == sigmas[-2])


def _is_stepped_by(pipe: Any, kind: Any) -> bool:
    """Return whether a pipeline gives a scheduler's step all that it needs: what all need, or it knows the class."""
    needed = {name for name, one in inspect.signature(kind.step).parameters.items() if one.default is one.empty}
    modules = (sys.modules.get(base.__module__) for base in type(pipe).__mro__)
    return needed <= _GIVEN_TO_STEPS or any(hasattr(module, kind.__name__) for module in modules)


def _has_other_levels(solver: Any, own: Any) -> bool:
    if not (hasattr(solver, "alphas_cumprod") and hasattr(own, "alphas_cumprod")):
        return False
    return not torch.allclose(solver.alphas_cumprod.double(), own.alphas_cumprod.double(), atol=1e-6)


def _betas_of(own: Any) -> list[float]:
    """Return the variances that the noise levels of a scheduler come from: beta_t = 1 - alpha_t / alpha_(t - 1)."""
    products = own.alphas_cumprod.double()
    before = torch.cat([torch.ones_like(products[:1]), products[:-1]])
    return (1 - products / before).tolist()
