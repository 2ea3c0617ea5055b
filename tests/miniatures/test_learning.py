"""The training of scenes and of Fashion-MNIST: every stage, its interruptions, its packs and its plan."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fashion_files
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from w2sd_video.backends import registered
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline
from w2sd_video.miniatures import (
    CALL,
    MORE_WEIGHTS,
    WEIGHTS,
    fashion,
    folder_of,
    load_pipeline,
    load_weak,
    scene_judges,
    scenes,
    train,
)
from w2sd_video.miniatures.learning import lanes, packs, stage_list, stage_loop
from w2sd_video.miniatures.learning.assemble import assemble, configurations, write_real_pictures
from w2sd_video.miniatures.learning.bench import Bench
from w2sd_video.miniatures.learning.running import run_stage
from w2sd_video.miniatures.learning.stage_list import GROUPS, STAGES, chosen
from w2sd_video.miniatures.learning.stage_loop import Limit, State, Task, TrainingError, learn, read_state, write_state
from w2sd_video.rendering.load import load
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.sources import locate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def bright_rows(pictures, device):
    """Features of pictures that tell the classes of `fashion_files` apart."""
    rows = torch.from_numpy(pictures[..., 0].mean(2)).float().to(device)
    return torch.nn.functional.pad(rows / 255, (0, fashion.FEATURES - rows.shape[1]))


def small_bench(folder, **settings):
    return Bench(folder, CPU, pool=4, **settings)


def quadratic(start=0.0):
    """A task whose loss is least at 3, of batches that depend on the step alone."""
    line = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(line.weight, start)
    torch.nn.init.zeros_(line.bias)

    def loss(step):
        noise = torch.randn(4, 1, generator=torch.Generator().manual_seed(step))
        return (line(torch.ones(4, 1)) - 3 + 0.1 * noise).square().mean()

    return Task(line, loss, 0.05, decay=0.9, has_early=True, facts=lambda: {"weight": line.weight.item()})


def test_every_stage_trains_and_what_comes_out_makes_pipelines_that_render(tmp_path, monkeypatch):
    data = fashion_files.write(tmp_path / "data", 60)
    bench = small_bench(tmp_path / "out", fashion_mnist=data, features=bright_rows)
    everything = chosen(GROUPS)
    assert everything == list(STAGES)
    for name in everything:
        wide = replace(bench, pool=12, _pools={}) if name.endswith("half") else bench  # of 12 one has those colours
        state = run_stage(name, wide, math.inf, steps=2, bfloat16=name == "scenes-dit-moe")
        assert (state.step, state.finished) == (2, True), name
        assert all(value.isfinite().all() for value in state.average.values()), name
    files = [
        file
        for group in GROUPS
        for file in packs.write_packs(tmp_path / "out/stages", tmp_path / "packs", chosen([group]))
    ]
    by_group = {group: {STAGES[name].pack for name in STAGES if STAGES[name].group == group} for group in GROUPS}
    assert max(map(len, by_group.values())) <= 6
    assert sum(file.stat().st_size for file in set(files) if not file.name.startswith("seeds")) < 58e6, "of the wheel"
    of_scenes = sum(file.stat().st_size for file in set(files) if file.name.startswith("scenes"))
    assert of_scenes < 46 * 2**20, "so that they can be carried beside the code"
    folder = tmp_path / "pipelines"
    said = assemble(tmp_path / "packs", folder)
    assert not [text for text in said.values() if "left out" in text]
    write_real_pictures(data, folder, of_each=2)
    monkeypatch.setenv(MORE_WEIGHTS, str(folder))
    assert set(said) <= {path.name for path in folder.iterdir()}
    for track in [name for name in CALL if name.startswith(("scenes", "fashion"))]:
        pipe = load_pipeline(track)
        call = {**CALL[track], "num_inference_steps": 2, "output_type": "np"}
        first = [0] if isinstance(pipe, DiTMoEPipeline) or track.startswith("fashion") else scenes.prompts()[0]
        made = pipe(first, **call)
        frames = made.images if hasattr(made, "images") else made.frames[0]
        side = 32 if track.startswith("fashion") else 64
        assert frames.shape == (CALL[track].get("num_frames", 1), side, side, 3), track
        if track != "scenes_dit_moe":
            load_weak(pipe)
    configs = configurations(folder)
    assert len(configs) == 14 and {path.stem for path in (folder / "configs").iterdir()} == set(configs)
    for name in configs:
        loaded = load(parse(["--config", str(folder / "configs" / f"{name}.yaml")]).config)
        has_second = "dit-moe" not in name and "lora" not in name
        assert set(registered(loaded)) == ({"weak"} if has_second else set()), name
    assert scene_judges.load_judge(True, folder).frames == 8 and scene_judges.load_judge(False, folder).frames == 1


def test_a_judge_that_is_not_finished_is_left_out(tmp_path):
    bench, name = small_bench(tmp_path / "out"), "scenes-picture-judge"
    assert not run_stage(name, bench, math.inf, steps=4, until=2).finished
    packs.write_packs(tmp_path / "out/stages", tmp_path / "packs", [name])
    said = assemble(tmp_path / "packs", tmp_path / "pipelines")
    assert said["scenes_picture_judge"] == "left out: the stage scenes-picture-judge is not finished"
    run_stage(name, bench, math.inf, steps=4)
    packs.write_packs(tmp_path / "out/stages", tmp_path / "packs", [name])
    assert "left out" not in assemble(tmp_path / "packs", tmp_path / "pipelines")["scenes_picture_judge"]


def test_the_folder_that_is_named_goes_before_the_packages_own(tmp_path, monkeypatch):
    assert folder_of("pixart") == WEIGHTS / "pixart"
    (tmp_path / "pixart").mkdir()
    (tmp_path / "pixart" / "model_index.json").write_text("{}")
    monkeypatch.setenv(MORE_WEIGHTS, str(tmp_path))
    assert str(folder_of("pixart")) == locate("miniature:pixart") == str(tmp_path / "pixart")
    assert folder_of("cogvideox") == WEIGHTS / "cogvideox"


def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = learn("line", quadratic(), tmp_path / "whole.pt", Limit(steps=400), CPU)
    for until in (37, 250, 400):
        parts = learn("line", quadratic(), tmp_path / "parts.pt", Limit(steps=400, until=until), CPU)
        assert parts.step == until and parts.finished == (until == 400)
    for key, value in whole.average.items():
        assert torch.equal(value, parts.average[key])
        assert torch.equal(whole.early[key], parts.early[key])
    assert whole.facts == parts.facts and abs(whole.average["weight"] + whole.average["bias"] - 3) < 0.1
    early = float(whole.early["weight"] + whole.early["bias"])
    assert 0.3 < early < 2.95, "of the fiftieth step"
    again = learn("line", quadratic(), tmp_path / "whole.pt", Limit(steps=400), CPU)
    assert again.step == 400 and torch.equal(again.average["weight"], whole.average["weight"])


def test_a_real_stage_ends_where_an_uninterrupted_one_does(tmp_path):
    states = {}
    for name, stops in (("whole", [6]), ("parts", [2, 3, 6])):
        bench = small_bench(tmp_path / name)
        for needed in ("scenes-t5", "scenes-image-vae"):
            run_stage(needed, bench, math.inf, steps=2)
        for until in stops:
            states[name] = run_stage("scenes-pixart", small_bench(tmp_path / name), math.inf, steps=6, until=until)
    assert states["parts"].finished
    for key, value in states["whole"].average.items():
        assert torch.equal(value, states["parts"].average[key]), key


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    rates = [stage_loop._rate(step, step / 1000) for step in range(1000)]
    assert rates[0] == 0.01 and rates[200] == rates[600] == 1 and rates[999] < 0.005


def test_a_stage_that_is_to_finish_does_when_its_seconds_are_over(tmp_path):
    endless = Limit(steps=10**9, seconds=1.0)
    assert not learn("line", quadratic(), tmp_path / "a.pt", endless, CPU).finished
    state = learn("line", quadratic(), tmp_path / "b.pt", replace(endless, finishes=True), CPU)
    assert state.finished and state.facts and state.seconds < 5
    none = learn("line", quadratic(), tmp_path / "c.pt", replace(endless, seconds=0.0, finishes=True), CPU)
    assert (none.step, none.finished) == (0, False) and not (tmp_path / "c.pt").exists()


def test_a_loss_that_is_not_finite_ends_a_stage_and_the_last_good_state_is_kept(tmp_path):
    learn("line", quadratic(), tmp_path / "line.pt", Limit(steps=100, until=20), CPU)
    good, broken = (tmp_path / "line.pt").read_bytes(), quadratic()
    sound = broken.loss
    broken.loss = lambda step: sound(step) * (math.nan if step >= 25 else 1)
    with pytest.raises(TrainingError, match="line: the loss is nan at step 30; the last good state is kept"):
        learn("line", broken, tmp_path / "line.pt", Limit(steps=100), CPU)
    assert (tmp_path / "line.pt").read_bytes() == good


def test_checkpoints_that_are_damaged_or_of_another_network_are_refused(tmp_path):
    (tmp_path / "line.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError, match=r"line\.pt cannot be read as a checkpoint.*remove it"):
        read_state(tmp_path / "line.pt")
    write_state(tmp_path / "other.pt", State({"weight": torch.ones(7)}))
    with pytest.raises(TrainingError, match="line: the checkpoint is of another network"):
        learn("line", quadratic(), tmp_path / "other.pt", Limit(steps=10), CPU)


def test_a_stage_is_not_trained_without_what_it_needs(tmp_path):
    with pytest.raises(TrainingError, match="scenes-pixart needs scenes-t5, which is not finished"):
        run_stage("scenes-pixart", small_bench(tmp_path), math.inf)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal of that kind")
def test_what_a_killed_run_leaves_is_whole_and_goes_on(tmp_path):
    code = (
        "import sys, pathlib, torch\n"
        "from w2sd_video.miniatures.learning import stage_loop\n"
        "from w2sd_video.miniatures.learning.stage_loop import Limit, Task, learn\n"
        "stage_loop.SAVED_EVERY = 0.0\n"
        "line = torch.nn.Linear(300, 300)\n"
        "loss = lambda step: line(torch.randn(4, 300)).square().mean()\n"
        "print('begins', flush=True)\n"
        "learn('line', Task(line, loss), pathlib.Path(sys.argv[1]), Limit(steps=10**9), torch.device('cpu'))\n"
    )
    path, steps = tmp_path / "line.pt", []
    for pause in (0.3, 0.5, 0.7):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        end = time.monotonic() + 60
        seen = path.stat().st_mtime_ns if path.exists() else 0
        while (not path.exists() or path.stat().st_mtime_ns == seen) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        steps.append(read_state(path).step)
    assert steps == sorted(set(steps)), "each goes on where the one before was"


def test_packs_hold_the_averages_and_a_stage_goes_on_from_them(tmp_path):
    bench = small_bench(tmp_path / "a")
    for name, until in (("scenes-t5", None), ("scenes-image-vae", None), ("scenes-pixart", 3)):
        run_stage(name, bench, math.inf, steps=4, until=until)
    files = packs.write_packs(tmp_path / "a/stages", tmp_path / "packs", ["scenes-pixart", "scenes-t5"])
    assert [file.name for file in files] == ["scenes-pixart.safetensors", "scenes-base.safetensors"]
    assert sorted(path.name for path in (tmp_path / "packs").iterdir()) == sorted(file.name for file in files)
    read = packs.read_packs(tmp_path / "packs", tmp_path / "b/stages")
    assert {name: (state.step, state.finished) for name, state in read.items()} == {
        "scenes-t5": (4, True),
        "scenes-image-vae": (4, True),
        "scenes-pixart": (3, False),
    }
    original = read_state(bench.path("scenes-pixart"))
    for key, value in original.average.items():
        assert torch.equal(read["scenes-pixart"].average[key], value.half().float())
    assert read["scenes-pixart"].early is not None and read["scenes-pixart"].optimizer is None
    assert read["scenes-image-vae"].facts == read_state(bench.path("scenes-image-vae")).facts
    assert packs.read_packs(tmp_path / "packs", tmp_path / "b/stages") == {}, "all that is as far stays"
    further = run_stage("scenes-pixart", small_bench(tmp_path / "b"), math.inf, steps=6)
    assert (further.step, further.finished) == (6, True)


def test_packs_that_are_too_large_too_many_or_damaged_are_refused_and_nothing_is_written(tmp_path):
    large = State({"weight": torch.zeros(9 * 2**20)}, step=1)
    write_state(tmp_path / "stages/scenes-wan.pt", large)
    with pytest.raises(TrainingError, match=r"the pack scenes-wan has 18\.0 MiB; a file may have 16"):
        packs.write_packs(tmp_path / "stages", tmp_path / "packs", ["scenes-wan"])
    assert not (tmp_path / "packs").exists()
    with pytest.raises(TrainingError, match="10 packs, but a run may leave 8 files; train fewer groups"):
        packs.check_count(STAGES)
    for run in (["scenes"], ["seeds", "fashion"]):  # those of docs/studies/miniatures.md
        packs.check_count(chosen(run))
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/scenes-wan.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(TrainingError, match=r"scenes-wan\.safetensors is no pack of the training, or damaged"):
        packs.read_packs(tmp_path / "packs", tmp_path / "stages")


def test_the_time_of_a_run_is_shared_by_what_is_left():
    names = chosen(["scenes"])
    plan = lanes.plan_of(names, {}, 500.0, 4)
    assert sum(plan.seconds) == pytest.approx(500) and len(plan.phases) == 2
    assert sorted(name for lane in plan.phases[0] for name in lane) == sorted(n for n in names if not STAGES[n].needs)
    assert 60 < plan.seconds[0] < 150
    later = [name for lane in plan.phases[1] for name in lane]
    assert sorted(later) == sorted(name for name in names if STAGES[name].needs)
    animatediff = next(lane for lane in plan.phases[1] if "scenes-unet" in lane)
    places = [animatediff.index(name) for name in ("scenes-unet", "scenes-lora", "scenes-motion")]
    assert places == sorted(places), "a chain keeps its order"
    loads = [sum(STAGES[name].share for name in lane) for lane in plan.phases[1]]
    assert max(loads) < 1.3 * min(loads)

    def state(name, step, finished):
        return State({}, step=step, finished=finished)

    done = {name: state(name, STAGES[name].steps, True) for name in names if not STAGES[name].needs}
    half_done = state("scenes-wan", STAGES["scenes-wan"].steps // 2, False)
    second = lanes.plan_of(names, {**done, "scenes-wan": half_done}, 500.0, 4)
    assert len(second.phases) == 1 and second.seconds == [500.0]
    assert lanes._left("scenes-wan", half_done) == pytest.approx(STAGES["scenes-wan"].share / 2, rel=0.01)
    assert lanes.plan_of(names, {}, math.inf, 1).seconds == [math.inf, math.inf]
    everything_done = {name: state(name, 1, True) for name in names}
    assert lanes.plan_of(names, everything_done, 500.0, 4).phases == []


def test_every_stage_comes_after_what_it_needs_and_no_other_chain_is_waited_for():
    order = list(STAGES)
    for name, stage in STAGES.items():
        assert all(order.index(need) < order.index(name) for need in stage.needs)
        for need in stage.needs:  # is of the first phase, or before it in its own chain
            assert not STAGES[need].needs or STAGES[need].chain == stage.chain
            assert STAGES[need].finishes, "what others build on is not changed by a later run"


def run(argv, capsys):
    code = 0
    try:
        train.main([str(item) for item in argv])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def tiny_stages(monkeypatch):
    """All stages of two steps and small batches, trained in this process."""
    for name, stage in STAGES.items():
        monkeypatch.setitem(stage_list.STAGES, name, replace(stage, steps=2, batch=16))


def test_the_command_trains_packs_goes_on_and_assembles(tiny_stages, tmp_path, capsys):
    names = ["scenes-picture-judge", "scenes-pixart"]
    code, said, _ = run(["--out", tmp_path / "a", "--stage", *names, "--device", "cpu", "--pool", 16], capsys)
    assert code == 0 and "scenes-pixart           step 2 of 2, finished" in said
    assert "scenes-pixart.safetensors" in said
    resumed = ["--out", tmp_path / "b", "--resume", tmp_path / "a/packs", "--weights", tmp_path / "w"]
    code, said, _ = run([*resumed, "--stage", "scenes-dit-moe", "--device", "cpu", "--pool", 16], capsys)
    assert code == 0 and "goes on from" in said and "scenes-image-vae at step 2" in said
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["scenes-dit_moe.safetensors"], "what has changed"
    code, said, _ = run(["--assemble", tmp_path / "p", "--weights", tmp_path / "a/packs"], capsys)
    assert code == 0 and "scenes_wan: left out: there is no stage scenes-video-vae in the packs" in said
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "p/scenes_pixart"), DiffusionPipeline)
    assert [path.name for path in (tmp_path / "p/configs").iterdir()] == ["miniature-scenes-pixart.yaml"]
    assert not [path for path in (tmp_path / "p").iterdir() if path.name.startswith(".")]


def test_a_dry_run_says_what_each_stage_will_take_and_leaves_nothing(tiny_stages, tmp_path, capsys):
    argv = ["--out", tmp_path / "out", "--stage", "scenes-pixart", "--device", "cpu", "--dry-run"]
    code, said, _ = run(argv, capsys)
    lines = said.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == [
        "stage",
        "scenes-t5",
        "scenes-image-vae",
        "scenes-pixart",
        "together,",
    ]
    for line in lines[1:-1]:
        _, left, seconds, _ = line.split()
        assert left == "2" and 0 < float(seconds) < 60
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--stage", "scenes"], 2, "--out: name a folder for checkpoints"),
        (["--out", "OUT", "--stage", "scene"], 2, "unknown stage 'scene'; did you mean 'scenes'"),
        (["--out", "OUT", "--stage", "scenes", "motion"], 2, "the sprites' stages are trained by themselves"),
        (["--out", "OUT", "--minutes", "0"], 2, "--minutes 0.0: must be from 0.1 to 10000"),
        (["--out", "OUT", "--jobs", "0"], 2, "--jobs 0: must be from 1 to 64"),
        (["--out", "OUT", "--pool", "1"], 2, "--pool 1: must be from 16 to 1000000"),
        (["--out", "OUT", "--device", "tpu"], 1, "device tpu: there is none of that name; use cpu, cuda or auto"),
        (["--out", "OUT", "--device", "meta"], 1, "device meta: use cpu, cuda or auto"),
        (["--out", "OUT", "--stage", "fashion", "--device", "cpu"], 1, "apt-get download dataset-fashion-mnist"),
        (["--out", "OUT", "--stage", *GROUPS, "--fashion-mnist", "DATA", "--device", "cpu"], 1, "10 packs"),
        (["--out", "OUT", "--resume", "OUT"], 1, "holds no packs"),
        (["--assemble", "OUT"], 2, "--assemble: name the packs with --weights"),
        (["--assemble", "OUT", "--weights", "OUT"], 1, "holds no packs"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(argv, code, says, tmp_path, capsys):
    paths = {
        "OUT": str(tmp_path / "out"),
        "DATA": str(fashion_files.write(tmp_path / "data", 20)) if "DATA" in argv else "",
    }
    ended, _, said = run([paths.get(item, item) for item in argv], capsys)
    assert ended == code and says in said and len(said.splitlines()) == 1


def test_a_gpu_that_is_not_there_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, said = run(["--out", tmp_path, "--device", "cuda"], capsys)
    assert code == 1 and "device cuda: torch finds no GPU here; use cpu" in said


@pytest.mark.thorough
def test_processes_train_side_by_side_and_a_failure_of_one_stage_leaves_the_others(tmp_path):
    """The stages are the real ones, in processes of their own, under a cap of seconds."""
    bench = Bench(tmp_path, CPU, fashion_mnist=tmp_path / "nothing", pool=8)
    for name in ("scenes-image-vae", "scenes-t5", "fashion-vae"):
        if name != "fashion-vae":
            run_stage(name, bench, math.inf, steps=2)
    packed = []
    names = ["scenes-t5", "scenes-image-vae", "scenes-dit-moe", "fashion-vae"]
    end = time.time() + 90
    failed = lanes.train_side_by_side(bench, names, end, jobs=2, every_minute=lambda: packed.append(1))
    assert time.time() < end + lanes.GRACE + 15
    assert set(failed) == {"fashion-vae"} and "holds no train-images-idx3-ubyte.gz" in failed["fashion-vae"]
    state = read_state(bench.path("scenes-dit-moe"))
    assert state is not None and 0 < state.step < STAGES["scenes-dit-moe"].steps


def test_a_batch_depends_on_its_step_alone(tmp_path):
    bench = small_bench(tmp_path)
    first = [torch.randn(3, generator=bench.random(seed, step)) for seed, step in [(1, 1), (1, 2), (2, 1), (1, 1)]]
    assert torch.equal(first[0], first[3]) and len({float(x[0]) for x in first}) == 3


def test_half_of_the_colours_are_all_that_a_network_of_them_sees(tmp_path):
    bench = Bench(tmp_path, CPU, pool=256)
    for name in ("scenes-t5", "scenes-image-vae"):
        run_stage(name, small_bench(tmp_path), math.inf, steps=2)
    task = STAGES["scenes-pixart-half"].task(bench, 512)
    pool = bench.kept("pictures-text-filled-256", lambda: pytest.fail("made again"))
    rows = task.loss.__closure__[[*task.loss.__code__.co_freevars].index("rows")].cell_contents
    colours = np.array(list(scenes.COLOURS))[pool.scenes.seen[rows][..., 1].numpy()]
    assert len(rows) > 10 and set(colours.flatten()) == set(scenes.HALF_OF_COLOURS)
    assert pool.scenes.seen.shape[0] == 256 and set(np.unique(pool.scenes.seen[..., 1])) == set(range(6))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_processes_end_with_the_one_that_began_them(tmp_path):
    argv = ["--out", str(tmp_path), "--stage", "scenes-picture-judge", "scenes-image-vae", "--jobs", "2"]
    command = [sys.executable, "-m", "w2sd_video.miniatures.train", *argv, "--device", "cpu", "--pool", "16"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 240
    while "2 of 2 processes are there" not in (tmp_path / "log").read_text() and time.monotonic() < end:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.2)
    begun = [int(pid) for pid in children.read_text().split()]
    process.kill()
    process.wait()
    while any(_is_running(pid) for pid in begun) and time.monotonic() < end:
        time.sleep(0.2)
    assert len(begun) >= 2 and not any(_is_running(pid) for pid in begun)


def _is_running(pid):
    try:
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
