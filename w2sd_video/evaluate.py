"""Compare W2SD with its rivals at equal cost: ``python -m w2sd_video.evaluate --config miniature-cogvideox``.

Every arm (the strong model alone, plain guidance, AutoGuidance, Z-Sampling, FSG, Re-Sampling, W2SD and others) samples
the same prompts from the same noise, with as many steps as a budget of network evaluations (NFE) allows. Its best
setting is looked for on some prompts and reported on others. The folder holds results.csv (every sample), front.csv,
table.md and report.html. An interrupted evaluation goes on where it stopped. Options that are not listed here are those
of ``w2sd_video.render`` and change the configuration (``--base.guidance-scale 1``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from w2sd_video.backends.loading import pick_device
from w2sd_video.calibration.real_clips import real_clips
from w2sd_video.evaluation.arms import Candidate, candidates
from w2sd_video.evaluation.comparison import Outcome, Result, Tuned, choose, compare, reported
from w2sd_video.evaluation.plan import Plan, add_options, open_folder, plan_of
from w2sd_video.evaluation.report import write_report
from w2sd_video.evaluation.samples import SEEDS, Laboratory, Samples, Split
from w2sd_video.evaluation.statistics import Real
from w2sd_video.metrics import Distance, Metric, MetricUnavailableError, load_metric
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import LoadError, check_device, load, quiet
from w2sd_video.rendering.sample import threads_for
from w2sd_video.rendering.video import VideoError
from w2sd_video.settings.command_line import DEFAULT_CONFIG, fail, parse
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.settings.schema import ConfigError, RenderConfig
from w2sd_video.settings.sources import MINIATURE

REAL_CLIPS = 8
"""Clips a prompt of the miniatures' world that samples are compared with; their seeds are no sample's."""


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation that a command line names, print its table and write its folder."""
    parser = argparse.ArgumentParser("python -m w2sd_video.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="NAME|FILE", help="W2SD as it is configured")
    add_options(parser)
    told, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        config = parse([*rest, "--config", told.config], command="evaluate").config
        plan = plan_of(told, config, told.config)
        check_plan(config)
        check_device(config.device)
        inputs = read_inputs(config)
        metrics, missing = load_metrics(plan, str(pick_device(config.device)))
        real = {split.name: real_features(metrics, config, split, plan) for split in (plan.tuning, plan.report)}
        folder = Path(told.folder or f"runs/{Path(told.config).stem}")
        open_folder(folder, plan, metrics, config)
        laboratory = Laboratory(folder, _loader(config), metrics, inputs, plan.batch, plan.shown)
        with threads_for(config.model.pretrained):
            outcome = evaluate(config, plan, laboratory, metrics, real)
        print(write_report(folder, config, plan, metrics, missing, outcome, laboratory.clip_file))
    except (ConfigError, VideoError) as error:
        fail(str(error), command="evaluate")
    except LoadError as error:
        fail(str(error), code=1, command="evaluate")
    return 0


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
    every = [(arm, budget, candidates(arm, config, budget)) for budget in plan.budgets for arm in plan.arms]
    results: list[Result] = []
    tuned: list[Tuned] = []
    with tqdm(total=_samples_to_come(every, plan), desc="samples", unit="clip", smoothing=0.02) as bar:

        def measure(candidate: Candidate, split: Split) -> Samples:
            return laboratory.measure(candidate, split, bar.update)

        for _, _, settings in every:
            if settings:
                best, worths = choose(settings, select, measure, plan.tuning, real["tuning"].get(select.name))
                tuned += worths
                results.append(reported(best, len(settings), measure, plan.report, metrics, real["report"]))
    results = compare(results, plan.against, metrics, len(plan.report.prompts))
    return Outcome(results, tuned, [f"{arm} at {budget} NFE" for arm, budget, settings in every if not settings])


def load_metrics(plan: Plan, device: str) -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics that can be had, their networks on a device, and why the others cannot.

    Raises:
        ConfigError: a source for a metric that takes none.
        LoadError: the metric by which settings are chosen cannot be had.
    """
    metrics, missing = [], {}
    for name, source in plan.sources.items():
        try:
            metrics.append(load_metric(name, device=device, **({"source": source} if source else {})))
        except MetricUnavailableError as error:
            missing[name] = str(error)
            print(f"w2sd_video.evaluate: the metric {name} is left out: {error}", file=sys.stderr)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if plan.select in missing:
        raise LoadError(f"select {plan.select}: {missing[plan.select]}")
    return metrics, missing


def real_features(metrics: Sequence[Metric], config: RenderConfig, split: Split, plan: Plan) -> dict[str, Real]:
    """Return the features of real clips by metric: of those given, or of clips of the miniatures' world.

    Raises:
        ConfigError: a distance of a single sample, or one that compares with real clips where nobody can make them.
        VideoError: a real clip that cannot be read.
    """
    if of_sets := [metric.name for metric in metrics if isinstance(metric, Distance)]:
        if len(split.prompts) * split.seeds < 2:
            raise ConfigError(f"{split.name}: 1 sample, but {of_sets[0]} is of a set; take more prompts or seeds")
    distances = [metric for metric in metrics if isinstance(metric, Distance) and metric.needs_real]
    if not distances:
        return {}
    if plan.real is None and not config.model.pretrained.startswith(MINIATURE):
        raise ConfigError(f"metrics {distances[0].name}: compares with real clips; name a folder of them with --real")
    clips = plan.real or real_clips(config, list(split.prompts) * REAL_CLIPS, 100 * SEEDS)
    features: dict[str, list[np.ndarray]] = {metric.name: [] for metric in distances}
    for clip in tqdm(clips, desc=f"real clips, {split.name}", leave=False):
        frames = clip.read()[None]
        for metric in distances:
            features[metric.name].append(metric.features(frames))
    prompt = None if plan.real else np.arange(len(clips)) % len(split.prompts)
    return {name: Real(np.concatenate(parts), prompt) for name, parts in features.items()}


def _loader(config: RenderConfig) -> Callable[[], Any]:
    """Return a function that loads the pipeline when it is first called."""

    @cache
    def loaded() -> Any:
        with quiet():
            pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return loaded


def _samples_to_come(every: Sequence[tuple[str, int, list[Candidate]]], plan: Plan) -> int:
    counts = [len(settings) for _, _, settings in every if settings]
    tried, (tuning, report) = sum(count for count in counts if count > 1), (plan.tuning, plan.report)
    return tried * len(tuning.prompts) * tuning.seeds + len(counts) * len(report.prompts) * report.seeds


if __name__ == "__main__":
    sys.exit(main())
