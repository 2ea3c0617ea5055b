"""What an evaluation would cost, told without one."""

from __future__ import annotations

from w2sd_video.evaluation.every_arm import arms_of, work_to_come
from w2sd_video.evaluation.plan import Plan
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
    (tuned, of_tuning, nfe_of_tuning), (reported, of_report, nfe_of_report) = work_to_come(arms_of(config, plan), plan)
    samples, nfe = of_tuning + of_report, round(nfe_of_tuning + nfe_of_report)
    given_up = f" in {plan.rounds} rounds, {of_tuning} samples in all" if plan.rounds > 1 else ""
    lines = pair_plan(config)
    lines += [
        f"arms     {len(plan.arms)} at {len(plan.budgets)} budget(s): {', '.join(map(str, plan.budgets))} NFE",
        f"tuning   {tuned} settings x {plan.tuning.samples} samples{given_up}",
        f"report   {reported} settings x {plan.report.samples} samples",
        f"NFE      in all: at most {nfe} of {samples} samples",
    ]
    cost = measured_cost(config, min(plan.batch, plan.report.samples))
    return "\n".join([*lines, *cost_lines(cost, samples, nfe, pool.workers or 1)])
