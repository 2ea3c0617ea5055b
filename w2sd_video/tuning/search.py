"""The search: Optuna proposes values of each operator's settings, a few at a time, and forgets the hopeless early.

Values, what they came to and what was given up are in Optuna's journal, one study for each operator. Samples are kept
by their settings, so that a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import real_of, value_of
from w2sd_video.evaluation.samples import over_rounds
from w2sd_video.evaluation.splits import Split
from w2sd_video.evaluation.statistics import Real
from w2sd_video.evaluation.work import Work
from w2sd_video.jobs.folder import key_of
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import Metric
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.tuning.operators import Open, Operator, Range, values_in_words

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise ConfigError("tune: needs Optuna; pip install 'w2sd-video[tune]'") from error

AT_A_TIME = 4
"""Trials of each operator that are proposed together."""
Make = Callable[[Sequence[tuple[Candidate, Split]]], None]
"""Has settings sampled, each on some prompts."""
_PROPOSALS = 20
"""How often as many values are proposed as are wanted, where no number of steps fits many of them."""
_FAILED, _STAYED, _AGAIN = "failed", "stayed in round", "again"
"""Notes of a trial: why there is nothing of it, the last round in which it was not given up, and that its setting was
tried before."""
NO_STEPS = "no number of steps fits"
"""What became of values that no budget was large enough for."""
_FEWEST_FOR_IMPORTANCE = 8
"""Finished trials below which nothing is said of what matters."""


@dataclass(frozen=True)
class Tried:
    """A setting that was tried.

    Attributes:
        operator: its name.
        number: of the trial among those of the operator.
        values: of the settings that are open.
        candidate: the configuration; None where no steps fit the budget.
        scores: what it came to, by metric; empty if it was given up, or failed.
        samples: how many it was judged by.
        state: "finished", "given up", or why it failed.
    """

    operator: str
    number: int
    values: Mapping[str, Any]
    candidate: Candidate | None
    scores: Mapping[str, float]
    samples: int
    state: str


class Judge(Protocol):
    """Says what settings are worth."""

    def __call__(self, candidate: Candidate, rounds: int) -> Sequence[float] | str | None:
        """Return a number for each metric, by the samples of the first rounds; or why there is none; None: not yet."""


class Search:
    """Searches every operator with the same number of trials.

    Args:
        journal: file of what was tried.
        operators: that are searched.
        metrics: names of what settings are judged by, and whether more of it is better; with one of them the hopeless
            are given up after each round but the last.
        nfe: network evaluations a clip.
        rounds: prompts that are looked at one after the other; all of them by settings that are not given up.
        seed: of the proposals.
        at_a_time: trials of each operator that are proposed together: the same for any number of workers, so that all
            find the same.
    """

    def __init__(
        self,
        journal: Path,
        operators: Sequence[Operator],
        metrics: Mapping[str, bool],
        nfe: int,
        rounds: Sequence[Split],
        seed: int = 0,
        at_a_time: int = AT_A_TIME,
    ) -> None:
        self._operators = {operator.name: operator for operator in operators}
        self._metrics, self._nfe, self._rounds, self._seed = dict(metrics), nfe, list(rounds), seed
        self._at_a_time = at_a_time
        self._candidates: dict[tuple[str, str], Candidate | None] = {}
        with _quiet():
            storage = _opened(journal)
            self._studies = {operator.name: self._study(storage, operator) for operator in operators}

    def run(self, trials: int, make: Make, judge: Judge) -> list[Candidate]:
        """Try as many values of each operator, but for those that were tried before.

        Args:
            trials: of each operator.
            make: has settings sampled on the prompts of a round.
            judge: says what they are worth.

        Returns:
            Settings of which that is not known yet; none if the search is at its end.
        """
        while True:
            with _quiet():
                at_hand = [pair for name in self._operators for pair in self._proposed(name, trials)]
            if not at_hand:
                return []
            if unknown := self._judge(at_hand, make, judge):
                return unknown

    def tried(self) -> list[Tried]:
        """Return everything that was tried, by operator and trial."""
        return [
            self._tried(self._operators[name], trial)
            for name, study in self._studies.items()
            for trial in study.get_trials(deepcopy=False)
            if trial.state.is_finished() and _AGAIN not in trial.user_attrs
        ]

    def importances(self) -> dict[str, dict[str, float]]:
        """Return how much each setting of an operator matters for the first metric, 0 to 1, in all 1 (PED-ANOVA).

        An operator of which few settings were finished is left out.
        """
        sign = -1 if next(iter(self._metrics.values())) else 1
        shares = {}
        for name, study in self._studies.items():
            if len(_finished(study)) < _FEWEST_FOR_IMPORTANCE or not self._operators[name].space:
                continue
            with _quiet():
                shares[name] = get_param_importances(
                    study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: sign * trial.values[0]
                )
        return shares

    def _study(self, storage: BaseStorage, operator: Operator) -> optuna.Study:
        """Return the study of an operator: another one where anything is searched otherwise."""
        splits = [[split.first, len(split.prompts), split.seeds, split.start, split.stop] for split in self._rounds]
        searched = {"space": {name: repr(values) for name, values in operator.space.items()}, "nfe": self._nfe}
        study = optuna.create_study(
            storage=storage,
            study_name=f"{operator.name} {key_of([searched, splits, list(self._metrics), self._seed])}",
            directions=["maximize" if more_is_better else "minimize" for more_is_better in self._metrics.values()],
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self._at_a_time, n_warmup_steps=0),
            load_if_exists=True,
        )
        if not study.get_trials(deepcopy=False):
            for values in operator.first:
                study.enqueue_trial(values, skip_if_exists=True)
        return study

    def _proposed(self, name: str, trials: int) -> list[tuple[Operator, Trial]]:
        """Return trials of an operator that are not judged yet: those that were interrupted, and new ones."""
        study, operator = self._studies[name], self._operators[name]
        distributions = {setting: _distribution(values) for setting, values in operator.space.items()}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() != distributions.keys():  # killed while its values were written
                study.tell(trial.number, state=TrialState.FAIL)
        begun = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and trial.params.keys() == distributions.keys()
        ]
        fitting = [
            trial
            for trial in begun
            if _AGAIN not in trial.user_attrs and self._candidate(operator, trial.params) is not None
        ]
        running = [trial for trial in begun if trial.state == TrialState.RUNNING]
        count = len(fitting)
        to_begin = -count % self._at_a_time or (0 if running else self._at_a_time)
        wanted, number = min(count + to_begin, trials), len(begun)
        proposed = [Trial(study, trial._trial_id) for trial in running]
        at_hand = [(operator, trial) for trial in proposed if self._fits(operator, trial)]
        while count < wanted and number < _PROPOSALS * trials:
            study.sampler = optuna.samplers.TPESampler(
                seed=self._seed_of(name, number), n_startup_trials=2 * AT_A_TIME, constant_liar=True
            )
            proposal, number = study.ask(distributions), number + 1
            if self._fits(operator, proposal):
                at_hand.append((operator, proposal))
                count += 1
        return at_hand

    def _fits(self, operator: Operator, trial: Trial) -> bool:
        """Return whether any number of steps fits the budget, and it was not tried; else a trial is at its end."""
        candidate, study = self._candidate(operator, trial.params), self._studies[operator.name]
        if candidate is None:
            study.tell(trial, state=TrialState.PRUNED)
            return False
        earlier = [each.params for each in study.get_trials(deepcopy=False) if each.number < trial.number]
        tried = [self._candidate(operator, params) for params in earlier if params.keys() == trial.params.keys()]
        if any(each is not None and each.config == candidate.config for each in tried):
            trial.set_user_attr(_AGAIN, True)  # values that differ in what the others leave without effect
            study.tell(trial, state=TrialState.FAIL)
            return False
        return True

    def _seed_of(self, name: str, number: int) -> int:
        """Return the seed of one proposal, so that it does not depend on how often the search was interrupted."""
        return int.from_bytes(hashlib.sha256(f"{self._seed} {name} {number}".encode()).digest()[:4], "big")

    def _judge(self, at_hand: Sequence[tuple[Operator, Trial]], make: Make, judge: Judge) -> list[Candidate]:
        """Have trials sampled and judged, round by round, and keep what each came to."""
        candidates = [(operator.name, trial, self._candidate(operator, trial.params)) for operator, trial in at_hand]
        left = [(name, trial, candidate) for name, trial, candidate in candidates if candidate is not None]
        unknown: list[Candidate] = []
        for number, split in enumerate(self._rounds):
            make([(candidate, split) for _, _, candidate in left])
            staying = []
            for name, trial, candidate in left:
                scores = judge(candidate, number + 1)
                if scores is None:
                    unknown.append(candidate)
                elif isinstance(scores, str):
                    trial.set_user_attr(_FAILED, scores)
                    self._studies[name].tell(trial, state=TrialState.FAIL)
                elif number == len(self._rounds) - 1:
                    self._studies[name].tell(trial, list(scores))
                else:
                    staying.append((name, trial, candidate))
                    if len(scores) == 1 and trial.user_attrs.get(_STAYED, -1) < number:
                        with _quiet():  # it may have been reported before the search was interrupted
                            trial.report(scores[0], number)
            left = [each for each in staying if not self._is_given_up(*each[:2], number)]
        return unknown

    def _is_given_up(self, name: str, trial: Trial, number: int) -> bool:
        """Return whether a trial is worse than half of those that were finished, at the same round, and give it up."""
        if len(self._metrics) > 1 or trial.user_attrs.get(_STAYED, -1) >= number:
            return False
        with _quiet():
            if trial.should_prune():
                self._studies[name].tell(trial, state=TrialState.PRUNED)
                return True
        trial.set_user_attr(_STAYED, number)  # as it does if the search is interrupted and others are finished first
        return False

    def _candidate(self, operator: Operator, values: Mapping[str, Any]) -> Candidate | None:
        """Return values as a setting; None where no number of steps fits. Each is asked for many times."""
        key = operator.name, repr(sorted(values.items()))
        if key not in self._candidates:
            config, candidate = operator.at(values, self._nfe), None
            if config is not None:
                candidate = Candidate(operator.name, values_in_words(values), self._nfe, config, nfe_of(config))
            self._candidates[key] = candidate
        return self._candidates[key]

    def _tried(self, operator: Operator, trial: FrozenTrial) -> Tried:
        candidate = self._candidate(operator, trial.params) if trial.params.keys() == operator.space.keys() else None
        is_finished = trial.state == TrialState.COMPLETE
        scores = dict(zip(self._metrics, trial.values, strict=True)) if is_finished else {}
        rounds = len(self._rounds) if is_finished else len(trial.intermediate_values)
        state = "finished" if is_finished else "given up"
        if trial.state == TrialState.FAIL:
            state = str(trial.user_attrs.get(_FAILED, "interrupted"))
        elif candidate is None:
            state = NO_STEPS
        samples = sum(split.samples for split in self._rounds[:rounds])
        return Tried(operator.name, trial.number, dict(trial.params), candidate, scores, samples, state)


class ByMetrics:
    """Judges settings by what is measured of their samples.

    Args:
        work: reads what was measured.
        metrics: by which.
        real: features of real clips by metric.
        rounds: see ``Search``.
    """

    def __init__(
        self, work: Work, metrics: Sequence[Metric], real: Mapping[str, Real], rounds: Sequence[Split]
    ) -> None:
        self._work, self._metrics, self._real, self._rounds = work, metrics, real, rounds

    def __call__(self, candidate: Candidate, rounds: int) -> list[float] | str:
        """Return a number for each metric, or why there is none; see ``Judge``."""
        seen = self._rounds[:rounds]
        samples = over_rounds(partial(self._work.read, candidate), seen)
        if not samples.there.all():
            return str(samples.error[~samples.there][0])
        prompts = seen[-1].prompts_up_to_here
        scores = [value_of(metric, samples, real_of(metric, self._real, prompts), prompts) for metric in self._metrics]
        missing = [metric.name for metric, score in zip(self._metrics, scores, strict=True) if not np.isfinite(score)]
        return f"{missing[0]} is no number" if missing else scores


def _opened(journal: Path) -> BaseStorage:
    """Return Optuna's storage in a file that no other process has: without a lock or half a line that one left."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()
    if journal.exists():
        written = journal.read_bytes()
        if not written.endswith(b"\n") and written:
            journal.write_bytes(written[: written.rfind(b"\n") + 1])
    return JournalStorage(JournalFileBackend(str(journal)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling of every trial, and of what of it is new."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(values: Open) -> BaseDistribution:
    if isinstance(values, Range):
        return FloatDistribution(values.low, values.high, log=values.step is None, step=values.step)
    return CategoricalDistribution(values)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
