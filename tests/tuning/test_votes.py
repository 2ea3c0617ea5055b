"""Votes of people as a metric."""

import json

import numpy as np
import pytest

from w2sd_video.messages import ConfigError
from w2sd_video.tuning.votes import Vote, missing_votes, read_votes, win_figures, win_shares


def cast(chance, strengths, count):
    """Return votes between random settings of given strengths, by the model of Bradley and Terry."""
    names, votes = list(strengths), []
    for k in range(count):
        left, right = chance.choice(names, 2, replace=False)
        wins = chance.random() < strengths[left] / (strengths[left] + strengths[right])
        votes.append(Vote(f"prompt {k % 6}", left, right, left if wins else right))
    return votes


def test_shares_are_those_that_the_votes_were_drawn_with():
    strengths = {"plain": 1.0, "a": 4.0, "b": 0.5, "c": 1.0}
    shares = win_shares(cast(np.random.default_rng(0), strengths, 6000), list(strengths), "plain")
    assert shares["plain"] == 0.5
    for name, strength in strengths.items():
        assert shares[name] == pytest.approx(strength / (1 + strength), abs=0.03)


def test_a_tie_is_half_a_win_and_a_setting_without_votes_has_no_share():
    votes = [Vote("p", "plain", "a", None)] * 10
    shares = win_shares(votes, ["plain", "a", "b"], "plain")
    assert shares["a"] == pytest.approx(0.5) and np.isnan(shares["b"])
    assert missing_votes(votes, ["plain", "a", "b"]) == ["b"]


def test_a_setting_that_always_wins_is_not_infinitely_strong_and_more_votes_say_more():
    few, many = (win_shares([Vote("p", "a", "plain", "a")] * n, ["plain", "a"], "plain")["a"] for n in (2, 20))
    assert 0.5 < few < many < 1.0


def test_settings_are_compared_through_others():
    votes = [Vote("p", "a", "b", "a")] * 8 + [Vote("p", "b", "plain", "b")] * 8
    shares = win_shares(votes, ["plain", "a", "b"], "plain")
    assert shares["a"] > shares["b"] > 0.5


def test_intervals_are_over_prompts():
    votes = cast(np.random.default_rng(1), {"plain": 1.0, "a": 3.0}, 300)
    figures = win_figures(votes, ["plain", "a"], "plain")
    assert figures["a"].prompts == 6 and figures["a"].low < 0.75 < figures["a"].high
    assert figures["a"].value == win_shares(votes, ["plain", "a"], "plain")["a"]
    assert np.isnan(win_figures([], ["plain", "a"], "plain")["a"].value)


def saved(path, votes, date="2026-01-01"):
    path.write_text(json.dumps({"page": "x", "date": date, "votes": votes}))
    return path


def test_files_are_read_together_and_a_file_given_twice_counts_once(tmp_path):
    vote = {"prompt": "p", "seed": 0, "left": "a", "right": "b", "better": "a"}
    first = saved(tmp_path / "1.json", [vote, vote])
    second = saved(tmp_path / "2.json", [vote | {"better": None}], "2026-01-02")
    assert len(read_votes([first, first])) == 2
    assert [each.better for each in read_votes([first, second])] == ["a", "a", None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no votes"),
        ('{"votes": []}', "holds no votes"),
        ('{"votes": [{"prompt": "p"}]}', "vote 0 lacks 'left'"),
        ('{"votes": [{"prompt": "p", "left": "a", "right": "b", "better": "c"}]}', "'c', which was not shown"),
    ],
)
def test_what_holds_no_votes_is_refused(tmp_path, text, said):
    (tmp_path / "votes.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_votes([tmp_path / "votes.json"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_votes([tmp_path / "none.json"])
