"""The studio in a real browser: clips are made with a miniature, looked at, found again, and nothing else is served."""

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from screen import numbered_clip

from w2sd_video import studio
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.outputs import record_of, write_clips, write_sidecar
from w2sd_video.rendering.video import read_picture
from w2sd_video.settings.schema import BranchConfig
from w2sd_video.window import Window

gradio = pytest.importorskip("gradio", reason="the studio needs the extra web")
playwright = pytest.importorskip("playwright.sync_api", reason="pages are looked at with playwright")
pytestmark = pytest.mark.browser

from w2sd_video.web.interface import interface, launch  # noqa: E402
from w2sd_video.web.workbench import Workbench, configuration_of  # noqa: E402

LABELS = ["weak", "strong", "strong at equal cost", "W2SD"]
NOTE_PROGRESS = """() => new MutationObserver(() => {
    window.progress ||= /sampling (weak|strong|W2SD)/.test(document.body.innerText);
}).observe(document.body, {subtree: true, childList: true, characterData: true})"""
HERE = ("http://127.0.0.1", "data:", "blob:", "about:")


@pytest.fixture
def workbench(tmp_path):
    names = ("miniature-animatediff", "miniature-pixart")
    return Workbench(tmp_path, {name: configuration_of(name) for name in names})


@pytest.fixture
def open_studio(workbench, open_page):
    """A function that opens a studio with two miniatures."""
    served = interface(workbench, "miniature-animatediff")
    address = launch(served, "127.0.0.1", None, is_blocking=False)

    def opened(width=1280, height=1400):
        page = open_page(address, width, height, allowed=HERE)
        page.get_by_role("button", name="Make the clips").wait_for()
        page.wait_for_timeout(500)
        return page

    opened.address = address
    yield opened
    served.close()


def make(page):
    page.get_by_role("button", name="Make the clips").click()


def wait_for_status(page, said):
    shown = "() => document.querySelector('textarea[disabled]')?.value"
    try:
        page.wait_for_function(f"said => ({shown})()?.includes(said)", arg=said, timeout=120_000)
    except playwright.TimeoutError as error:
        raise AssertionError(f"the status is {page.evaluate(shown)!r}, and not {said!r}") from error


def open_pair(page, wish):
    """Open what the pair is written in, and return it once its settings stand there: they come late."""
    page.get_by_text("Pair", exact=True).click()
    boxes = {role: page.get_by_label(f"{role} (YAML; what is left out is as in base)") for role in ("Strong", "Weak")}
    playwright.expect(boxes["Strong"]).to_have_value(wish.strong, timeout=120_000)
    playwright.expect(boxes["Weak"]).to_have_value(wish.weak, timeout=120_000)
    return boxes


def pick(page, name):
    page.get_by_label("Configuration", exact=True).click()
    page.get_by_role("option", name=name).click()


@pytest.mark.parametrize("size", [(1280, 1400), (390, 844)])
def test_a_clip_is_made_and_played_and_can_be_made_again(open_studio, workbench, size):
    page = open_studio(*size)
    page.get_by_label("Steps", exact=True).fill("12")
    page.get_by_label("Seed", exact=True).fill("5")
    page.evaluate(NOTE_PROGRESS)
    make(page)
    wait_for_status(page, "made 0001.mp4")
    assert page.evaluate("window.progress"), "its progress was shown"
    player = page.frame_locator("iframe")
    assert player.locator("figcaption").evaluate_all("all => all.map((one) => one.firstChild.textContent)") == LABELS
    player.locator("canvas").first.scroll_into_view_if_needed()
    player.locator("#play").click()
    player.locator("article canvas[data-frame='3']").first.wait_for()
    player.locator("#play").click()
    record = json.loads((workbench.folder / "0001.mp4.json").read_text())
    assert (record["seed"], record["config"]["steps"], list(record["nfe"])) == (5, 12, LABELS)
    assert sum(record["nfe"]["strong at equal cost"].values()) <= sum(record["nfe"]["W2SD"].values())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out of the screen"
    assert "manual_seed(5)" in page.locator(".cm-content").first.inner_text()
    page.get_by_role("tab", name="Configuration").click()
    made = workbench.made("0001.mp4")
    assert yaml.safe_load(made.configuration)["steps"] == 12
    compile(made.script, "script.py", "exec")


def test_the_script_of_a_clip_makes_it_again(workbench, tmp_path, monkeypatch):
    wish = replace(workbench.wish_of("miniature-pixart"), steps=4, seed=3, start=0.0, stop=0.5, strength=0.7)
    made = workbench.make(wish, lambda share, text: None)
    monkeypatch.chdir(tmp_path)
    exec(compile(made.script, "script.py", "exec"), {})
    record = json.loads((tmp_path / "0001.png.json").read_text())
    left, top, width, height = record["boxes"]["W2SD"]
    shown = read_picture(tmp_path / "0001.png")[0][top : top + height, left : left + width]
    again = read_picture(tmp_path / "w2sd.png")[0]
    assert np.array_equal(again.repeat(width // again.shape[1], 0).repeat(width // again.shape[1], 1), shown)
    assert record["config"]["reflection_steps"] == [0.0, 0.5] and record["config"]["strength"] == 0.7


def test_a_configuration_fills_in_the_form_and_the_pair_can_be_changed(open_studio, workbench):
    page = open_studio()
    pick(page, "miniature-pixart")
    open_pair(page, workbench.wish_of("miniature-pixart"))["Weak"].fill("guidance_scale: 0.0")
    page.get_by_label("Steps", exact=True).fill("3")
    make(page)
    wait_for_status(page, "made 0001.png")
    record = json.loads((workbench.folder / "0001.png.json").read_text())
    assert record["config"]["weak"]["guidance_scale"] == 0.0 and record["config"]["weak"]["weights"] is None


def test_what_makes_no_sense_is_said_and_leaves_nothing(open_studio, workbench):
    page = open_studio()
    page.get_by_label("Prompt", exact=True).fill("a <img src=x onerror='window.wrong=1'> moving left")
    make(page)
    wait_for_status(page, "unknown word '<img'")
    page.get_by_label("Prompt", exact=True).fill("a red circle moving left")
    open_pair(page, workbench.wish_of("miniature-animatediff"))["Strong"].fill("guidance: 3")
    make(page)
    wait_for_status(page, "strong: unknown guidance")
    assert page.evaluate("window.wrong") is None and list(workbench.folder.iterdir()) == []


def test_clips_wait_for_each_other(open_studio, workbench):
    pages = [open_studio(), open_studio()]
    for seed, page in enumerate(pages):
        page.get_by_label("Steps", exact=True).fill("4")
        page.get_by_label("Seed", exact=True).fill(str(seed))
    for page in pages:
        make(page)
    for page in pages:
        wait_for_status(page, "made ")
    records = [json.loads((workbench.folder / f"000{number}.mp4.json").read_text()) for number in (1, 2)]
    assert {record["seed"] for record in records} == {0, 1}


def test_the_history_is_compared_and_escaped(open_studio, workbench):
    config = workbench.configurations["miniature-animatediff"]
    prompt = "</textarea><img src=x onerror='parent.wrong=1'>"
    for name, shade in (("0001.mp4", 60), ("0002.mp4", 140)):
        clip = {"W2SD": numbered_clip(9, shade)}
        write_clips(workbench.folder / name, clip, 8)
        made = replace(config, prompts=[prompt])
        write_sidecar(workbench.folder / name, record_of(made, {"W2SD": {"base": 1}}, 1.0, clip["W2SD"].shape))
    page = open_studio()
    history = page.get_by_label("History")
    for number in ("0001", "0002"):
        history.click()
        page.get_by_role("option", name=number).click()
    player = page.frame_locator("iframe")
    player.locator("figure").nth(1).wait_for()
    assert player.locator("figcaption").evaluate_all("all => all.map((one) => one.firstChild.textContent)") == [
        "0001.mp4",
        "0002.mp4",
    ]
    player.locator("article canvas[data-frame='0']").nth(1).wait_for()
    player.locator("h3").click()
    page.keyboard.press("ArrowRight")
    player.locator("article canvas[data-frame='1']").nth(1).wait_for()
    assert page.evaluate("window.wrong") is None


def test_no_file_of_this_machine_is_served(open_studio, workbench):
    (workbench.folder / "0001.mp4").write_text("a clip")
    files = [
        "/etc/hostname",
        str(workbench.folder / "0001.mp4"),
        "pyproject.toml",
        str(Path("pyproject.toml").resolve()),
    ]
    for file in files:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{open_studio.address}gradio_api/file={file}")
        assert refused.value.code in (403, 404), file
    assert urllib.request.urlopen(open_studio.address).status == 200, "the studio itself is"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"configuration": "../../etc/passwd"}, "is not among those that can be chosen"),
        ({"strong": "weights: /etc/passwd"}, "not among model.weights"),
        ({"weak": "[1]"}, "must be lines like"),
        ({"weak": "guidance_scale: high"}, "guidance_scale"),
        ({"weak": "a: b: c"}, "not valid YAML"),
        (
            {"strong": "guidance_scale: 2.0\nwindows: {guidance_scale: /etc/passwd}"},
            "strong.windows: a file of strengths",
        ),
        ({"weak": "guidance_scale: 2.0\nwindows: {guidance_scale: mine.csv}"}, "weak.windows: a file of strengths"),
        ({"steps": 2.5}, "steps 2.5: must be a whole number"),
        ({"strength": 99.0}, "strength 99.0: must be from"),
        ({"start": 0.8, "stop": 0.2}, "a window of reflection_steps must be"),
        ({"prompt": " "}, "is not a text"),
    ],
)
def test_values_are_checked_before_a_model_is_loaded(workbench, changes, said):
    with pytest.raises(ConfigError, match=said):
        workbench.config_of(replace(workbench.wish_of("miniature-pixart"), **changes))


def test_a_window_of_noise_levels_of_a_branch_goes_through_the_form(workbench):
    window = Window(-2.0, 1.5, "log_snr")
    windowed = BranchConfig(guidance_scale=2.0, windows={"guidance_scale": window})
    config = replace(workbench.configurations["miniature-pixart"], strong=windowed, weak=windowed)
    chosen = Workbench(workbench.folder, {"mine": config})
    wish = chosen.wish_of("mine")
    assert "unit: log_snr" in wish.strong
    read = chosen.config_of(replace(wish, weak=wish.weak.replace("2.0", "1.0")))
    assert read.strong == windowed and isinstance(read.strong.windows["guidance_scale"], Window)
    assert read.weak == replace(windowed, guidance_scale=1.0, windows=read.weak.windows)
    narrower = chosen.config_of(replace(wish, strong=wish.strong.replace("-2.0", "-1.0")))
    assert narrower.strong.windows["guidance_scale"] == Window(-1.0, 1.5, "log_snr")


def test_a_configuration_that_makes_no_sense_is_an_error_and_no_end_of_the_process(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {pretrained: miniature:pixart}\nsteps: many\n")
    with pytest.raises(ConfigError, match="steps many: must be a whole number"):
        configuration_of(str(tmp_path / "bad.yaml"))


def test_the_folder_of_a_pipeline_is_a_configuration(workbench):
    folder = Path(studio.__file__).with_name("miniatures") / "weights" / "pixart"
    config = configuration_of(str(folder))
    assert config.model.pretrained == str(folder) and config.weak.guidance_scale == 1.0
    schedule = replace(config, strength="levels.csv", reflection_steps=10)
    wish = Workbench(workbench.folder, {"mine": schedule}).wish_of("mine")
    assert wish.strength is None and (wish.start, wish.stop) == (0.0, 10 / config.steps)


def test_it_listens_on_this_machine_alone_unless_told(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("w2sd_video.web.interface.launch", lambda studio, host, port: asked.append((host, port)))
    assert studio.main(["--folder", str(tmp_path)]) == 0
    assert asked == [("127.0.0.1", 7860)] and "whoever" not in capsys.readouterr().out
    studio.main(["--folder", str(tmp_path), "--host", "0.0.0.0", "--port", "99"])
    assert asked[1] == ("0.0.0.0", 99) and "whoever reaches 0.0.0.0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        studio.main(["--config", "nothing"])
    assert "unknown config 'nothing'" in capsys.readouterr().err
