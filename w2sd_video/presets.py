"""Settings of the reflection by name: ``reflection(pipe, strong=..., weak=..., **PRESETS["recommended"])``."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["paper", "recommended"]
PRESETS: dict[Preset, dict[str, Any]] = {
    "paper": {"reflection_steps": None, "strength": 1.0, "rounds": 1, "inversion": "paper", "span": 1},
    "recommended": {"reflection_steps": (0.0, 0.5), "strength": 1.0, "rounds": 1, "inversion": "current", "span": 1},
}
"""``paper``: the paper's setting, λ = T - 1.

``recommended``: for guided sampling, better there at equal cost on the miniatures (docs/studies/evidence.md). Only the noisier
half of the steps is reflected, with the weak prediction at the latents themselves.
"""
