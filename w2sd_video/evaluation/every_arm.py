"""Every arm at every budget, each at the setting that did best on other prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2sd_video.evaluation.arms import Candidate, candidates
from w2sd_video.evaluation.comparison import Outcome, Result, Tuned, choose, compare, reported
from w2sd_video.evaluation.measures import load_metrics, real_features
from w2sd_video.evaluation.plan import Plan, open_folder
from w2sd_video.evaluation.report import write_report
from w2sd_video.evaluation.samples import Laboratory, Samples, Split
from w2sd_video.evaluation.statistics import Real
from w2sd_video.metrics import Metric
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import check_device, load, quiet
from w2sd_video.rendering.sample import threads_for
from w2sd_video.settings.schema import RenderConfig


def evaluate_into(folder: Path, config: RenderConfig, plan: Plan) -> str:
    """Evaluate a configuration, write everything into a folder, and return the table in Markdown.

    What was sampled into the folder before is not sampled again.

    Raises:
        ConfigError: a plan that cannot be carried out, or the folder of something else.
        LoadError: a model, or the metric by which settings are chosen, that cannot be loaded.
        VideoError: a picture or a video that cannot be read.
    """
    device = check_device(config.device)
    inputs = read_inputs(config)
    metrics, missing = load_metrics(plan, str(device))
    real = {split.name: real_features(metrics, config, split, plan) for split in (plan.tuning, plan.report)}
    open_folder(folder, plan, metrics, config)
    laboratory = Laboratory(folder, loader_of(config), metrics, inputs, plan.batch, plan.shown)
    with threads_for(config.model.pretrained):
        outcome = evaluate(config, plan, laboratory, metrics, real)
    return write_report(folder, config, plan, metrics, missing, outcome, laboratory.clip_file)


def evaluate(
    config: RenderConfig,
    plan: Plan,
    laboratory: Laboratory,
    metrics: Sequence[Metric],
    real: Mapping[str, dict[str, Real]],
) -> Outcome:
    """Measure what is not measured yet: every arm at every budget, at the setting that did best on other prompts.

    Args:
        config: W2SD as it is configured.
        plan: what is compared.
        laboratory: samples and measures.
        metrics: those that can be had.
        real: features of real clips by metric, for each of the two splits.
    """
    select = next(metric for metric in metrics if metric.name == plan.select)
    settings_by_arm = [(arm, budget, candidates(arm, config, budget)) for budget in plan.budgets for arm in plan.arms]
    results: list[Result] = []
    tuned: list[Tuned] = []
    with tqdm(total=_samples_to_come(settings_by_arm, plan), desc="samples", unit="clip", smoothing=0.02) as bar:

        def measure(candidate: Candidate, split: Split) -> Samples:
            return laboratory.measure(candidate, split, bar.update)

        for _, _, settings in settings_by_arm:
            if settings:
                best, values = choose(settings, select, measure, plan.tuning, real["tuning"].get(select.name))
                tuned += values
                results.append(reported(best, len(settings), measure, plan.report, metrics, real["report"]))
    results = compare(results, plan.against, metrics, len(plan.report.prompts))
    return Outcome(
        results, tuned, [f"{arm} at {budget} NFE" for arm, budget, settings in settings_by_arm if not settings]
    )


def loader_of(config: RenderConfig) -> Callable[[], Any]:
    """Return a function that loads the pipeline when it is first called."""

    @cache
    def loaded() -> Any:
        with quiet():
            pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return loaded


def _samples_to_come(settings_by_arm: Sequence[tuple[str, int, list[Candidate]]], plan: Plan) -> int:
    counts = [len(settings) for _, _, settings in settings_by_arm if settings]
    tuned, (tuning, report) = sum(count for count in counts if count > 1), (plan.tuning, plan.report)
    return tuned * len(tuning.prompts) * tuning.seeds + len(counts) * len(report.prompts) * report.seeds
