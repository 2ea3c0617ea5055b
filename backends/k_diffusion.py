"""W2SD with the samplers of k-diffusion, and of all toolkits that share their signature (ComfyUI, Forge, ...).

The step that counts is that of any such sampler: its latents are reflected, and it goes on from them.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tqdm.auto import trange

from w2sd_video.algorithm import drive, pushed_away, pushed_steps, reflected_steps
from w2sd_video.argument_checks import check_callable, check_finite, check_latents, check_prediction, check_were_finite
from w2sd_video.backends.sampler_trial import Sampler, starting_calls
from w2sd_video.inversions import Request, reflect_step
from w2sd_video.reflection_settings import Inversion, Reading, Reflection, Role
from w2sd_video.reuse import Carried, HeldGap, steps_of_changes
from w2sd_video.sampler import drawing_from
from w2sd_video.strength import StrengthSchedule, as_strength
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Steps

Denoiser = Callable[..., torch.Tensor]
"""``(x, sigma, **extra_args) -> denoised``: x0 after guidance, for latents x and a sigma for each sample, (B,)."""

Callback = Callable[[dict[str, Any]], Any]
"""Called once a step, with ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised``."""


def sample_w2sd(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    weak: Denoiser | None = None,
    strong: Denoiser | None = None,
    kind: Literal["variance_exploding", "flow"] | None = None,
    reflection_steps: Steps = None,
    strength: float | str | Path | StrengthSchedule = 1.0,
    rounds: int = 1,
    inversion: Inversion = "auto",
    iterations: int = 2,
    span: int = 1,
    reading: Reading = "epsilon",
    reuse: int = 1,
    carried: Carried = "held",
    autoguidance: float | str | Path | StrengthSchedule = 0.0,
    autoguidance_steps: Steps = None,
    autoguidance_gap: Literal["base", "strong"] = "base",
    stage_changes: Collection[int] = (),
    generator: torch.Generator | list[torch.Generator] | None = None,
    nfe: MutableMapping[str, int] | None = None,
    sampler: str | Sampler = "euler",
    **options: Any,
) -> torch.Tensor:
    """Sample with a sampler of k-diffusion, and reflect its latents (algorithm 1 of the paper).

    The sampler runs once, as it would without reflection: history, noise, progress and callbacks are its own. At each
    reflected step the latents that it steps from are displaced in place. Which call of the model begins a step, and
    that the sampler keeps a displacement, is tried before the first evaluation on a few numbers, in milliseconds. Of
    k-diffusion all that take sigmas can be reflected, ancestral and SDE ones too; refused are churn, restarts, levels
    that a sampler chooses by itself (``dpm_fast``, ``dpm_adaptive``) and correctors (UniPC). Multistep samplers
    (``lms``, ``dpmpp_2m``, ``dpmpp_3m_sde``, ...) keep their history, and take part of a displacement for a trend of
    it.

    AutoGuidance pushes what the sampler is answered, and alone it lets that be any sampler. It acts at each call of the
    model whose sigma is at or below that of a step where it is on, and above the next.

    Args:
        model: the denoiser of the steps that count. It returns the denoised latents, x0 after guidance.
        x: initial noise at ``sigmas[0]``, (B, ...); it is left as it is.
        sigmas: falling noise levels, (steps + 1,), the last may be 0.
        extra_args: keyword arguments of ``model``, and of ``weak`` and ``strong`` too.
        callback: called by the sampler once a step; its ``x`` is the reflected one.
        disable: whether the sampler is to show no progress.
        weak: the weak denoiser, called like ``model``; None only where nothing is reflected or pushed, or with the
            inversion "resample", which has none.
        strong: the strong one; None is ``model``.
        kind: how latents are made of sigma, as of ``Trajectory.from_sigmas``; None only where nothing is done to them.
            "variance_exploding" for models that predict noise or velocity, "flow" for flow-matching ones (Wan, Flux).
        reflection_steps: see ``Reflection``, as of all settings down to ``autoguidance_gap``. 0 is the sampler alone,
            or AutoGuidance alone.
        strength: a number, or a ``StrengthSchedule`` or the name of its file.
        stage_changes: steps from which on strong or weak predict with something else (conditioning, another network),
            where a gap that is reused is measured anew.
        generator: for the noise of Re-Sampling; a list has one a sample. None is the generator of torch.
        nfe: if given, calls are counted in it by role, "base", "strong" and "weak", while they happen.
        sampler: "euler", another name of k-diffusion without its ``sample_`` (the package must be installed), or a
            function of this signature.
        **options: of the sampler, ``eta`` or ``s_noise`` for example.

    Returns:
        The final latents, as the sampler returns them: those of k-diffusion become float32 for half precision.

    Raises:
        TypeError: latents or sigmas that are no floating-point tensor, a setting that is no number, no function where
            one must be, or options that the sampler does not have.
        ValueError: a setting out of range, AutoGuidance with a gap that is reused, no ``weak`` or ``kind``, sigmas that
            rise, an unknown or a refused sampler, latents that are not finite, or a prediction of another shape or,
            seen at the end, one that is not finite.
        RuntimeError: a sampler that called the model otherwise than in its trial.
    """
    settings = Reflection(
        reflection_steps,
        as_strength(strength),
        rounds=rounds,
        inversion=inversion,
        iterations=iterations,
        autoguidance=as_strength(autoguidance),
        span=span,
        reading=reading,
        reuse=reuse,
        carried=carried,
        autoguidance_steps=autoguidance_steps,
        autoguidance_gap=autoguidance_gap,
    )
    if settings.autoguidance and reuse > 1:
        raise ValueError(f"reuse={reuse} with autoguidance: on sigmas its gap is measured at every call; leave it at 1")
    name, run = _sampler(sampler)
    _check_options(name, run, options)
    check_callable("model", model)
    extra_args = {} if extra_args is None else extra_args
    counted: MutableMapping[str, int] = Counter() if nfe is None else nfe
    counted.update({role: counted.get(role, 0) for role in get_args(Role)})
    watched = _Model(model, counted)
    trajectory = _trajectory(x, sigmas, kind) if settings.is_on else None
    reflected = [] if trajectory is None else sorted(reflected_steps(trajectory, settings))
    pushed = frozenset[int]() if trajectory is None else pushed_steps(trajectory, settings)
    if trajectory is None or not (reflected or pushed):
        return run(watched, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)

    denoisers = _denoisers(model if strong is None else strong, weak, settings, bool(pushed))
    starts = starting_calls(run, name, model, sigmas, reflected, extra_args, options) if reflected else []
    held = HeldGap(settings.reuse, settings.carried, reflected, steps_of_changes(stage_changes, trajectory))
    draw = drawing_from(generator)
    are_finite: list[tuple[str, torch.Tensor]] = []

    def evaluated(
        role: Role, step: int, latents: torch.Tensor, sigma: torch.Tensor, extra_args: Mapping[str, Any]
    ) -> torch.Tensor:
        counted[role] += 1
        denoised = denoisers[role](latents, sigma, **extra_args)
        check_prediction(f"what {role} at step {step} returns", denoised, latents)
        are_finite.append((f"{role} at step {step}", torch.isfinite(denoised).all()))
        return denoised

    def reflect(latents: torch.Tensor, step: int, extra_args: Mapping[str, Any]) -> torch.Tensor:
        def answer(request: Request) -> torch.Tensor:
            latents = request.latents / request.input_scale
            sigma = sigmas[request.step] * latents.new_ones([latents.shape[0]])
            return evaluated(request.role, request.step, latents, sigma, extra_args)

        return drive(reflect_step(trajectory, latents, step, settings, draw, held), answer)

    def push(
        base: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor, extra_args: Mapping[str, Any]
    ) -> torch.Tensor:
        step = _step_at(sigma, sigmas)
        if step not in pushed:
            return base
        weak = evaluated("weak", step, latents, sigma, extra_args)
        better = base if autoguidance_gap == "base" else evaluated("strong", step, latents, sigma, extra_args)
        return pushed_away(base, weak, settings.autoguidance_at(trajectory.level(step)), better)

    noise = x
    if reflected:
        watched.reflects(reflect, {starts[step]: step for step in reflected})
        noise = x.clone()  # the first reflection is in place
        callback = _checked(callback, watched, starts, name)
    if pushed:
        watched.pushes(push)
    final = run(watched, noise, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)
    if are_finite:
        check_were_finite(are_finite)
    return final


@torch.no_grad()
def sample_euler(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> torch.Tensor:
    """Euler's steps (algorithm 2 of Karras et al., arXiv 2206.00364, without churn), bit-equal to k-diffusion's."""
    extra_args = {} if extra_args is None else extra_args
    samples = x.new_ones([x.shape[0]])
    for i in trange(len(sigmas) - 1, disable=disable):
        sigma = sigmas[i]
        denoised = model(x, sigma * samples, **extra_args)
        derivative = (x - denoised) / sigma.reshape([1] * x.ndim)  # half precision becomes float32 here
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + derivative * (sigmas[i + 1] - sigma)
    return x


Reflect = Callable[[torch.Tensor, int, Mapping[str, Any]], torch.Tensor]
Push = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Mapping[str, Any]], torch.Tensor]


class _Model:
    """A model that counts its calls, and at some of them displaces the latents it is shown, or pushes its answer."""

    def __init__(self, model: Denoiser, nfe: MutableMapping[str, int]) -> None:
        self.calls = 0
        self._model = model
        self._nfe = nfe
        self._reflect: Reflect | None = None
        self._push: Push | None = None
        self._step_of_call: Mapping[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model: samplers of ComfyUI ask it for its levels."""
        return getattr(self._model, name)

    def reflects(self, reflect: Reflect, step_of_call: Mapping[int, int]) -> None:
        """Have latents reflected at some calls."""
        self._reflect, self._step_of_call = reflect, step_of_call

    def pushes(self, push: Push) -> None:
        """Have what the model answers pushed away from another's answer."""
        self._push = push

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        """Return the denoised latents, of the reflected ones where they are reflected, pushed where they are pushed."""
        step = self._step_of_call.get(self.calls)
        self.calls += 1
        if step is not None and self._reflect is not None:
            with torch.no_grad():
                x.copy_(self._reflect(x, step, extra_args))
        self._nfe["base"] += 1
        denoised = self._model(x, sigma, **extra_args)
        if self._push is None:
            return denoised
        with torch.no_grad():
            return self._push(denoised, x, sigma, extra_args)


def _step_at(sigma: torch.Tensor, sigmas: torch.Tensor) -> int:
    """Return the step, of those from a level to the next, in which a sampler calls the model at a sigma."""
    level = float(sigma.flatten()[0]) * (1 - 1e-5)  # samplers go through logarithms
    return max(int((sigmas[:-1] >= level).sum()) - 1, 0)


def _checked(callback: Callback | None, model: _Model, starts: Sequence[int], name: str) -> Callback:
    """Return a callback that sees to it that each step began at the call at which it did in the trial."""

    def check(progress: dict[str, Any]) -> Any:
        if model.calls - 1 != starts[progress["i"]]:
            raise RuntimeError(
                f"sampler {name} began step {progress['i']} at call {model.calls - 1} of the model, and in its trial "
                f"at call {starts[progress['i']]}; it cannot be reflected"
            )
        return None if callback is None else callback(progress)

    return check


def _trajectory(x: Any, sigmas: Any, kind: Literal["variance_exploding", "flow"] | None) -> Trajectory:
    """Return the levels of a sampling, or refuse latents and sigmas that cannot be reflected."""
    check_latents(x, "x")
    if x.ndim == 0:
        raise ValueError("x must have a dimension for the samples, (B, ...), got a single number")
    check_finite("x", x)
    if not isinstance(sigmas, torch.Tensor):
        raise TypeError(f"sigmas must be a floating-point tensor, (steps + 1,), got {type(sigmas).__name__}")
    if kind not in ("variance_exploding", "flow"):
        raise ValueError(
            "kind must be 'variance_exploding' (models that predict noise or velocity) or 'flow' (flow matching: Wan, "
            f"Flux), for sigmas do not tell; got {kind!r}"
        )
    return Trajectory.from_sigmas(sigmas, kind, prediction_type="sample")


def _denoisers(strong: Any, weak: Any, settings: Reflection, is_pushed: bool) -> dict[Role, Denoiser]:
    """Return the denoisers of a reflection and of AutoGuidance by role, or refuse what is none."""
    check_callable("strong", strong)
    if settings.inversion == "resample" and weak is None and not is_pushed:
        return {"strong": strong}
    if weak is None:
        raise ValueError(
            "weak is missing: pass a denoiser that is called like model, or reflection_steps=0 without autoguidance"
        )
    check_callable("weak", weak)
    return {"strong": strong, "weak": weak}


def _sampler(sampler: Any) -> tuple[str, Sampler]:
    """Return a sampler and its name."""
    if callable(sampler):
        return getattr(sampler, "__name__", type(sampler).__name__).removeprefix("sample_"), sampler
    if sampler == "euler":
        return sampler, sample_euler
    if not isinstance(sampler, str):
        raise TypeError(f"sampler must be a name or a function, got {type(sampler).__name__}")
    try:
        of_k_diffusion = import_module("k_diffusion.sampling")
    except ImportError as error:
        raise ValueError(
            f"sampler {sampler!r} is one of k-diffusion, which cannot be imported ({error}); install it, or pass the "
            "function, or 'euler'"
        ) from error
    names = sorted(name.removeprefix("sample_") for name in vars(of_k_diffusion) if name.startswith("sample_"))
    if sampler not in names:
        raise ValueError(f"sampler {sampler!r} is not one of k-diffusion: {', '.join(names)}")
    return sampler, getattr(of_k_diffusion, f"sample_{sampler}")


def _check_options(name: str, sampler: Sampler, options: Mapping[str, Any]) -> None:
    """Refuse a sampler of another signature, or one without an option that it is to have (TypeError)."""
    try:
        signature = inspect.signature(sampler)
    except ValueError:  # a function of another language, which says nothing of its arguments
        return
    try:
        signature.bind(None, None, None, extra_args=None, callback=None, disable=None, **options)
    except TypeError as error:
        raise TypeError(
            f"sampler {name} must take (model, x, sigmas, extra_args=, callback=, disable=) and its options, "
            f"{', '.join(options) or 'none'} here: {error}"
        ) from error
