"""Settings of the reflection by name: ``reflection(pipe, strong=..., weak=..., **PRESETS["recommended"])``."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["paper", "recommended", "fast"]
PRESETS: dict[Preset, dict[str, Any]] = {
    "paper": {"reflection_steps": None, "strength": 1.0, "rounds": 1, "inversion": "paper", "span": 1},
    "recommended": {"reflection_steps": (0.0, 0.5), "strength": 1.0, "rounds": 1, "inversion": "current", "span": 1},
    "fast": {
        "reflection_steps": 0,
        "autoguidance": 1.0,
        "autoguidance_steps": (0.5, 1.0),
        "autoguidance_gap": "strong",
        "reuse": 1,
    },
}
"""``paper``: the paper's setting, λ = T - 1.

``recommended``: for guided sampling at 20 evaluations and more, where it was ahead of ``paper`` at equal cost on two
miniatures and behind on none; with fewer, and without guidance, it is (docs/studies/evidence.md). Only the noisier half
of the steps is reflected, with the weak prediction at the latents themselves; without guidance take the other half.

``fast``: no reflection, but AutoGuidance along the gap of strong and weak in the less noisy half of the steps: half an
evaluation more a step (docs/studies/exact-pairs.md). Weight 1 is a start: a pair may bear more or less.

None of them is the best for a pair at a budget, which ``w2sd_video.tune`` looks for.
"""
