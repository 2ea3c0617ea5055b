"""Render clips and images: ``python -m w2sd_video.render "a red circle moving left" -o out.mp4``."""

from __future__ import annotations

import sys

from w2sd_video.command_parser import say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video._moved import names_of
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.job import RenderJob, render_job
from w2sd_video.rendering.job_cost import clips_cost_in_words, cost_in_words
from w2sd_video.rendering.job_options import add_job_options, job_of
from w2sd_video.rendering.outputs import outputs, print_config
from w2sd_video.rendering.prompts import render
from w2sd_video.rendering.video import check_output
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.model_checks import check_plan

__getattr__ = names_of("w2sd_video.render")  # a command is named __main__ when it runs


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 if samples of a job failed, or see `errors_in_one_line`."""
    with errors_in_one_line("render"):
        request = parse(sys.argv[1:] if argv is None else argv, add_options=add_job_options)
        if request.print_config:
            print_config(request.config)
            return 0
        check_plan(request.config)
        job = job_of(request)
        for output in outputs(request.config) if job is None else ():
            check_output(output)
        if request.dry_run:
            print(clips_cost_in_words(request.config) if job is None else cost_in_words(job))
            return 0
        if job is not None:
            return _render_job(job)
        render(request.config)
    return 0


def _render_job(job: RenderJob) -> int:
    """Make the samples of a job and the page that shows them, say what became of them, and return the exit code."""
    rendered = render_job(job)
    print(rendered.in_words(job.folder))
    return 1 if rendered.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
