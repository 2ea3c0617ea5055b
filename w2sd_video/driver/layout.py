"""How a pipeline lays out its guidance, and what it is answered with so that it guides by a branch's scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from w2sd_video.guidance import guided

_NO_WEIGHT = 0.02
"""Share that a row is taken to have none of the weight below: it could only be had with all of its rounding."""

Kind = Literal["affine", "rescaled", "by slice", "not affine"]


@dataclass(frozen=True)
class Pair:
    """The two rows that guidance weighs against each other for one sample, counted through all evaluations of a step.

    Attributes:
        cond: the row that weighs more the larger the scale.
        uncond: the other one.
    """

    cond: int
    uncond: int


@dataclass(frozen=True)
class Layout:
    """Which rows make a step's prediction, and how.

    Attributes:
        calls: rows of each evaluation in a step.
        kind: ``affine``: a weighted sum; ``rescaled``: one that is multiplied by what depends on the predictions, as a
            whole or line by line; ``by slice``: weights that differ along an axis; ``not affine``: none of these.
        pairs: of each sample; empty where there is no guidance.
        scale: w, counted from 1: at 1 the unconditional row weighs nothing.
        weights: of a pair (cond, uncond), as shares of the sum of all weights.
        further: rows that weigh in too, of each sample (perturbed attention, image guidance); empty where none does.
        axis: of a sample: that of the lines that are rescaled, or of the slices; None where the whole is one.
        slice: the slice that the weights are of, by its place along the axis.
    """

    calls: tuple[int, ...]
    kind: Kind
    pairs: tuple[Pair, ...] = ()
    scale: float = 1.0
    weights: tuple[float, float] = (1.0, 0.0)
    further: tuple[tuple[int, ...], ...] = ()
    axis: int | None = None
    slice: int = 0

    @property
    def others(self) -> bool:
        """Whether further rows weigh in."""
        return any(self.further)

    @property
    def follows_weights(self) -> bool:
        """Whether what a branch's scale comes to depends on the pipeline's own weights, at each step.

        Where both rows come from one evaluation and are summed up, both are answered with the guided prediction.
        """
        return self.is_guided and (self.kind != "affine" or self.others or len(self.calls) > 1)

    @property
    def is_guided(self) -> bool:
        """Whether a step is made of more than one row a sample."""
        return bool(self.pairs)

    def first_row(self, call: int) -> int:
        """Return the number of an evaluation's first row."""
        return sum(self.calls[:call])


def rows_needed(layout: Layout, scale: float) -> frozenset[int]:
    """Return the rows that a branch's guidance scale takes: at 1 no unconditional one, at 0 no conditional one."""
    if layout.others:  # their networks look at all rows at once, to know which are to be perturbed
        return frozenset(range(sum(layout.calls)))
    cond, uncond = ({getattr(pair, name) for pair in layout.pairs} for name in ("cond", "uncond"))
    weight_cond, weight_uncond = _weights_at(layout, scale)
    needed = cond | uncond
    if weight_uncond == 0.0:
        needed = needed - uncond
    if weight_cond == 0.0 and layout.kind == "affine":
        needed = needed - cond
    return frozenset(needed)


def answered(layout: Layout, scale: float, call: int, outputs: Mapping[int, torch.Tensor], like: Any) -> list[Any]:
    """Return the rows that an evaluation is answered with, of which the pipeline makes guidance at a branch's scale.

    Where both rows of a plain weighted sum are at hand, both are the guided prediction, which any weights leave as it
    is. Else the earlier row is what the network gave, and the later one is moved along their difference, so that the
    pipeline's own rule, whatever it does besides, acts at the branch's scale.

    Args:
        layout: as measured.
        scale: w of the branch.
        call: number of the evaluation in its step.
        outputs: rows of the network that there are by now, by their number; those of `rows_needed`.
        like: a row of the network's, for rows of which nothing is needed.

    Raises:
        ValueError: guidance of which the branch's scale cannot be made.
    """
    first = layout.first_row(call)
    rows = {row: outputs.get(row, torch.zeros_like(like)) for row in range(first, first + layout.calls[call])}
    cond_weight, uncond_weight = layout.weights
    wanted_cond, _ = _weights_at(layout, scale)
    for pair in set(layout.pairs):
        cond, uncond = outputs.get(pair.cond), outputs.get(pair.uncond)
        together = pair.cond in rows and pair.uncond in rows
        if together and layout.kind == "affine" and not layout.others:
            rows[pair.cond] = rows[pair.uncond] = _guided(cond, uncond, scale)
        elif pair.uncond in rows and (together or pair.cond < pair.uncond):
            if cond is None:
                assert uncond is not None
                rows[pair.uncond] = uncond * _multiple(1.0, uncond_weight)
            else:
                rows[pair.uncond] = _moved(uncond, cond, _multiple(wanted_cond - cond_weight, uncond_weight))
        elif pair.cond in rows and pair.uncond < pair.cond:
            if layout.kind != "affine":
                raise ValueError(
                    "the unconditional evaluation comes first, and the guidance is no plain weighted sum, so a branch "
                    "cannot set its guidance_scale"
                )
            if uncond is None:
                assert cond is not None
                rows[pair.cond] = cond * _multiple(wanted_cond, cond_weight)
            else:
                rows[pair.cond] = _moved(cond, uncond, _multiple(cond_weight - wanted_cond, cond_weight))
    return list(rows.values())


def _weights_at(layout: Layout, scale: float) -> tuple[float, float]:
    """Return what a pair's rows weigh at another scale; exactly 0 where a row is not needed."""
    if not layout.others:
        return float(scale), 1.0 - scale
    cond, uncond = (
        weight + sign * (scale - layout.scale) for weight, sign in zip(layout.weights, (1, -1), strict=True)
    )
    return cond, 0.0 if abs(uncond) < 1e-3 else uncond


def _multiple(part: float, weight: float) -> float:
    """Return what part of a row's weight is.

    Raises:
        ValueError: the pipeline's own scale leaves the row no weight, so that nothing can be had of it.
    """
    if abs(weight) > _NO_WEIGHT:
        return part / weight
    if abs(part) > _NO_WEIGHT:
        raise ValueError(
            "the pipeline's own guidance scale (of this stage) gives one of its two evaluations no weight, so a branch "
            "cannot set another; call it with a scale that is neither 0 nor 1"
        )
    return 0.0


def _guided(cond: torch.Tensor | None, uncond: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Return the guided prediction of two rows, or the one that was needed alone."""
    if cond is None or uncond is None:
        (only,) = (row for row in (cond, uncond) if row is not None)
        return only
    return guided(cond, uncond, scale)


def _moved(row: torch.Tensor | None, towards: torch.Tensor, share: float) -> torch.Tensor:
    """Return a row moved by a share of the way to another, or the other where it was not needed (share 1)."""
    if row is None:
        return towards
    working = torch.promote_types(row.dtype, torch.float32)
    return torch.lerp(row.to(working), towards.to(working), share).to(row.dtype)
