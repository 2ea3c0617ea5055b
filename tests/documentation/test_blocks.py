"""Every fenced block of the README and the pages is run as it stands.

A block that cannot run here has ``<!-- not run: reason -->`` on the line before it, and is checked as far as that goes:
commands up to the loading of a model, Python by its names and arguments. ``<!-- file: NAME -->`` has a block written
into a file of that name before the other blocks of its page are run. ``<!-- run by: FILE -->`` names the test of a
difference.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import pytest
from pages import PAGES, ROOT, Block, blocks_of, inline_code_of

import w2sd_video.__main__
import w2sd_video.calibrate
import w2sd_video.evaluate
import w2sd_video.miniatures.train
import w2sd_video.render
import w2sd_video.tune
import w2sd_video.tuning.every_operator
from w2sd_video.settings.schema import RenderConfig

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NOTHING = SimpleNamespace(in_words=str, failed=[])
"""What came of an evaluation that was not made."""
OF_THE_READER = ("edges.png", "more_art.safetensors", "FOLDER")
"""Files and folders that the reader has, by the names that commands give them."""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in blocks_of(block.page):
        if other.file is not None:
            Path(other.file).write_text(other.text, encoding="utf-8")
    is_run = not block.marker.startswith("not run: ")
    is_run_by = block.marker.removeprefix("run by: ") if block.marker.startswith("run by: ") else None
    assert block.marker == "" or block.file or is_run_by or not is_run, (
        f"a comment that means nothing: {block.marker!r}"
    )
    if block.language == "python":
        run_python(block) if is_run else check_python(block.text)
    elif block.language == "sh":
        for command in commands_of(block.text):
            run_command(command) if is_run else check_command(command, monkeypatch)
    elif block.language == "yaml" and block.file:
        assert w2sd_video.render.main(["--config", block.file, "--dry-run"]) == 0
    elif block.language == "diff" and is_run_by:
        assert block.page.name in (ROOT / is_run_by).read_text(encoding="utf-8")
    else:
        assert block.language in ("text", "yaml", "cff") and block.file, f"no rule for a block of {block.language!r}"


def run_python(block: Block) -> None:
    """Run a block as a script of its own."""
    exec(compile(block.text, block.name, "exec"), {"__name__": "__main__"})


def check_python(text: str) -> None:
    """Import what a block imports, and compare its calls of that with their signatures."""
    tree = ast.parse(text)
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: imported(str(node.module), alias.name) for alias in node.names}
    checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := looked_up(node.func, names)) is not None:
            keywords = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(called).bind_partial(*node.args, **keywords)
            checked += 1
    assert checked, "no call of an imported name; is there nothing to check?"


def imported(module: str, name: str) -> object:
    """Return what ``from module import name`` gives."""
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


def looked_up(node: ast.expr, names: dict[str, object]) -> object:
    """Return what an expression like ``a`` or ``a.b`` names, if ``a`` was imported; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := looked_up(node.value, names)) is not None:
        return getattr(owner, node.attr)
    return None


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of a block."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def run_command(words: list[str]) -> None:
    """Run a command of the package; one that would install, or run all tests, is only looked at."""
    match words:
        case [
            "python",
            "-m",
            ("w2sd_video.render" | "w2sd_video.evaluate" | "w2sd_video.tune" | "w2sd_video.calibrate") as name,
            *rest,
        ]:
            assert importlib.import_module(name).main(rest) == 0
        case _:
            check_tool(words)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command as it would be read, up to where a model is loaded or a study begins."""
    for name in OF_THE_READER:
        if name in words:
            Path(name).touch()
    reached = []
    match words:
        case ["python", "-m", "w2sd_video.render", *rest]:
            assert w2sd_video.render.main([*rest, *([] if "--dry-run" in rest else ["--dry-run"])]) == 0
        case ["python", "-m", "w2sd_video.evaluate", *rest]:
            monkeypatch.setattr(w2sd_video.evaluate, "evaluate_into", lambda *given: reached.append(given) or NOTHING)
            assert w2sd_video.evaluate.main(rest) == 0 and reached
        case ["python", "-m", "w2sd_video.calibrate", *rest]:
            check_calibrate(rest, monkeypatch)
        case ["python", "-m", "w2sd_video.tune", *rest]:
            reached_tuned = w2sd_video.tuning.every_operator.Tuning("")
            monkeypatch.setattr(
                w2sd_video.tuning.every_operator, "tune_into", lambda *given: reached.append(given) or reached_tuned
            )
            monkeypatch.setattr(w2sd_video.tuning.tuning_plan, "read_votes", lambda files: [])
            assert w2sd_video.tune.main(rest) == 0 and reached
        case ["python", "-m", "w2sd_video.miniatures.train", *rest]:
            for name in ("_train", "_assemble", "_train_sprites"):
                monkeypatch.setattr(w2sd_video.miniatures.train, name, lambda *given: reached.append(given))
            w2sd_video.miniatures.train.main(rest)
            assert reached
        case ["python", script, *rest] if script.startswith("examples/studies/"):
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            monkeypatch.syspath_prepend(ROOT / "examples" / "studies")
            parser.add_function_arguments(runpy.run_path(str(ROOT / script))["main"])
            monkeypatch.chdir(ROOT)
            parser.parse_args(rest)
        case ["cp" | "mkdir" | "export", *_] | ["python", "-m", "pip", "install", *_]:
            pass
        case ["w2sd-video", command, *_]:
            assert command in w2sd_video.__main__.COMMANDS
        case _:
            check_tool(words)


def check_calibrate(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command line of calibrate up to where it would load a model; a folder of clips is taken as given."""

    class Reached(Exception):  # noqa: N818
        pass

    def stop(config: RenderConfig, *_: object, **__: object) -> None:
        raise Reached(config)

    monkeypatch.setattr(w2sd_video.calibrate, "calibrate_pair", stop)
    if "FOLDER" in words:
        monkeypatch.setattr(w2sd_video.calibrate, "clips_of", lambda options, config: [SimpleNamespace()] * 8)
    with pytest.raises(Reached):
        w2sd_video.calibrate.main(words)
    if "-o" in words:  # for the commands behind it
        Path(words[words.index("-o") + 1]).write_text('{"log_snr": [0.0], "strength": [1.0]}', encoding="utf-8")


def check_tool(words: list[str]) -> None:
    """Look at a command that sets up or checks the project: the extras that it names, the paths that it is given."""
    match words:
        case ["pip", "install", "-e", what]:
            extras = re.fullmatch(r"\.(?:\[(.*)\])?", what)
            assert extras, what
            known = metadata("w2sd-video").get_all("Provides-Extra")
            assert not extras[1] or set(extras[1].split(",")) <= set(known), f"no such extra: {what}"
        case ["python", "-m", "pytest", *paths] | ["ruff", "check" | "format", *paths] | ["mypy", *paths]:
            assert all((ROOT / path).exists() for path in paths if not path.startswith("-")), words
        case (
            ["mkdocs", "build" | "serve", *_]
            | ["ray", "start", *_]
            | ["pre-commit", "install" | "run", *_]
            | ["bash", ".ci/run" | ".ci/versions", *_]
        ):
            pass
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), words
        case _:
            raise AssertionError(f"no rule for the command {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_a_sentence_name_what_there_is(page: Path) -> None:
    for code in inline_code_of(page):
        words = code.split()
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, code
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), code


def test_every_configuration_has_a_place_in_the_table() -> None:
    text = (ROOT / "docs" / "guide" / "command-line.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    named |= {f"miniature{name}" for name in named if name.startswith("-")}
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {n for n in named if not n.startswith("-")}


def test_the_readme_is_short_and_has_the_command_of_the_tests() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if "python -m pytest" in line] == ['pip install -e ".[test]" && python -m pytest']
