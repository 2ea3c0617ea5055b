"""Votes of people as a metric: how often a setting would win against plain sampling.

A page shows clips without saying of which setting they are, and saves the votes; any number of its files are read
together. Strengths follow the model of Bradley and Terry ("Rank Analysis of Incomplete Block Designs", Biometrika 39,
1952), in which a tie is half a win for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from w2sd_video.evaluation.arms import Candidate
from w2sd_video.evaluation.sample_files import key_of_setting
from w2sd_video.evaluation.statistics import Figure, figure, resampled
from w2sd_video.messages import ConfigError, shortened
from w2sd_video.metrics import Score
from w2sd_video.text_files import parse_json, read_text

VOTE = "vote"
"""The name of the metric."""
_DRAWS = 200
"""Resamples of the prompts: each solves for all strengths anew."""


def _people_judge(clips: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    raise NotImplementedError("people vote on clips; no function of the clips says what they are worth")


VOTES = Score(VOTE, higher_is_better=True, of=_people_judge)
"""The metric: the share of wins against plain sampling."""
_PRIOR, _ITERATIONS = 0.5, 200
"""Wins and defeats that each setting has against plain sampling beforehand, so that none is infinitely strong."""


@dataclass(frozen=True)
class Vote:
    """What someone said of two clips of one prompt.

    Attributes:
        prompt: that both are of.
        left: label of one of the settings.
        right: label of the other.
        better: label of the better one; None for no difference.
    """

    prompt: str
    left: str
    right: str
    better: str | None


def label_of(candidate: Candidate) -> str:
    """Return what a setting is called on a page for voting: always the same, and it does not say what it is."""
    return f"setting {key_of_setting(candidate.config)[:6]}"


def read_votes(files: Iterable[Path]) -> list[Vote]:
    """Return the votes of files that a page has saved.

    Raises:
        ConfigError: a file that is not there, or holds none.
    """
    votes: dict[tuple[object, ...], Vote] = {}
    for file in files:
        where = f"--votes {shortened(str(file))}"
        try:
            data = parse_json(read_text(file))
        except ValueError as error:
            raise ConfigError(f"{where}: cannot be read: {error}") from error
        rows = data.get("votes") if isinstance(data, dict) else None
        if not isinstance(rows, list) or not rows:
            raise ConfigError(f"{where}: holds no votes; give a file that the page of this search has saved")
        for number, row in enumerate(rows):
            try:
                vote = Vote(str(row["prompt"]), str(row["left"]), str(row["right"]), row["better"])
            except (KeyError, TypeError) as error:
                raise ConfigError(f"{where}: vote {number} lacks {error}; it was not saved by a page") from error
            if vote.better not in (None, vote.left, vote.right):
                raise ConfigError(f"{where}: vote {number} is for {vote.better!r}, which was not shown")
            votes[(data.get("date"), number, vote)] = vote  # a file that is given twice counts once
    return list(votes.values())


def win_shares(votes: Sequence[Vote], labels: Sequence[str], plain: str) -> dict[str, float]:
    """Return how often each setting would win against plain sampling, 0 to 1; NaN for one that nobody voted on.

    Args:
        votes: those between settings that are not among the labels are left out.
        labels: of the settings, with that of plain sampling.
        plain: label of plain sampling, whose share is one half.
    """
    return dict(zip(labels, _shares(_wins(votes, labels), labels.index(plain)), strict=True))


def win_figures(votes: Sequence[Vote], labels: Sequence[str], plain: str) -> dict[str, Figure]:
    """Return the same with intervals over prompts."""
    prompts = list(dict.fromkeys(vote.prompt for vote in votes))
    by_prompt = np.array([_wins([vote for vote in votes if vote.prompt == prompt], labels) for prompt in prompts])
    if not len(prompts):
        return {label: figure(np.nan, np.full(_DRAWS, np.nan), 0) for label in labels}
    number = labels.index(plain)
    draws = np.array(
        [_shares(np.tensordot(counts, by_prompt, 1), number) for counts in resampled(len(prompts))[:_DRAWS]]
    )
    values = _shares(by_prompt.sum(0), number)
    return {label: figure(values[i], draws[:, i], len(prompts)) for i, label in enumerate(labels)}


def missing_votes(votes: Sequence[Vote], labels: Iterable[str]) -> list[str]:
    """Return the labels that nobody voted on."""
    known = {label for vote in votes for label in (vote.left, vote.right)}
    return [label for label in labels if label not in known]


class ByVotes:
    """Judges settings by votes; see ``Judge`` of the search.

    Args:
        votes: all that there are.
        plain: label of plain sampling.
    """

    def __init__(self, votes: Sequence[Vote], plain: str) -> None:
        labels = list(dict.fromkeys([plain, *(label for vote in votes for label in (vote.left, vote.right))]))
        self._shares: Mapping[str, float] = win_shares(votes, labels, plain)

    def __call__(self, candidate: Candidate, rounds: int) -> list[float] | None:
        """Return the share of wins, or None where nobody voted."""
        share = self._shares.get(label_of(candidate))
        return None if share is None or np.isnan(share) else [share]


def _wins(votes: Sequence[Vote], labels: Sequence[str]) -> np.ndarray:
    """Return how often each setting won against each other one, (labels, labels)."""
    wins, place = np.zeros((len(labels), len(labels))), {label: i for i, label in enumerate(labels)}
    for vote in votes:
        if vote.left in place and vote.right in place and vote.left != vote.right:
            left, right = place[vote.left], place[vote.right]
            won = 0.5 if vote.better is None else float(vote.better == vote.left)
            wins[left, right] += won
            wins[right, left] += 1 - won
    return wins


def _shares(wins: np.ndarray, plain: int) -> np.ndarray:
    """Return the shares of wins against plain sampling by the fixed point of Hunter (Annals of Statistics 32, 2004)."""
    if len(wins) == 1:  # nobody has voted
        return np.array([0.5])
    was_shown = (wins + wins.T).sum(1) > 0
    wins = wins.copy()
    wins[:, plain] += _PRIOR
    wins[plain, :] += _PRIOR
    wins[plain, plain] = 0.0
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(_ITERATIONS):
        strength = wins.sum(1) / (games / (strength[:, None] + strength)).sum(1)
        strength /= strength[plain]
    shares = strength / (1 + strength)
    shares[~was_shown] = np.nan
    shares[plain] = 0.5
    return shares
