"""The floors of the house: imports go down, never up and never in a circle, and none goes to a command.

``python tests/layout/test_floors.py`` draws the floors, and which rooms each room imports from.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = {"w2sd_video": "w2sd_video", "backends": "w2sd_video.backends"}
COMMANDS = {
    f"w2sd_video.{name}"
    for name in ("__main__", "render", "calibrate", "evaluate", "studio", "tune", "miniatures.train")
}
METHOD = (
    *(
        "algorithm",
        "argument_checks",
        "branch",
        "command_parser",
        "guidance",
        "inversions",
        "levels",
        "loops",
        "markdown",
        "messages",
        "presets",
        "reflection_settings",
        "sampler",
        "scheduler_levels",
    ),
    *("reuse", "step_functions", "strength", "text_files", "time_grid", "trajectory", "window", "writing"),
)
FLOORS = [
    ["names"],
    ["method"],
    ["gaps", "jobs", "page"],
    ["backends"],
    ["driver", "miniatures"],
    ["plugin", "predictors", "settings"],
    ["metrics", "rendering"],
    ["calibration"],
    ["evaluation", "web"],
    ["tuning"],
    ["commands"],
]
"""The rooms, from the ground; below the ten floors lie the package's lists of names, which are loaded before all."""


def modules():
    """Return the file of each module of the package, by its name."""
    found = {}
    for folder, package in SOURCES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """Return the modules of the package that a module imports anywhere in it, also within its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in known else node.module for one in full}
    return {one for one in found if one in known and one != name}


def graph():
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items() if name != "w2sd_video"}


def room(module):
    """Return the room of a module: its folder, or what a module beside the folders belongs to."""
    if module in COMMANDS:
        return "commands"
    first = module.split(".")[1] if "." in module else "_moved"
    return "names" if first == "_moved" else "method" if first in METHOD else first


def test_every_import_goes_to_a_lower_floor_or_stays_in_its_room():
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    assert len(FLOORS) - 1 <= 10
    upward = [
        f"{module} -> {imported}"
        for module, others in graph().items()
        for imported in others
        if room(module) != room(imported) and floor_of[room(module)] <= floor_of[room(imported)]
    ]
    assert upward == []


def test_no_import_goes_in_a_circle():
    left = graph()
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert left == {}


def test_nothing_imports_a_command():
    assert [module for module, others in graph().items() if others & COMMANDS and module not in COMMANDS] == []


def test_no_two_files_have_one_name():
    """But for the reports, of which calibration and evaluation have one each."""
    names = [path.name for path in modules().values() if path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 1} == {"report.py"}


if __name__ == "__main__":
    edges = graph()
    for rooms in reversed(FLOORS):
        for one in rooms:
            below = {room(imported) for module, others in edges.items() if room(module) == one for imported in others}
            print(f"{one:<14} {', '.join(sorted(below - {one}))}")
