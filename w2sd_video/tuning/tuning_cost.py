"""What a search would cost, told without one."""

from __future__ import annotations

from w2sd_video.jobs.pool import Pool
from w2sd_video.rendering.step_cost import cost_lines, measured_cost
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_plan
from w2sd_video.tuning.tuning_plan import TuningPlan


def cost_in_words(config: RenderConfig, plan: TuningPlan, seconds: float | None, pool: Pool) -> str:
    """Say what would be loaded, how many samples and evaluations there would be at most, and what they would take.

    The model is loaded to measure that, if it is on this machine.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    tuning = plan.voted.samples if plan.is_voted else plan.tuning.samples
    trials, reported = plan.trials * len(plan.operators), plan.best + len(plan.operators) + 1
    samples = trials * tuning + reported * plan.report.samples
    cost = measured_cost(config, min(plan.batch, plan.report.samples))
    nfe = plan.nfe if seconds is None or cost is None else cost.nfe_in(seconds)
    lines = pair_plan(config)
    lines += [f"left out {name}: {reason}" for name, reason in plan.missing.items()]
    names = ", ".join(operator.name for operator in plan.operators)
    lines += [
        f"budget   {nfe} NFE a clip" if nfe else f"budget   {seconds:g} seconds a clip",
        f"search   {len(plan.operators)} operators x {plan.trials} settings x at most {tuning} samples: {names}",
        f"report   at most {reported} settings x {plan.report.samples} samples of other prompts",
    ]
    if nfe:
        all_of_them = f"at most {samples * nfe} of {samples} samples"
        lines.append(f"NFE      in all: {all_of_them}, fewer as hopeless settings are given up")
    return "\n".join([*lines, *cost_lines(cost, samples, samples * nfe, pool.workers or 1)])
