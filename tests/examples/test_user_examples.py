"""Each example for users runs as it stands, writes what it says and costs what it says."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from w2sd_video import render
from w2sd_video.rendering.video import read_video

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def main_of(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def panels_of(picture: Path, rows: int, side: int = 128, gap: int = 4) -> np.ndarray:
    """Cut a contact sheet into (rows, columns, side, side, 3); its labels are in front."""
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=float)
    columns = (pixels.shape[1] - 72) // (side + gap)
    pixels = pixels[:, -columns * (side + gap) + gap :]
    return np.stack(
        [
            np.stack([pixels[y : y + side, x : x + side] for x in range(0, pixels.shape[1], side + gap)])
            for y in range(0, rows * (side + gap), side + gap)
        ]
    )


def test_every_example_is_tested_and_listed():
    tested = {"own_script", "own_loop", "two_checkpoints", "lora", "controlnet", "experts", "several_gaps"}
    tested |= {"many_prompts"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    listed = (ROOT / "docs" / "guide" / "first-steps.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`python examples/(\w+)\.py`", listed)) == tested


def test_own_script(tmp_path, capsys):
    main_of("own_script")(tmp_path / "clip.mp4")
    assert "network evaluations {'base': 20, 'strong': 10, 'weak': 0}" in capsys.readouterr().out
    frames = read_video(tmp_path / "clip.mp4")
    assert len(frames) == 8
    plain, reflected = np.split(frames[:, -256:].astype(float), [frames.shape[2] // 2], axis=2)
    assert abs(plain[:, :, :256] - reflected[:, :, -256:]).mean() > 0.5


def test_own_loop_comes_nearer_to_the_truth():
    shares = main_of("own_loop")()
    assert abs(shares["W2SD"] - 0.5) < 0.05 < abs(shares["strong alone"] - 0.5)


def dark_panels(path):
    """Return the panels of a figure on white (rows, columns, 174, 174, 3), wherever its captions put them."""
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    dark = picture.mean(-1) < 128
    tops, lefts = (np.flatnonzero(np.diff((dark.mean(axis) > 0.5).astype(int)) == 1) + 2 for axis in (1, 0))
    return np.stack([[picture[top : top + 174, left : left + 174] for left in lefts] for top in tops])


def test_two_checkpoints_at_equal_cost_make_the_picture_of_the_readme(tmp_path):
    assert main_of("two_checkpoints")(tmp_path / "picture.png") == {"weak": 28, "strong": 28, "W2SD": 28}
    made, shown = (dark_panels(path) for path in (tmp_path / "picture.png", ROOT / "docs" / "reflection.png"))
    assert made.shape == shown.shape == (3, 4, 174, 174, 3)
    differences = abs(made - shown).mean((2, 3, 4))
    assert differences.max() < 1.5, differences  # processors and drawing differ a little


def test_the_first_command_makes_the_picture_of_the_readme(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"python -m w2sd_video.render (.*) -o scene.png", text)
    monkeypatch.delenv("W2SD_MINIATURES", raising=False)
    assert render.main([*shlex.split(command[1]), "-o", str(tmp_path / "scene.png")]) == 0
    made, shown = (
        np.asarray(Image.open(path), float) for path in (tmp_path / "scene.png", ROOT / "docs" / "scene.png")
    )
    assert abs(made - shown).mean() < 1.5, "processors and drawing differ a little"


@pytest.mark.parametrize(
    ("name", "rows", "nfe"),
    [("lora", 2, (20, 9, 9)), ("controlnet", 3, (20, 9, 9)), ("experts", 2, (20, 18, 18))],
)
def test_a_gap_moves_the_clip(tmp_path, capsys, name, rows, nfe):
    main_of(name)(tmp_path / "sheet.png")
    counts = dict(zip(("base", "strong", "weak"), nfe, strict=True))
    assert f"network evaluations {counts}" in capsys.readouterr().out
    plain, reflected = panels_of(tmp_path / "sheet.png", rows)[-2:]
    assert abs(plain - reflected).mean() > 0.5
    assert str(sum(nfe)) in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def test_reflected_circles_lie_in_the_outlines(tmp_path):
    main_of("controlnet")(tmp_path / "sheet.png")
    outlines, plain, reflected = (row.mean(-1) for row in panels_of(tmp_path / "sheet.png", 3))

    def centre(row: np.ndarray) -> np.ndarray:
        bright = row > 60
        return np.array([[places.mean() for places in np.nonzero(frame)] for frame in bright])

    away = [np.linalg.norm(centre(row) - centre(outlines), axis=1).mean() for row in (plain, reflected)]
    assert away[1] < away[0] / 2


def test_several_gaps(tmp_path, capsys):
    main_of("several_gaps")(tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert "both: network evaluations {'base': 10, 'strong': 18, 'weak': 9}" in printed
    rows = panels_of(tmp_path / "sheet.png", 4)
    for row in rows[1:]:
        assert abs(row - rows[0]).mean() > 0.5


def test_many_prompts_goes_on_where_it_stopped(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two\na red circle moving left\n\na small blue square moving up\n", encoding="utf-8")
    main = main_of("many_prompts")
    paths = main(prompts, tmp_path / "clips")
    first = paths[0].read_bytes()
    assert [path.name for path in paths] == ["000.mp4", "001.mp4"] and len(read_video(paths[1])) == 8
    paths[1].unlink()
    capsys.readouterr()
    main(prompts, tmp_path / "clips")
    assert capsys.readouterr().out.count("network evaluations") == 1
    assert paths[0].read_bytes() == first and paths[1].exists()
