"""Everything public of version 0.2 can still be imported, by its old name."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import w2sd_video
from w2sd_video._moved import MOVED

LISTED = Path(__file__).with_name("public_names_of_0.2.txt").read_text().splitlines()
NAMES = {module: names.split() for module, names in (line.split(": ") for line in LISTED)}
"""Public names by module; left out are those of the driver, which was not for others, `w2sd_video.reflect`, a module
that the function of that name hid, and `backends.attention.Kind`, a type of two names where there are many now."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", NAMES)
def test_public_names_of_version_0_2_are_there(module):
    there = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(there, name)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from w2sd_video.video import read_video", "w2sd_video.rendering.video"),
        ("from w2sd_video.render import load", "w2sd_video.rendering.load"),
        ("from w2sd_video.probe import probe", "w2sd_video.calibration.noised_clips"),
        ("from w2sd_video.settings import RenderConfig", "w2sd_video.settings.schema"),
    ],
)
def test_what_has_moved_is_the_very_thing_and_says_where_it_is(old, new):
    _, module, _, name = old.split()
    if module.removeprefix("w2sd_video.") in MOVED:
        sys.modules.pop(module, None)  # another test may have imported it, and one is warned once
    names = {}
    with pytest.warns(DeprecationWarning, match=new):
        exec(old, names)
    there = vars(importlib.import_module(new))
    assert names[name] is there.get(name, there.get("moments_of_clips"))


def test_what_was_never_there_is_not_found():
    for statement in (
        "import w2sd_video.nothing",
        "from w2sd_video import nothing",
        "from w2sd_video.render import nothing",
    ):
        with pytest.raises(ImportError):
            exec(statement)


def test_a_public_name_and_a_module_do_not_collide():
    """So that ``import w2sd_video.NAME as module`` cannot give a function."""
    for name in w2sd_video.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"w2sd_video.{name}")


def test_the_lists_of_public_names_agree():
    tree = ast.parse(inspect.getsource(w2sd_video))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    where = {alias.name: imported.module for imported in typed.body for alias in imported.names}
    assert where == {name: f"w2sd_video.{module}" for name, module in w2sd_video._MODULES.items()}
    assert sorted(w2sd_video.__all__) == sorted(w2sd_video._MODULES)
    assert {name for name in w2sd_video.__all__ if getattr(w2sd_video, name) is None} == set()


def test_importing_the_package_loads_no_library():
    """Torch alone takes seconds; a public name loads what it needs, diffusers only once a pipeline is used."""
    code = """
import sys
import w2sd_video
assert not {"torch", "diffusers", "numpy"} & set(sys.modules), "import w2sd_video"
from w2sd_video import Branch, Reflection, Trajectory, reflect, sample
assert not {"diffusers", "transformers", "accelerate"} & set(sys.modules), "the method"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
