"""How every command refuses: one line on stderr and an exit code. It imports no library, and so takes no time."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from w2sd_video import __version__

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""
BLANK = "is given a blank, which names nothing; leave it out for what it is by itself"
"""What is said of a name or a path without a letter."""


def fail(message: str, code: int = 2, command: str | None = "render") -> NoReturn:
    """Print one line on stderr, headed by the command, and exit."""
    head = f"w2sd_video.{command}" if command else "w2sd-video"
    print(f"{head}: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(code)


def given_nothing(words: Sequence[str], actions: Iterable[argparse.Action]) -> str | None:
    """Return an option that is given a blank, as a variable of a shell that is not set gives it; None if there is none.

    Args:
        words: of a command line.
        actions: of its parser, those whose options name something.
    """
    options = {option for action in actions if action.nargs != 0 for option in action.option_strings}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="-"):
        option, has_value, value = word.partition("=")
        if option in options and not (value if has_value else following).strip():
            return option
    return None


class OneLineParser(argparse.ArgumentParser):
    """The parser of a command that has options beside those of a configuration: its errors are one line.

    Args:
        command: heads the line; None for what all commands are called by.
        settings: of argparse's own.
    """

    def __init__(self, command: str | None, **settings: Any) -> None:
        prog = f"python -m w2sd_video.{command}" if command else "w2sd-video"
        super().__init__(prog, allow_abbrev=False, **settings)
        self.add_argument("--version", action="version", version=f"w2sd-video {__version__}")
        self._command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an option that is given a blank, which would mean something else than what was meant."""
        words = list(sys.argv[1:] if args is None else args)
        if option := given_nothing(words, self._actions):
            self.error(f"{option}: {BLANK}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without a block of how it is used."""
        message = message.removeprefix("argument ")
        if not_a_number := re.fullmatch(r"(\S+): invalid (int|float) value: (.*)", message):
            option, kind, given = not_a_number.groups()
            message = f"{option} {given}: must be a {'whole ' if kind == 'int' else ''}number"
            message += ", and prompts go before an option of several values" if " " in given else ""
        fail(f"{message}; --help lists the options", command=self._command)


def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Take the place of ``sys.excepthook`` while a command imports its libraries, in the seconds that they take."""
    if issubclass(kind, KeyboardInterrupt):
        print("w2sd_video: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
