"""What a search is to do, from its command line, checked before any model is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from w2sd_video.evaluation.plan import MOST_ROUNDS, Measurement, measurement_of, metrics_of, warning_of_choice
from w2sd_video.evaluation.splits import Split, rounds_of
from w2sd_video.jobs.pool_options import add_pool_options
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.step_cost import measured_cost
from w2sd_video.settings.command_line import refuse_words
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.sources import MINIATURE
from w2sd_video.settings.value_checks import check_range
from w2sd_video.tuning.operators import OPERATORS, Operator, fitted, operators_of, plain_of
from w2sd_video.tuning.votes import VOTE, Vote, read_votes

_NOT_FOLLOWED = dict.fromkeys(("-o", "--output"), "a search fills a folder; name it with --folder") | {
    "--seed": "the noise of a search is always the same; --search-seed proposes other settings",
    "--compare": "a search compares operators; name them with --operators",
    "--steps": "the number of steps follows from --nfe or --seconds",
    "--shard": "a search proposes settings by what it knows of others; use --workers or --ray",
    "--arms": "name what is searched with --operators",
    "--budgets": "a search has one budget; give it with --nfe or --seconds",
    "--metrics": "name what is searched by with --metric, and what is only reported with --also",
}
"""Options of other commands that mean nothing here, and what to take instead."""
_REPORT_CLIPS = 512
"""Clips of a miniature, which take no time, on which settings are searched and reported unless given."""
_VOTED_PROMPTS = 4
"""Prompts that people vote on unless given."""


@dataclass(frozen=True, kw_only=True)
class TuningPlan(Measurement):
    """What is searched, by what, and on what.

    Attributes:
        operators: that are searched.
        missing: why others that were asked for are not, by their names.
        nfe: network evaluations a clip that no setting exceeds.
        metrics: names of what is searched by; "vote" for people's votes.
        trials: settings of each operator that are tried.
        rounds: parts in which the prompts are looked at.
        best: how many of the best settings are reported, beside the best of each operator.
        seed: of the proposals.
        votes: those that there are.
    """

    operators: Sequence[Operator]
    missing: dict[str, str]
    nfe: int
    metrics: Sequence[str]
    trials: int
    rounds: int
    best: int
    seed: int
    votes: Sequence[Vote]

    @property
    def is_voted(self) -> bool:
        """Whether people say what is better."""
        return list(self.metrics) == [VOTE]

    @property
    def voted(self) -> Split:
        """The prompts of the search of which clips are voted on."""
        return Split("vote", self.tuning.prompts[: self.shown], self.tuning.first, 1)

    @property
    def parts(self) -> list[Split]:
        """The prompts of the search, in the parts in which they are looked at."""
        return [self.voted] if self.is_voted else rounds_of(self.tuning, self.rounds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--nfe", type=int, help="budget: network evaluations a clip; unless given those of the configuration")
    add("--seconds", type=float, help="budget: seconds a clip, of which the evaluations are worked out once, here")
    add(
        "--metric",
        nargs="+",
        metavar="NAME[=SOURCE]",
        help="what is searched by, the first decides; vote: people do; for miniatures likelihood unless given",
    )
    add("--also", nargs="+", metavar="NAME[=SOURCE]", default=[], help="what is reported too, but not searched by")
    add("--operators", nargs="+", metavar="NAME", help=f"what is searched; unless given: {', '.join(OPERATORS)}")
    add("--trials", type=int, help="settings of each operator that are tried; 24, or 3 by votes, unless given")
    add("--rounds", type=int, default=4, help="parts in which samples are looked at, a few first; 1 gives nothing up")
    add("--best", type=int, default=3, help="how many of the best settings are reported, beside each operator's best")
    add("--search-seed", type=int, default=0, help="of the proposals")
    add("--votes", nargs="+", metavar="FILE", default=[], help="votes that the page has saved, all of them so far")
    add("--real", metavar="FOLDER", help="real clips, for metrics that compare with them; miniatures need none")
    add("--number-of-prompts", type=int, help="prompts of the report")
    add("--number-of-tuning-prompts", type=int, help="other prompts, on which settings are searched")
    add("--number-of-seeds", type=int, help="clips a prompt of the report; 1, or for a miniature 512 in all")
    add("--number-of-tuning-seeds", type=int, help="clips a prompt of the search; 1, or for a miniature 500 in all")
    add("--batch", type=int, help="clips sampled together; 64 of a miniature and 1 of other models unless given")
    add("--shown", type=int, default=_VOTED_PROMPTS, help="prompts of which clips are shown, or voted on")
    add("--folder", help="where everything is written; runs/tune-CONFIG unless given")
    add_pool_options(parser)


def check_words(words: Sequence[str]) -> None:
    """Refuse options of other commands that a search would not follow (ConfigError)."""
    refuse_words(words, _NOT_FOLLOWED)


def tuning_plan_of(options: argparse.Namespace, config: RenderConfig, name: str) -> TuningPlan:
    """Fill in what was not given, and refuse what makes no sense.

    A budget of seconds is left open, as 0 evaluations; `nfe_in` works it out.

    Args:
        options: the options.
        config: the configuration.
        name: of the configuration, or its file.

    Raises:
        ConfigError: an unknown operator or metric, a number out of range, too few prompts, no real clips, votes that
            cannot be read.
    """
    if options.shard is not None:
        raise ConfigError(f"--shard: {_NOT_FOLLOWED['--shard']}")
    if options.nfe is not None and options.seconds is not None:
        raise ConfigError("--nfe and --seconds: are both a budget; leave one out")
    check_range("--seconds", options.seconds, 1e-3, 10**6)
    metrics = options.metric or _usual_metric(config)
    names = [metric.partition("=")[0] for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError(f"--metric {' '.join(metrics)}: names one twice")
    if VOTE in names and (len(names) > 1 or options.also):
        raise ConfigError("--metric vote: cannot be had beside other metrics; leave them out")
    is_voted = names == [VOTE]
    if options.votes and not is_voted:
        raise ConfigError("--votes: are for a search by --metric vote")
    for option, most, value in (
        ("--trials", 10**4, options.trials),
        ("--rounds", MOST_ROUNDS, options.rounds),
        ("--best", 100, options.best),
    ):
        check_range(option, value, 1, most)
    check_range("--search-seed", options.search_seed, 0, 2**32 - 1)
    check_range("--shown", options.shown, 2 if is_voted else 0, 1000)
    operators, missing = operators_of(config, tuple(dict.fromkeys(options.operators or OPERATORS)))
    sources, select = ({}, VOTE) if is_voted else metrics_of(config, [*metrics, *options.also], names[0])
    measurement = measurement_of(options, config, name, sources, select)
    report = measurement.report
    if not is_voted:
        warning_of_choice(select, measurement.tuning, options.rounds)
    if is_voted:
        few = min(measurement.shown, len(measurement.tuning.prompts), len(report.prompts))
        if few < 2:
            raise ConfigError("--metric vote: there are too few prompts; at least 2 are searched by and 2 reported")
        report = replace(report, prompts=report.prompts[: measurement.shown], seeds=1)
    elif options.number_of_seeds is None and config.model.pretrained.startswith(MINIATURE):
        report = replace(report, seeds=math.ceil(_REPORT_CLIPS / len(report.prompts)))
    return TuningPlan(
        **vars(replace(measurement, report=report)),
        operators=operators,
        missing=missing,
        nfe=_nfe_asked_for(options, config),
        metrics=names,
        trials=options.trials or (3 if is_voted else 24),
        rounds=options.rounds,
        best=options.best,
        seed=options.search_seed,
        votes=read_votes(Path(file) for file in options.votes),
    )


def nfe_in(config: RenderConfig, seconds: float, batch: int) -> int:
    """Return how many network evaluations a clip may have to take so many seconds on this machine.

    The model is loaded, and a few steps of one batch are measured.

    Raises:
        ConfigError: fewer seconds than a step takes, or a model that is not on this machine.
        LoadError: a model that cannot be loaded.
    """
    cost = measured_cost(config, batch)
    if cost is None:
        raise ConfigError(f"--seconds {seconds:g}: the model is not on this machine to measure it; give --nfe")
    nfe = cost.nfe_in(seconds)
    if nfe < 1 or fitted(plain_of(config), nfe) is None:
        raise ConfigError(
            f"--seconds {seconds:g}: a clip takes {cost.rest:.3g} beside evaluations of "
            f"{cost.evaluation:.3g} each; give more"
        )
    return nfe


def _nfe_asked_for(options: argparse.Namespace, config: RenderConfig) -> int:
    """Return the budget in network evaluations a clip; 0 where it is one of seconds."""
    if options.seconds is not None:
        return 0
    nfe = nfe_of(config) if options.nfe is None else int(options.nfe)
    check_range("--nfe", nfe, 1, 10**4)
    if fitted(plain_of(config), nfe) is None:
        of_a_step = nfe_of(replace(plain_of(config), steps=1))
        raise ConfigError(f"--nfe {nfe}: a step of this configuration takes {of_a_step}; give at least that")
    return nfe


def _usual_metric(config: RenderConfig) -> list[str]:
    if config.model.pretrained.startswith(MINIATURE):
        return ["likelihood"]
    raise ConfigError("--metric: none given; name one, such as clip_score, or vote, to choose by eye")
