"""The parts of the evaluation: samples that are kept, statistics, comparisons."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from running import configured
from scipy import stats

from w2sd_video.evaluation import laboratory as sampling
from w2sd_video.evaluation.arms import Candidate, candidates
from w2sd_video.evaluation.comparison import choose, choose_in_rounds, compare, reported, tuning_samples
from w2sd_video.evaluation.laboratory import Laboratory, spaces_of
from w2sd_video.evaluation.sample_files import SampleFiles, key_of_setting
from w2sd_video.evaluation.samples import Samples, results_table
from w2sd_video.evaluation.splits import SEEDS, Split, rounds_of
from w2sd_video.evaluation.statistics import (
    GROUPS,
    RESAMPLES,
    Real,
    figure,
    holm,
    mean,
    measured,
    pareto_front,
    win_rate,
)
from w2sd_video.evaluation.work import Work
from w2sd_video.jobs.pool import Pool, run_tasks
from w2sd_video.jobs.pool_options import Shard
from w2sd_video.metrics import Distance, Score, load_metric
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.rendering.video import read_picture

RED, BLUE = "a red circle moving left", "a blue square moving up"


def test_a_key_is_of_what_changes_the_samples_alone():
    config = configured("pixart")
    assert key_of_setting(config) == key_of_setting(replace(config, prompts=["other"], seed=5, output="a.mp4"))
    others = [replace(config, strength=0.5), replace(config, steps=9), replace(config, weak=config.strong)]
    assert len({key_of_setting(one) for one in [config, *others]}) == 4


def work_of(folder, pipe, names=("adherence", "frechet_distance"), batch=3, shown=0, shard=None):
    """Return what makes and reads batches in a folder, with a pipeline that is there already."""
    for name in ("samples", "clips"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    metrics = [load_metric(name) for name in names]
    scores = tuple(one.name for one in metrics if isinstance(one, Score))
    files, counted = SampleFiles(folder, "key", scores, tuple(spaces_of(metrics))), []

    def run(tasks, on_done, on_failed):
        run_tasks(lambda: Laboratory(files, pipe, metrics, {}, shown), tasks, Pool(), on_done, on_failed)

    return Work(files, run, shard or Shard(), batch, counted.append), counted


def measured_of(folder, pipe, one, split, *words, **settings):
    work, _ = work_of(folder, pipe, *words, **settings)
    work.make([(one, split)])
    return work.read(one, split)


def test_seeds_belong_to_samples_and_splits_share_none():
    report, tuning = Split("report", [RED, BLUE], 0, 3), Split("tuning", ["a", "b", "c"], 2, 2)
    wanted = [*report.batch(0, 4), *report.batch(1, 4)]
    assert wanted == [(0, 0), (1, 1), (0, 10000), (1, 10001), (0, 20000), (1, 20001)]
    assert not {seed for _, seed in wanted} & {seed for _, seed in tuning.batch(0, 9)}


def test_samples_are_those_of_the_pipeline_and_are_kept(tmp_path, pixart):
    one, split = candidates("strong", configured("pixart"), 2)[0], Split("report", [RED, BLUE], 0, 2)
    names = ("likelihood", "frechet_distance")
    work, counted = work_of(tmp_path, pixart, names, shown=1)
    work.make([(one, split)])
    assert [count for count in counted if count] == [3, 1] and not work.failures()
    found = work.read(one, split)
    clips = sample_clips(pixart, one.config, [RED, BLUE, RED, BLUE], [0, 1, 10000, 10001])[0]
    expected = load_metric("likelihood").of(clips, [RED, BLUE, RED, BLUE])
    np.testing.assert_allclose(found.scores["likelihood"], expected, rtol=1e-2, atol=1e-3)
    assert found.prompt.tolist() == [0, 1, 0, 1] and found.features["classifier"].shape == (4, 256)
    rows = list(csv.DictReader(results_table(work.measured(), ["likelihood"]).splitlines()))
    assert [row["prompt"] for row in rows] == [RED, BLUE, RED, BLUE] and [row["seed"] for row in rows][2] == "10000"
    assert np.allclose([float(row["likelihood"]) for row in rows], found.scores["likelihood"], rtol=1e-4)
    (shown,) = (tmp_path / "clips").iterdir()
    assert (read_picture(shown)[0, ::8, ::8] == clips[0, 0]).all(), "of the first prompt and seed alone"

    again = measured_of(tmp_path, None, one, split, names)
    for name in ("prompt", "seed", "seconds", "error"):
        assert (getattr(again, name) == getattr(found, name)).all(), "without a pipeline: nothing was sampled again"
    assert (again.scores["likelihood"] == found.scores["likelihood"]).all()


def test_what_is_damaged_or_of_something_else_is_made_again(tmp_path, pixart, monkeypatch):
    one, split = candidates("strong", configured("pixart"), 2)[0], Split("tuning", [RED, BLUE], 2, 2)
    whole = measured_of(tmp_path, pixart, one, split)
    made, once = [], sampling.sample_clips
    monkeypatch.setattr(sampling, "sample_clips", lambda *args: made.append(args[2]) or once(*args))
    file = min((tmp_path / "samples").iterdir())
    content, arrays = file.read_bytes(), dict(np.load(file))

    def stored(**changes):
        np.savez(file, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})

    damages = [
        lambda: file.unlink(),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(content[: len(content) // 2]),
        lambda: file.write_bytes(content[:200] + b"damage" + content[206:]),
        lambda: file.write_text("no array"),
        lambda: stored(key=np.array("of other settings")),
        lambda: stored(key=None),
        lambda: stored(seconds=None),
        lambda: stored(seed=arrays["seed"] + 1),
        lambda: stored(**{"score adherence": arrays["score adherence"][:1]}),
        lambda: stored(**{"features classifier": None}),
        lambda: stored(error=np.array(["it failed", "", ""])),  # what failed is tried again
    ]
    for number, damage in enumerate(damages):
        damage()
        again = measured_of(tmp_path, pixart, one, split)
        assert made == [[RED, BLUE, RED]] * (number + 1), number
        assert (again.features["classifier"] == whole.features["classifier"]).all()
        assert (again.scores["adherence"] == whole.scores["adherence"]).all() and again.there.all()


def test_a_failed_sample_is_recorded_and_the_others_are_made(tmp_path):
    pipe = load(configured("dit-moe"))
    pipe.set_progress_bar_config(disable=True)
    one, split = candidates("strong", configured("dit-moe"), 4)[0], Split("report", [RED, "a purple cow", BLUE], 0, 1)
    work, _ = work_of(tmp_path, pipe)
    work.make([(one, split)])
    found = work.read(one, split)
    assert found.there.tolist() == [True, False, True] and "'a purple cow'" in found.error[1]
    assert np.isnan(found.scores["adherence"]).tolist() == [False, True, False]
    assert np.isnan(found.features["classifier"]).all(1).tolist() == [False, True, False]
    assert work.failures() == [f"1 sample(s) of strong: {found.error[1]}"]
    rows = list(csv.DictReader(results_table(work.measured(), ["adherence"]).splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    result = reported(one, 1, lambda *_: found, split, [load_metric("adherence")], {})
    assert np.isfinite(result.figures["adherence"].value) and len(result.failed) == 1


def test_shards_share_out_the_batches_and_wait_for_each_other(tmp_path, pixart):
    one, split = candidates("strong", configured("pixart"), 2)[0], Split("tuning", [RED, BLUE], 2, 2)
    first, second = (work_of(tmp_path, pixart, batch=1, shard=Shard(index, 2))[0] for index in (0, 1))
    first.make([(one, split)])
    assert first.missing([(one, split)]) == 2 and len(list((tmp_path / "samples").iterdir())) == 2
    second.make([(one, split)])
    assert second.missing([(one, split)]) == 0
    alone = measured_of(tmp_path / "alone", pixart, one, split, batch=1)
    assert (second.read(one, split).features["classifier"] == alone.features["classifier"]).all()


def test_what_a_killed_run_has_not_finished_is_removed_but_by_a_shard(tmp_path):
    for name in ("samples", "clips"):
        (tmp_path / name).mkdir()
    (tmp_path / "samples" / ".a-tuning-0000.npz.part-1a").touch()
    (tmp_path / "clips" / ".a-0.png.part-xy").mkdir()
    work_of(tmp_path, None, shard=Shard(0, 2))
    assert len(list(tmp_path.glob("*/.*"))) == 2
    work_of(tmp_path, None)
    assert not list(tmp_path.glob("*/.*"))


def drawn_samples(values, prompt, errors=None, features=None):
    count = len(values)
    error = np.array(errors or [""] * count)
    return Samples(np.array(prompt), np.arange(count), np.ones(count), error, {"s": np.array(values)}, features or {})


SCORE = Score("s", True, lambda clips, prompts: np.zeros(len(clips)))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = mean(values, np.arange(400), 400)
    error = values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_samples_of_a_prompt_are_drawn_together():
    values = np.random.default_rng(1).normal(0, 1, 100)
    alone, repeated = (mean(np.tile(values, k), np.tile(np.arange(100), k), 100) for k in (1, 4))
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low), "copies tell nothing new"


def test_a_difference_is_paired():
    values = np.random.default_rng(1).normal(0, 10, 50)
    shifted = mean(values + 1, np.arange(50), 50) - mean(values, np.arange(50), 50)
    assert [shifted.value, shifted.low, shifted.high] == pytest.approx([1, 1, 1])


OF_FEATURES = Distance("d", False, lambda clips: clips, lambda own, real: float(own.mean()) + 7, needs_real=False)


def test_the_interval_of_a_linear_distance_is_that_of_the_standard_error_of_its_prompts():
    values, prompt = np.random.default_rng(1).normal(0, 1, 200), np.repeat(np.arange(100), 2)
    found = measured(OF_FEATURES, drawn_samples(values, prompt, features={"d": values[:, None]}), None, 100)
    of_groups = [values[_group_of_prompt(100)[prompt] == group].mean() for group in range(GROUPS)]
    half = stats.t.ppf(0.975, GROUPS - 1) * np.std(of_groups, ddof=1) / np.sqrt(GROUPS)
    assert found.value == pytest.approx(values.mean() + 7)
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half])


def _group_of_prompt(prompts):
    return np.random.default_rng(0).permutation(prompts) % GROUPS


def test_real_clips_of_a_prompt_are_left_out_with_it_and_others_by_themselves():
    values, prompt = np.random.default_rng(1).normal(0, 1, 60), np.repeat(np.arange(30), 2)
    gap = replace(OF_FEATURES, between=lambda own, real: float(own.mean() - real.mean()) + 9, needs_real=True)
    drawn = drawn_samples(values, prompt, features={"d": values[:, None]})
    same = measured(gap, drawn, Real(values[:, None] - 3, prompt), 30)
    assert [same.value, same.low, same.high] == pytest.approx([12, 12, 12])
    apart = measured(gap, drawn, Real(np.random.default_rng(2).normal(0, 1, (60, 1))), 30)
    alone = measured(gap, drawn, Real(np.zeros((60, 1))), 30)
    assert apart.high - apart.low > 1.2 * (alone.high - alone.low), "others vary by themselves"


def test_a_distance_of_too_few_prompts_or_clips_has_no_interval():
    values = np.random.default_rng(1).normal(0, 1, 6)
    few = measured(OF_FEATURES, drawn_samples(values, [0, 0, 0, 1, 1, 1], features={"d": values[:, None]}), None, 2)
    assert np.isfinite(few.value) and np.isnan([few.low, few.high]).all() and np.isnan((few - few).low)
    assert np.isnan(few.p_value)


def test_p_values_are_those_of_the_textbook():
    """Of 40 independent numbers, one a prompt: Student's test, within what 1000 resamples tell."""
    values = np.random.default_rng(3).normal(0.35, 1, 40)
    found = mean(values, np.arange(40), 40)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.4)
    for shift in np.linspace(-1.5, 0.2, 9):
        one = mean(values + shift, np.arange(40), 40)
        assert (one.p_value < 0.05) == (one.low > 0 or one.high < 0)


def test_holm_is_that_of_the_textbook():
    """The example of Holm's step-down rule: 0.01, 0.04, 0.03 and 0.005."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.02, float("nan"), 0.9])
    assert corrected[0] == pytest.approx(0.04) and np.isnan(corrected[1]) and corrected[2] == pytest.approx(0.9)
    assert holm([0.8, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_wins_ties_and_failures():
    ours = drawn_samples([1.0, 2.0, 3.0, 4.0, np.nan], range(5), ["", "", "", "", "failed"])
    theirs = drawn_samples([0.0, 2.0, 4.0, 3.0, 0.0], range(5))
    assert win_rate(SCORE, ours, theirs, 5).value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    lower = replace(SCORE, higher_is_better=False)
    assert win_rate(lower, ours, theirs, 5).value == pytest.approx((0 + 0.5 + 1 + 0) / 4)


def test_the_front_holds_what_nothing_beats():
    points = [(10, 5.0), (10, 4.0), (20, 5.0), (20, 6.0), (30, 5.5), (5, float("nan"))]
    assert pareto_front(points, True) == [True, False, False, True, False, False]
    assert pareto_front(points, False) == [False, True, False, False, False, False]


def candidate(setting, arm="arm", budget=10):
    return Candidate(arm, setting, budget, configured("pixart"), budget)


def test_the_best_setting_is_chosen_on_the_tuning_prompts():
    worth = {"good": [3.0, 5.0], "bad": [1.0, 1.0], "failed": [np.nan, np.nan]}
    asked = []

    def measure(one, split):
        asked.append((one.setting, split.name))
        return drawn_samples(worth[one.setting], [0, 1], ["no"] * 2 if one.setting == "failed" else None)

    tuning, settings = Split("tuning", [RED, BLUE], 0, 1), [candidate(name) for name in ("failed", "bad", "good")]
    best, tuned = choose(settings, SCORE, measure, tuning, None)
    assert best.setting == "good" and [one.value for one in tuned][1:] == [1.0, 4.0]
    assert choose(settings, replace(SCORE, higher_is_better=False), measure, tuning, None)[0].setting == "bad"
    assert choose(settings[:1], SCORE, measure, tuning, None) == (settings[0], [])
    assert choose([settings[0]] * 2, SCORE, measure, tuning, None)[0].setting == "failed"
    assert {name for _, name in asked} == {"tuning"}


@pytest.mark.parametrize(
    ("prompts", "seeds", "sizes"), [(2, 16, [4, 4, 8, 16]), (16, 1, [2, 2, 4, 8]), (3, 4, [2, 1, 3, 6])]
)
def test_rounds_are_all_samples_each_once_and_of_all_prompts_as_soon_as_can_be(prompts, seeds, sizes):
    whole = Split("tuning", [f"prompt {k}" for k in range(prompts)], 20, seeds)
    rounds = rounds_of(whole, 4)
    assert [split.samples for split in rounds] == sizes and len({split.name for split in rounds}) == 4
    asked = [sample for split in rounds for number in range(4) for sample in split.batch(number, 5)]
    assert asked == whole.batch(0, prompts * seeds)
    for count, split in zip(np.cumsum(sizes), rounds, strict=True):
        assert len({place for place, _ in asked[:count]}) == split.prompts_up_to_here == min(count, prompts)
    assert [split.samples for split in rounds_of(replace(whole, prompts=["one"], seeds=1), 3)] == [1]
    assert rounds_of(whole, 1) == [whole]


def test_in_rounds_an_arm_gives_up_the_worse_half_by_all_that_was_seen():
    whole = Split("tuning", [f"prompt {k}" for k in range(8)], 8, 2)
    rounds = rounds_of(whole, 3)  # half of the first seed, the other half, the second seed
    arms = [[candidate(str(k), arm) for k in range(count)] for arm, count in (("many", 7), ("few", 2), ("one", 1))]
    values = (
        np.random.default_rng(4).normal(size=(7, 8, 2)) + np.arange(7)[:, None, None] / 4
    )  # by setting, prompt, seed
    made, read = [], []

    def measure(one, split):
        read.append((one.arm, one.setting, split.name))
        places, seeds = np.array(split.batch(0, 16)).T
        return drawn_samples(values[int(one.setting)][places, seeds // SEEDS], list(places))

    def make(asked):
        made.append([(one.arm, one.setting, split.name) for one, split in asked])
        return True

    chosen, tuned = choose_in_rounds(arms, SCORE, make, measure, rounds, {})
    left = list(range(7))
    for number, (seen, keeps) in enumerate(((4, 4), (8, 2), (16, 1))):  # the plain loop
        assert len([one for one in made[number] if one[0] == "many"]) == len(left)
        left = sorted(left, key=lambda k: -values[k].T.ravel()[:seen].mean())[:keeps]
    assert chosen[0].setting == str(left[0]) and chosen[2] is arms[2][0]
    assert [one.samples for one in tuned if one.candidate is chosen[0]] == [16]
    assert sorted(one.samples for one in tuned if one.candidate.arm == "many") == [4, 4, 4, 8, 8, 16, 16]
    assert len([one for one in made[0] if one[0] == "few"]) == 2
    asked = {one for of_round in made for one in of_round}
    assert set(read) == asked and not any(arm == "one" for arm, _, _ in asked), "only what was made is read"
    assert sum(tuning_samples(len(arm), rounds) for arm in arms) == 4 * (7 + 2) + 4 * 4 + 8 * 2
    assert choose_in_rounds(arms, SCORE, lambda asked: False, measure, rounds, {}) is None


def test_arms_are_compared_with_one_of_the_same_budget():
    split, metrics = Split("report", [RED, BLUE], 0, 1), [SCORE]

    def result(arm, budget, values):
        return reported(candidate("", arm, budget), 1, lambda *_: drawn_samples(values, [0, 1]), split, metrics, {})

    results = [result("a", 10, [1.0, 2.0]), result("W", 10, [2.0, 2.0]), result("a", 20, [5.0, 5.0])]
    low, own, alone = compare(results, "W", metrics, 2)
    assert low.differences["s"].value == pytest.approx(-0.5) and low.wins.value == pytest.approx(0.75)
    assert own.wins is None and alone.wins is None and not own.differences and not alone.differences


def test_a_figure_of_nothing_is_nan():
    none = figure(np.nan, np.full(RESAMPLES, np.nan), 0)
    assert np.isnan(none.low) and np.isnan((none - none).high)
    failed = drawn_samples([np.nan], [0], ["no"])
    assert np.isnan(measured(SCORE, failed, None, 1).value)
