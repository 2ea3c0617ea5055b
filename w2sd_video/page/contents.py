"""What a page shows, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["video", "pictures", "animation"]
"""How a clip is kept: one video, a picture a frame, or an animation, which plays by itself and cannot be stepped."""


@dataclass(frozen=True)
class Clip:
    """A clip as it is shown.

    Attributes:
        label: what it is a clip of: weak, strong, W2SD, AutoGuidance, an arm.
        kind: how it is kept.
        files: addresses, relative to the page or ``data:``; one, but for pictures one a frame.
        frames: how many there are.
        fps: frames a second.
        box: left, top, width and height of it in the file, in pixels; None where the file is nothing but the clip.
        caption: what is said of it below, such as its network evaluations.
    """

    label: str
    kind: Kind
    files: Sequence[str]
    frames: int = 1
    fps: float = 8.0
    box: Sequence[int] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Group:
    """Clips that are compared: those of one prompt and one seed."""

    prompt: str
    seed: int | None
    clips: Sequence[Clip]


@dataclass(frozen=True)
class Column:
    """A column of a table, and which of its numbers are better, if any are."""

    name: str
    better: Literal["higher", "lower"] | None = None


@dataclass(frozen=True)
class Cell:
    """What a table says, and the number by which it is sorted; without one it is sorted by what it says."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by any column."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def best(self, column: int) -> float | None:
        """Return the best number of a column; None where none is better than another."""
        values = [row[column].value for row in self.rows]
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        better = self.columns[column].better
        if better is None or len(numbers) < 2:
            return None
        return max(numbers) if better == "higher" else min(numbers)


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: its heading.
        text: what it is, in a paragraph.
        groups: clips, by prompt and seed.
        tables: of figures.
        plots: SVG by what each shows, in words for those who cannot see it.
        notes: further lines.
        facts: versions, machine, date and the like, by their names.
        configurations: YAML by title.
    """

    title: str
    text: str
    groups: Sequence[Group] = ()
    tables: Sequence[Table] = ()
    plots: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    configurations: Mapping[str, str] = field(default_factory=dict)
