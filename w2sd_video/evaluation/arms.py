"""The arms of a comparison: each a name and the settings of one sampler among which its best is looked for.

None has sampler code of its own. W2SD, guidance, AutoGuidance, Z-Sampling, foresight guidance, Re-Sampling and
skip-layer guidance are all a ``RenderConfig``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from w2sd_video.messages import suggest
from w2sd_video.presets import PRESETS
from w2sd_video.reflection_settings import WeakInversion
from w2sd_video.settings.evaluations import evaluations
from w2sd_video.settings.panels import panels, weak_panel
from w2sd_video.settings.schema import BranchConfig, ConfigError, RenderConfig, reflected_steps, stage_scales
from w2sd_video.settings.sources import denoiser_of

Settings = dict[str, RenderConfig]
"""Configurations by what they are called, their number of steps left open."""

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
"""The sweep of plain guidance: from none, past what the miniatures' configurations have."""
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
"""The sweep of AutoGuidance and of skip-layer guidance."""
EARLY, LATE = (0.0, 0.5), (0.5, 1.0)
"""Windows of the steps."""


@dataclass(frozen=True)
class Candidate:
    """One setting of an arm at a budget.

    Attributes:
        arm: its name.
        setting: what is special about it.
        budget: network evaluations a clip that it must not exceed.
        config: with as many steps as the budget allows.
        nfe: network evaluations a clip.
    """

    arm: str
    setting: str
    budget: int
    config: RenderConfig
    nfe: int


def strong(config: RenderConfig) -> Settings:
    """The strong model alone, as base is configured; a larger budget means more steps."""
    return {_guidance_label(config): _without_reflection(config)}


def weak(config: RenderConfig) -> Settings:
    """The weak model alone."""
    return {_guidance_label(config): panels(replace(config, compare=True))["weak"]}


def cfg(config: RenderConfig) -> Settings:
    """Plain guidance of the strong model, over a sweep of scales."""
    unreflected = _without_reflection(config)
    return {
        _guidance_label(variant): variant
        for variant in (_with_guidance(unreflected, scale) for scale in GUIDANCE_SCALES)
    }


def autoguidance(config: RenderConfig) -> Settings:
    """AutoGuidance: the prediction pushed away from the weak model's, over a sweep of weights."""
    return {
        f"{_guidance_label(variant)}, weight {weight:g}": replace(
            _without_reflection(variant), weak=weak_panel(variant), autoguidance=weight
        )
        for variant in _unguided_and_guided(config)
        for weight in WEIGHTS
    }


def w2sd_as_configured(config: RenderConfig) -> Settings:
    """W2SD as the configuration has it, in the packaged ones the paper's setting."""
    return {_guidance_label(config): config}


def w2sd_recommended(config: RenderConfig) -> Settings:
    """W2SD by the recommended preset."""
    return {_guidance_label(config): replace(config, **PRESETS["recommended"])}


def w2sd(config: RenderConfig) -> Settings:
    """W2SD: each inversion, and windows, strengths and rounds of the paper's and of the cheapest one."""
    changes_by_label = {
        "paper": {},
        "paper, strength 0.5": {"strength": 0.5},
        "paper, early": {"reflection_steps": EARLY},
        "explicit": {"inversion": "explicit"},
        "implicit": {"inversion": "implicit"},
        "current": {"inversion": "current"},
        "current, strength 0.5": {"inversion": "current", "strength": 0.5},
        "current, 2 rounds": {"inversion": "current", "rounds": 2},
        "current, early": {"inversion": "current", "reflection_steps": EARLY},
        "current, late": {"inversion": "current", "reflection_steps": LATE},
    }
    return {
        f"{_guidance_label(variant)}, {label}": replace(variant, **changes)  # type: ignore[arg-type]
        for variant in _unguided_and_guided(config)
        for label, changes in changes_by_label.items()
    }


def z_sampling(config: RenderConfig) -> Settings:
    """Z-Sampling: a reflection whose gap is guidance alone, high over low."""
    inversions: tuple[WeakInversion, ...] = ("paper", "current")
    return {
        f"{_guidance_label(variant)} over {low:g}, {inversion}": replace(
            _guidance_gap(variant, low), inversion=inversion
        )
        for variant in _guided_variants(config)
        for low, inversion in product((0.0, 1.0), inversions)
    }


def fsg(config: RenderConfig) -> Settings:
    """Foresight guidance: a few longer reflections of a guidance gap at the early steps."""
    return {
        f"{_guidance_label(variant)} over {low:g}, span {span}, rounds {rounds}": replace(
            _guidance_gap(variant, low), span=span, rounds=rounds, reflection_steps=EARLY
        )
        for variant in _guided_variants(config)
        for low, (span, rounds) in product((0.0, 1.0), ((2, 1), (2, 2), (3, 1)))
    }


def resampling(config: RenderConfig) -> Settings:
    """Re-Sampling: noise instead of a weak model."""
    return _resampled(config, "resample")


def advanced_resampling(config: RenderConfig) -> Settings:
    """Re-Sampling that keeps only noise similar to the displacement of W2SD (algorithm 3 of the paper)."""
    return _resampled(config, "resample-advanced")


def s2wd(config: RenderConfig) -> Settings:
    """W2SD with the roles of strong and weak swapped."""
    return {_guidance_label(config): replace(config, strong=config.weak, weak=config.strong)}


def skip_layers(config: RenderConfig) -> Settings:
    """Skip-layer guidance: pushed away from the same network without a block, over a sweep of weights."""
    return {
        f"{_guidance_label(variant)}, {label}, weight {weight:g}": replace(
            _without_reflection(variant), weak=branch, autoguidance=weight
        )
        for variant in _unguided_and_guided(config)
        for label, branch in without_a_block(variant).items()
        for weight in WEIGHTS[1:]
    }


ARMS: dict[str, Callable[[RenderConfig], Settings]] = {
    "weak": weak,
    "strong": strong,
    "CFG": cfg,
    "AutoGuidance": autoguidance,
    "skip-layer": skip_layers,
    "Z-Sampling": z_sampling,
    "FSG": fsg,
    "Re-Sampling": resampling,
    "advanced Re-Sampling": advanced_resampling,
    "W2SD as configured": w2sd_as_configured,
    "W2SD recommended": w2sd_recommended,
    "W2SD": w2sd,
    "S2WD": s2wd,
}
"""Every arm by its name."""


def check_arms(names: Iterable[str]) -> None:
    """Refuse an arm that does not exist.

    Raises:
        ConfigError: an unknown name; the message says which there are.
    """
    for name in names:
        if name not in ARMS:
            hint = "; a prompt goes before --arms" if len(name.split()) > 3 else ""
            raise ConfigError(f"unknown arm {name!r}; {suggest(name, ARMS)}{hint}")


def candidates(arm: str, config: RenderConfig, budget: int) -> list[Candidate]:
    """Return the settings of an arm with as many steps as a budget allows; without those that no steps fit."""
    fitted = ((name, at_budget(variant, budget)) for name, variant in ARMS[arm](config).items())
    return [Candidate(arm, name, budget, variant, nfe_of(variant)) for name, variant in fitted if variant is not None]


def at_budget(config: RenderConfig, budget: int) -> RenderConfig | None:
    """Return a configuration with the most steps whose evaluations stay within a budget; None if there are none.

    A reflection needs at least as many steps as it spans and one more, or there is none of it.
    """
    fewest = config.span + 1 if config.reflection_steps != 0 else 1
    fitting = None
    for steps in range(fewest, budget + 1):
        variant = replace(config, steps=steps)
        if not _can_be_taken(variant):
            continue
        if nfe_of(variant) > budget:
            break
        fitting = variant
    return fitting


def _can_be_taken(config: RenderConfig) -> bool:
    """Return whether a configuration reflects with as many steps as it has, if it is to reflect at all."""
    try:
        return config.reflection_steps == 0 or len(reflected_steps(config)) > 0
    except ValueError:  # fewer steps than are to be reflected
        return False


def nfe_of(config: RenderConfig) -> int:
    """Return the network evaluations of a clip, in all roles."""
    return sum(evaluations(config).values())


def _without_reflection(config: RenderConfig) -> RenderConfig:
    return replace(config, reflection_steps=0, autoguidance=0.0)


def _guidance_label(config: RenderConfig) -> str:
    return f"guidance {'/'.join(f'{scale:g}' for scale in stage_scales(config.base.guidance_scale))}"


def _with_guidance(config: RenderConfig, scale: float) -> RenderConfig:
    return replace(config, base=replace(config.base, guidance_scale=scale))


def _unguided_and_guided(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration with base unguided, and guided at its own scale, or at 2 if it has none."""
    guided = config if _is_guided(config) else _with_guidance(config, 2.0)
    return [_with_guidance(config, 1.0), guided]


def _guided_variants(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration at its own guidance and at others, all above 1."""
    as_configured = [config] if _is_guided(config) else []
    at_other_scales = [_with_guidance(config, scale) for scale in (1.5, 3.0)]
    return as_configured + [variant for variant in at_other_scales if variant not in as_configured]


def _is_guided(config: RenderConfig) -> bool:
    return max(stage_scales(config.base.guidance_scale)) > 1


def _guidance_gap(config: RenderConfig, low: float) -> RenderConfig:
    return replace(config, strong=config.base, weak=replace(config.base, guidance_scale=low))


def _resampled(config: RenderConfig, inversion: Literal["resample", "resample-advanced"]) -> Settings:
    changes_by_label = {
        "all steps": {},
        "early": {"reflection_steps": EARLY},
        "early, 2 rounds": {"reflection_steps": EARLY, "rounds": 2},
    }
    return {
        f"{_guidance_label(variant)}, {label}": replace(
            variant,
            strong=variant.base,
            weak=weak_panel(variant),
            inversion=inversion,
            **changes,  # type: ignore[arg-type]
        )
        for variant in _unguided_and_guided(config)
        for label, changes in changes_by_label.items()
    }


def without_a_block(config: RenderConfig) -> dict[str, BranchConfig]:
    """Return base without a block, a third or half of the way through; of a UNet without attention in its middle."""
    denoiser = denoiser_of(config.model)
    # diffusers' transformers call their number of blocks num_layers, DiT-MoE calls it depth; UNets have neither.
    depth = next((denoiser[name] for name in ("num_layers", "depth") if denoiser.get(name)), None)
    if depth is None:
        return {"perturbed mid_block": replace(config.base, perturbed_layers=["mid_block"])}
    blocks = sorted({depth // 3, depth // 2})
    return {f"without block {number}": replace(config.base, skip_layers=[number]) for number in blocks}
