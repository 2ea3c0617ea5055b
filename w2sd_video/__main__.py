"""All commands by one name: ``w2sd-video render ...``, or ``python -m w2sd_video render ...``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from w2sd_video.command_parser import INTERRUPTED, OneLineParser, fail

COMMANDS = {
    "render": "render",
    "evaluate": "evaluate",
    "calibrate": "calibrate",
    "tune": "tune",
    "studio": "studio",
    "train-miniatures": "miniatures.train",
}
"""The module of each command, which is imported when it is asked for."""


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names with the words after it, and return its exit code."""
    parser = OneLineParser(
        None,
        description="Weak-to-Strong Diffusion for image and video diffusion models.",
        epilog="w2sd-video COMMAND --help lists the options of a command.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its prompts and options")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        command = import_module(f"w2sd_video.{COMMANDS[options.command]}")
        return command.main(options.arguments) or 0
    except KeyboardInterrupt:  # while it imports its libraries; later on the command says so itself
        fail("interrupted", INTERRUPTED, options.command)


if __name__ == "__main__":
    sys.exit(main())
