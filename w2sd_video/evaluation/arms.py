"""The arms of a comparison: each a name and the settings of one sampler among which its best is looked for.

None has sampler code of its own. W2SD, guidance, AutoGuidance, Z-Sampling, foresight guidance, Re-Sampling and
skip-layer guidance are all a ``RenderConfig``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from w2sd_video._moved import names_of
from w2sd_video.evaluation.places import SETTINGS, Settings, at_places, is_guided
from w2sd_video.messages import ConfigError, suggest
from w2sd_video.presets import PRESETS
from w2sd_video.settings.evaluations import at_budget, nfe_of
from w2sd_video.settings.panels import weak_panel
from w2sd_video.settings.schema import BranchConfig, RenderConfig, reflection_of, stage_scales, without_reflection
from w2sd_video.settings.sources import denoiser_of, is_told_guidance

__getattr__ = names_of(__name__)

GUIDANCE_SCALES = (2.0, 3.0, 5.0, 1.5, 4.0, 7.0)
"""The scales of plain guidance, past what the miniatures' configurations have."""
WEIGHTS = (1.0, 0.5, 2.0)
"""The weights of skip-layer guidance."""
_MOST_STEPS_OF_A_GRID = 100
"""Beyond about 150 steps two of a grid are at one timestep."""


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
    return {_guidance_label(config): without_reflection(config)}


def weak(config: RenderConfig) -> Settings:
    """The weak model alone."""
    return {_guidance_label(config): replace(without_reflection(config), base=weak_panel(config))}


def cfg(config: RenderConfig) -> Settings:
    """Plain guidance of the strong model, over scales; of a gap that is reused, as AutoGuidance by the other half."""
    unreflected = without_reflection(config)
    unguided = _with_guidance(unreflected, 1.0)
    scales = {f"guidance {scale:g}": _with_guidance(unreflected, scale) for scale in GUIDANCE_SCALES}
    reusing = {} if is_told_guidance(config.model) else {name: _guidance_as_a_gap(one) for name, one in scales.items()}
    return {"guidance 1": unguided, **at_places(scales, reusing)}


def autoguidance(config: RenderConfig) -> Settings:
    """AutoGuidance: the prediction pushed away from the weak model's, over weights.

    Beside a guided base the gap is that of the guided predictions, or that without guidance, which takes a row less.
    """
    unguided, guided = (without_reflection(variant) for variant in _unguided_and_guided(config))
    alone, beside = (replace(variant, weak=weak_panel(variant)) for variant in (unguided, guided))
    plain = replace(beside, strong=alone.base, weak=alone.weak, autoguidance_gap="strong")
    return at_places(
        {
            f"{_guidance_label(variant)}{label}, weight {weight:g}": replace(variant, autoguidance=weight)
            for variant, label, weight in (
                (alone, "", 1.0),
                (plain, ", gap unguided", 1.0),
                (beside, "", 0.5),
                (alone, "", 2.0),
                (plain, ", gap unguided", 0.5),
                (beside, "", 1.0),
            )
        }
    )


def fast(config: RenderConfig) -> Settings:
    """AutoGuidance by the fast preset: along the gap of strong and weak, in the less noisy half of the steps."""
    return {_guidance_label(config): replace(without_reflection(config), **PRESETS["fast"])}


def w2sd_as_configured(config: RenderConfig) -> Settings:
    """W2SD as the configuration has it, in the packaged ones the paper's setting; nothing of one without reflection."""
    return {_guidance_label(config): config} if reflection_of(config).reflects else {}


def w2sd_recommended(config: RenderConfig) -> Settings:
    """W2SD by the recommended preset."""
    return {_guidance_label(config): replace(_reflecting(config), **PRESETS["recommended"])}


def w2sd(config: RenderConfig) -> Settings:
    """W2SD: the cheapest inversion and the paper's, with base unguided and guided, and a half of the strength."""
    unguided, guided = _unguided_and_guided(_reflecting(config))
    return at_places(
        {
            f"{_guidance_label(variant)}, {inversion}{label}": replace(
                variant,
                inversion=inversion,  # type: ignore[arg-type]
                strength=strength,
            )
            for variant, inversion, strength, label in (
                (unguided, "current", 1.0, ""),
                (guided, "current", 1.0, ""),
                (unguided, "paper", 1.0, ""),
                (guided, "paper", 1.0, ""),
                (unguided, "current", 0.5, ", strength 0.5"),
                (guided, "current", 0.5, ", strength 0.5"),
            )
        }
    )


def z_sampling(config: RenderConfig) -> Settings:
    """Z-Sampling: a reflection whose gap is guidance alone, high over low."""
    first, second = _guided_variants(_reflecting(config))
    return at_places(
        {
            f"{_guidance_label(variant)} over {low:g}, {inversion}": replace(
                _guidance_gap(variant, low),
                inversion=inversion,  # type: ignore[arg-type]
            )
            for variant, low, inversion in (
                (first, 1.0, "current"),
                (first, 0.0, "paper"),
                (second, 1.0, "current"),
                (first, 1.0, "paper"),
                (second, 0.0, "current"),
                (second, 1.0, "paper"),
            )
        }
    )


def fsg(config: RenderConfig) -> Settings:
    """Foresight guidance: a few longer reflections of a guidance gap."""
    first, second = _guided_variants(_reflecting(config))
    return at_places(
        {
            f"{_guidance_label(variant)} over {low:g}, span {span}, rounds {rounds}": replace(
                _guidance_gap(variant, low), span=span, rounds=rounds
            )
            for variant, low, span, rounds in (
                (first, 1.0, 2, 1),
                (first, 0.0, 2, 1),
                (second, 1.0, 2, 1),
                (first, 1.0, 3, 1),
                (first, 1.0, 2, 2),
                (second, 0.0, 2, 1),
            )
        }
    )


def resampling(config: RenderConfig) -> Settings:
    """Re-Sampling: noise instead of a weak model."""
    return _resampled(config, "resample")


def advanced_resampling(config: RenderConfig) -> Settings:
    """Re-Sampling that keeps only noise similar to the displacement of W2SD (algorithm 3 of the paper)."""
    return _resampled(config, "resample-advanced")


def s2wd(config: RenderConfig) -> Settings:
    """W2SD as it is configured, with the roles of strong and weak swapped."""
    swapped = replace(config, strong=config.weak, weak=config.strong)
    return {label: swapped for label in w2sd_as_configured(config)}


def skip_layers(config: RenderConfig) -> Settings:
    """Skip-layer guidance: pushed away from the same network without a block, over weights."""
    unguided, guided = (without_reflection(variant) for variant in _unguided_and_guided(config))
    settings = {
        f"{_guidance_label(variant)}, {label}, weight {weight:g}": replace(variant, weak=branch, autoguidance=weight)
        for weight in WEIGHTS
        for variant in (unguided, guided)
        for label, branch in without_a_block(variant).items()
    }
    return at_places(dict(list(settings.items())[:SETTINGS]))


ARMS: dict[str, Callable[[RenderConfig], Settings]] = {
    "weak": weak,
    "strong": strong,
    "CFG": cfg,
    "AutoGuidance": autoguidance,
    "fast": fast,
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
    return [
        Candidate(arm, name, budget, variant, nfe_of(variant))
        for name, variant in fitted
        if variant is not None and (variant.grid == 1.0 or variant.steps <= _MOST_STEPS_OF_A_GRID)
    ]


def _reflecting(config: RenderConfig) -> RenderConfig:
    """Return a configuration that reflects all steps but the last, whatever it says of that itself."""
    return replace(without_reflection(config), reflection_steps=None)


def _guidance_label(config: RenderConfig) -> str:
    return f"guidance {'/'.join(f'{scale:g}' for scale in stage_scales(config.base.guidance_scale))}"


def _with_guidance(config: RenderConfig, scale: float) -> RenderConfig:
    return replace(config, base=replace(config.base, guidance_scale=scale))


def _unguided_and_guided(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration with base unguided, and guided at its own scale, or at 2 if it has none."""
    guided = config if is_guided(config) else _with_guidance(config, 2.0)
    return [_with_guidance(config, 1.0), guided]


def _guided_variants(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration at its own guidance, or at 2 if it has none, and at another, both above 1."""
    _, guided = _unguided_and_guided(config)
    return [guided, _with_guidance(config, 1.5 if stage_scales(guided.base.guidance_scale) == (3.0,) else 3.0)]


def _guidance_gap(config: RenderConfig, low: float) -> RenderConfig:
    return replace(config, strong=config.base, weak=replace(config.base, guidance_scale=low))


def _resampled(config: RenderConfig, inversion: Literal["resample", "resample-advanced"]) -> Settings:
    unguided, guided = _unguided_and_guided(_reflecting(config))
    return at_places(
        {
            f"{_guidance_label(variant)}, rounds {rounds}": replace(
                variant, strong=variant.base, weak=weak_panel(variant), inversion=inversion, rounds=rounds
            )
            for variant, rounds in ((unguided, 1), (guided, 1), (guided, 2), (unguided, 2), (unguided, 3), (guided, 3))
        }
    )


def _guidance_as_a_gap(config: RenderConfig) -> RenderConfig:
    """Return plain guidance as AutoGuidance by the unconditional prediction, which is the same, and can be reused."""
    (scale,) = stage_scales(config.base.guidance_scale)
    unguided = _with_guidance(config, 1.0)
    return replace(unguided, weak=replace(config.base, guidance_scale=0.0), autoguidance=scale - 1)


def without_a_block(config: RenderConfig) -> dict[str, BranchConfig]:
    """Return base without a block, a third or half of the way through; of a UNet without attention in its middle."""
    denoiser = denoiser_of(config.model)
    # diffusers' transformers call their number of blocks num_layers, DiT-MoE calls it depth; UNets have neither.
    depth = next((denoiser[name] for name in ("num_layers", "depth") if denoiser.get(name)), None)
    if depth is None:
        return {"perturbed mid_block": replace(config.base, perturbed_layers=["mid_block"])}
    blocks = sorted({depth // 3, depth // 2})
    return {f"without block {number}": replace(config.base, skip_layers=[number]) for number in blocks}
