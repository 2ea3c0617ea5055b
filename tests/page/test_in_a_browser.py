"""The page in a real browser: it plays, keeps in step, steps, enlarges, wipes, subtracts, votes and sorts."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from screen import number_of, numbered_clip, seen, shade_of

from w2sd_video.page import Cell, Clip, Column, Page, Table, embedded, write_index, write_page
from w2sd_video.rendering.outputs import record_of, write_clips, write_sidecar
from w2sd_video.settings.command_line import parse

pytestmark = pytest.mark.browser
SHADES = {"weak": 60, "strong": 100, "W2SD": 140}
PROMPTS = ["a red circle", "</script><script>window.wrong = 1</script> & <b>bold</b>", "a #5 of 100%?"]
NAMES = ["clip-00.mp4", "<b>'#1 100%?.mp4", "clip-02"]
NFE = {label: {"base": 10, "strong": 0, "weak": 0} for label in SHADES}


def add(folder, name, prompt, seed=0, labels=tuple(SHADES), frames=9):
    """Write a render as the command does, of clips that say in their pixels which frame they are."""
    config = replace(parse(["--config", "miniature-cogvideox"]).config, prompts=[prompt], seed=seed)
    clips = {label: numbered_clip(frames, SHADES[label]) for label in labels}
    boxes = write_clips(folder / name, clips, config.fps)
    shape = clips[labels[0]].shape
    nfe = {label: NFE[label] for label in labels}
    write_sidecar(folder / name, record_of(config, nfe, 1.0, shape, boxes))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder of comparisons: two videos, and a folder of frames."""
    folder = tmp_path_factory.mktemp("a job")
    for name, prompt in zip(NAMES[:2], PROMPTS[:2], strict=True):
        add(folder, name, prompt)
    add(folder, NAMES[2], PROMPTS[2], labels=("W2SD",))
    return write_index(folder).as_uri()


def frames_on_screen(page, selector="#groups canvas"):
    return [number_of(part) for part in seen(page, selector)]


def at_frame(page, number, selector="#groups canvas"):
    page.wait_for_function(
        "([selector, number]) => {"
        "  const shown = [...document.querySelectorAll(selector)].filter((canvas) => canvas.checkVisibility());"
        "  return shown.length > 0 && shown.every((canvas) => canvas.dataset.frame === number);"
        "}",
        arg=[selector, str(number)],
    )


@pytest.mark.parametrize("size", [(1280, 1900), (390, 1900)])
def test_all_clips_are_stepped_together_by_keys_and_by_the_bar(job, open_page, size):
    page = open_page(job, *size)
    at_frame(page, 0)
    count = len(frames_on_screen(page))
    assert count == 7, "three panels of two videos, and one folder of frames"
    for key, number in [*[("ArrowRight", k) for k in range(1, 9)], ("ArrowRight", 0), ("ArrowLeft", 8)]:
        page.keyboard.press(key)
        at_frame(page, number)
        assert frames_on_screen(page) == [number] * count, "in the pixels, not only by name"
    for key, number in (("Home", 0), ("End", 8), ("ArrowLeft", 7)):
        page.keyboard.press(key)
        at_frame(page, number)
    assert page.text_content("#frame") == "8 of 9"
    page.locator("#time").fill("3")
    at_frame(page, 3)
    assert frames_on_screen(page) == [3] * count
    assert [round(shade_of(part, 0.5), -1) for part in seen(page, "#groups canvas")[:3]] == [60, 100, 140]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out of the screen"


def test_it_plays_in_step(job, open_page):
    page = open_page(job, 1280, 1900)
    at_frame(page, 0)
    page.click("#play")
    at_once = [set(frames_on_screen(page)) for _ in range(12)]
    assert [numbers for numbers in at_once if len(numbers) > 1] == [], "all clips show the same frame at any moment"
    assert len(set.union(*at_once)) > 3
    page.click("#play")
    page.wait_for_timeout(300)
    stopped = frames_on_screen(page)
    page.wait_for_timeout(400)
    assert frames_on_screen(page) == stopped


def test_the_keys_are_left_to_who_types(job, open_page):
    page = open_page(job)
    page.fill("#find", "circle")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    page.wait_for_timeout(200)
    assert page.input_value("#find") == "circl e" and page.locator("article").count() == 1
    page.fill("#find", "5 100%")
    assert page.locator("h3").all_text_contents() == [PROMPTS[2]]


def test_texts_are_shown_as_they_are(job, open_page):
    page = open_page(job)
    assert sorted(page.locator("h3").all_text_contents()) == sorted(PROMPTS)
    assert page.evaluate("window.wrong") is None and page.locator("main b").count() == 0
    assert "seed 0" in page.text_content("article") and "10 NFE" in page.text_content("figcaption")
    facts = page.text_content("footer")
    assert "torch" in facts and "machine" in facts and "date 20" in " ".join(facts.split())
    assert "pretrained: miniature:cogvideox" in page.text_content("details")


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_click_enlarges_and_two_clips_are_wiped_and_subtracted(job, open_page, size):
    page = open_page(job, *size)
    small = page.locator("article", has_text=PROMPTS[0]).locator("canvas").first
    small.scroll_into_view_if_needed()
    at_frame(page, 0, "article:nth-child(2) canvas")
    width = small.bounding_box()["width"]
    small.click()
    at_frame(page, 0, "#stage canvas")
    (picture,) = seen(page, "#stage-picture")
    assert picture.shape[1] > 1.3 * width and round(shade_of(picture, 0.5), -1) == 60
    page.keyboard.press("ArrowRight")
    at_frame(page, 1, "#stage canvas")
    assert frames_on_screen(page, "#stage-picture") == [1]

    page.check("input[value=wipe]")
    page.select_option("#stage-b", label="W2SD")
    for share in (50, 20):
        page.locator("#wipe").fill(str(share))
        at_frame(page, 1, "#stage canvas")
        (picture,) = seen(page, "#stage-picture")
        edge = share / 100
        assert [round(shade_of(picture, x), -1) for x in (edge - 0.1, edge + 0.1)] == [60, 140]
    box = page.locator("#stage-picture").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.up()
    assert page.input_value("#wipe") == "80", "it is dragged, too"

    page.check("input[value=difference]")
    page.locator("#gain").fill("2")
    (picture,) = seen(page, "#stage-picture")
    assert abs(shade_of(picture, 0.5) - 2 * (140 - 60)) < 8
    assert picture[picture.shape[0] // 8].mean() < 8, "what both have is black"
    page.select_option("#stage-b", label="weak")
    page.wait_for_timeout(200)
    (picture,) = seen(page, "#stage-picture")
    assert picture.mean() < 3
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    at_frame(page, 2, "article:nth-child(2) canvas")


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_blind_vote_is_cast_and_saved(tmp_path, open_page, size):
    for number in range(4):
        add(tmp_path, f"{number}.mp4", f"prompt {number}", seed=number)
    page = open_page(write_index(tmp_path).as_uri(), *size)
    page.click("#vote-open")
    page.select_option("#vote-a", label="strong")
    page.select_option("#vote-b", label="W2SD")
    page.evaluate("() => { let draws = 0; Math.random = () => [0.1, 0.9][draws++ % 2]; }")
    page.click("#vote-start")
    seen_prompts, cast, sides = [], [], []
    for key in "1233":
        at_frame(page, 0, "#ballot canvas")
        page.wait_for_function("document.querySelectorAll('#ballot canvas')[1].dataset.frame === '0'")
        shown = page.locator("#ballot").inner_text()
        assert not any(label in shown for label in SHADES), "blind"
        seen_prompts.append(page.text_content("#vote-prompt"))
        page.wait_for_timeout(150)
        left, right = (
            {100: "strong", 140: "W2SD"}[round(shade_of(part, 0.5), -1)] for part in seen(page, ".two canvas")
        )
        assert {left, right} == {"strong", "W2SD"}
        sides.append(left)
        cast.append({"1": left, "2": None, "3": right}[key])
        page.keyboard.press(key)
    assert sorted(seen_prompts) == [f"prompt {number}" for number in range(4)]
    counts = Counter("no difference" if better is None else better for better in cast)
    assert len(set(sides)) == 2, "neither is always on the same side"
    said = page.text_content("#vote-result")
    assert all(f"{label} {count}" in said for label, count in counts.items())
    with page.expect_download() as download:
        page.click("#vote-save")
    assert download.value.suggested_filename == "votes.json"
    saved = json.loads(download.value.path().read_text())
    assert [vote["better"] for vote in saved["votes"]] == cast and [vote["left"] for vote in saved["votes"]] == sides
    assert [(vote["prompt"], f"prompt {vote['seed']}") for vote in saved["votes"]] == [(p, p) for p in seen_prompts]
    assert {label: count for label, count in saved["better"].items() if count} == counts


def test_hundreds_of_clips_come_page_by_page(tmp_path, open_page):
    add(tmp_path, "0000.mp4", "prompt 0", labels=("W2SD",), frames=3)
    record = json.loads((tmp_path / "0000.mp4.json").read_text())
    for number in range(1, 400):
        name = f"{number:04d}.mp4"
        (tmp_path / name).hardlink_to(tmp_path / "0000.mp4")
        (tmp_path / f"{name}.json").write_text(json.dumps(record | {"prompt": f"prompt {number}", "seed": number}))
    index = write_index(tmp_path)
    assert index.stat().st_size < 400 * 500, "it names the clips and does not hold them"
    asked = []
    page = open_page("about:blank", 1280, 700, allowed=("file:", "data:", "about:"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(index.as_uri())
    at_frame(page, 0, "article:first-child canvas")
    page.wait_for_timeout(300)
    assert page.locator("article").count() == 12 and page.text_content("#where") == "page 1 of 34"
    assert len({url for url in asked if url.endswith(".mp4")}) < 12, "only what is near the screen is loaded"
    page.click("#next")
    assert page.locator("h3").first.text_content() == "prompt 12"
    page.fill("#find", "prompt 399")
    assert page.locator("h3").all_text_contents() == ["prompt 399"]
    at_frame(page, 0, "article canvas")


def test_a_file_that_is_gone_is_said_and_the_others_play_on(tmp_path, open_page):
    add(tmp_path, "gone.mp4", "one")
    add(tmp_path, "there.mp4", "two")
    index = write_index(tmp_path)
    (tmp_path / "gone.mp4").unlink()
    page = open_page(index.as_uri(), 1280, 1100)
    page.wait_for_selector(".fault")
    assert page.locator(".fault").all_text_contents() == ["this video cannot be played"] * 3
    page.keyboard.press("ArrowRight")
    at_frame(page, 1, "article:last-child canvas")
    assert any("ERR_FILE_NOT_FOUND" in trouble for trouble in open_page.troubles)
    open_page.troubles.clear()


def test_a_page_that_holds_its_clips_can_be_moved_alone_and_its_table_is_sorted(tmp_path, open_page):
    write_clips(tmp_path / "clip.mp4", {"": numbered_clip(9, 100)}, 8)
    clip = Clip("an arm", "video", [embedded(tmp_path / "clip.mp4")], 9, 8.0, caption="10 NFE")
    (tmp_path / "clip.mp4").unlink()
    columns = [Column("arm"), Column("score", "higher"), Column("distance", "lower")]
    numbers = {"a": (3.0, 2.0), "b": (10.0, 30.0), "c": (np.nan, 4.0), "d": (-1.0, 1.0)}
    rows = [[Cell(arm), *(Cell(f"{value:g}", value) for value in values)] for arm, values in numbers.items()]
    from w2sd_video.page import Group

    write_page(tmp_path / "page.html", Page("A title", "A text.", [Group("a", 1, [clip])], [Table("T", columns, rows)]))
    page = open_page((tmp_path / "page.html").as_uri())
    page.locator("article").scroll_into_view_if_needed()
    at_frame(page, 0)
    page.keyboard.press("End")
    at_frame(page, 8)
    assert frames_on_screen(page) == [8]

    def order(column):
        page.click(f"th:nth-child({column}) button")
        return "".join(cell.strip() for cell in page.locator("td:first-child").all_text_contents())

    assert order(2) == "badc", "the best first, what is no number last"
    assert order(2) == "dabc"
    assert order(3) == "dacb" and order(1) == "abcd"
    assert page.locator("th").nth(1).inner_text().split("\n")[-1].strip("▲ ") == "higher is better"
    assert page.locator("td.best").all_text_contents() == ["10 best", "1 best"]


def test_the_number_of_a_frame_is_read_off_its_pixels():
    """What the tests above see by is itself right."""
    numbers = random.Random(0).sample(range(9), 9)
    clip = numbered_clip(9, 77)
    assert [number_of(clip[number]) for number in numbers] == numbers
    assert shade_of(clip[3], 0.5) == 77
