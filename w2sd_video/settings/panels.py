"""The settings that a comparison shows side by side, and the guidance scale of each branch."""

from __future__ import annotations

import dataclasses

from w2sd_video.settings.evaluations import most_steps, nfe_of
from w2sd_video.settings.schema import BranchConfig, RenderConfig, filled

EQUAL_COST = "strong at equal cost"
"""Label of the clip of the strong model with as many steps as the evaluations of W2SD allow."""


def weak_panel(config: RenderConfig) -> BranchConfig:
    """Return the setting that the weak clip of a comparison is sampled with: base with the gap's fields from weak.

    Fields in which strong and weak agree are no part of the gap (as a guidance of 1 in both), and stay as in base.
    """
    strong, weak = filled(config, config.strong), filled(config, config.weak)
    names = [field.name for field in dataclasses.fields(BranchConfig)]
    gap = {name: getattr(weak, name) for name in names if getattr(weak, name) != getattr(strong, name)}
    return dataclasses.replace(config.base, **gap)


def panels(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the clips to sample, by their labels: W2SD alone, or for a comparison weak, strong and W2SD.

    A comparison also has strong with as many steps as the network evaluations of W2SD allow, if those are more.
    """
    if not config.compare:
        return {"W2SD": config}
    strong = dataclasses.replace(config, reflection_steps=0, autoguidance=0.0)
    weak = dataclasses.replace(strong, base=weak_panel(config))
    steps = most_steps(strong, nfe_of(config))
    longer = {EQUAL_COST: dataclasses.replace(strong, steps=steps)} if steps > config.steps else {}
    return {"weak": weak, "strong": strong, **longer, "W2SD": config}
