"""The command that compares arms: few prompts, few steps, real weights."""

import argparse
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from w2sd_video import evaluate
from w2sd_video.evaluation.arms import candidates
from w2sd_video.evaluation.laboratory import sample_clips
from w2sd_video.evaluation.plan import add_options, plan_of
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.video import write_video
from w2sd_video.settings.command_line import parse

QUICK = [
    "--number-of-prompts",
    "3",
    "--number-of-tuning-prompts",
    "2",
    "--number-of-tuning-seeds",
    "1",
    "--number-of-seeds",
    "2",
    "--budgets",
    "4",
    "8",
]
ARMS = ["--arms", "strong", "CFG", "W2SD as configured", "--against", "W2SD as configured"]
PIXART = ["--config", "miniature-pixart", *QUICK, *ARMS]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("w2sd_video.evaluation.statistics.RESAMPLES", 10)


def without_seconds(text):
    return [line.rsplit("|", 2)[0] for line in text.splitlines()]


def test_one_folder_holds_samples_figures_table_and_page(tmp_path, capsys):
    folder = tmp_path / "runs"
    assert evaluate.main([*PIXART, "--folder", str(folder)]) == 0
    table = capsys.readouterr().out
    assert (folder / "table.md").read_text().strip() == table.strip()
    for budget in (4, 8):
        assert f"**{budget} NFE**" in table
    heads = [line for line in table.splitlines() if line.startswith("| arm")]
    sets = "kid | frechet distance | frechet principal | precision | recall"
    assert heads[0].startswith(f"| arm | best setting | NFE | likelihood | adherence | {sets} |")
    assert "| likelihood less that of W2SD as configured | p by Holm | W2SD as configured wins |" in heads[0]
    tried = {budget: len(candidates("CFG", parse(PIXART[:2]).config, budget)) for budget in (4, 8)}
    assert tried[4] == tried[8] > 30
    for budget, count in tried.items():
        assert re.search(rf"\| CFG \*? ?\| guidance [^|]+ \({count}\) \|", table), (budget, "says among how many")
    assert f"- Arms that have several settings have {tried[4]} that fit; each is tried on 2 samples." in table
    assert "- Each setting is tried on 2 samples only" in table and "corrected for 4 comparisons in all" in table
    rows_of_real = [
        line.split("|")[1:] for line in table.splitlines() if line.startswith("| real clips | 6 against 24 |")
    ]
    assert len(rows_of_real) == 2 and rows_of_real[0] == rows_of_real[1]
    floor = {name.strip(): cell.strip() for name, cell in zip(heads[0].split("|")[1:], rows_of_real[0], strict=True)}
    assert floor["likelihood"] == "" and float(floor["frechet distance"].split()[0]) > 100, "of six clips, all bias"

    rows = list(csv.DictReader((folder / "results.csv").open()))
    # CFG has its settings on two tuning prompts, and each of three arms one on 3 x 2 samples, at two budgets.
    assert len(rows) == 2 * sum(tried.values()) + 2 * 3 * 3 * 2 and all(row["error"] == "" for row in rows)
    assert all(int(row["nfe"]) <= int(row["budget"]) for row in rows)
    tuned, reported = ({row["prompt"] for row in rows if row["split"] == name} for name in ("tuning", "report"))
    assert len(tuned) == 2 and len(reported) == 3 and not tuned & reported

    figures = list(csv.DictReader((folder / "front.csv").open()))
    of_report = [row for row in figures if row["split"] == "report" and row["arm"] != "real clips"]
    (real,) = [row for row in figures if row["arm"] == "real clips"]
    assert len(of_report) == 6 and len(figures) == 1 + 6 + sum(tried.values())
    assert real["frechet_distance"][:3] == floor["frechet distance"][:3] and real["likelihood"] == ""
    assert [row["likelihood_difference"] == "" for row in of_report] == [False, False, True] * 2
    for row in of_report:
        differences = [each for each in of_report if each["budget"] == row["budget"]]
        if row["likelihood_difference"]:
            apart = float(row["likelihood"]) - float(differences[-1]["likelihood"])
            assert float(row["likelihood_difference"]) == pytest.approx(apart, abs=1e-4)
            assert 0 <= float(row["likelihood_difference_p_by_holm"]) <= 1
    own = [float(row["likelihood"]) for row in rows if row["split"] == "report" and row["arm"] == "strong"]
    told = [float(row["likelihood"]) for row in of_report if row["arm"] == "strong"]
    assert [np.mean(own[:6]), np.mean(own[6:])] == pytest.approx(told, rel=1e-3)
    for budget in ("4", "8"):
        worths = {
            row["setting"]: float(row["likelihood"])
            for row in figures
            if row["split"] == "tuning" and row["budget"] == budget
        }
        chosen = next(row["setting"] for row in of_report if row["arm"] == "CFG" and row["budget"] == budget)
        assert worths[chosen] == max(worths.values())

    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and page.count("data:image/svg+xml;base64,") == 2
    (groups,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    groups = json.loads(groups)["groups"]
    assert [[clip["label"] for clip in group["clips"]] for group in groups] == [
        ["strong", "CFG", "W2SD as configured"]
    ] * 3
    assert all(clip["files"][0].startswith("data:image/png;base64,") for group in groups for clip in group["clips"])
    assert len({group["prompt"] for group in groups} & reported) == 3
    assert page.count('<b title="the best of this column">best</b>') >= 2 * 3 and "lower is better" in page
    assert "machine" in page and (folder / "front.svg").read_text() != (folder / "front-distance.svg").read_text()
    assert "pretrained: miniature:pixart" in page
    of_real = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*real clips(?:(?!</tr>).)*</tr>", page, re.DOTALL)
    assert len(of_real) == 2 and not any(">best<" in row for row in of_real), "real clips are no arm"
    assert json.loads((folder / "job.json").read_text())["model"]["pretrained"] == "miniature:pixart"
    assert not list(folder.rglob("*part*"))


def test_it_goes_on_where_it_stopped_and_takes_more_arms(tmp_path, capsys, monkeypatch):
    folder = str(tmp_path / "runs")
    evaluate.main([*PIXART, "--folder", folder])
    before = capsys.readouterr().out
    made = []
    monkeypatch.setattr(
        "w2sd_video.evaluation.laboratory.sample_clips", lambda *args: made.append(args[1]) or sample_clips(*args)
    )
    evaluate.main([*PIXART, "--folder", folder])
    assert not made and without_seconds(capsys.readouterr().out) == without_seconds(before)
    evaluate.main(["--config", "miniature-pixart", *QUICK, "--arms", "strong", "weak", "--folder", folder])
    assert made and all(one.base.weights == "weak" for one in made)
    with pytest.raises(SystemExit):
        evaluate.main([*PIXART, "--number-of-seeds", "1", "--folder", folder])
    assert "were made otherwise (seeds.report 2, now 1)" in capsys.readouterr().err


def test_clips_are_shown_as_videos(tmp_path, capsys):
    few = ["--number-of-prompts", "2", "--number-of-tuning-prompts", "2", "--number-of-seeds", "1", "--budgets", "4"]
    argv = ["--config", "miniature-cogvideox", *few, "--arms", "strong", "weak", "--shown", "1", "--batch", "2"]
    assert evaluate.main([*argv, "--folder", str(tmp_path / "new")]) == 0
    assert "motion error" in capsys.readouterr().out
    page = (tmp_path / "new" / "report.html").read_text()
    assert page.count('"files": ["data:video/mp4;base64,') == 2 and page.count('"frames": 9') == 2


def test_of_a_lora_its_style_is_measured(tmp_path, capsys):
    few = ["--number-of-prompts", "2", "--number-of-tuning-prompts", "2", "--number-of-seeds", "1", "--budgets", "4"]
    argv = ["--config", "miniature-animatediff-lora", *few, "--arms", "strong", "--folder", str(tmp_path / "new")]
    assert evaluate.main(argv) == 0
    assert "| comets |" in capsys.readouterr().out


@pytest.fixture
def tiny_model(tmp_path, monkeypatch):
    """A configuration of a model that is no miniature, and prompts for it, in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    tiny.stable_diffusion()[0].save_pretrained("model")
    branch = {"guidance_scale": 1.0}
    config = {
        "model": {"pretrained": "model", "family": "pipeline"},
        "base": {"guidance_scale": 3.0},
        "strong": branch,
        "weak": {"guidance_scale": 0.0},
        "height": 64,
        "width": 64,
        "frames": 1,
    }
    Path("pair.yaml").write_text(yaml.safe_dump(config))
    Path("prompts.txt").write_text("a cat\na dog\na bird\na fox\n")
    Path("real").mkdir()
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
        write_video(f"real/{number}", picture)
    return ["--config", "pair.yaml", "--prompts", "prompts.txt", "--number-of-seeds", "1", "--arms", "strong", "CFG"]


def test_any_model_is_measured_and_a_metric_that_cannot_be_had_is_left_out(tiny_model, capsys, monkeypatch):
    argv = [*tiny_model, "--metrics", "kid", "clip_score=nowhere", "--real", "real", "--budgets", "12"]
    monkeypatch.setattr("w2sd_video.miniatures.judges.features", lambda clips: clips.reshape(len(clips), -1)[:, :5])
    assert evaluate.main(argv) == 0
    told = capsys.readouterr()
    assert "the metric clip_score is left out: " in told.err and "The metric clip_score is left out" in told.out
    assert "| strong" in told.out and "| CFG" in told.out
    rows = list(csv.DictReader(Path("runs/pair/results.csv").open()))
    assert {row["prompt"] for row in rows} == {"a cat", "a dog", "a bird", "a fox"}


@pytest.mark.parametrize(
    ("argv", "said", "code"),
    [
        (["--metrics", "clip_score=nowhere"], "select clip_score: ", 1),
        (["--metrics", "kid"], "kid: compares with real clips; name a folder", 2),
        (["--metrics", "fid", "--real", "real"], "select fid: on 2 samples it tells their number more than", 2),
        (["--prompts", "one.txt"], "prompts: 1 given; at least 2 are needed", 2),
        (["--metrics", "kid", "--real", "real", "--number-of-prompts", "1"], "report: 1 sample, but", 2),
        (["--metrics", "kid", "--real", "damaged"], "damaged/a.mp4: not a video that can be decoded", 2),
        (["--real", "nowhere"], "clips nowhere: no such folder", 2),
    ],
)
def test_what_a_model_lacks_is_said_in_one_line(tiny_model, argv, said, code, capsys):
    Path("one.txt").write_text("a cat\n")
    Path("damaged").mkdir()
    Path("damaged/a.mp4").write_text("no video")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*tiny_model, *argv])
    error = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == code and said in error[-1] and not Path("runs").exists()


def test_a_distance_chooses_settings_of_enough_samples_alone():
    def planned(*words):
        parser = argparse.ArgumentParser()
        add_options(parser)
        config = parse(PIXART[:2]).config
        return plan_of(parser.parse_args(words), config, "miniature-pixart")

    usual = planned()
    assert usual.select == "likelihood" and usual.tuning.samples >= 500 and not usual.warning
    assert planned("--select", "frechet_distance").select == "frechet_distance"
    with pytest.raises(ConfigError, match="select frechet_distance: on 64 samples it tells their number more"):
        planned("--select", "frechet_distance", "--rounds", "4")  # the first of them
    few = planned("--number-of-tuning-seeds", "1")
    assert few.tuning.samples == 64 and "64 samples only" in few.warning
    nothing_to_choose = planned("--number-of-tuning-seeds", "1", "--select", "recall", "--arms", "strong", "weak")
    assert not nothing_to_choose.warning, "arms with one setting have none to choose"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "nothing"], "unknown config 'nothing'"),
        (["--number-of-prompts", "432"], "number_of_prompts 432: must be from 1 to 431"),
        (["--number-of-prompts", "0"], "number_of_prompts 0: must be from 1 to 431"),
        (["--number-of-prompts", "430", "--number-of-tuning-prompts", "3"], "number_of_tuning_prompts 3: must be from"),
        (["--config", "miniature-dit-moe", "--number-of-prompts", "48"], "number_of_prompts 48: must be from 1 to 47"),
        (["--number-of-seeds", "0"], "number_of_seeds 0: must be from 1 to 1000"),
        (["--batch", "0"], "batch 0: must be from 1 to 1024"),
        (["--shown", "-1"], "shown -1: must be from 0 to 1000"),
        (["--arms", "strong", "--against", "CFG"], "--against CFG: is not among the arms that are compared, strong"),
        (["--preset", "fast", "--arms", "S2WD", "strong"], "arm S2WD: the configuration reflects no step"),
        (["--arms", "strong", "FSG", "--budgets", "4"], "arm FSG: none of its settings fits 4 evaluations; raise"),
        (["--seed", "3"], "--seed: the noise of an evaluation is always the same; --number-of-seeds takes more"),
        (["--steps=3", "--budgets", "4"], "--steps: --budgets says how many evaluations there are; leave one out"),
        (["--compare"], "--compare: an evaluation compares arms; name them with --arms"),
        (["-o", "a.mp4"], "-o: an evaluation fills a folder; name it with --folder"),
        (["--workers", "0"], "--workers 0: must be a whole number from 1"),
        (["--shard", "2/2"], "--shard 2/2: shards are counted from 0"),
        (["--budgets", "20", "-3"], "budgets -3: must be from 1 to 10000"),
        (["--stepz", "3"], "unknown option --stepz"),
        (["--arms", "strong", "AutoGuidanc"], "unknown arm 'AutoGuidanc'; did you mean 'AutoGuidance'?"),
        (["--arms", "nothing at all"], "unknown arm 'nothing at all'; known are weak, strong, CFG"),
        (["--metrics", "adherance"], "unknown metric 'adherance'; did you mean 'adherence'?"),
        (["--metrics", "adherence=folder"], "metric 'adherence' has no option 'source'; it has none"),
        (
            ["--select", "recall", "--number-of-tuning-seeds", "7"],
            "select recall: on 448 samples it tells their number",
        ),
        (["--select", "comets"], "select comets: is not among the metrics, likelihood, adherence"),
        (["--config", "miniature-animatediff-control"], "inputs.conditioning_frames: this miniature cannot be"),
    ],
)
def test_bad_input_is_one_line(argv, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*argv, "--folder", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1
    assert error.startswith("w2sd_video.evaluate: ") and not (tmp_path / "new").exists()


def test_the_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit):
        evaluate.main([*QUICK, "--folder", str(tmp_path)])
    assert "holds other files (mine.txt) and no job" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_class_by_its_number_is_the_class_of_that_name():
    parser = argparse.ArgumentParser()
    add_options(parser)
    config = parse(["--config", "miniature-fashion", "1", "7", "07", "bag"], command="evaluate").config
    plan = plan_of(parser.parse_args(["--number-of-prompts", "1"]), config, "miniature-fashion")
    assert {*plan.report.prompts, *plan.tuning.prompts} == {"trouser", "sneaker", "bag"}
