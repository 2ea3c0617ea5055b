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
"""The sweep of plain guidance."""
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
    return {_guided(config): _alone(config)}


def weak(config: RenderConfig) -> Settings:
    """The weak model alone."""
    return {_guided(config): panels(replace(config, compare=True))["weak"]}


def cfg(config: RenderConfig) -> Settings:
    """Plain guidance of the strong model, over a sweep of scales."""
    alone = _alone(config)
    return {_guided(one): one for one in (_with_guidance(alone, scale) for scale in GUIDANCE_SCALES)}


def autoguidance(config: RenderConfig) -> Settings:
    """AutoGuidance: the prediction pushed away from the weak model's, over a sweep of weights."""
    return {
        f"{_guided(one)}, weight {weight:g}": replace(_alone(one), weak=weak_panel(one), autoguidance=weight)
        for one in _at_both_guidances(config)
        for weight in WEIGHTS
    }


def w2sd_as_configured(config: RenderConfig) -> Settings:
    """W2SD as the configuration has it, in the packaged ones the paper's setting."""
    return {_guided(config): config}


def w2sd_recommended(config: RenderConfig) -> Settings:
    """W2SD by the recommended preset."""
    return {_guided(config): replace(config, **PRESETS["recommended"])}


def w2sd(config: RenderConfig) -> Settings:
    """W2SD: each inversion, and windows, strengths and rounds of the paper's and of the cheapest one."""
    tried = {
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
        f"{_guided(one)}, {name}": replace(one, **changed)  # type: ignore[arg-type]
        for one in _at_both_guidances(config)
        for name, changed in tried.items()
    }


def z_sampling(config: RenderConfig) -> Settings:
    """Z-Sampling: a reflection whose gap is guidance alone, high over low."""
    inversions: tuple[WeakInversion, ...] = ("paper", "current")
    return {
        f"{_guided(one)} over {low:g}, {inversion}": replace(_guidance_gap(one, low), inversion=inversion)
        for one in _guided_ones(config)
        for low, inversion in product((0.0, 1.0), inversions)
    }


def fsg(config: RenderConfig) -> Settings:
    """Foresight guidance: a few longer reflections of a guidance gap at the early steps."""
    return {
        f"{_guided(one)} over {low:g}, span {span}, rounds {rounds}": replace(
            _guidance_gap(one, low), span=span, rounds=rounds, reflection_steps=EARLY
        )
        for one in _guided_ones(config)
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
    return {_guided(config): replace(config, strong=config.weak, weak=config.strong)}


def skip_layers(config: RenderConfig) -> Settings:
    """Skip-layer guidance: pushed away from the same network without a block, over a sweep of weights."""
    return {
        f"{_guided(one)}, {less}, weight {weight:g}": replace(_alone(one), weak=branch, autoguidance=weight)
        for one in _at_both_guidances(config)
        for less, branch in _with_less(one).items()
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
            raise ConfigError(f"unknown arm {name!r}; {suggest(name, ARMS)}")


def candidates(arm: str, config: RenderConfig, budget: int) -> list[Candidate]:
    """Return the settings of an arm with as many steps as a budget allows; without those that no steps fit."""
    fitted = ((name, at_budget(one, budget)) for name, one in ARMS[arm](config).items())
    return [Candidate(arm, name, budget, one, nfe_of(one)) for name, one in fitted if one is not None]


def at_budget(config: RenderConfig, budget: int) -> RenderConfig | None:
    """Return a configuration with the most steps whose evaluations stay within a budget; None if there are none.

    A reflection needs at least as many steps as it spans and one more, or there is none of it.
    """
    fewest = config.span + 1 if config.reflection_steps != 0 else 1
    fitting = None
    for steps in range(fewest, budget + 1):
        one = replace(config, steps=steps)
        if config.reflection_steps != 0 and not reflected_steps(one):
            continue
        if nfe_of(one) > budget:
            break
        fitting = one
    return fitting


def nfe_of(config: RenderConfig) -> int:
    """Return the network evaluations of a clip, in all roles."""
    return sum(evaluations(config).values())


def _alone(config: RenderConfig) -> RenderConfig:
    return replace(config, reflection_steps=0, autoguidance=0.0)


def _guided(config: RenderConfig) -> str:
    return f"guidance {'/'.join(f'{scale:g}' for scale in stage_scales(config.base.guidance_scale))}"


def _with_guidance(config: RenderConfig, scale: float) -> RenderConfig:
    return replace(config, base=replace(config.base, guidance_scale=scale))


def _at_both_guidances(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration with base unguided, and guided at its own scale, or at 2 if it has none."""
    guided = config if _is_guided(config) else _with_guidance(config, 2.0)
    return [_with_guidance(config, 1.0), guided]


def _guided_ones(config: RenderConfig) -> list[RenderConfig]:
    """Return a configuration at its own guidance and at others, all above 1."""
    own = [config] if _is_guided(config) else []
    others = [_with_guidance(config, scale) for scale in (1.5, 3.0)]
    return own + [one for one in others if one not in own]


def _is_guided(config: RenderConfig) -> bool:
    return max(stage_scales(config.base.guidance_scale)) > 1


def _guidance_gap(config: RenderConfig, low: float) -> RenderConfig:
    return replace(config, strong=config.base, weak=replace(config.base, guidance_scale=low))


def _resampled(config: RenderConfig, inversion: Literal["resample", "resample-advanced"]) -> Settings:
    tried = {
        "all steps": {},
        "early": {"reflection_steps": EARLY},
        "early, 2 rounds": {"reflection_steps": EARLY, "rounds": 2},
    }
    return {
        f"{_guided(one)}, {name}": replace(
            one,
            strong=one.base,
            weak=weak_panel(one),
            inversion=inversion,
            **changed,  # type: ignore[arg-type]
        )
        for one in _at_both_guidances(config)
        for name, changed in tried.items()
    }


def _with_less(config: RenderConfig) -> dict[str, BranchConfig]:
    """Return base without a block, a third or half of the way through; of a UNet without attention in its middle."""
    denoiser = denoiser_of(config.model)
    depth = next((denoiser[name] for name in ("num_layers", "depth") if denoiser.get(name)), None)
    if depth is None:
        return {"perturbed mid_block": replace(config.base, perturbed_layers=["mid_block"])}
    blocks = sorted({depth // 3, depth // 2})
    return {f"without block {number}": replace(config.base, skip_layers=[number]) for number in blocks}
