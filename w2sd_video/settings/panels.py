"""The settings that a comparison shows side by side, and the guidance scale of each branch."""

from __future__ import annotations

from dataclasses import fields, replace

from w2sd_video.settings.evaluations import at_budget, nfe_of, reflected_steps
from w2sd_video.settings.schema import BranchConfig, RenderConfig, filled, reflection_of, stage_scales

EQUAL_COST = "strong at equal cost"
"""Label of the clip of the strong model with as many steps as the evaluations of what is compared allow."""


def weak_panel(config: RenderConfig) -> BranchConfig:
    """Return the setting that the weak clip of a comparison is sampled with: base with the gap's fields from weak.

    Fields in which strong and weak agree are no part of the gap (as a guidance of 1 in both), and stay as in base.
    """
    strong, weak = filled(config, config.strong), filled(config, config.weak)
    names = [field.name for field in fields(BranchConfig)]
    gap = {name: getattr(weak, name) for name in names if getattr(weak, name) != getattr(strong, name)}
    return replace(config.base, **gap)


def sampler_name(config: RenderConfig) -> str:
    """Return what a configuration samples with, as it stands above a clip: W2SD, AutoGuidance, guidance, …."""
    pushes = ""
    if "weak" in reflection_of(replace(config, reflection_steps=0)).roles:
        pushes = "skip-layer guidance" if _leaves_layers_out(config) else "AutoGuidance"
    if reflected_steps(config):
        reflects = {"resample": "Re-Sampling", "resample-advanced": "advanced Re-Sampling"}.get(
            config.inversion, "W2SD"
        )
        return f"{reflects} and {pushes}" if pushes else reflects
    return pushes or ("guidance" if max(stage_scales(config.base.guidance_scale)) > 1 else "no guidance")


def _leaves_layers_out(config: RenderConfig) -> bool:
    """Return whether layers are what weak leaves out or perturbs, and all that it differs in beside guidance."""
    weak = replace(weak_panel(config), guidance_scale=config.base.guidance_scale)
    return weak != config.base == replace(weak, skip_layers=None, perturbed_layers=None)


def panels(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the clips to sample, by their labels: the configuration's own, or for a comparison weak and strong before.

    A comparison also has strong with as many steps as the network evaluations of the configuration allow, if those are
    more.
    """
    name = sampler_name(config)
    if not config.compare:
        return {name: config}
    strong = replace(config, reflection_steps=0, autoguidance=0.0)
    weak = replace(strong, base=weak_panel(config))
    longer = at_budget(strong, nfe_of(config))
    at_equal_cost = {EQUAL_COST: longer} if longer and longer.steps > config.steps else {}
    return {"weak": weak, "strong": strong, **at_equal_cost, name: config}
