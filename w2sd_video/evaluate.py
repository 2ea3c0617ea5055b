"""Compare W2SD with its rivals at equal cost: ``python -m w2sd_video.evaluate --config miniature-cogvideox``.

Every arm (the strong model alone, plain guidance, AutoGuidance, Z-Sampling, FSG, Re-Sampling, W2SD and others) samples
the same prompts from the same noise, with as many steps as a budget of network evaluations (NFE) allows. Its best
setting is looked for on some prompts and reported on others. The folder holds results.csv (every sample), front.csv,
table.md and report.html. An interrupted evaluation goes on where it stopped. Options that are not listed here are those
of ``w2sd_video.render`` and change the configuration (``--base.guidance-scale 1``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from w2sd_video.clips import clips_of_folder, known_prompts, real_clips
from w2sd_video.config import DEFAULT_CONFIG, fail, parse
from w2sd_video.evaluation.arms import ARMS, Candidate, candidates, check_arms, nfe_of
from w2sd_video.evaluation.comparison import Result, Tuned, choose, compare, reported
from w2sd_video.evaluation.report import write_report
from w2sd_video.evaluation.samples import SEEDS, Laboratory, Samples, Split
from w2sd_video.metrics import Distance, Metric, MetricUnavailableError, check_name, load_metric
from w2sd_video.plan import check_plan
from w2sd_video.render import LoadError, check_device, load, quiet, read_inputs, threads_for
from w2sd_video.settings import ConfigError, RenderConfig
from w2sd_video.sources import MINIATURE
from w2sd_video.video import VideoError, write_whole

REAL_CLIPS = 8
"""Clips a prompt of the miniatures' world that samples are compared with; their seeds are no sample's."""
MOST_PROMPTS = (171, 64)
"""Prompts of the report, and those on which settings are chosen, unless told."""
_WORDS = ["a red circle moving left"]
_MINIATURE_METRICS = ["likelihood", "adherence", "motion_error", "frechet_distance"]
_METRICS = ["clip_score", "aesthetics", "motion_smoothness", "flicker", "dynamic_degree"]


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation that a command line names, print its table and write its folder."""
    options, rest = _options().parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        config = parse([*rest, "--config", options.config], command="evaluate").config
        _complete(options, config)
        check_plan(config)
        check_device(config.device)
        inputs = read_inputs(config)
        folder = _folder(options, config)
        with threads_for(config.model.pretrained):
            print(evaluate(config, options, folder, inputs))
    except (ConfigError, VideoError) as error:
        fail(str(error), command="evaluate")
    except LoadError as error:
        fail(str(error), code=1, command="evaluate")
    return 0


def evaluate(config: RenderConfig, options: argparse.Namespace, folder: Path, inputs: dict[str, Any]) -> str:
    """Measure what is not measured yet, write the report, and return its table in Markdown."""
    metrics, missing = _load_metrics(options.metrics, config)
    select = next((metric for metric in metrics if metric.name == options.select), None)
    if select is None:
        raise LoadError(f"select {options.select}: {missing[options.select]}")
    tuning, report = options.splits
    real = {split.name: _real_features(metrics, config, split, options.real) for split in options.splits}
    laboratory = Laboratory(folder, _loader(config), metrics, inputs, options.batch, options.shown)
    every = [(arm, budget, candidates(arm, config, budget)) for budget in options.budgets for arm in options.arms]
    with tqdm(total=_samples_to_come(every, tuning, report), desc="samples", unit="clip", smoothing=0.02) as bar:

        def measure(candidate: Candidate, split: Split) -> Samples:
            return laboratory.measure(candidate, split, bar.update)

        results: list[Result] = []
        tuned: list[Tuned] = []
        for _, _, settings in every:
            if settings:
                best, worths = choose(settings, select, measure, tuning, real[tuning.name].get(select.name))
                tuned += worths
                results.append(reported(best, len(settings), measure, report, metrics, real[report.name]))
    results = compare(results, options.against, metrics, len(report.prompts))
    too_dear = [f"{arm} at {budget} NFE" for arm, budget, settings in every if not settings]
    return write_report(folder, config, options, metrics, results, tuned, missing, too_dear, laboratory.clip_file)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m w2sd_video.evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", default=DEFAULT_CONFIG, help="a packaged configuration or a file: W2SD as it is configured")
    add(
        "--arms",
        nargs="+",
        default=list(ARMS),
        metavar="ARM",
        help=f"what is compared; all unless told: {', '.join(ARMS)}",
    )
    add("--against", default="W2SD", metavar="ARM", help="the arm that the others are compared with; W2SD unless told")
    add("--budgets", nargs="+", type=int, metavar="NFE", help="evaluations a clip; unless told those of W2SD, and half")
    add("--metrics", nargs="+", metavar="NAME[=SOURCE]", help="what is measured; a source is a folder with its weights")
    add("--select", metavar="METRIC", help="by which an arm's best setting is chosen; unless told the last distance")
    add("--real", metavar="FOLDER", help="real clips, for metrics that compare with them; miniatures need none")
    add("--number-of-prompts", type=int, help="distinct prompts of the report")
    add("--number-of-tuning-prompts", type=int, help="other prompts, on which settings are chosen")
    add("--number-of-seeds", type=int, default=3, help="clips a prompt of the report")
    add("--number-of-tuning-seeds", type=int, default=1, help="clips a prompt on which settings are chosen")
    add("--batch", type=int, help="clips sampled together; 64 of a miniature, 1 of other models unless told")
    add("--shown", type=int, default=4, help="prompts of the report whose clips are shown in it")
    add("--folder", help="where everything is written; runs/CONFIG unless told")
    return parser


def _complete(options: argparse.Namespace, config: RenderConfig) -> None:
    """Fill in what was not told, and refuse what makes no sense.

    Raises:
        ConfigError: an unknown arm or metric, a number out of range, inputs or real clips that are missing.
    """
    is_miniature = config.model.pretrained.startswith(MINIATURE)
    check_arms([*options.arms, options.against])
    if options.metrics is None:
        options.metrics = (
            [*_MINIATURE_METRICS, *(["comets"] if config.model.lora else [])] if is_miniature else _METRICS
        )
        if config.frames == 1:
            options.metrics = [name for name in options.metrics if name not in ("motion_error", *_METRICS[2:])]
    names = [word.split("=")[0] for word in options.metrics]
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    options.select = options.select or ("frechet_distance" if "frechet_distance" in names else names[0])
    if options.select not in names:
        raise ConfigError(f"select {options.select}: is not among the metrics ({', '.join(names)})")
    if options.budgets is None:
        options.budgets = [max(nfe_of(config) // 2, 1), nfe_of(config)]
    options.batch = options.batch or (64 if is_miniature else 1)
    prompts = known_prompts(config) if is_miniature else list(dict.fromkeys(config.prompts))
    if options.number_of_prompts is None:
        options.number_of_prompts = min(MOST_PROMPTS[0], max(2 * len(prompts) // 3, 1))
    if options.number_of_tuning_prompts is None:
        options.number_of_tuning_prompts = min(MOST_PROMPTS[1], len(prompts) - options.number_of_prompts)
    limits = {"number_of_prompts": len(prompts), "number_of_tuning_prompts": len(prompts) - options.number_of_prompts}
    limits |= {"number_of_seeds": 1000, "number_of_tuning_seeds": 1000, "batch": 1024}
    for name, most in limits.items():
        if not 1 <= getattr(options, name) <= most:
            raise ConfigError(f"{name} {getattr(options, name)}: must be from 1 to {most}{_of(name, prompts)}")
    if wrong := [budget for budget in options.budgets if not 1 <= budget <= 10**4]:
        raise ConfigError(f"budgets {wrong[0]}: must be from 1 to 10000 network evaluations")
    if is_miniature:
        prompts = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
    if config.inputs and is_miniature:
        raise ConfigError(
            f"inputs.{next(iter(config.inputs))}: this miniature cannot be measured, for each prompt would need its own"
        )
    first = options.number_of_prompts
    asked = prompts[:first], prompts[first : first + options.number_of_tuning_prompts]
    options.splits = (
        Split("tuning", asked[1], first, options.number_of_tuning_seeds),
        Split("report", asked[0], 0, options.number_of_seeds),
    )
    options.real = clips_of_folder(Path(options.real), config) if options.real else None


def _of(name: str, prompts: Sequence[str]) -> str:
    return f", for there are {len(prompts)} prompts" if "prompts" in name else ""


def _folder(options: argparse.Namespace, config: RenderConfig) -> Path:
    """Return the folder of this evaluation, new or to go on with; refuse another evaluation's.

    Arms, budgets and the number of seeds may grow: what was measured stays as it is.
    """
    folder = Path(options.folder or f"runs/{Path(options.config).stem}")
    settings = {"config": asdict(config) | {"output": None, "prompts": None}, "metrics": options.metrics}
    settings |= {"splits": {split.name: list(split.prompts) for split in options.splits}, "batch": options.batch}
    settings = json.loads(json.dumps(settings))
    file = folder / "evaluation.json"
    try:
        if file.exists():
            if json.loads(file.read_text(encoding="utf-8")) != settings:
                raise ConfigError(f"folder {folder}: holds an evaluation of other settings; name another with --folder")
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"folder {folder}: is not empty and holds no evaluation; name another with --folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(settings, indent=2))
    except OSError as error:
        raise ConfigError(f"folder {folder}: cannot be written: {error.strerror}") from error
    return folder


def _load_metrics(words: Sequence[str], config: RenderConfig) -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics that can be had, and why the others cannot."""
    metrics, missing = [], {}
    for word in words:
        name, _, source = word.partition("=")
        try:
            metrics.append(load_metric(name, **({"source": source} if source else {})))
        except MetricUnavailableError as error:
            missing[name] = str(error)
            print(f"w2sd_video.evaluate: metric {name} left out: {error}", file=sys.stderr)
        except TypeError as error:
            raise ConfigError(f"metrics {word}: {name} takes no source") from error
    return metrics, missing


def _real_features(
    metrics: Sequence[Metric], config: RenderConfig, split: Split, given: Sequence[Any] | None
) -> dict[str, np.ndarray]:
    """Return the features of real clips by metric: of those given, or of clips of the miniatures' world."""
    distances = [metric for metric in metrics if isinstance(metric, Distance) and metric.needs_real]
    if not distances:
        return {}
    clips = given or real_clips(config, list(split.prompts) * REAL_CLIPS, 100 * SEEDS)
    frames = np.stack([clip.read() for clip in clips])
    return {metric.name: metric.features(frames) for metric in distances}


def _loader(config: RenderConfig) -> Callable[[], Any]:
    @cache
    def loaded() -> Any:
        with quiet():
            pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return loaded


def _samples_to_come(every: Sequence[tuple[str, int, list[Candidate]]], tuning: Split, report: Split) -> int:
    each = [len(settings) for _, _, settings in every if settings]
    tried = sum(count for count in each if count > 1)
    return tried * len(tuning.prompts) * tuning.seeds + len(each) * len(report.prompts) * report.seeds


if __name__ == "__main__":
    sys.exit(main())
