"""The command that searches: a real miniature, few prompts, few steps."""

import csv
import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import ENVIRONMENT, run_here

from w2sd_video import evaluate, load_settings, reflection, render, tune
from w2sd_video.evaluation import every_arm
from w2sd_video.miniatures import CALL, load_pipeline, load_weak
from w2sd_video.rendering.step_cost import StepCost
from w2sd_video.rendering.video import read_picture
from w2sd_video.tuning import every_operator, tuning_plan

SMALL = ["--config", "miniature-pixart", "--nfe", "6", "--trials", "4", "--rounds", "2", "--batch", "4"]
SMALL += ["--number-of-prompts", "4", "--number-of-tuning-prompts", "4", "--shown", "2", "--number-of-seeds", "1"]
SMALL += ["--number-of-tuning-seeds", "1"]
FEW = [*SMALL, "--operators", "guidance", "W2SD"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Return the folder of a search of every operator, and what it printed."""
    folder = tmp_path_factory.mktemp("tune") / "search"
    code, said = run_here(tune.main, [*SMALL, "--also", "adherence", "--folder", str(folder)])
    assert code == 0, said
    return folder, said


def rows(file):
    return list(csv.DictReader(file.open()))


def test_every_operator_is_tried_as_often_and_the_report_is_of_other_prompts(searched):
    folder, _ = searched
    tried = rows(folder / "trials.csv")
    names = {"none", "guidance", "AutoGuidance", "skip-layer", "Z-Sampling", "Re-Sampling", "W2SD"}
    counted = [row["operator"] for row in tried if row["state"] != "no number of steps fits"]
    assert {name: counted.count(name) for name in names} == dict.fromkeys(names, 4)
    assert all(int(row["nfe"]) <= 6 for row in tried if row["nfe"])
    prompts = {split: set() for split in ("tuning", "report")}
    for row in rows(folder / "results.csv"):
        prompts[row["split"].split("-")[0]].add(row["prompt"])
    assert len(prompts["tuning"]) == len(prompts["report"]) == 4 and not prompts["tuning"] & prompts["report"]


def test_the_table_is_printed_and_says_what_beats_what(searched):
    folder, printed = searched
    assert (folder / "table.md").read_text().strip() in printed
    assert (
        " beats plain guidance here: by " in printed
        or "Nothing beats plain guidance here (likelihood, 4 other" in printed
    )
    assert "| setting | values | steps | NFE | likelihood | adherence | seconds |" in printed
    assert "**likelihood: differences, corrected**" in printed and "| best few | less plain | less none |" in printed
    page = (folder / "report.html").read_text()
    assert "corrected" in page and "image/png;base64" in page and page.count("image/svg") >= 2
    assert "best.yaml" in page


def test_what_it_chose_was_best_on_the_prompts_of_the_search(searched):
    folder, _ = searched
    best = max(
        (row for row in rows(folder / "trials.csv") if row["likelihood"]), key=lambda row: float(row["likelihood"])
    )
    head = (folder / "best.yaml").read_text().splitlines()[0]
    assert head.startswith(f"# {best['operator']}: {best['values']}; {best['nfe']} NFE")
    settings = {path.stem for path in (folder / "settings").iterdir()}
    assert {"plain", "guidance", "W2SD"} <= settings


@pytest.mark.parametrize("name", ["best.yaml", "settings/W2SD.yaml", "settings/guidance.yaml"])
def test_a_configuration_renders_and_a_script_makes_the_same_of_it(searched, name, tmp_path):
    file, picture = searched[0] / name, tmp_path / "a.png"
    assert render.main(["a red circle moving left", "--config", str(file), "-o", str(picture)]) == 0
    config = yaml.safe_load(file.read_text())
    assert '(pipe, **load_settings(FILE, weights={"weak": ...}))' in file.read_text()
    pipe = load_pipeline("pixart")
    weak = load_weak(pipe) if "weak" in str(load_settings(file)["weak"].weights) else None
    weights = {"weak": weak} if weak is not None else None
    call = {**CALL["pixart"], **config["call"], "num_inference_steps": config["steps"], "guidance_scale": 3.0}
    import torch

    with reflection(pipe, **load_settings(file, weights)):
        call |= {"generator": torch.Generator("cpu").manual_seed(0)}
        image = pipe("a red circle moving left", **call).images[0]
    made = np.asarray(image).astype(int)
    rendered = read_picture(picture)[0].astype(int)
    size = rendered.shape[0] // made.shape[0]
    assert np.abs(rendered[size // 2 :: size, size // 2 :: size] - made).max() <= 2


def test_a_search_that_was_killed_goes_on_and_finds_the_same(tmp_path):
    assert tune.main([*FEW, "--folder", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "w2sd_video.tune", *FEW, "--folder", str(tmp_path / "killed")]
    for wanted in (3, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        while process.poll() is None and len(list(tmp_path.glob("killed/samples/*.npz"))) < wanted:
            time.sleep(0.01)
        assert process.poll() is None, "it was to be killed in the middle"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert tune.main([*FEW, "--folder", str(tmp_path / "killed")]) == 0
    for name in ("trials.csv", "best.yaml", "front.svg", "search.svg"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    of_samples = [rows(tmp_path / name / "results.csv") for name in ("killed", "whole")]
    assert len({row["split"] for row in of_samples[0]}) == 3, "both rounds of the search, and the report"
    for sample in (*of_samples[0], *of_samples[1]):
        del sample["seconds"]
    assert of_samples[0] == of_samples[1]


def test_several_metrics_have_a_front(tmp_path, capsys):
    argv = [*FEW, "--metric", "likelihood", "frechet_distance", "--folder", str(tmp_path / "front")]
    assert tune.main(argv) == 0
    said = capsys.readouterr().out
    assert "**frechet distance: differences, corrected**" in said
    tried = rows(tmp_path / "front" / "trials.csv")
    assert all(row["state"] != "given up" for row in tried)
    assert all(row["frechet_distance"] for row in tried if row["state"] == "finished")


def vote(folder, date):
    """Return the votes that someone casts on the page of a search, for whose label comes first in the alphabet."""
    page = (folder / "vote.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    votes = []
    for group in data["groups"]:
        labels = [clip["label"] for clip in group["clips"]]
        votes += [
            {"prompt": group["prompt"], "seed": group["seed"], "left": a, "right": b, "better": min(a, b)}
            for a, b in pairwise(labels)
        ]
    file = folder.parent / f"{date}.json"
    file.write_text(json.dumps({"page": data["title"], "date": date, "votes": votes}))
    return file, page


def test_people_can_be_the_metric(tmp_path, capsys):
    folder, files = tmp_path / "voted", []
    words = ["--config", "miniature-pixart", "--nfe", "6", "--operators", "guidance", "W2SD", "--metric", "vote"]
    words += ["--trials", "2", "--shown", "2", "--batch", "4", "--folder", str(folder)]
    for date in ("first", "second", "report"):
        given = ["--votes", *map(str, files)] if files else []
        assert tune.main([*words, *given]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"vote     {folder / 'vote.html'} (") and not (folder / "best.yaml").exists()
        file, page = vote(folder, date)
        files.append(file)
        assert "guidance" not in page.split('id="data">')[1].split("</script>")[0], "it does not say what is what"
    assert tune.main([*words, "--votes", *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert "| setting | values | steps | NFE | vote | seconds |" in said and (folder / "best.yaml").exists()


def test_seconds_are_a_budget_that_is_worked_out_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning_plan, "measured_cost", lambda config, batch: StepCost(0.01, 0.015, 1.0, 1))
    words = [*FEW, "--folder", str(tmp_path / "seconds")]
    words[words.index("--nfe") : words.index("--nfe") + 2] = ["--seconds", "0.08"]
    assert tune.main(words) == 0
    known = json.loads((tmp_path / "seconds" / ".job" / "budget.json").read_text())
    assert known["seconds"] == 0.08 and known["nfe"] == 6
    (tmp_path / "seconds" / ".job" / "budget.json").write_text(json.dumps(known | {"nfe": 5}))
    capsys.readouterr()
    assert tune.main(words) == 0 and "at most 5 NFE a clip" in capsys.readouterr().out


def test_too_few_seconds_leave_nothing_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning_plan, "measured_cost", lambda config, batch: StepCost(0.01, 0.015, 1.0, 1))
    words = [*FEW, "--folder", str(tmp_path / "seconds")]
    words[words.index("--nfe") : words.index("--nfe") + 2] = ["--seconds", "0.016"]
    with pytest.raises(SystemExit):
        tune.main(words)
    assert "--seconds 0.016: a clip takes 0.015 beside" in capsys.readouterr().err
    assert not (tmp_path / "seconds").exists()


@pytest.mark.parametrize("command", [tune, evaluate])
def test_the_folder_of_something_else_is_refused_before_anything_is_loaded(command, tmp_path, capsys, monkeypatch):
    def loaded(*_):
        raise AssertionError("metrics are loaded")

    for module in (every_arm, every_operator):
        monkeypatch.setattr(module, "load_metrics", loaded)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        command.main(["--config", "miniature-pixart", "--folder", str(tmp_path / "file")])
    assert "is a file; name a folder for the job" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_cost_and_makes_nothing(tmp_path, capsys):
    assert tune.main([*SMALL, "--folder", str(tmp_path / "new"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "search   7 operators x 4 settings x at most 4 samples: none, guidance" in said
    assert "NFE      in all: at most 936 of 156 samples" in said and "seconds  about" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nfe", "0"], "--nfe 0: must be from 1 to 10000"),
        (["--nfe", "4", "--seconds", "1"], "--nfe and --seconds: are both a budget; leave one out"),
        (["--seconds", "-1"], "--seconds -1.0: must be from 0.001"),
        (["--config", "miniature-animatediff", "--nfe", "1"], "--nfe 1: a step of this configuration takes 2"),
        (["--operators", "guidanse"], "unknown operator 'guidanse'; did you mean 'guidance'?"),
        (["--metric", "likelyhood"], "unknown metric 'likelyhood'; did you mean 'likelihood'?"),
        (["--metric", "vote", "adherence"], "--metric vote: cannot be had beside other metrics"),
        (["--metric", "likelihood", "likelihood"], "names one twice"),
        (["--metric", "frechet_distance"], "select frechet_distance: on 64 samples it tells their number more than"),
        (["--votes", "a.json"], "--votes: are for a search by --metric vote"),
        (["--metric", "vote", "--votes", "none.json"], "--votes none.json: cannot be read"),
        (["--trials", "0"], "--trials 0: must be from 1 to 10000"),
        (["--trials", "many"], "--trials 'many': must be a whole number"),
        (["--rounds", "11"], "--rounds 11: must be from 1 to 10"),
        (["--best", "0"], "--best 0: must be from 1 to 100"),
        (["--search-seed", "-1"], "--search-seed -1: must be from 0 to 4294967295"),
        (["--shard", "0/2"], "--shard: a search proposes settings by what it knows of others; use --workers"),
        (["--steps", "3"], "--steps: the number of steps follows from --nfe or --seconds"),
        (["--budgets", "3"], "--budgets: a search has one budget"),
        (["-o", "a.png"], "-o: a search fills a folder; name it with --folder"),
        (
            ["--config", "sd15-dreamshaper", "a cat", "a dog"],
            "--metric: none given; name one, such as clip_score, or vote",
        ),
        (["--config", "nothing"], "unknown config 'nothing'"),
        (["--number-of-prompts", "999"], "number_of_prompts 999: must be from 1 to"),
    ],
)
def test_bad_input_is_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("w2sd_video.rendering.load.load", None)  # no model is loaded for it
    with pytest.raises(SystemExit) as stopped:
        tune.main([*words, "--folder", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1
    assert error.startswith("w2sd_video.tune: ") and not (tmp_path / "new").exists()


def test_without_optuna_it_says_what_to_install(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError('no such package')")
    command = [sys.executable, "-m", "w2sd_video.tune", *FEW, "--folder", str(tmp_path / "new")]
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and done.stderr.strip().endswith("needs Optuna; pip install 'w2sd-video[tune]'")
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "new").exists()
