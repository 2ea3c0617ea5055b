"""How a sampling of ComfyUI is reflected: a wrapper around it, that samples with the weak model's guider inside it.

The weak model is sampled by a guider of ComfyUI too, whose "sampler" is the strong one's whole run; so it is prepared,
loaded, hooked and cleaned up by ComfyUI's own code, whatever happens within.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from w2sd_video.backends.comfyui import patches
from w2sd_video.backends.comfyui.pairs import Model, check_pair, hooked, kind_of, separated, share_weights
from w2sd_video.backends.k_diffusion import sample_w2sd
from w2sd_video.reflection_settings import Reflection
from w2sd_video.reuse import measuring_steps
from w2sd_video.trajectory import Trajectory

KEY = "w2sd"
"""Under which the wrapper is kept in a MODEL."""

CACHE = "easycache"
"""What the options of a network have ComfyUI's own caches as, EasyCache and LazyCache."""

MASK = "denoise_mask_function"
"""What the options of a model have it as, if a node has set one."""

NEGATIVE = "disable_cfg1_optimization"
"""The option of a model to evaluate the negative prompt at cfg 1 too."""

METHODS = [
    name for name in ("__call__", "outer_predict_noise", "predict_noise") if hasattr(comfy.samplers.CFGGuider, name)
]
"""Methods of a guider that an evaluation goes through; older ComfyUI has two."""

SETTINGS = tuple(setting.name for setting in fields(Reflection) if setting.name != "grid")
"""Of `Reflection`, what samplers on sigmas can do: their levels are given."""

Conditioning = list
"""ComfyUI's CONDITIONING."""


@dataclass(frozen=True)
class Weak:
    """What a strong model is compared with, and how both are guided in a reflection.

    Attributes:
        model: the weak MODEL.
        positive: its CONDITIONING; None is that of the strong one.
        negative: the same; it may be missing altogether where both are guided at 1.
        cfg: guidance scale of the weak evaluations.
        strong_cfg: guidance scale of the strong evaluations; the steps that count have their guider's own.
    """

    model: Model
    positive: Conditioning | None = None
    negative: Conditioning | None = None
    cfg: float = 1.0
    strong_cfg: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no sampling could use."""
        for name in ("cfg", "strong_cfg"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"weak_cfg and strong_cfg must be finite numbers, got {getattr(self, name)}")
        for name in ("positive", "negative"):
            if getattr(self, name) is not None and not len(getattr(self, name)):
                raise ValueError(f"the {name} conditioning of weak is empty; encode a text, or leave it out")


class Reflecting(comfy.samplers.Sampler):
    """A SAMPLER whose steps are another's, reflected or pushed as some settings say."""

    def __init__(self, sampler: Any, settings: Reflection) -> None:
        _check_sampler(sampler, is_reflected=settings.reflects)
        self.sampler = sampler
        self.settings = settings

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Refuse to sample for a guider that has no weak model (ValueError)."""
        raise ValueError("W2SD Sampler has no weak model: connect a W2SD Guider, or a MODEL of W2SD Model, with it")


def with_weak(strong: Model, weak: Weak, settings: Reflection | None) -> Model:
    """Return a MODEL that is reflected wherever it is sampled.

    Args:
        strong: it is left as it is.
        weak: what it is compared with.
        settings: None are those of the `Reflecting` sampler that it is sampled with.

    Raises:
        ValueError: either model has a weak one already.
    """
    for name, model in (("strong", strong), ("weak", weak.model)):
        if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
            raise ValueError(f"the {name} model has a weak one already; connect it from before W2SD Model")

    def sample(
        executor: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **further: Any,
    ) -> torch.Tensor:
        def stock(sampler: Any) -> torch.Tensor:
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **further)

        def sample_weak(guider: Any, sampler: Any) -> None:
            guider.sample(noise, latent_image, sampler, sigmas, denoise_mask, disable_pbar=True, seed=seed)

        plain, chosen = _chosen(sampler, settings)
        reflected, pushed = (steps(max(len(sigmas) - 1, 0)) for steps in (chosen.steps, chosen.pushed_steps))
        if not reflected and not pushed:
            return stock(plain)
        _check_sampler(plain, is_reflected=len(reflected) > 0)
        guider = executor.class_obj
        _check(guider, weak, sigmas, further.get("latent_shapes"))
        acting = _acting(guider, weak, is_masked=denoise_mask is not None)
        if len(measuring_steps(chosen.reuse, sorted(reflected))) < len(reflected):
            _check_held(chosen.reuse, acting)
        with _weak_guider(guider, weak) as weak_guider:
            return stock(_Both(plain, chosen, weak.strong_cfg, weak_guider, partial(sample_weak, weak_guider), acting))

    reflected = strong.clone()
    reflected.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    return reflected


def guider_of(model: Model, positive: Conditioning, negative: Conditioning | None, cfg: float) -> Any:
    """Return a GUIDER of ComfyUI, refusing conditioning that is missing and no number for cfg (ValueError)."""
    if not math.isfinite(cfg):
        raise ValueError(f"cfg must be a finite number, got {cfg}")
    if not positive:
        raise ValueError("the positive conditioning is empty; encode a text")
    if not negative and not math.isclose(cfg, 1.0):
        raise ValueError(f"guidance at {cfg:g} needs a negative conditioning; connect one, or set cfg to 1")
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive, **({"negative": negative} if negative else {})})
    guider.set_cfg(cfg)
    return guider


def _chosen(sampler: Any, settings: Reflection | None) -> tuple[Any, Reflection]:
    """Return the sampler without reflection, and the settings of the reflection."""
    if isinstance(sampler, Reflecting):
        if settings is not None:
            raise ValueError("both W2SD Model and W2SD Sampler say how to reflect; leave W2SD Sampler out")
        return sampler.sampler, sampler.settings
    if settings is None:
        raise ValueError("W2SD Guider says not how to reflect; put W2SD Sampler between the sampler and it")
    return sampler, settings


def _check_sampler(sampler: Any, is_reflected: bool) -> None:
    """Refuse a SAMPLER whose steps cannot be reflected, or whose model cannot be pushed (ValueError)."""
    if isinstance(sampler, Reflecting):
        raise ValueError("the sampler is reflected already; connect a plain one to W2SD Sampler")
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise ValueError(
            f"sampler {type(sampler).__name__} cannot be reflected: it is no function of sigmas that ComfyUI's own "
            "KSAMPLER runs; use KSamplerSelect or another sampler node"
        )
    if is_reflected and "unipc" in getattr(sampler.sampler_function, "__name__", ""):
        raise ValueError(
            "UniPC (uni_pc, uni_pc_bh2) cannot be reflected: it builds the latents again from earlier ones, and loses "
            "what a reflection adds; use euler, heun, dpmpp_2m, res_multistep, ..."
        )


def _check(guider: Any, weak: Weak, sigmas: torch.Tensor, latent_shapes: Any) -> None:
    """Refuse what cannot be reflected (ValueError), before a model is loaded."""
    methods = [getattr(getattr(guider, name), "__func__", None) for name in METHODS]
    if methods != [getattr(comfy.samplers.CFGGuider, name) for name in METHODS]:
        raise ValueError(
            f"guider {type(guider).__name__} guides in a way of its own, and cannot be reflected; use W2SD Guider, or "
            "W2SD Model with KSampler, CFGGuider or BasicGuider"
        )
    for name, options in (("strong", guider.model_options), ("weak", weak.model.model_options)):
        if (cache := options["transformer_options"].get(CACHE)) is not None:
            raise ValueError(
                f"{cache.name} of the {name} model expects one evaluation a step, and would mix up those of a "
                "reflection; take it out"
            )
    if latent_shapes is not None and len(latent_shapes) > 1:
        raise ValueError(f"latents of {len(latent_shapes)} parts (video with sound) cannot be reflected")
    check_pair(guider.model_patcher, weak.model, sigmas)
    Trajectory.from_sigmas(sigmas, kind_of(guider.model_patcher), prediction_type="sample")
    for name, cfg, conditions in (
        ("strong", weak.strong_cfg, guider.original_conds),
        ("weak", weak.cfg, _conditions_of_weak(guider, weak)),
    ):
        if not conditions.get("positive"):
            raise ValueError(f"the positive conditioning of {name} is missing")
        if not math.isclose(cfg, 1.0) and not conditions.get("negative"):
            raise ValueError(
                f"{name} is guided at {cfg:g} and has no negative conditioning; connect one, or set {name}_cfg to 1"
            )


def _acting(guider: Any, weak: Weak, is_masked: bool) -> dict[str, list[str]]:
    """Return for strong and weak the names of what may act otherwise from evaluation to evaluation."""
    masks = () if is_masked else (MASK,)
    options = {name: value for name, value in guider.model_options.items() if name not in masks}
    of_weak = {name: value for name, value in weak.model.model_options.items() if name != MASK}
    return {
        "strong": patches.acting(guider.model_patcher, options, guider.original_conds),
        "weak": patches.acting(weak.model, of_weak, _conditions_of_weak(guider, weak)),
    }


def _check_held(reuse: int, acting: dict[str, list[str]]) -> None:
    """Refuse to hold a gap over what may switch in between, at noise levels that nothing tells (ValueError)."""
    for name, those in acting.items():
        if those:
            raise ValueError(
                f"reuse={reuse} holds a gap from step to step, and {name} has what may act at some of them only, which "
                f"cannot be told from here ({', '.join(those)}); set reuse to 1, or take that out"
            )


def _conditions_of_weak(guider: Any, weak: Weak) -> dict[str, list[dict]]:
    """Return the conditioning of the weak model, as guiders keep it."""
    given = {"positive": weak.positive, "negative": weak.negative}
    converted = {name: comfy.sampler_helpers.convert_cond(those) for name, those in given.items() if those is not None}
    return {**guider.original_conds, **converted}


@contextmanager
def _weak_guider(guider: Any, weak: Weak) -> Iterator[Any]:
    """Give the guider of the weak model, and have that of the strong one know of it for as long."""
    strong_model, conditions, conditions_of_weak = guider.model_patcher, guider.conds, _conditions_of_weak(guider, weak)
    weak_model = weak.model
    if share_weights(strong_model, weak_model):
        guider.model_patcher, weak_model, hooks, hooks_of_weak = separated(strong_model, weak_model)
        guider.conds = hooked(conditions, hooks)
        conditions_of_weak = hooked(conditions_of_weak, hooks_of_weak)
        _register(guider)
    else:  # loaded together, or the second would push the first out of memory
        guider.conds = _loaded_with(conditions, weak_model)
        conditions_of_weak = _loaded_with(conditions_of_weak, strong_model)
    try:
        weak_guider = comfy.samplers.CFGGuider(weak_model)
        weak_guider.original_conds = conditions_of_weak
        weak_guider.set_cfg(weak.cfg)
        yield weak_guider
    finally:
        guider.model_patcher, guider.conds = strong_model, conditions


def _register(guider: Any) -> None:
    """Make the hooks of a guider's conditioning known to its model again, after a change of both."""
    hooks = comfy.hooks.HookGroup()
    for conditions in guider.conds.values():
        comfy.sampler_helpers.get_hooks_from_cond(conditions, hooks)
    registered = guider.model_options.setdefault("registered_hooks", comfy.hooks.HookGroup())
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    guider.model_patcher.register_all_hook_patches(hooks, target, guider.model_options, registered)


def _loaded_with(conditions: dict[str, list[dict]], model: Model) -> dict[str, list[dict]]:
    """Return conditioning that ComfyUI loads a further model with."""
    first, *others = conditions["positive"]
    further = [*first.get("additional_models", []), model]
    return {**conditions, "positive": [{**first, "additional_models": further}, *others]}


class _Both(comfy.samplers.Sampler):
    """The sampler of the strong guider: it starts the weak guider, and within that runs the changed sampler."""

    def __init__(
        self,
        plain: Any,
        settings: Reflection,
        strong_cfg: float,
        weak_guider: Any,
        sample_weak: Callable[[Any], None],
        acting: dict[str, list[str]],
    ) -> None:
        self._plain = plain
        self._settings = {name: getattr(settings, name) for name in SETTINGS}
        self._strong_cfg = strong_cfg
        self._weak_guider = weak_guider
        self._sample_weak = sample_weak
        self._acting = acting

    def sample(self, guider: Any, sigmas: torch.Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the latents that the strong guider has sampled."""
        nfe: dict[str, int] = {}
        sampled: list[torch.Tensor] = []
        kind = kind_of(guider.model_patcher)
        is_guided = not math.isclose(guider.cfg, 1.0)

        def reflected(
            model: Any, x: torch.Tensor, sigmas: torch.Tensor, weak: Any, runs: patches.Runs, **options: Any
        ) -> torch.Tensor:
            def strong(
                x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any], **extra_args: Any
            ) -> torch.Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                options_of_strong = _with_negative(model_options, is_guided)
                with memory.of("strong"), runs.evaluated("strong"), _guided_at(guider, self._strong_cfg):
                    return model(x, sigma, model_options=options_of_strong, **extra_args)

            settings = {**self._settings, "kind": kind, "nfe": nfe, "sampler": self._plain.sampler_function}
            settings["stage_changes"] = _switches([guider, self._weak_guider], sigmas)
            base = _Base(model, runs)
            with runs.watched():
                return sample_w2sd(base, x, sigmas, weak=weak, strong=strong, **settings, **options)

        def within(
            model: Any, x: torch.Tensor, weak_sigmas: torch.Tensor, extra_args: dict[str, Any], **_: Any
        ) -> torch.Tensor:
            options_of_weak = _with_masks_of(strong_args["model_options"], extra_args["model_options"])
            args_of_weak = {**extra_args, "model_options": _with_negative(options_of_weak, is_guided)}
            runs, runs_of_weak = self._runs("strong", guider), self._runs("weak", self._weak_guider)

            def weak(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                with (
                    memory.of("weak"),
                    runs_of_weak.evaluated("weak"),
                    _in_charge(self._weak_guider.model_patcher),
                ):
                    return model(x, sigma, **args_of_weak)

            _take_back(guider.model_patcher, self._weak_guider.model_patcher)
            run = _with_function(self._plain, partial(reflected, weak=weak, runs=runs))
            with runs_of_weak.watched():
                sampled.append(run.sample(guider, sigmas, strong_args, *args, **kwargs))
            _forget_each_other(guider, self._weak_guider)
            return x

        strong_args = extra_args
        guiders = (guider, self._weak_guider)
        memory = patches.Memory(each for one in guiders for each in patches.guiding(one.model_options))
        self._sample_weak(_with_function(self._plain, within))
        logging.info(
            f"W2SD: {len(sigmas) - 1} steps, evaluations {', '.join(f'{n} {role}' for role, n in nfe.items())}"
        )
        return sampled[0]

    def _runs(self, role: str, guider: Any) -> patches.Runs:
        """Return what sees to it that a guider's evaluations run its network."""
        is_compiled = patches.is_compiled(guider.model_patcher, guider.model_options)
        return patches.Runs(guider.inner_model.diffusion_model, () if is_compiled else self._acting[role])


class _Base:
    """The model of the steps that count, whose evaluations are looked at."""

    def __init__(self, model: Any, runs: patches.Runs) -> None:
        self._model = model
        self._runs = runs

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model: samplers ask it for its levels."""
        return getattr(self._model, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        """Return the denoised latents."""
        with self._runs.evaluated("the strong model"):
            return self._model(x, sigma, **extra_args)


def _switches(guiders: Sequence[Any], sigmas: torch.Tensor) -> set[int]:
    """Return the steps from which on some conditioning, ControlNet or hook is on that was off, or off that was on."""
    begins, ends = [], []
    for conditioning in (each for guider in guiders for those in guider.conds.values() for each in those):
        begins.append(conditioning.get("timestep_start"))
        ends.append(conditioning.get("timestep_end"))
        control = conditioning.get("control")
        while control is not None:
            begin, end = control.timestep_range or (None, None)
            begins.append(begin)
            ends.append(end)
            control = control.previous_controlnet
        for hook in conditioning["hooks"].hooks if conditioning.get("hooks") else ():
            begins += [keyframe.start_t for keyframe in hook.hook_keyframe.keyframes]
    steps = list(enumerate(sigmas[:-1].tolist()))
    from_begins = (next((i for i, sigma in steps if sigma <= begin), None) for begin in begins if begin is not None)
    from_ends = (next((i for i, sigma in steps if sigma < end), None) for end in ends if end is not None)
    return {step for step in (*from_begins, *from_ends) if step is not None}


def _with_function(sampler: Any, function: Callable[..., torch.Tensor]) -> Any:
    """Return a KSAMPLER with another function."""
    other = copy.copy(sampler)
    other.sampler_function = function
    return other


def _with_masks_of(model_options: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return options of a model with the mask of others: outside of it latents are the same for strong and weak."""
    kept = {name: value for name, value in others.items() if name != MASK}
    return {**kept, MASK: model_options[MASK]} if MASK in model_options else kept


def _with_negative(model_options: dict[str, Any], is_guided: bool) -> dict[str, Any]:
    """Return options of a model with which functions of guidance are given the negative prompt's prediction at cfg 1.

    ComfyUI gives them zeros there, for it takes cfg to be 1 at every step: in a reflection it is where others are
    guided.
    """
    return {**model_options, NEGATIVE: True} if is_guided and patches.guiding(model_options) else model_options


@contextmanager
def _guided_at(guider: Any, cfg: float) -> Iterator[None]:
    before = guider.cfg
    guider.set_cfg(cfg)
    try:
        yield
    finally:
        guider.set_cfg(before)


@contextmanager
def _in_charge(model: Model) -> Iterator[None]:
    """Have a model answer with its own weights, where another of the same network is at work."""
    other = getattr(model.model, "current_patcher", None)
    if other is None or other is model:
        yield
        return
    _hand_over(other, model)
    try:
        yield
    finally:
        _hand_over(model, other)


def _hand_over(before: Model, after: Model) -> None:
    before.patch_hooks(None)
    after.model.current_patcher = after


def _take_back(strong: Model, weak: Model) -> None:
    """Have the strong model at work after the weak one was loaded, which detaches it if both are one network."""
    if share_weights(strong, weak):
        weak.hook_mode = strong.hook_mode
        strong.model_patches_to(strong.load_device)
        strong.model_patches_to(strong.model_dtype())
        _hand_over(weak, strong)


def _forget_each_other(guider: Any, other: Any) -> None:
    """Leave each guider's model to that guider to clean up."""
    for this, that in ((guider, other), (other, guider)):
        this.loaded_models = [model for model in this.loaded_models if model is not that.model_patcher]
