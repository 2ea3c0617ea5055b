"""The whole search: every operator tried, the best ones sampled from other prompts, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.comparison import Result, reported
from w2sd_video.evaluation.measures import MakeLaboratory, kept_features, load_metrics, real_of_splits
from w2sd_video.evaluation.sample_files import SampleFiles
from w2sd_video.evaluation.samples import results_table
from w2sd_video.evaluation.statistics import Real
from w2sd_video.evaluation.work import Work, open_folder
from w2sd_video.jobs.folder import JobFolder
from w2sd_video.jobs.pool import Pool, started
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.messages import ConfigError
from w2sd_video.metrics import Metric
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import LoadError, check_device
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.rendering.sample import threads_for
from w2sd_video.settings.evaluations import nfe_of
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.tuning.operators import fitted, plain_of
from w2sd_video.tuning.search import ByMetrics, Search, Tried
from w2sd_video.tuning.tuning_plan import TuningPlan, nfe_in
from w2sd_video.tuning.tuning_report import Findings, write_ballot, write_tuning_report
from w2sd_video.tuning.verdict import PLAIN
from w2sd_video.tuning.votes import VOTES, ByVotes, label_of, missing_votes, win_figures
from w2sd_video.writing import write_whole

JOURNAL, BUDGET = "search.journal", "budget.json"
"""Names in the folder of a search: of what was tried, and of the evaluations that a budget of seconds allows."""


@dataclass(frozen=True)
class Tuning:
    """What a search came to.

    Attributes:
        words: what is printed.
        failed: why samples of the report are not there, and how many of which settings.
    """

    words: str
    failed: Sequence[str] = ()


def tune_into(
    folder: Path, config: RenderConfig, plan: TuningPlan, seconds: float | None = None, pool: Pool | None = None
) -> Tuning:
    """Search the best setting of a configuration, and write everything into a folder.

    What was sampled and tried in the folder before is not done again.

    Args:
        folder: of the search.
        config: the configuration.
        plan: what is searched.
        seconds: budget of a clip, of which the evaluations are worked out here, once.
        pool: who samples; this process unless given.

    Raises:
        ConfigError: a plan that cannot be carried out, or the folder of something else.
        LoadError: a model, or a metric that is searched by, that cannot be loaded.
        PoolError: workers that cannot be had.
        VideoError: a picture or a video that cannot be read.
        OSError: a full disk.
    """
    pool = pool or Pool()
    device = "auto" if pool.ray else config.device  # where a cluster is joined may be no such device
    check_before_loading(replace(config, device=device))
    read_inputs(config)
    JobFolder(folder, {}).check_foreign()
    metrics, missing = load_metrics(plan, str(check_device(device)), "tune")
    for name in plan.metrics:
        if name in missing:
            raise LoadError(f"metric {name}: {missing[name]}")
    kept = kept_features(folder, config, plan)
    real = real_of_splits(metrics, config, plan, plan.metrics, kept)
    if seconds is not None:
        with threads_for(config.model.pretrained):
            plan = replace(plan, nfe=_nfe_of_seconds(folder, config, seconds, plan.batch))
    with open_folder(folder, plan, metrics, config, Shard()) as files, threads_for(config.model.pretrained):
        kept.write()
        if seconds is not None:
            JobFolder(folder, {}).write_note(BUDGET, {"seconds": seconds, "nfe": plan.nfe})
        make_worker = MakeLaboratory(
            config,
            files,
            {metric.name: plan.sources[metric.name] for metric in metrics},
            {},
            plan.shown,
            metrics if pool.is_this_process else None,
        )
        most = plan.trials * len(plan.operators) * sum(split.samples for split in plan.parts)
        with (
            started(make_worker, pool) as run,
            tqdm(total=most, desc="samples, at most", unit="clip", smoothing=0.02) as bar,
        ):
            work = Work(files, run, Shard(), plan.batch, bar.update)
            if plan.is_voted:
                return _by_votes(config, plan, work, files)
            return _by_metrics(config, plan, work, files, metrics, missing, real)


def chosen_of(
    tried: Sequence[Tried], higher_is_better: Mapping[str, bool], best: int
) -> tuple[dict[str, Candidate], list[str]]:
    """Return each operator's best setting by its name, with the best few of all, and the names of those.

    A further setting of an operator has a number behind its name.

    Args:
        tried: everything that was tried.
        higher_is_better: by metric; the first decides, but of several the best few are on their front.
        best: how many of them.

    Raises:
        ConfigError: nothing was finished.
    """
    finished = [each for each in tried if each.scores and each.candidate is not None]
    if not finished:
        reasons = list(dict.fromkeys(each.state for each in tried))
        raise ConfigError(f"nothing that was tried gives samples: {'; '.join(reasons[:3])}")
    signs = np.array([1 if higher else -1 for higher in higher_is_better.values()])
    worth = {id(each): signs * [each.scores[name] for name in higher_is_better] for each in finished}
    ranked = sorted(finished, key=lambda each: -worth[id(each)][0])
    best_of = {each.operator: each for each in reversed(ranked)}
    front = [each for each in ranked if not any(_beats(worth[id(other)], worth[id(each)]) for other in ranked)]
    few = front if len(higher_is_better) > 1 else ranked
    distinct: list[Tried] = []
    for each in few:
        if not any(each.candidate.config == other.candidate.config for other in distinct):  # type: ignore[union-attr]
            distinct.append(each)
    if len(higher_is_better) > 1 and len(distinct) > best:  # from one end of the front to the other
        distinct = [distinct[round(k * (len(distinct) - 1) / max(best - 1, 1))] for k in range(best)]
    chosen: dict[str, Tried] = {}
    names: list[str] = []
    for each in distinct[:best]:
        rank = 1 + sum(name.split(" ")[0] == each.operator for name in names)
        is_best = each is best_of[each.operator]
        names.append(each.operator if is_best else f"{each.operator} {max(rank, 2)}")
        chosen[names[-1]] = each
    chosen = {
        **{name: best_of[name] for name in dict.fromkeys(each.operator for each in tried) if name in best_of},
        **chosen,
    }
    return {name: replace(each.candidate, arm=name) for name, each in chosen.items() if each.candidate}, names


def _beats(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one >= other).all() and (one > other).any())


def _by_metrics(
    config: RenderConfig,
    plan: TuningPlan,
    work: Work,
    files: SampleFiles,
    metrics: Sequence[Metric],
    missing: Mapping[str, str],
    real: Mapping[str, Mapping[str, Real]],
) -> Tuning:
    """Search to the end, sample the best from other prompts, and write what was found."""
    searched = [metric for metric in metrics if metric.name in plan.metrics]
    higher = {metric.name: metric.higher_is_better for metric in searched}
    plain = _plain(config, plan.nfe)
    search = Search(files.folder / JOURNAL, plan.operators, higher, plan.nfe, plan.parts, plan.seed)
    search.run(plan.trials, work.make, ByMetrics(work, searched, real["tuning"], plan.parts))
    tried = search.tried()
    chosen, best = chosen_of(tried, higher, plan.best)
    chosen = {PLAIN: plain, **chosen}
    work.make([(candidate, plan.report) for candidate in chosen.values()])
    results = [reported(candidate, 0, work.read, plan.report, metrics, real["report"]) for candidate in chosen.values()]
    asked = [(one.candidate, split) for one in tried if one.candidate for split in plan.parts]
    asked = [(one, split) for one, split in asked if not work.missing([(one, split)])]
    asked += [(candidate, plan.report) for candidate in chosen.values()]
    sampled = [(one, split, work.read(one, split)) for one, split in asked]
    write_whole(files.folder / "results.csv", results_table(sampled, files.scores))
    findings = Findings(plan, metrics, searched, missing, tried, search.importances(), results, best)
    words = write_tuning_report(files.folder, config, findings, files.clip_file)
    return Tuning(words, _failures(results))


def _by_votes(config: RenderConfig, plan: TuningPlan, work: Work, files: SampleFiles) -> Tuning:
    """Go on with a search by votes as far as those that there are lead, and write the page for the next ones."""
    folder, clip_file = files.folder, files.clip_file
    votes, higher, plain = plan.votes, {VOTES.name: True}, _plain(config, plan.nfe)
    search = Search(folder / JOURNAL, plan.operators, higher, plan.nfe, plan.parts, plan.seed, at_a_time=1)
    work.make([(plain, plan.voted)])
    unknown = search.run(plan.trials, work.make, ByVotes(votes, label_of(plain)))
    tried = search.tried()
    if unknown:
        page = write_ballot(folder, plan.voted, [plain, *unknown], clip_file)
        begun = max(1, round(len(tried) / len(plan.operators)) + 1)
        return Tuning(_to_vote(page, f"{len(unknown)} settings, round {begun} of {plan.trials}"), work.failures())
    chosen, best = chosen_of(tried, higher, plan.best)
    chosen = {PLAIN: plain, **chosen}
    report = plan.report
    work.make([(candidate, report) for candidate in chosen.values()])
    labels = {label_of(candidate): candidate for candidate in chosen.values()}
    of_report = [vote for vote in votes if vote.prompt in report.prompts]
    if missing := missing_votes(of_report, labels):
        page = write_ballot(folder, report, list(labels.values()), clip_file)
        return Tuning(_to_vote(page, f"the report, {len(missing)} settings without a vote"), work.failures())
    figures = win_figures(of_report, list(labels), label_of(plain))
    results = [
        Result(candidate, 0, work.read(candidate, report), {VOTES.name: figures[label_of(candidate)]})
        for candidate in chosen.values()
    ]
    findings = Findings(plan, [VOTES], [VOTES], {}, tried, search.importances(), results, best)
    return Tuning(write_tuning_report(folder, config, findings, clip_file), _failures(results))


def _failures(results: Sequence[Result]) -> list[str]:
    """Return why samples of the report failed; those of a search are told in it."""
    return [
        f"{int((~result.samples.there).sum())} sample(s) of {result.candidate.arm}: {reason}"
        for result in results
        for reason in result.failed
    ]


def _to_vote(page: Path, what: str) -> str:
    return (
        f"vote     {page} ({what}): open it, press Blind vote, save the votes, and give the file to the same command "
        "with --votes, beside those of before"
    )


def _plain(config: RenderConfig, nfe: int) -> Candidate:
    """Return the configuration without its reflection, with as many steps as the budget allows."""
    plain = fitted(plain_of(config), nfe)
    if plain is None:
        raise ConfigError(f"--nfe {nfe}: not a step of this configuration fits; give more")
    return Candidate(PLAIN, "as configured", nfe, plain, nfe_of(plain))


def _nfe_of_seconds(folder: Path, config: RenderConfig, seconds: float, batch: int) -> int:
    """Return the evaluations that a budget of seconds allows; once worked out they stay, or nothing could go on."""
    known = JobFolder(folder, {}).note(BUDGET)
    return int(known["nfe"]) if known.get("seconds") == seconds else nfe_in(config, seconds, batch)
