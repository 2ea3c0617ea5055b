"""The switch on a pipeline's denoiser: each evaluation answers for the role that the sampler asks for.

How a pipeline lays its guidance out is measured (``layout``). A branch without a guidance scale is evaluated as the
pipeline does it; for one with a scale the rows that it takes are evaluated, and the pipeline is answered so that its
own guidance makes the branch's of them. A guidance-distilled network is told the scale instead, as its ``guidance``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.driver.comparing import copied, differences
from w2sd_video.driver.guards import Caches
from w2sd_video.driver.layout import Layout, answered, rows_needed
from w2sd_video.driver.measuring import CHANGED_SCALE, probe_rows
from w2sd_video.driver.networks import in_place_of, mixes_rows, settings_in, unswitched
from w2sd_video.driver.rehearsal import CallsOfTurn, CallState, follows_latents
from w2sd_video.driver.rows import Arguments, output_like, output_shapes, rows_of, take_rows
from w2sd_video.driver.signatures import as_given, by_name, named_signature, uncompiled
from w2sd_video.gaps import Swap, swapped, swaps_of
from w2sd_video.gaps.lora import lora_scales
from w2sd_video.reflection_settings import Role
from w2sd_video.window import Moment

_UNSET = object()
"""Stands for an attribute that was not there."""


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
        self._forward: Callable[..., Any] = denoiser.forward
        self._positional = 0
        self._evaluating = threading.RLock()
        self._signature = named_signature(denoiser)
        self._latents_name = next(iter(self._signature.parameters))
        self._branches = branches
        self._state = state
        self._loras: tuple[Moment | None, list[tuple[Branch, list[Swap]]]] = (None, [])
        self._evaluated_as: list[tuple[Branch, nn.Module, list[Swap]]] = []
        self._forget()
        for branch in branches.values():
            module, _ = self._module_and_swaps(branch)
            self._lora(module, branch)

    def _module_and_swaps(self, branch: Branch) -> tuple[nn.Module, list[Swap]]:
        """Return the network that a branch is evaluated with, and what is changed in it meanwhile."""
        for known, module, swaps in self._evaluated_as:
            if known == branch:
                return module, swaps
        module = branch.weights if isinstance(branch.weights, nn.Module) else self._denoiser
        if module is not self._denoiser:
            check_same_shape(self._denoiser, module)
        swaps = swaps_of(uncompiled(module), replace(branch, lora=None))
        self._evaluated_as.append((branch, module, swaps))
        return module, swaps

    def _lora(self, module: nn.Module, branch: Branch) -> list[Swap]:
        """Return the swaps of a branch's LoRA at this step: others may be scaled between steps, which counts."""
        if branch.lora is None:
            return []
        if self._loras[0] is not self._state.moment:
            self._loras = (self._state.moment, [])
        known = next((swaps for by, swaps in self._loras[1] if by == branch), None)
        if known is None:
            known = lora_scales(uncompiled(module), branch.lora)
            self._loras[1].append((branch, known))
        return known

    def _set_by_pipeline(self, module: nn.Module) -> list[Swap]:
        """Return the swaps that give a second denoiser what the call has set in the pipeline's own, up to now.

        Perturbed attention is such, set as processors before the loop and taken out at the end; so is GLIGEN's
        grounding, which is on in the first steps only.

        Raises:
            ValueError: a second denoiser without a module in which something is set.
        """
        if module is self._denoiser:
            return []
        modules, swaps = dict(uncompiled(module).named_modules()), []
        for path, attributes in settings_in(uncompiled(self._denoiser)).items():
            before, known = self._settings_before.get(path, {}), self._set_in_call.setdefault(path, set())
            known |= {name for name, value in attributes.items() if before.get(name, _UNSET) != value}
            changed = {name: attributes[name] for name in known & attributes.keys()}  # also what is as before again
            if changed and path not in modules:
                raise ValueError(
                    f"{type(self._pipe).__name__} sets {min(changed)} of {path} in its network, which a second "
                    "denoiser does not have; let the branches differ in something else"
                )
            if changed:
                swaps.append((modules[path], changed))
        return swaps

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the switch in the denoiser's place for one call of the pipeline, and take it out at the end."""
        self._forget()
        self._settings_before = settings_in(uncompiled(self._denoiser))
        try:
            with in_place_of(self._denoiser, self._forward_as_named) as self._forward:
                yield
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop what is known of one call of the pipeline."""
        self._calls = CallsOfTurn(self._state)
        self._texts: dict[Any, tuple[Arguments, set[str]]] = {}
        self._caches = Caches()
        self._loras = (None, [])
        self._mixing: dict[nn.Module, bool] = {}
        self._set_in_call: dict[str, set[str]] = {}
        self._kept: tuple[int, list[tuple[Branch, dict[int, torch.Tensor]]]] = (-1, [])

    def _forward_as_named(self, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Bring positional and keyword arguments to their names, and answer; evaluations of others pass by."""
        if self._state.is_elsewhere:
            with self._evaluating:
                return evaluate(*args, **kwargs)
        self._positional = len(args)
        return self._answer(by_name(self._signature, args, kwargs))

    def _answer(self, arguments: Arguments) -> Any:
        state, call = self._state, self._calls.next(len(arguments[self._latents_name]))
        samples = arguments[self._latents_name] = state.as_asked(arguments[self._latents_name])
        state.answering = id(self._denoiser)
        if state.rehearsing is not None or state.probing is not None:
            return output_like(self._instead_of_rows(arguments), samples, arguments)
        state.evaluated.append((len(samples), {name for name, value in arguments.items() if value is not None}))
        if state.leads and not state.in_turn:
            raise ValueError(
                f"{type(self._pipe).__name__} evaluates its network outside of a loop over scheduler.timesteps with a "
                "scheduler.step for each, so it cannot be reflected"
            )
        branch, arguments = state.setting(self._branches), self._with_text(arguments, call)
        scale, layout = branch.guidance_scale, self._layout
        assert not isinstance(scale, tuple)
        if branch.negative_prompt is not None and layout and layout.kind != "not affine" and not layout.is_guided:
            raise ValueError(
                f"a branch has a negative_prompt, but this call of {type(self._pipe).__name__} evaluates no "
                "unconditional prompt; call it with guidance"
            )
        if scale is not None and arguments.get("guidance") is not None:
            return self._evaluate(self._told_scale(arguments, scale), len(samples))
        if scale is None or not self._is_guided(scale):
            return self._as_it_is(arguments, call)
        return self._at_scale(arguments, scale, call)

    def _as_it_is(self, arguments: Arguments, call: int) -> Any:
        """Evaluate all rows, but for those that are at hand, and answer with what the network gives."""
        samples, last = arguments[self._latents_name], self._calls.rows
        first = last - len(samples) if self._layout is None else self._layout.first_row(call)
        rows, kept = range(first, first + len(samples)), self._kept_rows()
        if kept.keys().isdisjoint(rows):
            output = self._evaluate(arguments, len(samples))
            self._keep(dict(enumerate(rows_of(output[0]), first)))
            return output
        kept = self._with_missing(arguments, rows, rows, kept)
        return output_like([kept[row] for row in rows], samples, arguments)

    def _instead_of_rows(self, arguments: Arguments) -> list[torch.Tensor]:
        """Return the rows that stand in for the network's: zeros in a rehearsal, random ones in a probe turn."""
        state, samples = self._state, arguments[self._latents_name]
        like = samples if isinstance(samples, torch.Tensor) else samples[0]
        shapes = output_shapes(uncompiled(self._denoiser), samples)
        if shown := state.rehearsing or state.noting:
            shown.calls.append(copied(arguments))
        if state.rehearsing is not None:
            return [like.new_zeros(shape) for shape in shapes]
        assert state.probing is not None
        if torch.is_grad_enabled() and like.requires_grad:
            raise ValueError(
                f"{type(self._pipe).__name__} differentiates through its network (guidance by the gradient of a loss), "
                "which cannot be reflected; reflect no step (reflection_steps=0)"
            )
        state.given.append(arguments)
        if state.leads:
            state.kept.seen(uncompiled(self._denoiser))
        if state.probing == CHANGED_SCALE and state.many_rows and state.changed_scale is None:
            self._change_scale()
        rows = probe_rows(state.probing, shapes, sum(map(len, state.answered)), like)
        state.answered.append(rows)
        return rows

    @property
    def _layout(self) -> Layout | None:
        return self._state.layouts.get(id(self._denoiser))

    def _change_scale(self) -> None:
        """Change the guidance scale that the pipeline reads in its loop, if it does, until the turn is over."""
        before = vars(self._pipe).get("_guidance_scale")
        if isinstance(before, (int, float)):

            def put_back() -> float:
                self._pipe._guidance_scale = before
                return before

            self._pipe._guidance_scale, self._state.changed_scale = before + 1, put_back

    def _told_scale(self, arguments: Arguments, guidance_scale: float) -> Arguments:
        """Tell a guidance-distilled network the branch's scale, in the unit in which the pipeline tells its own."""
        own = self._state.guidance_scale
        if not own:
            raise ValueError(f"the pipeline's own guidance_scale is {own}, so its embedded guidance cannot be rescaled")
        return arguments | {"guidance": arguments["guidance"] * (guidance_scale / own)}

    def _is_guided(self, scale: float) -> bool:
        """Return whether the pipeline guides; where it does not only a scale of 1 can be had.

        Raises:
            ValueError: another scale, or guidance of which no other scale can be made.
        """
        layout, name = self._layout, type(self._pipe).__name__
        if layout is None or layout.kind == "not affine":
            raise ValueError(
                f"the guidance of {name} is no weighted sum of its evaluations, or the scales of this call leave open "
                "what guidance_scale weighs in it, so a branch cannot set it; call it with other scales, or let the "
                "branches differ in something else"
            )
        if not layout.is_guided and scale != 1:
            raise ValueError(
                f"a branch has guidance_scale={scale}, but this call of {name} evaluates no unconditional prompt (its "
                f"guidance_scale is {self._state.guidance_scale}); call it with guidance_scale > 1, or with a "
                "negative_prompt and true_cfg_scale > 1 where it takes that"
            )
        return layout.is_guided

    def _at_scale(self, arguments: Arguments, scale: float, call: int) -> Any:
        """Evaluate the rows that a guidance scale takes, and answer with what the pipeline makes it of."""
        layout, samples = self._layout, arguments[self._latents_name]
        assert layout is not None
        if call >= len(layout.calls) or len(samples) != layout.calls[call]:
            raise ValueError(
                f"{type(self._pipe).__name__} evaluates {len(samples)} rows where there were others in the first step, "
                "so a branch cannot set its guidance_scale; leave it out, or reflect the steps before "
                "(reflection_steps)"
            )
        first = layout.first_row(call)
        numbers = range(first, first + len(samples))
        kept = self._with_missing(arguments, numbers, rows_needed(layout, scale), self._kept_rows())
        like = samples[0].new_zeros(output_shapes(uncompiled(self._denoiser), samples)[0])
        rows = answered(layout, scale, call, kept, like)
        self._state.answered.append(rows)
        return output_like(rows, samples, arguments)

    def _with_rows(self, arguments: Arguments, rows: list[int]) -> Arguments:
        """Return the arguments of an evaluation of some of its rows alone."""
        samples = arguments[self._latents_name]
        total = len(samples)
        if rows == list(range(total)):
            return arguments
        in_lists = not isinstance(samples, torch.Tensor)
        frames = samples.shape[2] if not in_lists and samples.ndim == 5 else 1
        return {name: take_rows(value, name, rows, total, frames, in_lists) for name, value in arguments.items()}

    def _with_missing(
        self, arguments: Arguments, rows: range, needed: Iterable[int], kept: dict[int, torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Return the rows that there are, with those of an evaluation that are needed and not there."""
        missing = [row for row in rows if row in needed and row not in kept]
        if missing and self._needs_all_rows():
            missing = list(rows)
        if missing:
            evaluated = self._some_rows(arguments, [row - rows.start for row in missing])
            if len(missing) < len(rows) and self._needs_all_rows():  # seen in this evaluation, the first of the network
                missing, evaluated = list(rows), self._some_rows(arguments, list(range(len(rows))))
            kept = kept | dict(zip(missing, evaluated, strict=True))
            self._keep(kept)
        return kept

    def _some_rows(self, arguments: Arguments, rows: list[int]) -> list[torch.Tensor]:
        return rows_of(self._evaluate(self._with_rows(arguments, rows), len(rows))[0])

    def _needs_all_rows(self) -> bool:
        """Return whether a network has to be given all rows of an evaluation, or none.

        Those of perturbed attention look at all of them, to know which are to be perturbed.
        """
        if self._layout is not None and self._layout.others:
            return True
        module, _ = self._module_and_swaps(self._state.setting(self._branches))
        if module not in self._mixing:
            self._mixing[module] = any(mixes_rows(uncompiled(network)) for network in (self._denoiser, module))
        return self._mixing[module] or self._state.kept.is_changed_by_hooks(uncompiled(module))

    def _kept_rows(self) -> dict[int, torch.Tensor]:
        """Return the rows that were evaluated at these latents for a branch that differs in guidance at most."""
        place, kept = self._kept
        branch = self._state.setting(self._branches)
        of_branch = (rows for by, rows in kept if by.same_but_guidance(branch))
        return next(of_branch, {}) if place == self._state.place else {}

    def _keep(self, rows: dict[int, torch.Tensor]) -> None:
        place, kept = self._kept
        branch, rows = self._state.setting(self._branches), self._kept_rows() | rows
        others = [(by, of) for by, of in kept if not by.same_but_guidance(branch)] if place == self._state.place else []
        self._kept = (self._state.place, [*others, (branch, rows)])

    def _evaluate(self, arguments: Arguments, rows: int) -> Any:
        self._state.nfe[self._state.role] += rows
        branch = self._state.setting(self._branches)
        module, swaps = self._module_and_swaps(branch)
        swaps = swaps + self._lora(module, branch) + self._set_by_pipeline(module)
        # The other denoiser of a two-stage model has a switch of its own, which this evaluation passes by.
        run = self._forward if module is self._denoiser else unswitched(module)
        self._caches.check(arguments, branch)
        # Networks take from lists that they are given (HunyuanDiT its residuals), and may be evaluated again.
        arguments = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        positional, named = as_given(arguments, self._positional)
        looked_at = self._state.kept.evaluated(uncompiled(module)) if self._state.leads else nullcontext()
        with looked_at, self._evaluating, swapped(swaps), self._caches.filled(arguments, branch):
            output = run(*positional, **named)
        self._caches.note(output, branch)
        return output

    def _with_text(self, arguments: Arguments, call: int) -> Arguments:
        """Return the arguments of an evaluation in the words of the branch's prompts."""
        text = self._state.setting(self._branches).text
        own, other = self._state.rehearsals.get(None), self._state.rehearsals.get(text)
        if own is None or other is None or own is other:
            return arguments
        if call >= min(len(own.calls), len(other.calls)):
            raise ValueError(
                f"{type(self._pipe).__name__} evaluates its network more often than in its first step, so a branch "
                "cannot have a text of its own; leave it out"
            )
        shown, key = own.calls[call], (text, call)
        if key not in self._texts:
            changes, compared = own.changes(call, other, self._latents_name), set(shown)
            if own.differs(other, self._latents_name):  # else text may come in later, as any of them
                compared = set(changes)
            compared = {name for name in compared if not follows_latents(name, self._latents_name)}
            self._texts[key] = changes, compared
        changes, compared = self._texts[key]
        for name in compared:
            self._state.text_differs += [flag for flag, _ in differences(shown.get(name), arguments.get(name))]
        return arguments | changes


class CompanionSwitch:
    """Takes the place of a network that a pipeline evaluates beside its denoiser (Ideogram 4's unconditional one).

    No branch changes it. Its evaluations are counted, and it is not run in turns that only watch.

    Args:
        pipe: the pipeline.
        network: of the class of its denoiser.
        branches: the setting of each role.
        state: tells the current role.
    """

    def __init__(self, pipe: Any, network: nn.Module, branches: Mapping[Role, Branch], state: CallState) -> None:
        self._pipe = pipe
        self._network = network
        self._branches = branches
        self._state = state
        self._signature = named_signature(network)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the switch in the network's place for one call of the pipeline."""
        with in_place_of(self._network, self._answer):
            yield

    def _answer(self, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self._state
        if state.is_elsewhere:
            return evaluate(*args, **kwargs)
        arguments = by_name(self._signature, args, kwargs)
        samples = next(iter(arguments.values()))
        if state.rehearsing is not None or state.probing is not None:
            if state.probing is not None:
                state.given.append(arguments)
            shapes = output_shapes(uncompiled(self._network), samples)
            rows = probe_rows(state.probing or 0, shapes, _OF_COMPANION, samples[0])
            return output_like(rows, samples, arguments)
        if state.setting(self._branches).text is not None:
            raise ValueError(
                f"{type(self._pipe).__name__} evaluates a network beside its denoiser that no branch changes, so a "
                "branch cannot have a text of its own; let the branches differ in something else"
            )
        state.nfe[state.role] += len(samples)
        looked_at = state.kept.evaluated(uncompiled(self._network)) if state.leads else nullcontext()
        with looked_at:
            return evaluate(*args, **kwargs)


_OF_COMPANION = 10**5
"""Sets its rows in a probe turn apart from the denoiser's."""


def check_same_shape(denoiser: nn.Module, second: nn.Module) -> None:
    """Refuse a second denoiser that cannot answer in the first one's place.

    Raises:
        ValueError: another class, another precision, or another size of what goes in or out; the message names both.
    """
    denoiser, second = uncompiled(denoiser), uncompiled(second)
    if not isinstance(second, type(denoiser)):
        raise ValueError(
            f"the second denoiser is a {type(second).__name__}, the pipeline's is a {type(denoiser).__name__}; "
            "both must be of the same class"
        )
    precision, other_precision = (getattr(network, "dtype", None) for network in (denoiser, second))
    if precision != other_precision and not any(map(torch.is_autocast_enabled, ("cuda", "cpu"))):
        raise ValueError(
            f"the second denoiser computes in {other_precision}, the pipeline's in {precision}; load both in one "
            "precision (torch_dtype=...)"
        )
    one, other = getattr(denoiser, "config", {}), getattr(second, "config", {})
    sizes = (
        "in_channels out_channels patch_size patch_size_t cross_attention_dim text_embed_dim caption_channels text_dim "
        "joint_attention_dim pooled_projection_dim num_embeds_ada_norm use_rotary_positional_embeddings"
    )
    projects_text = one.get("caption_channels") is not None  # to whatever its attention is as wide as
    for name in sizes.split():
        if name == "cross_attention_dim" and projects_text:
            continue
        if name in one and one[name] != other.get(name):
            raise ValueError(
                f"the second denoiser has {name}={other.get(name)}, the pipeline's has {name}={one[name]}; "
                "both must take and give tensors of the same shape"
            )
