"""The layout of a pipeline's guidance, measured: how much each row of each evaluation weighs in what it steps with.

A turn of the loop costs nothing while the network is not run. In the first turns of a call every row of every
evaluation is answered with numbers of its own, and what arrives at ``scheduler.step`` is solved for the weight of each
row. So no row is known by its name, its place or its value, and guidance that is no weighted sum shows as such.

The turns are of two kinds. Rows of random elements tell the weights where the step sees the elements in the network's
own order, or the leading part of them. Rows of one number each tell them whatever became of the order (some pipelines
pack, permute or drop frames), as long as a sample is made of two rows at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from w2sd_video.driver.layout import Kind, Layout, Pair
from w2sd_video.driver.rows import Rows

RANDOM_TURNS = 3
"""Turns with rows of random elements: two draws, for one would make a rescaling look like a weight, and one more, with
the pipeline's guidance scale changed, which tells the rows that it acts on where there are more than two."""
CONSTANT_TURNS = 3
"""Turns with rows of one number each: one more than the two rows that they can tell apart."""
PROBE_TURNS = RANDOM_TURNS + CONSTANT_TURNS
CHANGED_SCALE = 2
"""The turn in which the pipeline's guidance scale is changed, by 1."""

_SEED = 0x9E3779B9
"""Of the rows: far from the seeds that people use, for a row like the latents could not be told from them."""
_SLICES = 64
"""Slices of a sample that are looked at, of as many as there are."""
_ELEMENTS = 4096
"""Elements of a row that the weights are solved from: more tell nothing more."""
_MOST_ROWS = 6
"""Rows that a sample is made of, at most, where that is looked for: guidance takes two to four."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Of weights and residuals, by the precision in which the pipeline computes."""


@dataclass(frozen=True)
class Probed:
    """What one probe turn showed.

    Attributes:
        rows: what each evaluation was answered with.
        prediction: what arrived at ``scheduler.step`` as ``model_output``.
        latents: what arrived as ``sample``.
    """

    rows: Sequence[Rows]
    prediction: torch.Tensor
    latents: torch.Tensor


def probe_rows(turn: int, shapes: Sequence[torch.Size], before: int, like: torch.Tensor) -> list[torch.Tensor]:
    """Return the rows that an evaluation is answered with in a probe turn.

    Args:
        turn: its number, from 0.
        shapes: of each row.
        before: rows of the step's evaluations before this one.
        like: gives dtype and device.
    """
    generator, count = torch.Generator().manual_seed(_SEED + 10**6 * turn + before), len(shapes)
    sizes = torch.ones(count)
    if turn == 1:  # each row is of another size, so that what rescales by sizes cannot look like a weight
        sizes += 5 * torch.rand(count, generator=generator)
    if turn >= RANDOM_TURNS:
        numbers = torch.randn(count, generator=generator).to(like.device, like.dtype)
        return [number.expand(shape) for number, shape in zip(numbers, shapes, strict=True)]
    if len(set(shapes)) == 1:  # at once, for there may be a thousand
        rows = torch.randn((count, *shapes[0]), generator=generator) * sizes.view(count, *[1] * len(shapes[0]))
        return list(rows.to(like.device, like.dtype))
    drawn = [torch.randn(shape, generator=generator) * size for shape, size in zip(shapes, sizes, strict=True)]
    return [row.to(like.device, like.dtype) for row in drawn]


def measured(probed: Sequence[Probed], own_scale: float | None, stated: Mapping[str, float] | None = None) -> Layout:
    """Return the layout that probe turns have shown.

    Args:
        probed: the turns, in order.
        own_scale: the pipeline's guidance scale, if the turn `CHANGED_SCALE` was taken at another one.
        stated: the scales among the call's arguments: those of rows that nothing else tells apart are there.
    """
    first = probed[0]
    calls, tolerance = tuple(len(rows) for rows in first.rows), _TOLERANCE.get(first.prediction.dtype, 3e-2)
    if any(tuple(len(rows) for rows in turn.rows) != calls for turn in probed):
        return Layout(calls, "not affine")
    fits = [_fit(turn) for turn in probed[:RANDOM_TURNS]]
    kind: Kind = "not affine"
    weights, changed, axis, place = torch.zeros(0), None, None, 0
    if all(fit is not None for fit in fits):
        kind, weights, changed = _compared([fit for fit in fits if fit is not None], tolerance)
        if kind == "not affine":
            kind, weights, axis, place = _not_plain(probed[:2], tolerance)
    if kind == "not affine" and first.rows[0][0].shape != first.prediction.shape[1:]:
        # The elements arrive in another order, or only some of them do.
        of_constants = _fit_constants(probed[RANDOM_TURNS:], tolerance)
        kind, weights = ("not affine", weights) if of_constants is None else ("affine", of_constants)
    if kind == "not affine":
        return Layout(calls, kind)
    return replace(
        _with_pairs(calls, kind, weights, changed, own_scale, tolerance, stated or {}), axis=axis, slice=place
    )


def at_other_weights(layout: Layout, probed: Probed) -> Layout:
    """Return a layout with the weights that one more probe turn shows: those of another stage's guidance scale."""
    fit = _fit(probed)
    if fit is None or not layout.pairs or layout.kind != "affine" or layout.others:
        return layout
    shares = fit[0][0] / fit[0][0].sum()
    pair = layout.pairs[0]
    weights = float(shares[pair.cond]), float(shares[pair.uncond])
    return replace(layout, scale=weights[0], weights=weights)


def _with_pairs(
    calls: tuple[int, ...],
    kind: Kind,
    weights: torch.Tensor,
    changed: torch.Tensor | None,
    own_scale: float | None,
    tolerance: float,
    stated: Mapping[str, float],
) -> Layout:
    """Return the layout with its pairs, told by what a changed scale does, else by the scale that the call states."""
    shares = weights / weights.sum(1, keepdim=True)
    counted = [(row.abs() > 2 * tolerance * row.abs().max()).nonzero().flatten().tolist() for row in shares]
    if all(len(rows) == 1 for rows in counted):
        return _with_idle_rows(calls, kind, [rows[0] for rows in counted])
    moved = None if changed is None or own_scale is None else changed / changed.sum(1, keepdim=True) - shares
    responds = moved is not None and bool((moved.abs().amax(1) > 0.5).all())
    if responds:
        by = moved
    elif sum(calls) > 2 * len(shares) or any(len(rows) > 2 for rows in counted):
        by, own_scale = _moved_by_stated(shares, stated, tolerance), stated.get("guidance_scale")
    else:
        by = _towards_stated(shares, stated, tolerance)
    if by is None:
        return Layout(calls, "not affine")
    pairs = tuple(Pair(int(row.argmax()), int(row.argmin())) for row in by)
    cond, uncond = (float(shares[0, row]) for row in (pairs[0].cond, pairs[0].uncond))
    further = tuple(
        tuple(row for row in rows if row not in (pair.cond, pair.uncond))
        for rows, pair in zip(counted, pairs, strict=True)
    )
    scale = own_scale if any(further) and own_scale is not None else cond
    if abs(cond - uncond) < tolerance and not responds:
        return Layout(calls, "not affine")  # nothing tells the two rows apart
    layout = Layout(calls, kind, pairs, scale, (cond, uncond), further)
    of_pairs = torch.stack([row[pair.cond] for row, pair in zip(shares, pairs, strict=True)])
    if layout.follows_weights and (of_pairs - cond).abs().max() > 20 * tolerance * max(1.0, abs(cond)):
        return Layout(calls, "not affine")  # samples are guided by scales of their own
    return layout


def _moved_by_stated(shares: torch.Tensor, stated: Mapping[str, float], tolerance: float) -> torch.Tensor | None:
    """Return what the guidance scale moves the weights of many rows by, if the scales of the call leave one answer.

    Each weight is a 0 or 1, plus or minus the guidance scale or not, plus or minus another scale or not: those of
    perturbed attention are 1 - w, w + p and -p.
    """
    scale = stated.get("guidance_scale")
    if scale is None:
        return None
    others = [other for name, other in stated.items() if name != "guidance_scale"]
    rests = {start + sign * other for other in (0.0, *others) for start in (0, 1) for sign in (-1, 1)}

    def moves(weight: float) -> list[int]:
        near = 20 * tolerance * max(1.0, abs(scale))
        return [move for move in (-1, 0, 1) if any(abs(weight - move * scale - rest) < near for rest in rests)]

    moved = torch.zeros_like(shares)
    for sample, weights in enumerate(shares.tolist()):
        possible = [moves(weight) for weight in weights]
        fixed = [0 in moves_of_row for moves_of_row in possible]
        pairs = [
            (up, down)
            for up, down in itertools.permutations(range(len(weights)), 2)
            if 1 in possible[up]
            and -1 in possible[down]
            and all(fixed[row] or row in (up, down) for row in range(len(fixed)))
        ]
        if len(pairs) != 1:
            return None
        moved[sample, pairs[0][0]], moved[sample, pairs[0][1]] = 1, -1
    return moved


def _towards_stated(shares: torch.Tensor, stated: Mapping[str, float], tolerance: float) -> torch.Tensor | None:
    """Return what is largest at the conditional row of two: the one that weighs as much as the call states.

    Some pipelines count from 0. Where the call states nothing it is the row that weighs more; None where it states
    something else, so that the rows are others (those of perturbed attention alone).
    """
    scales = [scale for name, scale in stated.items() if "guidance" in name or "cfg" in name]
    if not scales:
        return shares
    heavier, lighter = (float(shares[0].max()), float(shares[0].min()))

    def is_stated(weight: float) -> bool:
        return any(
            abs(weight - scale - start) < 20 * tolerance * max(1.0, abs(scale)) for scale in scales for start in (0, 1)
        )

    if is_stated(heavier):
        return shares
    return -shares if is_stated(lighter) else None


def _with_idle_rows(calls: tuple[int, ...], kind: Kind, conds: list[int]) -> Layout:
    """Return a layout in which one row a sample weighs, and others may in later steps (CogVideoX's dynamic scale)."""
    idle = [row for row in range(sum(calls)) if row not in conds]
    if len(calls) != 1 or len(idle) != len(conds) or len(set(conds)) != len(conds):
        return Layout(calls, kind)
    return Layout(calls, kind, tuple(map(Pair, conds, idle)))


def _compared(
    fits: Sequence[tuple[torch.Tensor, float]], tolerance: float
) -> tuple[Kind, torch.Tensor, torch.Tensor | None]:
    """Return what kind of layout two draws show, its weights, and those at the changed scale."""
    (one, residual), (two, other_residual), (changed, changed_residual) = fits
    there = changed if changed_residual < tolerance else None
    if max(residual, other_residual) > tolerance:
        return "not affine", one, there
    kind: Kind = "affine" if torch.allclose(one, two, atol=10 * tolerance) else "not affine"
    return kind, one, there


def _fit(turn: Probed) -> tuple[torch.Tensor, float] | None:
    """Solve each sample of a prediction for the weights of all rows: (samples, rows), and the largest residual.

    The latents are a regressor too: some pipelines turn a sample prediction into a velocity before they step.
    None where the step does not see the elements in the network's order.
    """
    columns, (samples, latents) = _columns(turn, turn.prediction.shape[1:]), _with_latents(turn)
    if columns is None:
        return None
    rows, targets, beside = (_elements(values) for values in (torch.stack(columns), samples, latents))
    tolerance = _TOLERANCE.get(turn.prediction.dtype, 3e-2)
    weights, residual = _fit_few(rows, targets, beside, tolerance)
    if residual < tolerance or len(rows) >= rows.shape[1]:
        return weights, residual
    fits = [_solve(list(rows), sample, of_sample) for sample, of_sample in zip(targets, beside, strict=True)]
    return torch.stack([fitted for fitted, _ in fits]), max(left for _, left in fits)


def _fit_few(
    rows: torch.Tensor, targets: torch.Tensor, latents: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, float]:
    """Solve for sums of a few rows by orthogonal matching pursuit: of a large batch there are more rows than elements.

    Pati et al., "Orthogonal Matching Pursuit" (Asilomar Conference on Signals, Systems and Computers, 1993).

    Args:
        rows: (rows, elements).
        targets: (samples, elements).
        latents: the same; a part of any sum, unless they are zeros.
        tolerance: of the residual.

    Returns:
        Weights (samples, rows), and the largest residual.
    """
    directions, sizes = functional.normalize(rows, dim=1), targets.norm(dim=1).clamp_min(1e-30)
    regressors = latents[..., None][..., : int(latents.any())]
    others, weights, residual = regressors.shape[2], targets.new_zeros(len(targets), len(rows)), targets
    chosen, largest = torch.zeros(len(targets), 0, dtype=torch.long), 1.0
    for count in range(1 + min(_MOST_ROWS, len(rows))):
        if count:
            best = (residual @ directions.T).abs().argmax(1)
            chosen = torch.cat([chosen, best[:, None]], dim=1)
            regressors = torch.cat([regressors, rows[best][..., None]], dim=2)
        solution = torch.linalg.lstsq(regressors, targets[..., None]).solution
        residual = targets - (regressors @ solution)[..., 0]
        largest = float((residual.norm(dim=1) / sizes).max())
        if count and largest < 0.1 * tolerance:
            break
    return weights.scatter_add_(1, chosen, solution[:, others:, 0]), largest


def _elements(values: torch.Tensor) -> torch.Tensor:
    """Return as many elements of each row or sample as the weights are solved from, in double precision."""
    flat = values.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // _ELEMENTS)].double().cpu()


def _not_plain(draws: Sequence[Probed], tolerance: float) -> tuple[Kind, torch.Tensor, int | None, int]:
    """Return what two draws show that are no weighted sum as a whole: kind, weights or shares, axis and slice."""
    slices = [_fit_by_slice(turn, tolerance) for turn in draws]
    if _agree(slices, tolerance):
        weights, axis, stride = slices[0]  # type: ignore[misc]
        sizes = weights.abs()
        place = int(sizes.amax((0, 2)).argmax())
        weighs = sizes > 2 * tolerance * sizes.amax((1, 2), keepdim=True)
        if bool((weighs.any(1) == weighs[:, place]).all()):  # else parts are made of rows of their own (regions)
            return "by slice", weights[:, place], axis, place * stride
    lines = [_fit_rescaled(turn, tolerance) for turn in draws]
    if _agree(lines, tolerance):
        return "rescaled", *lines[0], 0  # type: ignore[misc]
    return "not affine", torch.zeros(0), None, 0


def _agree(fits: Sequence[tuple[Any, ...] | None], tolerance: float) -> bool:
    """Return whether two draws were both fitted, and show the same weights along the same axis."""
    one, other = fits
    return (
        one is not None
        and other is not None
        and one[1:] == other[1:]
        and torch.allclose(one[0], other[0], atol=10 * tolerance)
    )


def _fit_by_slice(turn: Probed, tolerance: float) -> tuple[torch.Tensor, int, int] | None:
    """Solve a prediction slice by slice, along the first axis that leaves nothing over.

    Returns:
        Weights (samples, slices, rows), the axis, and the distance of the slices.
    """
    samples = _samples_of(turn)
    columns = [_columns(turn, sample.shape) for sample, _ in samples]
    for axis in range(samples[0][0].ndim):
        weights, largest = [], 0.0
        for (sample, latents), of_rows in zip(samples, columns, strict=True):
            if of_rows is None:
                return None
            if len(of_rows) >= sample.select(axis, 0).numel():  # which fits whatever it is
                return None
            stride = max(1, sample.shape[axis] // _SLICES)
            slices = [
                _solve([c.select(axis, i) for c in of_rows], sample.select(axis, i), latents.select(axis, i))
                for i in range(0, sample.shape[axis], stride)
            ]
            weights.append(torch.stack([fitted for fitted, _ in slices]))
            largest = max(largest, *(residual for _, residual in slices))
        if largest < tolerance:
            return torch.stack(weights), axis, stride
    return None


def _fit_rescaled(turn: Probed, tolerance: float) -> tuple[torch.Tensor, int] | None:
    """Solve for the shares of rows in a sum that is multiplied by one number, or by one for each line along an axis.

    Any two elements i, j of a line y = s (a c + b u) have y_i (a c_j + b u_j) = y_j (a c_i + b u_i), whatever s is.

    Returns:
        Shares (samples, rows), and the axis.
    """
    samples = _samples_of(turn)
    for axis in reversed(range(samples[0][0].ndim)):
        shares = []
        for sample, _ in samples:
            columns, pairs = _columns(turn, sample.shape), sample.shape[axis] - 1
            if columns is None or pairs < 1:
                break
            crossed = [
                sample.narrow(axis, 0, pairs) * column.narrow(axis, 1, pairs)
                - sample.narrow(axis, 1, pairs) * column.narrow(axis, 0, pairs)
                for column in columns
            ]
            matrix = torch.stack([product.flatten().double().cpu() for product in crossed], 1)
            _, sizes, directions = torch.linalg.svd(matrix[:: max(1, len(matrix) // _ELEMENTS)], full_matrices=False)
            if len(sizes) < len(columns) or sizes[-1] > tolerance * sizes[0]:
                break
            shares.append(directions[-1] / directions[-1].sum())
        if len(shares) == len(samples):
            return torch.stack(shares), axis
    return None


def _fit_constants(turns: Sequence[Probed], tolerance: float) -> torch.Tensor | None:
    """Solve turns with rows of one number each, whatever the order of elements; None if two rows are not enough."""
    given = torch.stack([torch.stack([row.flatten()[0] for rows in turn.rows for row in rows]) for turn in turns])
    given = given.double().cpu()  # turns, rows
    arrived = torch.stack([turn.prediction.flatten(1).double().mean(1) for turn in turns]).cpu()  # turns, samples
    weights = torch.zeros(arrived.shape[1], given.shape[1], dtype=torch.float64)
    for sample, target in enumerate(arrived.T):
        for rows in [
            *itertools.combinations(range(given.shape[1]), 1),
            *itertools.combinations(range(given.shape[1]), 2),
        ]:
            part = given[:, list(rows)]
            solution = torch.linalg.lstsq(part, target[:, None]).solution
            if (part @ solution - target[:, None]).norm() < tolerance * target.norm():
                weights[sample, list(rows)] = solution[:, 0]
                break
        else:
            return None
    return weights


def _samples_of(turn: Probed) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each sample of a prediction with its latents, or with zeros where the two are not alike."""
    return list(zip(*_with_latents(turn), strict=True))


def _with_latents(turn: Probed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a prediction with its latents, or with zeros where the two are not alike."""
    alike = turn.latents.shape == turn.prediction.shape
    return turn.prediction, turn.latents if alike else torch.zeros_like(turn.prediction)


def _columns(turn: Probed, shape: torch.Size) -> list[torch.Tensor] | None:
    """Return every row as a sample of the prediction is laid out, whole or its leading part; None if it cannot be."""
    columns = []
    for row in (row for rows in turn.rows for row in rows):
        if row.ndim != len(shape) or any(size < wanted for size, wanted in zip(row.shape, shape, strict=True)):
            return None
        columns.append(row[tuple(slice(size) for size in shape)])
    return columns


def _solve(columns: Sequence[torch.Tensor], target: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the weights of columns in a target, by least squares over some elements, and the relative residual."""
    stride = max(1, target.numel() // _ELEMENTS)
    regressors = [*columns, latents] if latents.any() else list(columns)
    matrix = torch.stack([column.flatten()[::stride].double().cpu() for column in regressors], 1)
    wanted = target.flatten()[::stride].double().cpu()
    solution = torch.linalg.lstsq(matrix, wanted[:, None]).solution
    residual = float((matrix @ solution - wanted[:, None]).norm() / wanted.norm().clamp_min(1e-30))
    return solution[: len(columns), 0], residual
