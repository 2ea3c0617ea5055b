"""The switch on a pipeline's denoiser: each evaluation answers for the role that the sampler asks for.

Pipelines lay classifier-free guidance out in one of four ways:

* ``batch``: [unconditional, conditional] in one doubled batch. The switch combines the halves at the branch's scale
  and returns the result for both, which the pipeline's own combination leaves unchanged, whatever its scale.
* ``calls``: a conditional and an unconditional call. Both are answered with the combined prediction.
* ``embedded``: a ``guidance`` argument of a guidance-distilled network, which is rescaled.
* ``single``: the pipeline was called without guidance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from einops import repeat
from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.driver.halves import Arguments, is_doubled, split_halves, take_half
from w2sd_video.driver.networks import in_place_of, unswitched
from w2sd_video.driver.rehearsal import COND, UNCOND, CallState, output_like, zeros_for
from w2sd_video.driver.signatures import as_given, by_name, named_signature, uncompiled
from w2sd_video.gaps import Swap, swapped, swaps_of
from w2sd_video.guidance import guided
from w2sd_video.reflection_settings import Role

_CONDITIONAL_FIRST = ("DiTPipeline", "LuminaPipeline")


class DenoiserSwitch:
    """Takes the place of a denoiser's ``forward`` and evaluates it as the branch of the current role says.

    Args:
        pipe: the pipeline, asked for its guidance.
        denoiser: its UNet or transformer.
        branches: the setting of each role for this denoiser; second weights are a module here, scales numbers.
        state: shared with the scheduler that drives the sampler.

    Raises:
        ValueError: second weights of another shape, or a setting that this denoiser cannot be given.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module, branches: Mapping[Role, Branch], state: CallState) -> None:
        self._pipe = pipe
        self._denoiser = denoiser
        self._config: Mapping[str, Any] = getattr(denoiser, "config", {})
        self._forward: Callable[..., Any] = denoiser.forward
        self._positional = 0
        self._evaluating = threading.RLock()
        self._enter_context: Callable[..., Any] | None = getattr(denoiser, "cache_context", None)
        self._signature = named_signature(denoiser)
        self._latents_name = next(iter(self._signature.parameters))
        self._branches = branches
        self._state = state
        self._modules: dict[Role, nn.Module] = {}
        self._swaps: dict[Role, list[Swap]] = {}
        self._forget()
        for role, branch in branches.items():
            module = branch.weights if isinstance(branch.weights, nn.Module) else denoiser
            if module is not denoiser:
                check_same_shape(denoiser, module)
            self._modules[role] = module
            self._swaps[role] = swaps_of(uncompiled(module), branch)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the switch in the denoiser's place for one call of the pipeline, and take it out at the end."""
        self._forget()
        named: dict[str, Any] = {} if self._enter_context is None else {"cache_context": self._cache_context}
        try:
            with (
                in_place_of(self._denoiser, self._forward_as_named) as self._forward,
                swapped([(self._denoiser, named)]),
            ):
                yield
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop what is known of one call of the pipeline."""
        self._context: str | None = None
        self._doubled: dict[int, bool] = {}
        self._answered: tuple[int, int] = (-1, 0)
        self._texts: dict[Any, Arguments] = {}
        self._kept: tuple[int, dict[str, torch.Tensor]] = (-1, {})

    def _forward_as_named(self, *args: Any, **kwargs: Any) -> Any:
        """Bring positional and keyword arguments to their names, and answer; evaluations of others pass by."""
        if self._state.is_elsewhere:
            with self._evaluating:
                return self._forward(*args, **kwargs)
        self._positional = len(args)
        return self._answer(by_name(self._signature, args, kwargs))

    @contextmanager
    def _cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Remember the name that the pipeline gives its call."""
        assert self._enter_context is not None
        before, self._context = self._context, name
        try:
            with self._enter_context(name, **kwargs):
                yield
        finally:
            self._context = before

    def _answer(self, arguments: Arguments) -> Any:
        state = self._state
        samples = arguments[self._latents_name]
        if state.rehearsing is not None:
            if not isinstance(samples, torch.Tensor):
                raise ValueError(
                    f"{type(self._pipe).__name__} gives its denoiser a list of latents, so a branch cannot set its "
                    "guidance_scale or its text"
                )
            last = self._context not in (COND, UNCOND) and self._is_guided() and self._is_doubled(samples)
            state.rehearsing.record(self._context, arguments, is_last=last)
            return zeros_for(samples, arguments)
        branch, layout, name = self._branches[state.role], self._layout(arguments), self._name_of_call()
        if branch.negative_prompt is not None and layout in ("single", "embedded"):
            raise ValueError(
                f"a branch has a negative_prompt, but this call of {type(self._pipe).__name__} evaluates no "
                "unconditional prompt; call it with guidance"
            )
        scale = branch.guidance_scale
        assert not isinstance(scale, tuple)
        if scale is None or layout in ("single", "embedded"):
            arguments = self._with_text(arguments, name, name)
            if scale is not None:
                arguments = self._with_scale(arguments, scale, layout)
            return self._evaluate(arguments, 2 if layout == "batch" else 1)
        return self._guided(arguments, scale, layout, name)

    def _is_guided(self) -> bool:
        """Return whether the pipeline was called with classifier-free guidance."""
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        return (self._state.guidance_scale or 0) > 1 if guided is None else bool(guided)

    def _is_doubled(self, samples: torch.Tensor) -> bool:
        """Return whether samples come twice; compared once a call of the pipeline, for it waits for the device."""
        if not isinstance(samples, torch.Tensor):  # Z-Image's list of latents
            return False
        if len(samples) not in self._doubled:
            self._doubled[len(samples)] = is_doubled(samples, self._config)
        return self._doubled[len(samples)]

    def _layout(self, arguments: Arguments) -> str:
        """Return how this call lays guidance out."""
        if arguments.get("guidance") is not None:
            return "embedded"
        rehearsal = self._state.rehearsals.get(None)
        if rehearsal is not None and rehearsal.layout != "single":
            return rehearsal.layout
        if self._context in (COND, UNCOND) or not self._is_guided():
            return "single"
        return "batch" if self._is_doubled(arguments[self._latents_name]) else "unknown"

    def _name_of_call(self) -> str | None:
        """Return the name of this call: the pipeline's, or its place among the two calls that the rehearsal saw."""
        request, count = self._answered
        count = count + 1 if request == self._state.request else 1
        self._answered = (self._state.request, count)
        if self._context in (COND, UNCOND):
            return self._context
        rehearsal = self._state.rehearsals.get(None)
        if rehearsal is not None and rehearsal.layout == "calls":
            return COND if count == 1 else UNCOND
        return None

    def _with_scale(self, arguments: Arguments, guidance_scale: float, layout: str) -> Arguments:
        """Tell an embedded guidance the branch's scale; without guidance only a scale of 1 can be had."""
        own = self._state.guidance_scale
        if layout == "embedded":
            if not own:
                raise ValueError(
                    f"the pipeline's own guidance_scale is {own}, so its embedded guidance cannot be rescaled"
                )
            return arguments | {"guidance": arguments["guidance"] * (guidance_scale / own)}
        if guidance_scale != 1:
            raise ValueError(
                f"a branch has guidance_scale={guidance_scale}, but this call of {type(self._pipe).__name__} evaluates "
                f"no unconditional prompt (its guidance_scale is {own}); call it with guidance_scale > 1, or with a "
                "negative_prompt and true_cfg_scale > 1 where it takes that"
            )
        return arguments

    def _guided(self, arguments: Arguments, scale: float, layout: str, name: str | None) -> Any:
        """Return ``uncond + scale * (cond - uncond)`` in the place of every half, evaluating only what it takes."""
        if layout == "unknown":
            raise ValueError(
                f"{type(self._pipe).__name__} evaluates its guidance neither in one doubled batch nor in two calls, so "
                "a branch cannot set its guidance_scale"
            )
        needed = [half for half, weight in ((COND, scale), (UNCOND, 1 - scale)) if weight != 0]
        key = self._evaluations_key()
        kept_for, halves = self._kept
        if kept_for != key:
            halves = {}
        missing = [half for half in needed if half not in halves]
        if layout == "batch":
            halves |= self._evaluate_doubled(self._with_text(arguments, None, None), missing)
        else:
            halves |= {half: self._evaluate(self._with_text(arguments, name, half), 1)[0] for half in missing}
        self._kept = (key, halves)
        prediction = halves[needed[0]]
        if len(needed) == 2:
            prediction = guided(halves[COND], halves[UNCOND], scale)
        if layout == "batch":
            prediction = repeat(prediction, "samples ... -> (halves samples) ...", halves=2)
        return output_like(prediction, arguments)

    def _evaluate_doubled(self, arguments: Arguments, names: list[str]) -> dict[str, torch.Tensor]:
        """Evaluate the named halves of a doubled batch: both at once, or one alone."""
        conditional_first = any(base.__name__ in _CONDITIONAL_FIRST for base in type(self._pipe).__mro__)
        is_second = {COND: not conditional_first, UNCOND: conditional_first}
        if len(names) == 2:
            halves = split_halves(self._evaluate(arguments, 2)[0])
            return {name: halves[is_second[name]] for name in names}
        samples = arguments[self._latents_name]
        return {
            name: self._evaluate(
                {key: take_half(value, key, samples, is_second[name]) for key, value in arguments.items()}, 1
            )[0]
            for name in names
        }

    def _evaluations_key(self) -> int:
        """Return the request whose evaluations count: this one, or that before it if only guidance differs."""
        strong, weak = self._branches["strong"], self._branches["weak"]
        return self._state.request - (self._state.shares_latents and strong.same_but_guidance(weak))

    def _evaluate(self, arguments: Arguments, evaluations: int) -> Any:
        role = self._state.role
        self._state.nfe[role] += evaluations
        module = self._modules[role]
        # The other denoiser of a two-stage model has a switch of its own, which this evaluation passes by.
        run = self._forward if module is self._denoiser else unswitched(module)
        # Networks take from lists that they are given (HunyuanDiT its residuals), and may be evaluated again.
        arguments = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        positional, named = as_given(arguments, self._positional)
        with self._evaluating, swapped(self._swaps[role]):
            return run(*positional, **named)

    def _with_text(self, arguments: Arguments, name: str | None, half: str | None) -> Arguments:
        """Return the arguments of a call with the text of one half, in the words of the branch's prompt."""
        text = self._branches[self._state.role].text
        own, other = self._state.rehearsals.get(None), self._state.rehearsals.get(text)
        if own is None or other is None or (name == half and other is own):
            return arguments
        key = (text, name, half)
        if key not in self._texts:
            self._texts[key] = own.changes(name, other, half, self._latents_name)
        return arguments | self._texts[key]


def check_same_shape(denoiser: nn.Module, second: nn.Module) -> None:
    """Refuse a second denoiser that cannot answer in the first one's place.

    Raises:
        ValueError: another class, or another size of what goes in or out; the message names both values.
    """
    denoiser, second = uncompiled(denoiser), uncompiled(second)
    if not isinstance(second, type(denoiser)):
        raise ValueError(
            f"the second denoiser is a {type(second).__name__}, the pipeline's is a {type(denoiser).__name__}; "
            "both must be of the same class"
        )
    one, other = getattr(denoiser, "config", {}), getattr(second, "config", {})
    sizes = (
        "in_channels out_channels patch_size patch_size_t cross_attention_dim text_embed_dim caption_channels text_dim "
        "joint_attention_dim pooled_projection_dim num_embeds_ada_norm use_rotary_positional_embeddings"
    )
    for name in sizes.split():
        if name in one and one[name] != other.get(name):
            raise ValueError(
                f"the second denoiser has {name}={other.get(name)}, the pipeline's has {name}={one[name]}; "
                "both must take and give tensors of the same shape"
            )
