"""The loop that every stage of the training runs: a number of steps under a cap in seconds, resumable at any."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2sd_video.writing import whole

log = logging.getLogger(__name__)

WARM_UP = 100
"""Steps in which the learning rate rises."""
DECAYING = 0.3
"""Last part of a stage, in which the learning rate falls to nothing."""
EARLY = 8
"""A weak model is the average after so many-th a part of a stage."""
SAVED_EVERY = 30.0
"""Seconds between checkpoints: what a killed run loses at most."""
_LOOKED_EVERY = 10
"""Steps between looks at the clock and at the loss, for which a GPU has to be waited for."""
_TRIED = 20
"""Steps in each precision before the faster one is taken, half of them unmeasured."""


class TrainingError(Exception):
    """A stage that cannot go on; the message is one line."""


@dataclass
class Task:
    """What a stage trains.

    Attributes:
        network: all that is trained; its parameters that require a gradient.
        loss: of the batch of a step, by the number of the step, on which alone the batch depends.
        learning_rate: the highest.
        decay: of the moving average, which is what comes out.
        has_early: whether a copy of the average is kept early on, for a weak model: after an `EARLY`-th of the steps,
            or of the time if that comes first.
        facts: called when the stage is finished, the average in place; returns what is to be known of the network.
    """

    network: nn.Module
    loss: Callable[[int], Tensor]
    learning_rate: float = 1e-3
    decay: float = 0.999
    has_early: bool = False
    facts: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class Limit:
    """How long a stage may run.

    Attributes:
        steps: of the whole stage, over all runs.
        seconds: of this run.
        finishes: whether the stage is to be finished when the seconds are over: its learning rate has then decayed.
        early_seconds: of the whole stage, after which the early average is kept at the latest.
        until: number of the step after which this run stops, for tests and for measuring.
    """

    steps: int
    seconds: float = math.inf
    finishes: bool = False
    early_seconds: float = math.inf
    until: int | None = None


@dataclass
class State:
    """Where a stage is: what its checkpoint holds.

    Attributes:
        average: moving averages of the parameters, by name: what comes out.
        network: the parameters; None in what was packed, and the stage goes on from its average.
        optimizer: its state; None in what was packed.
        early: the average of an earlier step, of stages that keep one.
        step: steps done.
        seconds: that they took.
        finished: whether nothing is left to do.
        facts: what is to be known of the network.
    """

    average: dict[str, Tensor]
    network: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    early: dict[str, Tensor] | None = None
    step: int = 0
    seconds: float = 0.0
    finished: bool = False
    facts: dict[str, float] = field(default_factory=dict)


def read_state(path: Path) -> State | None:
    """Return the state that a checkpoint holds, on the CPU; None where there is none.

    Raises:
        TrainingError: a file that is damaged.
    """
    if not path.is_file():
        return None
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise TrainingError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); remove it") from error


def write_state(path: Path, state: State) -> None:
    """Write a checkpoint, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        torch.save(vars(state), part)


def learn(
    name: str,
    task: Task,
    path: Path,
    limit: Limit,
    device: torch.device,
    bfloat16: bool | None = None,
) -> State:
    """Train until the steps or the seconds are over, and leave the moving average in the network.

    Args:
        name: of the stage, for what is logged.
        task: what is trained.
        path: of the checkpoint, from which a stage goes on as if it had not been interrupted.
        limit: how long.
        device: that all of it is on.
        bfloat16: whether forward passes run in it; None takes on a GPU whatever ten steps show to be faster.

    Returns:
        The state after the last step, as it lies in `path`.

    Raises:
        TrainingError: the loss is no longer finite, or the checkpoint is not of this network. The last good state is
            kept.
    """
    trained = {key: p for key, p in task.network.named_parameters() if p.requires_grad}
    is_cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        trained.values(), lr=task.learning_rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=is_cuda
    )
    state = read_state(path) or State(average={key: p.detach().clone() for key, p in trained.items()})
    _resume(name, state, trained, optimizer)
    if state.finished:
        return state
    average = {key: state.average[key].to(device, torch.float32) for key in trained}  # in one order with them
    started, before, first = time.monotonic(), state.seconds, state.step
    saved = looked = started
    recent: list[Tensor] = []
    precision = _Precision(is_cuda, bfloat16)
    last = limit.steps if limit.until is None else min(limit.steps, limit.until)
    while state.step < last:
        elapsed = time.monotonic() - started
        if elapsed >= limit.seconds:
            break
        progress = max(state.step / limit.steps, elapsed / limit.seconds if limit.finishes else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * _rate(state.step, progress)
        with precision.of_step():
            loss = task.loss(state.step)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        rate = 1 - min(task.decay, (1 + state.step) / (10 + state.step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], rate)
        recent.append(loss.detach())
        is_early = state.step >= limit.steps / EARLY or before + elapsed >= limit.early_seconds or progress >= 1 / EARLY
        if task.has_early and state.early is None and is_early:
            state.early = {key: value.to("cpu", torch.float16) for key, value in average.items()}
        if state.step % _LOOKED_EVERY:
            continue
        mean_loss = torch.stack(recent).mean().item()  # waits for the GPU, so that the clock is right
        recent.clear()
        now = time.monotonic()
        precision.look(now - looked)
        looked = now
        if not math.isfinite(mean_loss):
            raise TrainingError(f"{name}: the loss is {mean_loss} at step {state.step}; the last good state is kept")
        if now - saved > SAVED_EVERY:
            saved = now
            log.info("%s: step %d of %d, loss %.4f", name, state.step, limit.steps, mean_loss)
            _save(path, state, trained, average, optimizer, before + now - started)
    if recent and not math.isfinite(torch.stack(recent).mean().item()):
        raise TrainingError(f"{name}: the loss is not finite at step {state.step}; the last good state is kept")
    if state.step == first:  # no time at all
        return state
    is_over = limit.finishes and limit.until is None and state.step >= WARM_UP
    state.finished = state.step >= limit.steps or is_over
    with torch.no_grad():
        current = {key: p.detach().clone() for key, p in trained.items()}
        _put(trained, average)
        if state.finished:
            state.facts = task.facts()
        _put(trained, current)
    _save(path, state, trained, average, optimizer, before + time.monotonic() - started)
    _put(trained, average)
    log.info("%s: at step %d of %d after %.0f s %s", name, state.step, limit.steps, state.seconds, state.facts or "")
    return state


def _rate(step: int, progress: float) -> float:
    """Return the learning rate over the highest: a short rise, long the same, and a fall to nothing at the end."""
    rise = min(1.0, (step + 1) / WARM_UP)
    return rise * min(1.0, max(0.0, 1 - progress) / DECAYING)


def _resume(name: str, state: State, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    shapes = {key: p.shape for key, p in trained.items()}
    if {key: value.shape for key, value in state.average.items()} != shapes:
        raise TrainingError(f"{name}: the checkpoint is of another network; begin in an empty folder")
    _put(trained, state.network or state.average)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)


@torch.no_grad()
def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for key, p in parameters.items():
        p.copy_(values[key])


def _save(
    path: Path,
    state: State,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    seconds: float,
) -> None:
    state.average = {key: value.detach().cpu().clone() for key, value in average.items()}
    state.network = None if state.finished else {key: p.detach().cpu().clone() for key, p in trained.items()}
    state.optimizer = None if state.finished else optimizer.state_dict()
    state.seconds = seconds
    write_state(path, state)


class _Precision:
    """Chooses the precision of forward passes by the time that steps take: bfloat16 is not faster everywhere."""

    def __init__(self, is_cuda: bool, bfloat16: bool | None) -> None:
        self._device = "cuda" if is_cuda else "cpu"
        self._bfloat16 = (None if is_cuda else False) if bfloat16 is None else bfloat16
        self._times: list[float] = []

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Run a forward pass in the precision that is tried or taken."""
        trial = len(self._times) * _LOOKED_EVERY >= _TRIED
        with torch.autocast(self._device, torch.bfloat16, enabled=trial if self._bfloat16 is None else self._bfloat16):
            yield

    def look(self, seconds: float) -> None:
        """Note how long the latest steps took; the first ones of each precision are not to be trusted."""
        if self._bfloat16 is not None:
            return
        self._times.append(seconds)
        looks = _TRIED // _LOOKED_EVERY
        if len(self._times) == 2 * looks:
            self._bfloat16 = self._times[-1] < self._times[looks - 1]
            log.info(
                "%s steps take %.3f s in float32 and %.3f s in bfloat16",
                _LOOKED_EVERY,
                *self._times[looks - 1 :: looks],
            )
