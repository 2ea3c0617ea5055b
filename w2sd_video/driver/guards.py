"""What has to hold of a pipeline's loop for it to be reflected, watched without waiting on the device in between."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from w2sd_video.argument_checks import version_of
from w2sd_video.branch import Branch
from w2sd_video.driver.comparing import copied, differences


class HandedBack:
    """Latents that the pipeline was handed back, to be evaluated and stepped from in its next turn as they are.

    Between steps a pipeline may change its latents; between the turns of one step they are the sampler's. Most hand
    over the very tensor, which takes no look at its values. Others reshape it: of these the first one is compared at
    once, and the later ones together when asked for.

    Attributes:
        latents: those that are to be stepped from; None where the loop may have changed them.
        asked: what a network is asked for, as it is handed to the loop and as the network is to see it; None where that
            is the loop's own.
    """

    def __init__(self) -> None:
        self.latents: torch.Tensor | None = None
        self.asked: tuple[torch.Tensor, torch.Tensor] | None = None
        self._version = 0
        self._equal: torch.Tensor | None = None

    def forget(self) -> None:
        """Forget an earlier loop."""
        self.latents = self.asked = self._equal = None

    def to_be_divided(self, wanted: torch.Tensor, scale: float) -> torch.Tensor:
        """Return latents that, divided as the loop does at its level, are as a network is to see them.

        Those of another level (of the paper's inversion) are brought to the scale of the loop's. So it does not matter
        how a loop divides: by the scheduler, by a sigma of its own, or what it makes of the undivided ones beside.
        """
        handed = wanted if scale == 1.0 else wanted * scale
        self.asked = handed, wanted
        return handed

    def divided(self, sample: torch.Tensor, scale: float) -> torch.Tensor:
        """Divide latents for the network: those that were asked for are what they were, to the last bit."""
        if scale == 1.0:
            return sample
        if self.asked is None:
            return sample / scale
        handed, wanted = self.asked
        if handed.shape[1:] != sample.shape[1:] or len(sample) % len(handed):
            return sample / scale
        copies = len(sample) // len(handed)
        return torch.where(sample == torch.cat([handed] * copies), torch.cat([wanted] * copies), sample / scale)

    def remember(self, latents: torch.Tensor | None) -> None:
        """Keep what is handed back; nothing after a step, which a pipeline may edit."""
        self.latents, self._version = latents, 0 if latents is None else version_of(latents)

    def is_changed(self, latents: torch.Tensor) -> bool:
        """Compare what the pipeline steps from; of what is not known without a wait but the first is looked at."""
        given = self.latents
        if given is None or (latents is given and version_of(given) == self._version):
            return False
        if latents is given or latents.shape != given.shape:
            return True
        repeated = torch.cat([given[: len(given) // 2]] * 2) if len(given) % 2 == 0 else given
        # A pipeline that steps both halves of guidance alike (DiT) goes on with the first one, twice; one that steps in
        # float32 (Mochi) goes on in the precision of its network.
        alike = (given, repeated, given.to(torch.bfloat16), given.to(torch.float16))
        equal = torch.stack([(latents == other).all() for other in alike]).any()
        if self._equal is None and not equal:
            return True
        self._equal = equal if self._equal is None else self._equal & equal
        return False

    def compare(self) -> None:
        """Look at what the loop's later turns were compared to.

        Raises:
            ValueError: something else than what was handed back.
        """
        if self._equal is not None and not self._equal:
            raise ValueError(CHANGED_LATER)


class KeptLevels:
    """The timesteps and noise levels that a scheduler has when a loop begins, which it is to keep."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._before = copied(self._now())
        self._differ: list[bool | torch.Tensor] = []

    def compare(self) -> None:
        """Compare what it has now."""
        self._differ += [flag for flag, _ in differences(self._before, self._now())]

    def check(self) -> None:
        """Look at what was compared.

        Raises:
            ValueError: the scheduler had other levels than the loop began with.
        """
        if any(self._differ):
            raise ValueError(
                "the scheduler's timesteps or noise levels changed in the call (by a callback, for example), so its "
                "steps were at others than the reflections; change them before the first step, or reflect no step "
                "(reflection_steps=0)"
            )

    def _now(self) -> dict[str, torch.Tensor]:
        values = vars(self._scheduler)
        return {name: values[name] for name in ("timesteps", "sigmas", "alphas_cumprod") if name in values}


class SameEvaluations:
    """What a loop has its network evaluated with where a gap is measured, and is to where it is reused.

    Args:
        pipeline: its name.
        reusing: the calls of the scheduler that reuse a gap, and the numbers of their steps.
    """

    def __init__(self, pipeline: str, reusing: Mapping[int, int]) -> None:
        self._pipeline = pipeline
        self._reusing = reusing
        self._where_measured: Sequence[Any] = ()

    def check(self, call: int, evaluated: Sequence[Any]) -> None:
        """Look at what the network was evaluated with at a step that counts.

        Raises:
            ValueError: other than where the gap was measured: an adapter or a guidance of the loop's own has begun or
                ended since.
        """
        if call not in self._reusing:
            self._where_measured = evaluated
        elif evaluated != self._where_measured:
            raise ValueError(
                f"{self._pipeline} has its network evaluated otherwise at step {self._reusing[call]} than where the "
                "gap was measured that is reused there (an adapter or a guidance of its own begins or ends); measure "
                "it at every step (reuse=1)"
            )


class Momentum:
    """The momentum of a pipeline's guiders (APG), which is to see the steps that count only.

    Args:
        pipe: a pipeline: with no guider, one, or one for each kind of prompt (HunyuanImage).
    """

    def __init__(self, pipe: Any) -> None:
        self._guiders = [part for part in vars(pipe).values() if hasattr(part, "momentum_buffer")]
        self._buffers = self._now()

    def after_turn(self, takes_step: bool) -> None:
        """Keep what a step has made of it; undo what another turn has."""
        if takes_step:
            self._buffers = self._now()
        else:
            for guider, buffer in zip(self._guiders, self._buffers, strict=True):
                guider.momentum_buffer = copy.copy(buffer)

    def _now(self) -> list[Any]:
        return [copy.copy(guider.momentum_buffer) for guider in self._guiders]


class Caches:
    """What a network keeps of an evaluation (keys and values) to be given back to its own role.

    Some return it beside their prediction (Flux 2), others put it into an object that they are given (Qwen-Image 2.1).
    """

    def __init__(self) -> None:
        self._made_by: list[tuple[Any, Branch]] = []
        self._filled_by: list[tuple[Any, Branch]] = []

    def note(self, output: Any, branch: Branch) -> None:
        """Remember what was returned as a branch."""
        if isinstance(output, tuple):
            self._made_by += [(extra, branch) for extra in output[1:] if extra is not None]

    @contextmanager
    def filled(self, arguments: Mapping[str, Any], branch: Branch) -> Iterator[None]:
        """Remember which of the objects among its arguments an evaluation as a branch puts something into."""
        objects = [value for value in arguments.values() if hasattr(value, "__dict__") and not _is_plain(value)]
        before = [_tensors_in(value) for value in objects]
        yield
        for value, held in zip(objects, before, strict=True):
            if _tensors_in(value) != held:
                self._filled_by.append((value, branch))

    def check(self, arguments: Mapping[str, Any], branch: Branch) -> None:
        """Look at what a network is given.

        Raises:
            ValueError: what it kept for another branch.
        """
        of_others = [made for made, by in self._made_by if by != branch]
        of_others += [held for held, by in self._filled_by if not by.same_but_guidance(branch)]
        for kept in of_others:
            if any(value is kept for value in arguments.values()):
                raise ValueError(
                    "the pipeline gives its network what it kept from an evaluation of another branch (a cache of keys "
                    "and values), which cannot be reflected; call it without the cache where it takes that "
                    "(use_kv_cache=False), or reflect no step (reflection_steps=0)"
                )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, nn.Module, type))


def _tensors_in(value: Any, depth: int = 3) -> list[tuple[int, int]]:
    """Return which tensors an object holds, and in which state, in its attributes and what they hold."""
    if isinstance(value, torch.Tensor):
        return [(id(value), version_of(value))]
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif not _is_plain(value):
        inner = getattr(value, "__dict__", {}).values()
    return [held for item in inner for held in _tensors_in(item, depth - 1)] if depth else []


CHANGED_LATER = (
    "the pipeline changes its latents in some turns of its loop and not in the first ones, so it cannot be reflected; "
    "reflect no step (reflection_steps=0)"
)
