"""Whether the pipeline's rows and weights stay what they were when its layout was measured, seen at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from w2sd_video.driver.layout import Layout

_ELEMENTS = 2**14
"""Elements of a sample that are looked at: enough for the weights, whatever the precision."""
_ALLOWED, _ALLOWED_IN_HALF = 0.05, 0.15
"""Of the weight of an unconditional row that is larger than 1, or of 1; the second where it was measured in half."""
_ALIKE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Share of a row that the other rows have to leave over, for its weight to be told in a precision; else 1e-3."""


class Drift:
    """How far the weights of a call's guidance have moved from the layout; it is looked at when the loop has ended.

    Args:
        pipeline: its name.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._largest: torch.Tensor | None = None
        self._allowed = _ALLOWED

    def note(
        self, layout: Layout, rows: Sequence[torch.Tensor], prediction: torch.Tensor, latents: torch.Tensor
    ) -> None:
        """Compare a turn's prediction with the rows that its evaluations were answered with, without a wait.

        Args:
            layout: as it was measured before the first step.
            rows: of all evaluations of the turn.
            prediction: what the pipeline made of them.
            latents: what it steps from.

        Raises:
            ValueError: fewer rows than were laid out, of which one was answered as the unconditional one.
        """
        if len(rows) < sum(layout.calls) and any(pair.uncond < len(rows) for pair in layout.pairs):
            raise ValueError(  # it may be the only one
                f"{self._pipeline} evaluates fewer rows than in its first step, so a branch cannot set its "
                "guidance_scale; leave it out, or reflect the steps before (reflection_steps)"
            )
        if not layout.follows_weights or len(rows) != sum(layout.calls):
            return
        wanted = layout.weights[1]
        self._allowed = _ALLOWED_IN_HALF if prediction.dtype in _ALIKE else _ALLOWED
        further = layout.further or ((),) * len(layout.pairs)
        for number, (pair, others) in enumerate(zip(layout.pairs, further, strict=True)):
            columns = [rows[row] for row in (*others, pair.cond, pair.uncond)]
            start = latents[number] if layout.kind == "affine" and latents.shape == prediction.shape else None
            share = _share_of_last(columns, prediction[number], start, layout)
            moved = (share - wanted).abs().nan_to_num(0.0) / max(1.0, abs(wanted))
            self._largest = moved if self._largest is None else torch.maximum(self._largest, moved)

    def check(self) -> None:
        """Look at all turns.

        Raises:
            ValueError: weights that changed.
        """
        if self._largest is not None and float(self._largest) > self._allowed:
            raise ValueError(
                f"the guidance of {self._pipeline} changes over the steps, so a branch cannot set its guidance_scale; "
                "leave it out, and let the branches differ in something else"
            )


def _share_of_last(
    columns: Sequence[torch.Tensor], target: torch.Tensor, start: torch.Tensor | None, layout: Layout
) -> torch.Tensor:
    """Return what the last column weighs in a target, as a share of the weights of all columns.

    Solved by least squares, line by line where lines are rescaled, with what the target has of the latents taken out;
    not a number where the other columns leave nothing of the last one to tell its weight by.
    """
    shares, residuals = zip(*(_solved(part, target, start, layout) for part in _laid_out(columns, target)), strict=True)
    return torch.stack(shares).take(torch.stack(residuals).argmin())


def _laid_out(columns: Sequence[torch.Tensor], target: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Give the columns as a target is laid out: their leading part, and their trailing part where that is another.

    Pipelines leave out what is no part of what they make, in front (the image a clip begins with, text) or behind.
    """
    yield [column[tuple(slice(size) for size in target.shape)] for column in columns]
    if any(column.shape != target.shape for column in columns):
        yield [column[tuple(slice(-size, None) for size in target.shape)] for column in columns]


def _solved(
    columns: Sequence[torch.Tensor], target: torch.Tensor, start: torch.Tensor | None, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the last column weighs, as a share, and what the columns leave over of the target."""
    lines = [_lines(part, layout) for part in ([] if start is None else [start]) + [*columns, target]]
    matrix, wanted = torch.stack(lines[:-1], -1), lines[-1].unsqueeze(-1)  # lines, elements, columns
    orthogonal, upper = torch.linalg.qr(matrix)
    projected = orthogonal.mT @ wanted
    weights = torch.linalg.solve_triangular(upper, projected, upper=True)[..., 0]
    weights = weights[:, -len(columns) :]
    total = weights.sum(-1)
    share = (weights[:, -1] * total).sum() / (total * total).sum()
    alike = upper[:, -1, -1].norm() < _ALIKE.get(target.dtype, 1e-3) * matrix[..., -1].norm()
    return torch.where(alike, float("nan"), share), (wanted - orthogonal @ projected).norm()


def _lines(part: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return some elements of a sample in float32: (lines, elements), one line where lines are not rescaled."""
    if layout.axis is not None and layout.kind == "by slice":
        part = part.select(layout.axis, layout.slice)
    if layout.axis is None or layout.kind == "by slice":
        part = part.reshape(1, -1)
    else:
        part = part.movedim(layout.axis, -1).reshape(-1, part.shape[layout.axis])
    few = part[:: max(1, part.numel() // _ELEMENTS)] if len(part) > 1 else part[:, :: max(1, part.numel() // _ELEMENTS)]
    return few.float()
