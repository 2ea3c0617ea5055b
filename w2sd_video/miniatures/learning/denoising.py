"""The loss of denoisers: noised latents of a pool, by diffusion with v prediction or by flow matching."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2sd_video.miniatures.learning.bench import Bench, Pool
from w2sd_video.miniatures.learning.stage_loop import Task

DROPOUT = 0.1
"""Share of samples trained without their text or class, for guidance."""

Predict = Callable[[Tensor, Tensor, "Condition"], Tensor]
"""From noised latents, their timesteps and what they are of, to a prediction."""


class Condition:
    """What samples are of: texts with their masks, or classes."""

    def __init__(self, pool: Pool, rows: Tensor, dropped: Tensor, null: int | None) -> None:
        self.text = self.mask = self.label = None
        if pool.text is not None and pool.mask is not None:
            assert pool.empty_text is not None and pool.empty_mask is not None
            self.text = torch.where(dropped[:, None, None], pool.empty_text, pool.text[rows]).float()
            self.mask = torch.where(dropped[:, None], pool.empty_mask, pool.mask[rows]).long()
        elif pool.label is not None:
            label = pool.label[rows]
            self.label = label if null is None else torch.where(dropped, null, label)


def v_levels(alphas_cumprod: Tensor, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return what gives alpha, sigma and the timestep of numbers in [0, 1), of a diffusion's table, on a device."""
    count = len(alphas_cumprod)
    table = alphas_cumprod.to(device, torch.float32)  # once, for a GPU would be waited for; CogVideoX's is float64

    def levels(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = (u * count).long().clamp(max=count - 1)
        level = table[t]
        return level.sqrt(), (1 - level).sqrt(), t

    return levels


def flow_levels(shift: float) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return the same of flow matching: straight lines, shifted towards noise, timesteps from 0 to 1000."""

    def levels(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = shift * u / (1 + (shift - 1) * u)
        return 1 - sigma, sigma, 1000 * sigma

    return levels


def denoiser_task(
    bench: Bench,
    network: nn.Module,
    pool: Pool,
    predict: Predict,
    levels: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    batch: int,
    seed: int,
    is_flow: bool = False,
    rows: Tensor | None = None,
    null: int | None = None,
    has_early: bool = False,
    extra: Callable[[], Tensor] | None = None,
) -> Task:
    """Return the training of a denoiser.

    Args:
        bench: gives chance and the device.
        network: all that is trained, on the device.
        pool: what is noised.
        predict: evaluates the denoiser.
        levels: alpha, sigma and the timestep of numbers in [0, 1).
        batch: samples a step on a GPU.
        seed: of everything that is drawn.
        is_flow: whether the target is noise - sample; v = alpha noise - sigma sample otherwise.
        rows: of the pool that are trained on; all unless given.
        null: the class that stands for none.
        has_early: see `Task`.
        extra: added to the loss.
    """
    size = bench.batch(batch)
    frames = len(pool.latents) // len(pool.text) if pool.text is not None else 1  # each noised by itself, of one text

    def loss(step: int) -> Tensor:
        random = bench.random(seed, step)
        count = len(pool.latents) if rows is None else len(rows)
        drawn = torch.randint(count, (size,), generator=random, device=bench.device)
        picked = drawn if rows is None else rows[drawn]
        clean = pool.latents[picked].float()
        dropped = torch.rand(size, generator=random, device=bench.device) < DROPOUT
        alpha, sigma, t = levels(torch.rand(size, generator=random, device=bench.device))
        noise = torch.randn(clean.shape, generator=random, device=bench.device)
        alpha, sigma = (value.view(-1, *[1] * (clean.ndim - 1)) for value in (alpha, sigma))
        target = noise - clean if is_flow else alpha * noise - sigma * clean
        of = Condition(pool, picked // frames, dropped, null)
        prediction = predict(alpha * clean + sigma * noise, t, of)
        error = functional.mse_loss(prediction.float(), target)
        return error if extra is None else error + extra()

    return Task(network, loss, has_early=has_early)
