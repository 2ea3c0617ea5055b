"""The switch on a pipeline's denoiser: each evaluation answers for the role that the sampler asks for.

Pipelines lay classifier-free guidance out in one of four ways:

* ``batch``: [unconditional, conditional] in one doubled batch. The switch combines the halves at the branch's scale
  and returns the result for both, which the pipeline's own combination leaves unchanged, whatever its scale.
* ``calls``: two calls, named "cond" and "uncond" by ``cache_context``. Both are answered with the combined prediction.
* ``embedded``: a ``guidance`` argument of a guidance-distilled network, which is rescaled.
* ``single``: the pipeline was called without guidance.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.lora import LoraScales
from w2sd_video.sampler import Role

COND, UNCOND = "cond", "uncond"
Arguments = dict[str, Any]

_CONDITIONAL_FIRST = ("DiTPipeline", "LuminaPipeline")
_NOT_BATCHED = ("image_rotary_emb", "rotary_emb", "freqs_cis", "img_ids", "txt_ids")
_FOLLOWS_LATENTS = ("timestep", "residual", "controlnet", "block_samples")


class RehearsalOver(BaseException):
    """Ends a rehearsal: the denoiser's arguments are known. Not an error, so no ``except Exception`` may take it."""


class Rehearsal:
    """What a pipeline gives its denoiser before the first step, by the name of the call (None where it has no name)."""

    def __init__(self) -> None:
        self.calls: dict[str | None, Arguments] = {}

    def record(self, context: str | None, arguments: Arguments, latents_name: str) -> Any:
        """Keep the arguments; answer the first of two calls with zeros, and end the rehearsal after the last."""
        self.calls[context] = arguments
        if context not in (COND, UNCOND) or len(self.calls) == 2:
            raise RehearsalOver
        nothing = torch.zeros_like(arguments[latents_name])
        return (nothing,) if arguments.get("return_dict") is False else Transformer2DModelOutput(sample=nothing)


@dataclasses.dataclass
class CallState:
    """What the switches of a pipeline need to know of the running call.

    Attributes:
        role: the role that the next evaluation answers for.
        request: counts the sampler's requests, so that evaluations of one request can be told from the next.
        shares_latents: the request is the weak one at the strong one's latents and timestep (``current``).
        nfe: network evaluations by role.
        rehearsing: set while the pipeline only shows what it gives its denoiser.
        rehearsals: what it showed, by the prompt it was given (None: its own).
        guidance_scale: the pipeline's own scale in this call, if it has one.
        step_taken: whether the scheduler's own step was the last to be taken.
        call: the index of that step in a stock loop.
    """

    role: Role = "base"
    request: int = 0
    shares_latents: bool = False
    nfe: Counter[str] = dataclasses.field(default_factory=Counter)
    rehearsing: Rehearsal | None = None
    rehearsals: dict[Any, Rehearsal] = dataclasses.field(default_factory=dict)
    guidance_scale: float | None = None
    step_taken: bool = False
    call: int = 0

    def begin_call(self, guidance_scale: float | None) -> None:
        """Forget the earlier call."""
        self.guidance_scale = guidance_scale
        self.nfe.clear()
        self.rehearsals.clear()


class DenoiserSwitch:
    """Takes the place of a denoiser's ``forward`` and evaluates it as the branch of the current role says.

    Args:
        pipe: the pipeline, asked for its guidance.
        denoiser: its UNet or transformer.
        branches: the setting of each role.
        state: shared with the scheduler that drives the sampler.

    Raises:
        ValueError: a LoRA that is not loaded, or second weights of another shape.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module, branches: Mapping[Role, Branch], state: CallState) -> None:
        self._pipe = pipe
        self._denoiser = denoiser
        self._forward: Callable[..., Any] = denoiser.forward
        self._enter_context: Callable[..., Any] | None = None
        self.names_its_calls = hasattr(denoiser, "cache_context")
        self._signature = _named_signature(denoiser)
        self._latents_name = next(iter(self._signature.parameters))
        self._branches = branches
        self._state = state
        self._context: str | None = None
        self._doubled: bool | None = None
        self._modules: dict[Role, nn.Module] = {}
        self._lora: dict[Role, LoraScales] = {}
        self._kept: tuple[Any, dict[str, Any]] = (None, {})
        for role, branch in branches.items():
            module = denoiser if branch.weights is None else branch.weights
            assert isinstance(module, nn.Module)
            if module is not denoiser:
                check_same_shape(denoiser, module)
            self._modules[role] = module
            if branch.lora:
                self._lora[role] = LoraScales(module, branch.lora)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the switch in the denoiser's place for one call of the pipeline, and take it out at the end.

        Offloading hooks take the place of ``forward`` too, and a pipeline sets them anew at the end of each call: what
        is no longer ours then stays.
        """
        own = self._denoiser.__dict__
        self._context, self._doubled, self._kept = None, None, (None, {})
        self._forward, self._enter_context = self._denoiser.forward, getattr(self._denoiser, "cache_context", None)
        replaced: dict[str, Any] = {"forward": self._answer_as_forward()}
        if self.names_its_calls:
            replaced["cache_context"] = self._named_cache_context
        before = {name: own[name] for name in replaced if name in own}
        own.update(replaced)
        try:
            yield
        finally:
            for name, ours in replaced.items():
                if own.get(name) is ours:
                    del own[name]
                    own.update({name: before[name]} if name in before else {})
            self._kept = (None, {})

    def _answer_as_forward(self) -> Callable[..., Any]:
        """Return the switch as a function with the signature of the forward whose place it takes."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments: Arguments = {}
            for name, value in self._signature.bind(*args, **kwargs).arguments.items():
                is_rest = self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                arguments.update(value if is_rest else {name: value})
            return self._answer(arguments)

        return with_signature(forward, self._signature)

    @contextmanager
    def _named_cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
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
        if state.rehearsing is not None:
            return state.rehearsing.record(self._context, arguments, self._latents_name)
        branch = self._branches[state.role]
        layout = self._layout(arguments)
        if branch.guidance_scale is None or layout in ("single", "embedded"):
            half = self._context if layout == "calls" else None
            arguments = self._with_prompt(arguments, half)
            if branch.guidance_scale is not None:
                arguments = self._with_scale(arguments, branch.guidance_scale, layout)
            return self._evaluate(arguments, 2 if layout == "batch" else 1)
        return self._guided(arguments, branch.guidance_scale, layout)

    def _layout(self, arguments: Arguments) -> str:
        """Return how this call lays guidance out."""
        if arguments.get("guidance") is not None:
            return "embedded"
        rehearsal = self._rehearsal(None)
        if self._context in (COND, UNCOND) and rehearsal is not None:
            return "calls" if UNCOND in rehearsal.calls else "single"
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        if guided is None:
            guided = self._state.guidance_scale is not None and self._state.guidance_scale > 1
        if not guided:
            return "single"
        if self._context == UNCOND:
            return "calls"
        if self._doubled is None:  # asked once a call of the pipeline: comparing waits for the device
            first, second = _halves(arguments[self._latents_name])
            self._doubled = first.shape == second.shape and torch.equal(first, second)
        return "batch" if self._doubled else "unknown"

    def _with_scale(self, arguments: Arguments, guidance_scale: float, layout: str) -> Arguments:
        """Tell an embedded guidance the branch's scale; without guidance only a scale of 1 can be had."""
        own = getattr(self._pipe, "guidance_scale", None) or self._state.guidance_scale
        if layout == "embedded":
            if not own:
                raise ValueError("the pipeline's own guidance_scale is 0, so its embedded guidance cannot be rescaled")
            return arguments | {"guidance": arguments["guidance"] * (guidance_scale / own)}
        if guidance_scale != 1:
            raise ValueError(
                f"a branch has guidance_scale={guidance_scale}, but the pipeline was called without classifier-free "
                f"guidance (guidance_scale={own}), so it has no unconditional prompt; call it with guidance_scale > 1"
            )
        return arguments

    def _guided(self, arguments: Arguments, scale: float, layout: str) -> Any:
        """Return ``uncond + scale * (cond - uncond)`` in the place of every half, evaluating only what it takes."""
        if layout == "unknown":
            raise ValueError(
                f"{type(self._pipe).__name__} neither doubles its batch for guidance nor names its two calls, so a "
                "branch cannot set its guidance_scale"
            )
        needed = [name for name, weight in ((COND, scale), (UNCOND, 1 - scale)) if weight != 0]
        key, (kept_for, halves) = self._key(), self._kept
        if kept_for != key:
            halves = {}
        missing = [name for name in needed if name not in halves]
        evaluate = self._evaluate_doubled if layout == "batch" else self._evaluate_named
        halves.update(evaluate(arguments, missing))
        self._kept = (key, halves)
        if len(needed) == 2:
            prediction = halves[UNCOND] + scale * (halves[COND] - halves[UNCOND])
        else:
            prediction = halves[needed[0]]
        if layout == "batch":
            prediction = torch.cat([prediction, prediction])
        return (prediction,) if arguments.get("return_dict") is False else Transformer2DModelOutput(sample=prediction)

    def _evaluate_doubled(self, arguments: Arguments, names: list[str]) -> dict[str, torch.Tensor]:
        """Evaluate the named halves of a doubled batch: both at once, or one alone."""
        arguments = self._with_prompt(arguments, None)
        if len(names) == 2:
            first, second = _halves(self._evaluate(arguments, 2)[0])
            return {name: second if self._is_second(name) else first for name in names}
        size = len(arguments[self._latents_name])
        return {
            name: self._evaluate(
                {key: take_half(value, key, size, self._is_second(name)) for key, value in arguments.items()}, 1
            )[0]
            for name in names
        }

    def _evaluate_named(self, arguments: Arguments, names: list[str]) -> dict[str, torch.Tensor]:
        """Evaluate the named ones of two calls, each with the text that the pipeline gives it."""
        return {name: self._evaluate(self._with_prompt(arguments, name), 1)[0] for name in names}

    def _key(self) -> Any:
        """Return what evaluations are shared by: one request, or two at the same latents that differ in guidance."""
        state = self._state
        shared = state.shares_latents and self._branches["strong"].same_but_guidance(self._branches["weak"])
        return state.request - 1 if shared else state.request

    def _is_second(self, half: str) -> bool:
        """Return whether a half of the doubled batch is its second one."""
        conditional_first = any(base.__name__ in _CONDITIONAL_FIRST for base in type(self._pipe).__mro__)
        return (half == COND) != conditional_first

    def _evaluate(self, arguments: Arguments, evaluations: int) -> Any:
        role = self._state.role
        self._state.nfe[role] += evaluations
        module = self._modules[role]
        run = self._forward if module is self._denoiser else module
        with ExitStack() as stack:
            if role in self._lora:
                stack.enter_context(self._lora[role].applied())
            return run(**arguments)

    def _rehearsal(self, prompt: Any) -> Rehearsal | None:
        return self._state.rehearsals.get(prompt)

    def _with_prompt(self, arguments: Arguments, half: str | None) -> Arguments:
        """Return the arguments with the text of the branch's prompt, for a half of a guidance in two calls."""
        own, other = self._rehearsal(None), self._rehearsal(prompt_key(self._branches[self._state.role].prompt))
        if own is None or other is None:
            return arguments
        shown, wanted = own.calls[self._context], other.calls[half or self._context]
        changed = {
            name: wanted.get(name)
            for name in {**shown, **wanted}
            if name != self._latents_name
            and not any(part in name for part in _FOLLOWS_LATENTS)
            and not _equal(shown.get(name), wanted.get(name))
        }
        return arguments | changed


def _named_signature(denoiser: nn.Module) -> inspect.Signature:
    """Return the signature of a denoiser's forward; of its class's where a wrapper of the user's hides the names."""
    signature = inspect.signature(denoiser.forward)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        signature = inspect.signature(type(denoiser).forward.__get__(denoiser))
    return signature


def with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Give a function the signature that ``inspect`` shows for another: pipelines look at it."""
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def prompt_key(prompt: Any) -> Any:
    """Return a prompt as something that can be looked up."""
    return prompt if prompt is None or isinstance(prompt, str) else tuple(prompt)


def take_half(value: Any, name: str, size: int, second: bool) -> Any:
    """Return one half of what is batched in an argument of a doubled batch of ``size``; the rest stays as it is.

    Text and side networks' residuals of frame-wise models come once a frame, so their length is a multiple.
    """
    if name in _NOT_BATCHED:
        return value
    if isinstance(value, Mapping):
        return {key: take_half(item, key, size, second) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_half(item, name, size, second) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    per_frame = name.startswith("encoder_") or "residual" in name
    if len(value) == size or (per_frame and len(value) % size == 0):
        cut = len(value) // 2
        return value[cut:] if second else value[:cut]
    return value


def _halves(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the second half of a batch."""
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def _equal(one: Any, other: Any) -> bool:
    """Compare arguments of a denoiser, tensors by value."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return one is other or bool(one == other)


def check_same_shape(denoiser: nn.Module, second: nn.Module) -> None:
    """Refuse a second denoiser that cannot answer in the first one's place.

    Raises:
        ValueError: another class, or another size of what goes in or out; the message names both values.
    """
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
