"""What a calibration would cost, told without one."""

from __future__ import annotations

from dataclasses import replace

from w2sd_video.jobs.pool import Pool
from w2sd_video.rendering.step_cost import cost_lines, measured_cost
from w2sd_video.settings.evaluations import evaluations, nfe_of, reflected_steps
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_plan


def cost_in_words(config: RenderConfig, clips: int, draws: int, batch: int, samples: bool, pool: Pool) -> str:
    """Say what would be loaded, how many evaluations there would be, and what they would take.

    The model is loaded to measure that, if it is on this machine.

    Args:
        config: as `calibrated_config` returns it.
        clips: how many.
        draws: of noise, for each clip and level.
        batch: clips evaluated together.
        samples: whether clips are sampled too.
        pool: who would do it.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    reflected = replace(config, inversion="paper", rounds=1, span=1, strength=1.0)
    by_role = evaluations(reflected)
    of_a_level = (by_role["strong"] + by_role["weak"]) // max(len(reflected_steps(reflected)), 1)
    compared = clips * draws * config.steps * of_a_level * (3 if samples else 1)
    of_samples = 0
    if samples:
        both = (replace(config, reflection_steps=0), replace(config, strength=1.0))
        of_samples = clips * sum(map(nfe_of, both))
    lines = pair_plan(config)
    lines += [
        f"clips    {clips} real, {2 * clips if samples else 0} sampled; {config.steps} levels, {draws} draw(s)",
        f"NFE      comparing: at most {compared}; sampling: at most {of_samples}",
    ]
    cost = measured_cost(replace(config, prompts=config.prompts[:1]), min(batch, clips))
    return "\n".join([*lines, *cost_lines(cost, 2 * clips if samples else 0, compared + of_samples, pool.workers or 1)])
