"""A gap that is measured at some steps only, and carried to those between."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Literal

import torch

from w2sd_video.argument_checks import whole_number

Carried = Literal["held", "linear"]
Changes = Mapping[str, Collection[int]]
"""For a role the steps from which on its prediction is made otherwise: by another network, or in another window."""


class HeldGap:
    """A gap of a sampling, measured anew at every so many of the steps that want it.

    Between two steps that measure it, it is what it was (``held``), or goes on as it went between the last two
    (``linear``). The last step that wants it measures it, and so does any that is said to.

    Args:
        every: k: one step in so many measures.
        carried: how it comes to the others.
        steps: those that want it, in order.
        fresh: those from which on what makes the gap is another, so that the next that wants it measures.
    """

    def __init__(self, every: int, carried: Carried, steps: Sequence[int], fresh: Collection[int] = ()) -> None:
        self._carried = carried
        self._fresh = fresh
        self._measures = measuring_steps(every, steps, fresh)
        self._known: list[tuple[int, str, torch.Tensor]] = []

    def at(self, step: int, reading: str) -> torch.Tensor | None:
        """Return the gap at a step; None where it is to be measured, also in another reading than it was."""
        if step in self._measures or not self._known or self._known[-1][1] != reading:
            return None
        last, _, gap = self._known[-1]
        if self._carried == "held" or len(self._known) < 2:
            return gap
        before, _, earlier = self._known[-2]
        return gap + (gap - earlier) * ((step - last) / (last - before))

    def keep(self, step: int, reading: str, gap: torch.Tensor) -> None:
        """Keep what was measured, in place of what is older than two measurements or was something else."""
        earlier = [known for known in self._known if known[0] != step][-1:]
        kept = [known for known in earlier if known[1] == reading and not _is_another(self._fresh, known[0], step)]
        self._known = [*kept, (step, reading, gap)]


def measuring_steps(every: int, steps: Sequence[int], fresh: Collection[int] = ()) -> frozenset[int]:
    """Return which of the steps that want a gap measure it."""
    measuring, since, before = set(), every, -1
    for step in steps:
        since += 1
        if since >= every or _is_another(fresh, before, step) or step == steps[-1]:
            measuring.add(step)
            since = 0
        before = step
    return frozenset(measuring)


def _is_another(fresh: Collection[int], before: int, step: int) -> bool:
    """Return whether what makes a gap has become another since an earlier step."""
    return any(before < change <= step for change in fresh)


def changes_of(changes: Changes, *roles: str) -> frozenset[int]:
    """Return the steps from which on the prediction of any of some roles is made otherwise."""
    return frozenset(step for role in roles for step in changes.get(role, ()))


def steps_of_changes(stage_changes: Collection[int], trajectory: Sized) -> frozenset[int]:
    """Return the steps at which another network takes over.

    Raises:
        TypeError: what is no number.
        ValueError: a step that there is not.
    """
    steps = frozenset(whole_number("a step of stage_changes", step, 0) for step in stage_changes)
    if steps and max(steps) >= len(trajectory):
        raise ValueError(f"stage_changes must be steps from 0 to {len(trajectory) - 1}, got {max(steps)}")
    return steps
