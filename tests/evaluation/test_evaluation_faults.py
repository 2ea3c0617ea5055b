"""Whatever befalls an evaluation, in the end there is what would have been, or one line that says why not.

Few processes are killed unless asked for: ``python -m pytest -m kills tests/evaluation`` kills twenty of each kind.
"""

import csv
import functools
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from running import LARGE, SMALL, contents, kill_driver, kill_workers, run

from w2sd_video import evaluate
from w2sd_video.evaluation import laboratory as sampling

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")
twenty = pytest.param(20, LARGE, marks=pytest.mark.kills)
WEIGHTS = Path(evaluate.__file__).parent / "miniatures" / "weights" / "pixart"


@functools.cache
def undisturbed(options):
    """Return what an evaluation in one process leaves that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = run(Path(folder) / "runs", *options)
        assert code == 0, said
        return contents(Path(folder) / "runs")


def check_the_same(folder, options, *who):
    code, said = run(folder, *options, *who)
    assert code == 0, said
    assert contents(folder) == undisturbed(options)
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


@needs_ray
@pytest.mark.parametrize(("kills", "options"), [pytest.param(0, SMALL, marks=pytest.mark.kills), (2, SMALL), twenty])
def test_two_workers_find_what_one_process_finds_also_if_they_are_killed(kills, options, tmp_path):
    assert kill_workers(tmp_path / "runs", kills, *options, "--workers", "2") == (kills, 0)
    check_the_same(tmp_path / "runs", options, "--workers", "2")


@pytest.mark.parametrize(("kills", "options"), [(2, SMALL), twenty])
def test_an_evaluation_that_is_killed_goes_on(kills, options, tmp_path):
    assert kill_driver(tmp_path / "runs", kills, *options) == kills
    check_the_same(tmp_path / "runs", options)


@needs_ray
@pytest.mark.parametrize(("kills", "options"), [twenty])
def test_an_evaluation_on_a_pool_that_is_killed_goes_on(kills, options, tmp_path):
    assert kill_driver(tmp_path / "runs", kills, *options, "--workers", "2") == kills
    check_the_same(tmp_path / "runs", options)


def test_shards_that_share_a_folder_find_the_same(tmp_path):
    for shard, words in (("0/2", "batches of other shards"), ("1/2", "nothing of this"), ("0/2", "nothing of this")):
        code, said = run(tmp_path / "runs", *SMALL, "--shard", shard)
        assert code == 0 and words in said, said
    check_the_same(tmp_path / "runs", SMALL)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A copy of a miniature's weights that can be broken, and a command line that evaluates it."""
    shutil.copytree(WEIGHTS, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    config = (Path(evaluate.__file__).parents[1] / "configs" / "miniature-pixart.yaml").read_text()
    Path("pair.yaml").write_text(config.replace("miniature:pixart", "./model"))
    Path("prompts.txt").write_text("a red circle moving left\na blue square moving up\na green circle moving up\n")
    words = ["--prompts", "prompts.txt", "--metrics", "likelihood", "adherence"]
    words += ["--budgets", "4", "--arms", "strong", "weak", "--number-of-seeds", "1", "--folder", "runs"]
    return ["--config", "pair.yaml", *words]


def ends(argv, capsys):
    """Run a command line that ends with an error; return its exit code and the last line that it printed."""
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(argv)
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_broken_model_ends_it_before_anything_is_sampled_and_a_mended_one_goes_on(model, capsys):
    file = Path("model/transformer_weak/diffusion_pytorch_model.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    code, line = ends(model, capsys)
    assert code == 1 and line.startswith("w2sd_video.evaluate: model ./model: ")
    assert not list(Path("runs").glob("samples/*"))
    file.write_bytes(content)
    assert evaluate.main(model) == 0
    file.write_bytes(content[:-4] + bytes(4))  # another model in the same place
    code, line = ends(model, capsys)
    assert code == 2 and "were made otherwise (files.model/transformer_weak" in line.replace("./", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weak.lora", '{"none": 1.0}'], "weak.lora 'none': not among model.lora"),
        (["--weak.skip_layers", "[99]"], "arm strong, guidance 1: skip_layers 99: this"),
        (["--call.nonsense", "1"], "call.nonsense: "),
    ],
)
def test_a_branch_that_cannot_be_ends_it_before_anything_is_sampled(words, said, model, capsys):
    code, line = ends([*model, *words], capsys)
    assert code == 2 and said in line and not list(Path("runs").glob("samples/*"))


def test_what_failed_is_listed_and_tried_again(model, capsys, monkeypatch):
    once = sampling.sample_clips

    def fails(pipe, config, prompts, *rest):
        if config.base.weights == "weak" and any("red" in prompt for prompt in prompts):
            raise RuntimeError("CUDA error: an illegal memory access\nand more")
        return once(pipe, config, prompts, *rest)

    monkeypatch.setattr(sampling, "sample_clips", fails)
    assert evaluate.main(model) == 1
    said = capsys.readouterr().out
    assert "failed   1 sample(s) of weak: CUDA error: an illegal memory access" in said
    errors = [row["error"] for row in csv.DictReader(Path("runs/results.csv").open())]
    assert errors.count("CUDA error: an illegal memory access") == 1
    monkeypatch.setattr(sampling, "sample_clips", once)
    assert evaluate.main(model) == 0 and "failed" not in capsys.readouterr().out
    mended = contents(Path("runs"))
    assert evaluate.main([*model, "--folder", "other"]) == 0 and contents(Path("other")) == mended


def test_a_dry_run_counts_and_measures_and_writes_nothing(capsys, tmp_path):
    assert evaluate.main([*SMALL, "--folder", str(tmp_path / "runs"), "--dry-run", "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^NFE      in all: at most \d+ of \d+ samples$", said, re.MULTILINE)
    assert re.search(r"^seconds  about .* by 2 workers \(measured: ", said, re.MULTILINE)
    settings = int(re.search(r"tuning   (\d+) settings x 3 samples", said)[1])
    assert f"of {settings * 3 + 2 * 6} samples" in said and not (tmp_path / "runs").exists()
    made = len({row for row in undisturbed(SMALL) if "-tuning-" in row})
    assert made == settings * 2, "two batches of a setting"
    assert evaluate.main(["--config", "miniature-pixart", "--print-config", "--folder", str(tmp_path / "runs")]) == 0
    assert "pretrained: miniature:pixart" in capsys.readouterr().out and not (tmp_path / "runs").exists()
