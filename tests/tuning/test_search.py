"""The search by itself: how many trials there are, what is given up, and that it goes on where it was interrupted."""

import dataclasses

import pytest

from w2sd_video.evaluation.splits import Split, rounds_of
from w2sd_video.settings.command_line import parse
from w2sd_video.tuning.operators import Operator, Range
from w2sd_video.tuning.search import AT_A_TIME, NO_STEPS, Search

TUNING = Split("tuning", [f"prompt {k}" for k in range(16)], 20, 2)
CONFIG = parse(["a red circle moving left", "--config", "miniature-pixart", "--reflection-steps", "0"]).config


def made(values):
    return dataclasses.replace(CONFIG, base=dataclasses.replace(CONFIG.base, guidance_scale=values["scale"]))


def operators(low=1.5):
    space = {"scale": Range(low, 8.0), "idle": (1, 2, 3)}
    return [Operator(name, space, made, ({"scale": 2.0, "idle": 1},)) for name in ("guidance", "other")]


class Judge:
    """Prefers a scale of 4, and stops the search, as a kill would, before it has answered too often."""

    def __init__(self, answers=10**6):
        self.asked, self.answers = [], answers

    def __call__(self, candidate, rounds):
        if len(self.asked) == self.answers:
            raise KeyboardInterrupt
        self.asked.append((candidate.arm, candidate.setting, rounds))
        return [-abs(candidate.config.base.guidance_scale - 4.0) - 0.01 * rounds]


def search_in(folder, rounds=3, metrics=None, **options):
    metrics = metrics or {"likelihood": True}
    return Search(folder / "search.journal", operators(), metrics, 10, rounds_of(TUNING, rounds), **options)


def ignored(asked):
    """Nothing is sampled: the judge knows."""


def test_every_operator_gets_the_same_number_of_trials(tmp_path):
    search = search_in(tmp_path)
    assert search.run(10, ignored, Judge()) == []
    tried = search.tried()
    assert [sum(each.operator == name for each in tried) for name in ("guidance", "other")] == [10, 10]
    assert tried[0].values == {"scale": 2.0, "idle": 1}, "what is known to be good comes first"
    best = max((each for each in tried if each.scores), key=lambda each: each.scores["likelihood"])
    assert abs(best.values["scale"] - 4.0) < 0.8
    assert len({each.values["scale"] for each in tried}) == 19, "each operator has the first one, and else all differ"


def test_a_setting_is_tried_once_however_its_idle_values_differ(tmp_path):
    def made(values):
        return dataclasses.replace(CONFIG, grid=values["grid"] if values["solver"] == "DPM" else 1.0)

    operator = Operator("none", {"solver": ("DDIM", "DPM"), "grid": (1.0, 1.25, 1.5)}, made)
    for trials, answers in ((8, 2), (8, 10**6)):  # interrupted, and gone on with
        search = Search(tmp_path / "journal", [operator], {"likelihood": True}, 10, [TUNING])
        try:
            search.run(trials, ignored, Judge(answers))
        except KeyboardInterrupt:
            continue
    grids = [each.candidate.config.grid for each in search.tried()]
    assert sorted(grids) == [1.0, 1.25, 1.5] and all(each.state == "finished" for each in search.tried())


def test_the_hopeless_are_given_up_and_never_before_some_are_finished(tmp_path):
    search, judge = search_in(tmp_path), Judge()
    search.run(16, ignored, judge)
    tried = [each for each in search.tried() if each.operator == "guidance"]
    assert all(each.state == "finished" for each in tried[:AT_A_TIME])
    given_up = [each for each in tried if each.state == "given up"]
    finished = [each for each in tried if each.state == "finished"]
    assert given_up and all(each.samples < TUNING.samples and not each.scores for each in given_up)
    assert all(each.samples == TUNING.samples for each in finished)
    assert max(abs(each.values["scale"] - 4) for each in given_up) > min(abs(e.values["scale"] - 4) for e in finished)


@pytest.mark.parametrize("answers", [1, 7, 12, 13, 25, 40])
def test_an_interrupted_search_finds_what_one_in_one_go_finds(tmp_path, answers):
    (tmp_path / "whole").mkdir()
    whole = search_in(tmp_path / "whole", seed=3)
    whole.run(12, ignored, Judge())
    (tmp_path / "killed").mkdir()
    for _ in range(100):
        killed = search_in(tmp_path / "killed", seed=3)
        try:
            killed.run(12, ignored, Judge(answers))
            break
        except KeyboardInterrupt:
            answers += 1  # or it would come no further than where it was killed
    assert killed.tried() == whole.tried()


def test_half_a_line_and_a_lock_of_a_killed_search_do_no_harm(tmp_path):
    search = search_in(tmp_path)
    search.run(4, ignored, Judge())
    before = search.tried()
    with (tmp_path / "search.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    (tmp_path / "search.journal.lock").symlink_to(tmp_path / "search.journal")
    again = search_in(tmp_path)
    assert again.tried() == before
    again.run(8, ignored, Judge())
    assert len(again.tried()) == 16


def test_what_was_tried_is_not_tried_again_and_more_trials_go_on(tmp_path):
    search_in(tmp_path).run(6, ignored, Judge())
    judge, search = Judge(), search_in(tmp_path)
    search.run(6, ignored, judge)
    assert judge.asked == []
    search.run(8, ignored, judge)
    assert len(search.tried()) == 16 and judge.asked


def test_another_seed_or_budget_is_another_search(tmp_path):
    search_in(tmp_path).run(4, ignored, Judge())
    assert search_in(tmp_path, seed=1).tried() == []
    assert search_in(tmp_path, rounds=1).tried() == []
    assert len(search_in(tmp_path).tried()) == 8


def test_of_several_metrics_nothing_is_given_up(tmp_path):
    search = search_in(tmp_path, metrics={"likelihood": True, "flicker": False})
    search.run(8, ignored, lambda candidate, rounds: [1.0, candidate.config.base.guidance_scale])
    assert {each.state for each in search.tried()} == {"finished"}
    assert set(search.tried()[0].scores) == {"likelihood", "flicker"}


def test_what_fails_counts_with_its_reason_and_what_fits_no_budget_does_not(tmp_path):
    def judge(candidate, rounds):
        return "out of memory" if candidate.config.base.guidance_scale > 3 else [1.0]

    def dear(values):
        reflected = dataclasses.replace(CONFIG, reflection_steps=(0.9, 1.0)) if values["idle"] == 3 else made(values)
        return reflected

    space = {"scale": Range(1.5, 8.0), "idle": (1, 2, 3)}
    search = Search(
        tmp_path / "search.journal", [Operator("W2SD", space, dear)], {"likelihood": True}, 5, rounds_of(TUNING, 1)
    )
    search.run(8, ignored, judge)
    states = [each.state for each in search.tried()]
    assert states.count(NO_STEPS) == len(states) - 8 > 0
    assert "out of memory" in states and "finished" in states


def test_importances_tell_the_setting_that_matters(tmp_path):
    search = search_in(tmp_path, rounds=1)
    search.run(24, ignored, Judge())
    for shares in search.importances().values():
        assert shares["scale"] > shares["idle"] and sum(shares.values()) == pytest.approx(1)
    few = search_in(tmp_path, rounds=1, seed=9)
    few.run(4, ignored, Judge())
    assert few.importances() == {}


def test_a_setting_that_is_not_judged_yet_is_given_back_and_asked_for_again(tmp_path):
    search = search_in(tmp_path, rounds=1, at_a_time=1)
    waiting = search.run(3, ignored, lambda candidate, rounds: None)
    assert [candidate.arm for candidate in waiting] == ["guidance", "other"]
    assert search_in(tmp_path, rounds=1, at_a_time=1).run(3, ignored, lambda candidate, rounds: None) == waiting
    assert len(search.run(1, ignored, lambda candidate, rounds: [1.0])) == 0
