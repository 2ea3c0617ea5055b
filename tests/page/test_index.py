"""What the page of a folder shows, and what it leaves out."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from w2sd_video import render
from w2sd_video.page import Column, Table, page_html, write_index
from w2sd_video.page.contents import Cell, Clip, Group, Page
from w2sd_video.page.index import index_page, read_sidecars
from w2sd_video.rendering.outputs import record_of, write_clips, write_sidecar
from w2sd_video.settings.command_line import parse

DOCS = Path(__file__).parents[2] / "docs"


def add(path, prompt="a red circle", seed=0, **changes):
    config = replace(parse(["--config", "miniature-pixart"]).config, prompts=[prompt], seed=seed, **changes)
    clip = np.full((1, 32, 32, 3), 90, np.uint8)
    write_clips(path, {"W2SD": clip}, config.fps)
    write_sidecar(path, record_of(config, {"W2SD": {"base": 10, "strong": 9, "weak": 9}}, 2.0, clip.shape))


def test_only_samples_that_are_done_are_shown(tmp_path):
    add(tmp_path / "done.png")
    add(tmp_path / "gone.png")
    (tmp_path / "gone.png").unlink()
    add(tmp_path / "cut.png")
    (tmp_path / "cut.png.json").write_text((tmp_path / "cut.png.json").read_text()[:200])
    add(tmp_path / "bare.png")
    (tmp_path / "bare.png.json").unlink()
    (tmp_path / ".hidden").mkdir()
    add(tmp_path / ".hidden" / "a.png")
    (tmp_path / "below").mkdir()
    add(tmp_path / "below" / "a.png", seed=1)
    (tmp_path / "job").write_text("")
    (tmp_path / "job.json").write_text(json.dumps({"config": {}}))
    (tmp_path / "list").write_text("")
    (tmp_path / "list.json").write_text("[1]")
    assert list(read_sidecars(tmp_path)) == [Path("below/a.png"), Path("done.png")]


def test_files_of_one_prompt_and_seed_stand_side_by_side_with_their_settings(tmp_path):
    add(tmp_path / "a #1.png", seed=3)
    add(tmp_path / "b.png", seed=3, strength=0.5)
    add(tmp_path / "c.png", seed=4)
    page = index_page(tmp_path, read_sidecars(tmp_path), ["2 samples failed"])
    assert [(group.seed, [clip.label for clip in group.clips]) for group in page.groups] == [
        (3, ["a #1.png", "b.png"]),
        (4, ["W2SD"]),
    ]
    assert page.groups[0].clips[0].files == ["a%20%231.png"] and page.groups[0].clips[0].caption == "28 NFE; a #1.png"
    assert list(page.configurations) == ["Configuration 1", "Configuration 2"]
    assert "strength: 0.5" in page.configurations["Configuration 2"]
    assert not any("seed" in text for text in page.configurations.values())
    assert page.facts["sampling"] == "6 seconds in all" and page.facts["machine"] and page.facts["torch"]
    assert "<li>2 samples failed</li>" in page_html(page)


def test_samples_of_one_job_have_one_configuration(tmp_path):
    for number in range(3):
        call = {"max_sequence_length": 12, "negative_prompt": f"blur {number}"}
        add(tmp_path / f"{number}.png", f"a red circle {number}", number, inputs={"image": f"{number}.jpg"}, call=call)
    (text,) = index_page(tmp_path, read_sidecars(tmp_path)).configurations.values()
    assert "max_sequence_length: 12" in text and "blur" not in text and ".jpg" not in text


def test_renders_of_earlier_versions_are_shown(tmp_path):
    for file in DOCS.glob("guide/comparison.png*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "comparison.png.json").read_text())
    for name in ("boxes", "machine", "date"):
        record.pop(name, None)
    (tmp_path / "comparison.png.json").write_text(json.dumps(record))
    (group,) = index_page(tmp_path, read_sidecars(tmp_path)).groups
    (clip,) = group.clips
    assert clip.label == " | ".join(record["nfe"]) and clip.box is None


def test_an_empty_folder_has_a_page(tmp_path):
    assert "0 files" in write_index(tmp_path).read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"], "nothing half-written is left"


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=wrong()>", "</script><script>wrong()</script>", "' onclick='wrong()"]
)
def test_every_text_is_escaped(text):
    clip = Clip(text, "pictures", ["a.png"], caption=text)
    table = Table(text, [Column(text)], [[Cell(text)]])
    page = Page(text, text, [Group(text, 0, [clip])], [table], {text: "<svg/>"}, [text], {text: text}, {text: text})
    html = page_html(page)
    assert text not in html and html.count("<script") == 2
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', html)
    assert json.loads(data)["groups"][0]["clips"][0]["label"] == text


def test_the_best_of_a_column_is_known_by_its_direction():
    rows = [
        [Cell("a"), Cell("1", 1.0), Cell("1", 1.0), Cell("", np.nan)],
        [Cell("b"), Cell("2", 2.0), Cell("2", 2.0), Cell("3", 3.0)],
    ]
    table = Table(
        "", [Column("arm"), Column("score", "higher"), Column("cost", "lower"), Column("alone", "higher")], rows
    )
    assert [table.best(column) for column in range(4)] == [None, 2.0, 1.0, None]


def test_a_job_ends_with_its_page(tmp_path, capsys):
    prompts = ["a red circle moving left", "a blue square moving up"]
    argv = ["--config", "miniature-pixart", *prompts, "-o", f"{tmp_path}/job/"]
    assert render.main([*argv, "--samples", "2"]) == 0
    (data,) = re.findall(r'id="data">(.*)</script>', (tmp_path / "job" / "index.html").read_text())
    groups = json.loads(data)["groups"]
    assert [group["prompt"] for group in groups] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert all((tmp_path / "job" / clip["files"][0]).exists() for group in groups for clip in group["clips"])
