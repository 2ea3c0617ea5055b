"""Loops that change their latents between steps: inpainting that puts back what is to be kept, noised anew.

A reflection lies between two of the loop's own steps. What the loop makes of the latents after a step counts; what it
makes of those that it is handed in a reflection's turns is undone: the networks see what the sampler asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from w2sd_video.driver.rows import Arguments, Rows


class Edits:
    """What is known of the changes that a loop makes, seen in its first turns, in which no network is run.

    What a loop hands on in these, with its changes and without, is compared (``LoopState``): whether its predictions
    depend on the latents, or anything else that its networks are given does.

    Attributes:
        are_made: whether the loop was found to make any.
    """

    def __init__(self) -> None:
        self.are_made = False

    def find(self, given: Sequence[Arguments], latents: torch.Tensor) -> None:
        """See that a loop's networks are given its latents where others can be put in, in a turn that changed them.

        Args:
            given: the arguments of every evaluation of the turn, the samples first.
            latents: that the loop steps from, scaled for the network.

        Raises:
            ValueError: a network that is given them in another form than at the front of its samples.
        """
        if not given or not all(_holds(next(iter(arguments.values())), latents) for arguments in given):
            raise ValueError(UNKNOWN)
        self.are_made = True

    def undone(self, samples: Rows, latents: torch.Tensor) -> Rows:
        """Return what a network is given as samples, with other latents in the place of the loop's.

        Args:
            samples: a batch, or a list of samples.
            latents: scaled for the network.

        Raises:
            ValueError: they have no place there.
        """
        if not isinstance(samples, torch.Tensor):
            rows = _repeated(latents, len(samples))
            return [row.reshape(sample.shape).to(sample) for row, sample in zip(rows, samples, strict=True)]
        changed = samples.clone()
        if (place := _place(changed, latents)) is None:
            raise ValueError(UNKNOWN)
        place.copy_(_repeated(latents, len(samples)))
        return changed


def _holds(samples: Any, latents: torch.Tensor) -> bool:
    """Return whether latents stand at the front of a batch, or are a list of samples."""
    if isinstance(samples, list) and all(sample.numel() == latents[0].numel() for sample in samples):
        samples = torch.stack(samples).reshape(len(samples), *latents.shape[1:])
    if not isinstance(samples, torch.Tensor) or (place := _place(samples, latents)) is None:
        return False
    return torch.equal(place, _repeated(latents, len(samples)).to(place))


def _place(samples: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
    """Return the part of samples that latents fill: all of it, or the front of an axis (of channels or tokens)."""
    if samples.ndim != latents.ndim or len(samples) % len(latents):
        return None
    longer = [axis for axis in range(1, latents.ndim) if samples.shape[axis] != latents.shape[axis]]
    if len(longer) > 1 or any(samples.shape[axis] < latents.shape[axis] for axis in longer):
        return None
    return samples.narrow(longer[0], 0, latents.shape[longer[0]]) if longer else samples


def _repeated(latents: torch.Tensor, rows: int) -> torch.Tensor:
    """Return latents as often as there are rows for them: all samples, and all again (guidance)."""
    return latents.repeat(rows // len(latents), *[1] * (latents.ndim - 1))


EDITED = (
    "the pipeline changes its latents in every turn of its loop (as inpainting does that keeps the unmasked part by "
    "noising it anew), which a reflection's turns would repeat; use an inpainting checkpoint, pass undo_edits=True to "
    "reflection, which undoes it between the steps, or reflect no step (reflection_steps=0)"
)
UNKNOWN = (
    "the pipeline changes its latents in every turn of its loop (as inpainting does that keeps the unmasked part by "
    "noising it anew), and its network is given more of them than can be put back, so it cannot be reflected; use an "
    "inpainting checkpoint, or reflect no step (reflection_steps=0)"
)
