"""Render clips and images: ``python -m w2sd_video.render "a red circle moving left" -o out.mp4``."""

from __future__ import annotations

import sys

import yaml

from w2sd_video.command_parser import say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video._moved import names_of
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.outputs import outputs, plain
from w2sd_video.rendering.prompts import render
from w2sd_video.rendering.video import check_output
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.settings.words import plan_in_words

__getattr__ = names_of("w2sd_video.render")  # a command is named __main__ when it runs


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, or see `errors_in_one_line`."""
    with errors_in_one_line("render"):
        request = parse(sys.argv[1:] if argv is None else argv)
        if request.print_config:
            print(yaml.safe_dump(plain(request.config), sort_keys=False), end="")
            return 0
        check_plan(request.config)
        for output in outputs(request.config):
            check_output(output)
        if request.dry_run:
            print(plan_in_words(request.config))
            return 0
        render(request.config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
