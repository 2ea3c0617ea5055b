"""What an evaluation is to do, from its command line, checked before any model is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from w2sd_video._moved import names_of
from w2sd_video.calibration.real_clips import Clip, clips_of_folder, known_prompts
from w2sd_video.command_parser import BLANK
from w2sd_video.evaluation.arms import ARMS, candidates, check_arms
from w2sd_video.evaluation.splits import Split, rounds_of
from w2sd_video.jobs.pool_options import add_pool_options
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import BIASED, check_name
from w2sd_video.settings.command_line import refuse_words
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.settings.files import read_config
from w2sd_video.settings.model_checks import class_label
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import MINIATURE, class_names, index_of, is_class_conditional, world_of
from w2sd_video.settings.value_checks import check_range

__getattr__ = names_of(__name__)

MOST_PROMPTS, MOST_TUNING_PROMPTS = 171, 64
"""Prompts of the report, and those on which settings are chosen, unless given: as far as there are as many."""
OF_THE_WORLD = (
    "likelihood",
    "adherence",
    "motion_error",
    "kid",
    "frechet_distance",
    "frechet_principal",
    "precision",
    "recall",
)
"""Metrics of the miniatures unless given."""
OF_FASHION = ("likelihood", "adherence", "kid_efficientnet", "frechet_efficientnet")
"""Metrics of real pictures unless given, by a network that is not ours."""
_OF_DRAWN_WORLDS = ("motion_error", "kid", "frechet_distance", "frechet_principal", "precision", "recall")
OF_ANYTHING = ("clip_score", "aesthetics", "motion_smoothness", "flicker", "dynamic_degree")
"""Metrics of other models unless given."""
MOST_ROUNDS = 10
"""Parts in which prompts are looked at, one about as large as all before it."""
SAMPLES_TO_CHOOSE_ON = 500
"""Samples of a setting below which chance decides among those that are near each other."""
_OF_VIDEO = ("motion_error", "motion_smoothness", "flicker", "dynamic_degree")
"""Metrics that compare frames, so that a model of images is not measured by them."""


_NOT_FOLLOWED = dict.fromkeys(("-o", "--output"), "an evaluation fills a folder; name it with --folder") | {
    "--seed": "the noise of an evaluation is always the same; --number-of-seeds takes more of it",
    "--compare": "an evaluation compares arms; name them with --arms",
}
"""Options of a render that mean nothing here, and what to take instead."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What settings are measured by, and on what.

    Attributes:
        sources: where the weights of each metric are, by its name; empty for the published ones.
        select: the metric by which the best setting is chosen.
        tuning: the prompts on which it is chosen.
        report: the prompts on which it is reported.
        real: clips to compare with; None for the miniatures' world.
        batch: clips sampled together.
        shown: prompts of the report whose clips are kept and shown.
    """

    sources: Mapping[str, str]
    select: str
    tuning: Split
    report: Split
    real: Sequence[Clip] | None
    batch: int
    shown: int


@dataclass(frozen=True, kw_only=True)
class Plan(Measurement):
    """What is compared, how, and on what.

    Attributes:
        arms: names of what is compared.
        against: the arm that the others are compared with.
        budgets: network evaluations a clip that no setting exceeds.
        warning: what is to be said of how settings are chosen; empty if nothing.
        rounds: parts in which the samples on which settings are chosen are looked at; see `choose_in_rounds`.
    """

    arms: Sequence[str]
    against: str
    budgets: Sequence[int]
    warning: str = ""
    rounds: int = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add(
        "--arms",
        nargs="+",
        metavar="ARM",
        help=f"what is compared; unless given: {', '.join(ARMS)}",
    )
    add("--against", metavar="ARM", help="the arm that the others are compared with; W2SD, or the first, unless given")
    add(
        "--budgets", nargs="+", type=int, metavar="NFE", help="evaluations a clip; unless given those of W2SD, and half"
    )
    add("--metrics", nargs="+", metavar="NAME[=SOURCE]", help="what is measured; a source is a folder with its weights")
    add("--select", metavar="METRIC", help="by which settings are chosen; likelihood, kid or the first unless given")
    add(
        "--real",
        metavar="FOLDER",
        help="real clips, for metrics that compare with them; the miniatures' world makes its own",
    )
    add("--number-of-prompts", type=int, help=f"prompts of the report; {MOST_PROMPTS}, or two of three, unless given")
    add("--number-of-tuning-prompts", type=int, help="other prompts, on which settings are chosen")
    add("--number-of-seeds", type=int, default=3, help="clips a prompt of the report")
    add(
        "--number-of-tuning-seeds",
        type=int,
        help=f"clips a prompt on which settings are chosen; of a miniature as many as make {SAMPLES_TO_CHOOSE_ON}",
    )
    add(
        "--rounds",
        type=int,
        default=1,
        help="parts in which the samples on which settings are chosen are looked at, a few first; after each an arm "
        "gives up the worse half of its settings; 1, unless given, gives nothing up",
    )
    add("--batch", type=int, help="clips sampled together; 64 of a miniature and 1 of other models unless given")
    add("--shown", type=int, default=4, help="prompts of the report whose clips are shown in it")
    add("--folder", help="where everything is written; runs/CONFIG unless given")
    add_pool_options(parser)


def check_words(words: Sequence[str], has_budgets: bool) -> None:
    """Refuse options of a render that an evaluation would not follow.

    Args:
        words: of the command line that change the configuration.
        has_budgets: whether the budgets are given, so that nothing follows from the number of steps.

    Raises:
        ConfigError: such an option; the message says what to take instead.
    """
    instead = _NOT_FOLLOWED | (
        {"--steps": "--budgets says how many evaluations there are; leave one out"} if has_budgets else {}
    )
    refuse_words(words, instead)


def plan_of(options: argparse.Namespace, config: RenderConfig, name: str) -> Plan:
    """Fill in what was not given, and refuse what makes no sense.

    Args:
        options: the options.
        config: W2SD as it is configured.
        name: of the configuration, or its file.

    Raises:
        ConfigError: an unknown arm or metric, a number out of range, too few prompts, no real clips.
    """
    arms = list(dict.fromkeys(options.arms or ARMS))
    check_arms([*arms, *([options.against] if options.against else [])])
    against = options.against or ("W2SD" if "W2SD" in arms else arms[0])
    if against not in arms:
        raise ConfigError(f"--against {against}: is not among the arms that are compared, {', '.join(arms)}")
    sources, select = metrics_of(config, options.metrics, options.select)
    measurement = measurement_of(options, config, name, sources, select)
    for budget in options.budgets or []:
        _within("budgets", budget, 1, 10**4)
    is_chosen = any(len(ARMS[arm](config)) > 1 for arm in arms)
    budgets = sorted(set(options.budgets or [max(nfe_of(config) // 2, 1), nfe_of(config)]))
    for arm in options.arms or [against]:  # of those that nobody named, it is only noted
        if not ARMS[arm](config):
            raise ConfigError(
                f"arm {arm}: the configuration reflects no step (reflection_steps or strength is 0); leave the arm out"
            )
        if not any(candidates(arm, config, budget) for budget in budgets):
            fits = ", ".join(map(str, budgets))
            raise ConfigError(
                f"arm {arm}: none of its settings fits {fits} evaluations; raise --budgets or leave it out"
            )
    rounds = _within("rounds", options.rounds, 1, MOST_ROUNDS)
    warning = warning_of_choice(select, measurement.tuning, rounds) if is_chosen else ""
    return Plan(**vars(measurement), arms=arms, against=against, budgets=budgets, warning=warning, rounds=rounds)


def metrics_of(config: RenderConfig, metrics: Sequence[str] | None, select: str | None) -> tuple[dict[str, str], str]:
    """Return where the weights of each metric are, by its name, and the one by which settings are chosen.

    Args:
        config: the configuration.
        metrics: as the command line has them, NAME[=SOURCE]; those of its kind of model unless given.
        select: the one to choose by; likelihood, kid or the first unless given.

    Raises:
        ConfigError: an unknown metric, one that is not of this world, or one to choose by that is not measured.
    """
    sources = _sources(metrics or _usual_metrics(config))
    if world_of(config.model) == "fashion" and (foreign := sorted(set(sources) & set(_OF_DRAWN_WORLDS))):
        raise ConfigError(f"metrics {foreign[0]}: is of worlds that are drawn; of fashion take {', '.join(OF_FASHION)}")
    select = select or next((name for name in ("likelihood", "kid") if name in sources), next(iter(sources)))
    if select not in sources:
        raise ConfigError(f"select {select}: is not among the metrics, {', '.join(sources)}")
    return sources, select


def measurement_of(
    options: argparse.Namespace, config: RenderConfig, name: str, sources: Mapping[str, str], select: str
) -> Measurement:
    """Fill in what was not given of the options that evaluations and searches have in common.

    Args:
        options: numbers of prompts and seeds, ``real``, ``batch`` and ``shown``.
        config: the configuration.
        name: of the configuration, or its file.
        sources: see `metrics_of`.
        select: the same.

    Raises:
        ConfigError: a number out of range, too few prompts, no real clips.
    """
    is_miniature = config.model.pretrained.startswith(MINIATURE)
    if config.inputs and is_miniature:
        raise ConfigError(
            f"inputs.{next(iter(config.inputs))}: this miniature cannot be measured, for each prompt would need its own"
        )
    prompts = _prompts(config, is_miniature and config.prompts == read_config(name).get("prompts"))
    count = _within(
        "number_of_prompts", options.number_of_prompts, min(MOST_PROMPTS, 2 * len(prompts) // 3), len(prompts) - 1
    )
    remaining = len(prompts) - count
    tuning_count = _within(
        "number_of_tuning_prompts", options.number_of_tuning_prompts, min(MOST_TUNING_PROMPTS, remaining), remaining
    )
    seeds = _within("number_of_seeds", options.number_of_seeds, 1, 1000)
    usual = _enough_seeds(tuning_count) if is_miniature else 1
    tuning_seeds = _within("number_of_tuning_seeds", options.number_of_tuning_seeds, usual, 1000)
    return Measurement(
        sources=sources,
        select=select,
        tuning=Split("tuning", prompts[count : count + tuning_count], count, tuning_seeds),
        report=Split("report", prompts[:count], 0, seeds),
        real=_real_clips(Path(options.real), config) if options.real else None,
        batch=_within("batch", options.batch, 64 if is_miniature else 1, 1024),
        shown=_within("shown", options.shown, 4, 1000, least=0),
    )


def _enough_seeds(prompts: int) -> int:
    """Return how many samples of each prompt are enough to choose on."""
    return math.ceil(SAMPLES_TO_CHOOSE_ON / prompts)


def warning_of_choice(select: str, tuning: Split, rounds: int) -> str:
    """Return what is to be said of settings that are chosen by a metric on so many samples, looked at in rounds.

    Raises:
        ConfigError: a distance that would choose by how many samples there are, and not by how good they are.
    """
    samples, enough = tuning.samples, _enough_seeds(len(tuning.prompts))
    fewest = rounds_of(tuning, rounds)[0].samples
    if select in BIASED and fewest < SAMPLES_TO_CHOOSE_ON:
        raise ConfigError(
            f"select {select}: on {fewest} samples it tells their number more than how good they are, and chooses by "
            f"chance; take a score or kid, or {SAMPLES_TO_CHOOSE_ON} samples at once, with --rounds 1 and "
            f"--number-of-tuning-seeds {enough}"
        )
    if samples >= SAMPLES_TO_CHOOSE_ON:
        return ""
    return (
        f"each setting is tried on {samples} samples only, and chance decides among those that are near each other; "
        f"--number-of-tuning-seeds {enough} makes {SAMPLES_TO_CHOOSE_ON} of them"
    )


def _usual_metrics(config: RenderConfig) -> list[str]:
    world = world_of(config.model)
    names: tuple[str, ...] = OF_THE_WORLD if world else OF_ANYTHING
    if world == "fashion":
        names = OF_FASHION
    elif world and config.model.lora:
        names = (*names, "hollow" if world == "scenes" else "comets")
    return [name for name in names if config.frames != 1 or name not in _OF_VIDEO]


def _sources(words: Sequence[str]) -> dict[str, str]:
    sources = {}
    for word in words:
        name, has_source, sources[name] = word.partition("=")
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if has_source and not sources[name].strip():
            raise ConfigError(f"{word}: its source {BLANK}")
    return sources


def _prompts(config: RenderConfig, of_the_world: bool) -> list[str]:
    """Return distinct prompts in an order of their own: all of the miniatures' world, or those that were given.

    A class that is given by its number is the class of that name, which is what metrics read.
    """
    names = class_names(index_of(config.model).get("id2label") or {}) if is_class_conditional(config.model) else {}
    of_number = {number: name for name, number in reversed(names.items())}  # of several names the first
    given = [of_number[class_label(prompt, names, None)] if names else prompt for prompt in config.prompts]
    prompts = known_prompts(config) if of_the_world else list(dict.fromkeys(given))
    if len(prompts) < 2:
        raise ConfigError(
            f"prompts: {len(prompts)} given; at least 2 are needed, some to choose settings on and others to report; "
            "name a file of them with --prompts"
        )
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]


def _real_clips(folder: Path, config: RenderConfig) -> list[Clip]:
    """Return the clips of a folder; of their captions nothing is asked."""
    return clips_of_folder(folder, replace(config, prompts=config.prompts[:1]))


def _within(name: str, number: int | None, default: int, most: int, least: int = 1) -> int:
    number = default if number is None else number
    check_range(name, number, least, most)
    return number
