"""The settings that a comparison shows side by side, and the guidance scale of each branch."""

from __future__ import annotations

import dataclasses

from w2sd_video.settings.schema import BranchConfig, RenderConfig


def weak_panel(config: RenderConfig) -> BranchConfig:
    """Return the setting that the weak clip of a comparison is sampled with: base with the gap's fields from weak.

    Fields in which strong and weak agree are no part of the gap (as a guidance of 1 in both), and stay as in base.
    """
    strong, weak = filled(config, config.strong), filled(config, config.weak)
    names = [field.name for field in dataclasses.fields(BranchConfig)]
    gap = {name: getattr(weak, name) for name in names if getattr(weak, name) != getattr(strong, name)}
    return dataclasses.replace(config.base, **gap)


def filled(config: RenderConfig, branch: BranchConfig) -> BranchConfig:
    """Return a branch with a guidance scale: base's, if it has none of its own."""
    scale = config.base.guidance_scale if branch.guidance_scale is None else branch.guidance_scale
    return dataclasses.replace(branch, guidance_scale=scale)


def panels(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the clips to sample, by their labels: W2SD alone, or weak, strong and W2SD for a comparison."""
    if not config.compare:
        return {"W2SD": config}
    strong = dataclasses.replace(config, reflection_steps=0, autoguidance=0.0)
    weak = dataclasses.replace(strong, base=weak_panel(config))
    return {"weak": weak, "strong": strong, "W2SD": config}
