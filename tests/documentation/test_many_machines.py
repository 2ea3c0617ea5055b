"""The examples for other schedulers are files that can be read, with commands that can be run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import ROOT, blocks_of

from w2sd_video import render

BLOCKS = [block for block in blocks_of(ROOT / "docs" / "guide" / "many-machines.md") if block.language == "text"]
EXAMPLES = [block for block in BLOCKS if "w2sd_video" in block.text]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.file)
def test_the_command_of_an_example_is_read(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red fox in the snow\n")
    text = re.sub(r"\$\w+/(\$\w+|\d+)", "7/8", block.text.replace("\\\n", " "))
    if block.file.endswith(".yaml"):
        text = "\n".join(values_of(yaml.safe_load(text)))
    (command,) = re.findall(r"python -m w2sd_video\.render ([^\"\n]*)", text)
    assert render.main([*shlex.split(command), "--dry-run"]) == 0 and "NFE" in capsys.readouterr().out


def values_of(data):
    """Yield all texts in nested data."""
    for value in data.values() if isinstance(data, dict) else data:
        if isinstance(value, dict | list):
            yield from values_of(value)
        else:
            yield str(value)
