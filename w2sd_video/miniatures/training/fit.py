"""The training loop every stage shares: warm-up and cosine decay over a planned time, EMA, resumable checkpoints."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a stage trains, and on how many encoded clips.

    Args:
        minutes: planned length; the learning rate has decayed to nothing when they are over.
        max_steps: ends the stage earlier, for tests.
        pool: clips encoded once for the denoisers.
    """

    minutes: float
    max_steps: int | None = None
    pool: int = 16000


def fit(
    name: str,
    network: nn.Module,
    loss: Callable[[], torch.Tensor],
    out: Path,
    budget: Budget,
    lr: float = 1e-3,
    decay: float = 0.995,
    watch: Callable[[], None] | None = None,
) -> None:
    """Train the parameters of `network` that require a gradient, and leave their moving average in it.

    Args:
        name: of the stage; its checkpoint is `out/<name>.pt`, which an interrupted stage resumes from.
        network: all that is trained.
        loss: draws a batch and returns its mean loss.
        out: folder of the checkpoints.
        budget: how long to train.
        lr: the highest learning rate.
        decay: of the moving average.
        watch: called at every checkpoint with the moving average in place.
    """
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
    average = {key: p.detach().clone() for key, p in trained.items()}
    path, step, spent = out / f"{name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path)
        _put(trained, state["network"])
        average, step, spent = state["average"], state["step"], state["spent"]
        optimizer.load_state_dict(state["optimizer"])
    start_time, last_save, mean_loss = time.monotonic() - spent, time.monotonic(), math.nan
    planned_seconds, last_step = 60 * budget.minutes, budget.max_steps or math.inf
    while (progress := (time.monotonic() - start_time) / planned_seconds) < 1 and step < last_step:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        batch_loss = loss()
        batch_loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        rate = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], rate)
        mean_loss = batch_loss.item() if math.isnan(mean_loss) else mean_loss + 0.02 * (batch_loss.item() - mean_loss)
        if time.monotonic() - last_save > 60:
            last_save = time.monotonic()
            log.info("%s: step %d, %.0f%%, loss %.4f", name, step, 100 * progress, mean_loss)
            _save(path, trained, average, optimizer, step, last_save - start_time)
            if watch is not None:
                current = {key: p.detach().clone() for key, p in trained.items()}
                _put(trained, average)
                watch()
                _put(trained, current)
    _save(path, trained, average, optimizer, step, min(planned_seconds, time.monotonic() - start_time))
    _put(trained, average)
    log.info("%s: done after %d steps, loss %.4f", name, step, mean_loss)


@torch.no_grad()
def _put(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for key, p in parameters.items():
        p.copy_(values[key])


def _save(path: Path, trained: dict, average: dict, optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    network = {key: p.detach() for key, p in trained.items()}
    state = {"network": network, "average": average, "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
