"""The evaluation on the miniatures: few prompts, few steps, real weights."""

import numpy as np
import pytest

from w2sd_video import evaluate
from w2sd_video.config import parse
from w2sd_video.plan import evaluations

QUICK = ["--steps", "2", "--number-of-prompts", "3", "--number-of-seeds", "2"]


def test_the_strong_rival_has_as_many_evaluations_as_w2sd():
    config = parse(["a red circle moving left", "--config", "miniature-cogvideox"]).config
    compared = evaluate.arms(config)
    cost = {name: sum(evaluations(arm).values()) for name, arm in compared.items()}
    assert abs(cost[evaluate.EQUAL] - cost["W2SD, paper"]) <= cost["strong"] / config.steps
    assert cost["weak"] == cost["strong"] < cost["W2SD, paper"] < cost["W2SD, implicit"]
    assert {arm.inversion for name, arm in compared.items() if "W2SD, " in name} >= {"paper", "explicit", "current"}


def test_s2wd_swaps_the_roles_and_autoguidance_differs_from_strong_by_the_weak_model_alone():
    config = parse(["a red circle moving left", "--config", "miniature-cogvideox"]).config
    compared = evaluate.arms(config)
    assert (compared["S2WD"].strong, compared["S2WD"].weak) == (config.weak, config.strong)
    guided = compared["AutoGuidance"]
    assert guided.weak == compared["weak"].base != guided.base == compared["strong"].base
    assert evaluations(guided) == {"base": 20, "strong": 0, "weak": 20}


def test_it_measures_prints_a_table_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    argv = ["--config", "miniature-cogvideox", *QUICK, "--folder", str(folder)]
    assert evaluate.main(argv) == 0
    table = capsys.readouterr().out
    assert all(
        f"| {name} |" in table for name in ("weak", "strong", evaluate.EQUAL, "AutoGuidance", "W2SD, implicit", "S2WD")
    )
    assert (folder / "table.md").read_text().strip() == table.strip()
    scores = sorted(folder.glob("*.npz"))
    assert len(scores) == 18 and not list(folder.glob(".*part*"))

    scores[0].unlink()
    measured = []
    once = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", lambda *args: measured.append(args) or once(*args))
    evaluate.main(argv)
    again = capsys.readouterr().out
    assert len(measured) == 1
    assert [line.rsplit("|", 2)[0] for line in again.splitlines()] == [
        line.rsplit("|", 2)[0] for line in table.splitlines()
    ], "the same clips again, but for the seconds"


def test_pictures_are_measured_too(tmp_path, capsys):
    few = ["--steps", "2", "--number-of-prompts", "2", "--number-of-seeds", "1", "--folder", str(tmp_path / "new")]
    assert evaluate.main(["--config", "miniature-pixart", *few]) == 0
    assert "comets" not in capsys.readouterr().out


def test_of_a_lora_its_style_is_measured():
    config = parse(["--config", "miniature-animatediff-lora"]).config
    prompts, pipe = evaluate.known_prompts(config)[::60], evaluate.load(config)
    scores = {name: [evaluate.measure(pipe, evaluate.arms(config)[name], prompts, 0, 8)] for name in ("weak", "strong")}
    assert scores["weak"][0].comets.mean() <= 0.25 < 0.6 <= scores["strong"][0].comets.mean()
    reference = evaluate.real_features(config, prompts * 8, first_seed=0)
    table = evaluate._table(config, scores | {evaluate.EQUAL: scores["strong"]}, reference, reference, 8, 1)
    rows = [line for line in table.splitlines() if "|" in line]
    assert rows[0].endswith("| comets |") and len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "cogvideox-5b-guidance"], "only miniatures can be measured"),
        (["--config", "nothing"], "unknown config 'nothing'"),
        (["--number-of-prompts", "433"], "number_of_prompts 433: must be from 1 to 432"),
        (["--number-of-prompts", "0"], "number_of_prompts 0: must be from 1 to 432"),
        (["--config", "miniature-dit-moe", "--number-of-prompts", "49"], "number_of_prompts 49: must be from 1 to 48"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_bad_input_is_one_line(argv, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*argv, "--folder", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_the_folder_of_another_evaluation_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit):
        evaluate.main([*QUICK, "--folder", str(tmp_path)])
    assert "is not empty and holds no evaluation" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_standard_errors():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    assert evaluate._error(values) == pytest.approx(values.std(ddof=1) / 2)
    # For a mean, the jackknife is the standard error itself.
    left_out = [float(np.delete(values, i).mean()) for i in range(4)]
    assert evaluate._jackknife(left_out) == pytest.approx(evaluate._error(values))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus", "1"], "w2sd_video.evaluate: unknown option --bogus"),
        (["--config", "miniature-animatediff-control"], "inputs.conditioning_frames: a model with inputs cannot be"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        evaluate.main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and said in error
