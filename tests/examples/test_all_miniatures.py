"""The study of all miniatures, of few samples, and the command that measures throughput."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the studies draw figures; install the extra 'examples'")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "studies"))

import all_miniatures
import throughput

from w2sd_video.evaluation import laboratory
from w2sd_video.evaluation.statistics import holm

FEW = {
    "configs": ("miniature-pix*", "miniature-dit-moe"),
    "budgets": (6,),
    "samples": 12,
    "tuning_samples": 2,
    "arms": ("strong", "CFG", "weak"),
    "number_of_prompts": 4,
    "number_of_tuning_prompts": 2,
    "metrics": ("likelihood", "adherence"),
}


def test_one_page_has_all_of_them_corrected_together_and_nothing_is_made_twice(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "all"
    assert all_miniatures.main(**FEW, folder=folder) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((folder / "all.csv").open()))
    assert {row["configuration"] for row in rows} == {"miniature-pixart", "miniature-dit-moe"}
    assert all(int(row["samples"]) >= 12 and int(row["nfe"]) <= 6 for row in rows)
    assert len(rows) == 6
    compared = [row for row in rows if row["likelihood_difference"]]
    assert len(compared) == 4 and all(row["arm"] != "CFG" for row in compared)
    expected = holm([float(row["likelihood_difference_p"]) for row in compared])
    assert [float(row["p_by_holm_over_all"]) for row in compared] == pytest.approx(expected, abs=1e-5)
    table = (folder / "table.md").read_text()
    assert printed.rstrip().endswith(table.rstrip()) and "all 4 comparisons of this page" in table
    assert re.search(r"- miniature-dit-moe, 6 NFE: (CFG|strong|weak) is best", table)
    assert (folder / "report.html").exists() and (folder / "miniature-pixart" / "report.html").exists()

    made, once = [], laboratory.sample_clips
    monkeypatch.setattr(laboratory, "sample_clips", lambda *given: made.append(given) or once(*given))
    assert all_miniatures.main(**FEW, folder=folder) == 0 and not made
    more = FEW | {"arms": ("strong", "CFG", "weak", "AutoGuidance")}
    assert all_miniatures.main(**more, folder=folder) == 0 and made


def test_a_dry_run_counts_what_there_is_and_makes_nothing(tmp_path, capsys):
    assert all_miniatures.main(**FEW | {"configs": ("miniature-pixart",)}, folder=tmp_path / "all", dry_run=True) == 0
    said = capsys.readouterr().out
    found = re.search(r"(\d+) settings x at most 2 and 3 x 12 samples: (\S+) million evaluations of (\d+) MFLOP", said)
    settings, evaluations = int(found[1]), float(found[2]) * 1e6
    assert settings > 30 and evaluations <= 6 * (2 * settings + 3 * 12) and int(found[3]) == pytest.approx(50, abs=10)
    assert "on one H100, by estimate" in said and not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"configs": ("miniature-none*",)}, "configs miniature-none*: no configuration has such a name"),
        ({"configs": ("miniature-animatediff-control",)}, "this miniature cannot be measured"),
        ({"arms": ("strong", "W2S")}, "unknown arm 'W2S'; did you mean 'W2SD'?"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(changes, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        all_miniatures.main(**FEW | {"against": "strong"} | changes, folder=tmp_path / "all")
    assert said in capsys.readouterr().err and not (tmp_path / "all").exists()


def test_what_a_pattern_names_and_cannot_be_measured_is_left_out():
    options = {
        "device": "auto",
        "against": "strong",
        "batch": None,
        "rounds": 4,
        "workers": None,
        "gpus_per_worker": None,
    }
    options = FEW | options | {"configs": ("miniature-*",), "folder": Path("all")}
    studies, left_out = all_miniatures.studies_of(type("Options", (), options))
    assert {"miniature-pixart", "miniature-cogvideox", "miniature-animatediff"} <= {one.name for one in studies}
    lora = "miniature-animatediff-lora"
    named = options | {"configs": (*options["configs"], lora)}
    assert lora in {one.name for one in all_miniatures.studies_of(type("Options", (), named))[0]}
    reasons = dict(line.split(": ", 1) for line in left_out)
    narrow = "miniature-scenes-pixart-narrow"
    assert reasons.keys() == {"miniature-animatediff-control", "miniature-fashion-two", lora, narrow}
    assert reasons[lora] == "another pair of the model of miniature-animatediff; name it to have it too"
    assert reasons["miniature-animatediff-control"].startswith("inputs.conditioning_frames")
    assert reasons["miniature-fashion-two"].startswith("prompts: 1 given")
    assert all(replace(one.plan, real=None).report.samples >= 12 for one in studies)


def test_throughput_is_measured_beside_another_python(capsys):
    found = throughput.main(names=("pixart",), arms=("strong",), budget=2, batch=2, rounds=1, against=sys.executable)
    assert found["pixart"]["clips a second"] > 0 and 0 < found["pixart"]["share of the networks"] < 1
    assert re.search(
        r"pixart: \S+ clips/s over all, \d+% of the seconds in the networks; the other version", capsys.readouterr().out
    )
