"""The command line of render, as tests of it look at it."""

import json
import re
from pathlib import Path

import pytest

from w2sd_video.render import main


def refused(capsys, *argv, config="pair.yaml"):
    """Run a command that is refused; return its exit code and its one line on stderr."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["--config", config, *argv])
    bar = re.compile(r".*it/s\].*|\s*|\s*\x1b\[A")
    lines = [line for line in capsys.readouterr().err.splitlines() if not bar.fullmatch(line)]
    assert len(lines) == 1, lines
    assert sorted(Path().rglob("*")) == before, "nothing half-written is left"
    return end.value.code, lines[0].split("w2sd_video.render: ")[1]


def sidecar_of(path):
    return json.loads(Path(f"{path}.json").read_text())
