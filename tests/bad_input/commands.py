"""Command lines that go wrong, run in this process, and what is asked of each: one line, an exit code, nothing left."""

import re
from importlib import import_module
from pathlib import Path

BAR = re.compile(r"[^\r]*(it/s|s/it|\?it|clip/s|[0-9]+/[0-9]+ \[)[^\r]*|\s*")
"""What progress bars write, and wipe again."""


def ended(capfd, command, *argv):
    """Run a command; return its exit code and what it says on stderr, past its bars.

    It ends in one line that names the command, or well and silently. What nobody foresaw is raised here, and so is
    seen by the test (W2SD_TRACEBACK).
    """
    before = sorted(str(path) for path in Path().rglob("*"))
    capfd.readouterr()
    try:
        code = import_module(f"w2sd_video.{command}").main([str(word) for word in argv]) or 0
    except SystemExit as end:
        code = end.code
    said = capfd.readouterr().err
    lines = [part.strip() for line in said.splitlines() for part in line.split("\r") if not BAR.fullmatch(part)]
    if code:
        assert len(lines) == 1, said
        head = "w2sd-video" if command == "__main__" else f"w2sd_video.{command}"
        assert re.match(rf"(w2sd-video|{re.escape(head)}|w2sd_video\.\w+): \S", lines[0]), lines
        assert code in (1, 2) and "Traceback" not in said
        assert sorted(str(path) for path in Path().rglob("*")) == before, "something half-written is left"
    else:
        assert lines == [], said
    return code, lines[0] if lines else ""
