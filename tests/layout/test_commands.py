"""One command for all, and each by itself."""

from importlib.metadata import entry_points

import pytest

from w2sd_video import __version__, calibrate, evaluate, render, studio, tune
from w2sd_video.__main__ import COMMANDS, main
from w2sd_video.miniatures import train


def printed(capsys, run, argv):
    with pytest.raises(SystemExit) as end:
        run(argv)
    shown = capsys.readouterr()
    return end.value.code, shown.out + shown.err


def test_the_console_script_is_the_main_of_the_package():
    (script,) = entry_points(group="console_scripts", name="w2sd-video")
    assert script.load() is main


@pytest.mark.parametrize("run", [main, render.main, evaluate.main, calibrate.main, studio.main, tune.main])
def test_every_command_says_its_version(run, capsys):
    assert printed(capsys, run, ["--version"]) == (0, f"w2sd-video {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_options_reach_the_command_that_is_named(command, capsys):
    modules = {
        "render": render,
        "evaluate": evaluate,
        "calibrate": calibrate,
        "studio": studio,
        "tune": tune,
        "train-miniatures": train,
    }
    by_itself = printed(capsys, modules[command].main, ["--help"])
    assert by_itself[0] == 0 and printed(capsys, main, [command, "--help"]) == by_itself


def test_what_is_no_command_is_refused_with_those_there_are(capsys):
    code, said = printed(capsys, main, ["rendre"])
    assert code == 2 and all(command in said for command in COMMANDS)


def test_the_exit_code_of_a_command_is_that_of_the_console_script(capsys):
    assert printed(capsys, main, ["render", "--config", "nothing"])[0] == 2
    assert main(["render", "a red circle moving left", "--dry-run"]) == 0


def test_an_unknown_stage_of_the_training_is_refused_in_a_line(tmp_path, capsys):
    code, said = printed(capsys, main, ["train-miniatures", "--out", str(tmp_path), "--stage", "vae"])
    assert code == 2 and "unknown stage 'vae'" in said
