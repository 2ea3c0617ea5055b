"""What an evaluation would cost, told without one."""

from __future__ import annotations

from w2sd_video.evaluation.every_arm import arms_of
from w2sd_video.evaluation.plan import Plan
from w2sd_video.evaluation.samples import key_of_setting
from w2sd_video.jobs.pool import Pool
from w2sd_video.rendering.step_cost import cost_lines, measured_cost
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_plan


def cost_in_words(config: RenderConfig, plan: Plan, pool: Pool) -> str:
    """Say what would be loaded, how many samples and evaluations there would be, and what they would take.

    The model is loaded to measure that, if it is on this machine.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    asked = [settings for _, _, settings in arms_of(config, plan) if settings]
    tuned = {key_of_setting(one.config): one.nfe for settings in asked if len(settings) > 1 for one in settings}
    reported = [max(one.nfe for one in settings) for settings in asked]
    samples = len(tuned) * plan.tuning.samples + len(reported) * plan.report.samples
    nfe = sum(tuned.values()) * plan.tuning.samples + sum(reported) * plan.report.samples
    lines = pair_plan(config)
    lines += [
        f"arms     {len(plan.arms)} at {len(plan.budgets)} budget(s): {', '.join(map(str, plan.budgets))} NFE",
        f"tuning   {len(tuned)} settings x {plan.tuning.samples} samples",
        f"report   {len(reported)} settings x {plan.report.samples} samples",
        f"NFE      in all: at most {nfe} of {samples} samples",
    ]
    cost = measured_cost(config, min(plan.batch, plan.report.samples))
    return "\n".join([*lines, *cost_lines(cost, samples, nfe, pool.workers or 1)])
