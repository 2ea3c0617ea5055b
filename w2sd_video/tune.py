"""Find the best setting for a pair at a budget: ``python -m w2sd_video.tune --config miniature-pixart --nfe 20``.

Every operator (none, guidance, AutoGuidance, skip-layer guidance, Z-Sampling, Re-Sampling, W2SD) is given the same
number of trials, in which Optuna looks for its inversion, reading, window, strength, reuse, solver, grid and noise,
with as many steps as the budget allows. Hopeless settings are given up after a few samples. The best are compared on
other prompts, with plain sampling and with each operator at its best. The folder holds best.yaml, which
``w2sd_video.render --config`` takes, and report.html. An interrupted search goes on where it stopped. Options that are
not listed here are those of ``w2sd_video.render`` and change the configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path

from w2sd_video.command_parser import OneLineParser, say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video.jobs.pool_options import pool_asked_for
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.outputs import print_config
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.settings.command_line import DEFAULT_CONFIG, parse
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.tuning.tuning_cost import cost_in_words
from w2sd_video.tuning.tuning_plan import add_options, check_words, tuning_plan_of


def main(argv: list[str] | None = None) -> int:
    """Run the search that a command line names, print what it found and write its folder."""
    parser = OneLineParser("tune", description=__doc__)
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="NAME|FILE", help="the pair, as it is configured")
    add_options(parser)
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    with errors_in_one_line("tune"):
        check_words(rest)
        request = parse([*rest, "--config", options.config], command="tune")
        config = request.config
        if request.print_config:
            print_config(config)
            return 0
        check_plan(config)
        plan = tuning_plan_of(options, config, options.config)
        folder = Path(options.folder or f"runs/tune-{Path(options.config).stem}")
        pool = pool_asked_for(options, config.device)
        from w2sd_video.tuning.every_operator import tune_into  # which needs Optuna

        if request.dry_run:
            check_before_loading(config)
            print(cost_in_words(config, plan, options.seconds, pool))
            return 0
        tuned = tune_into(folder, config, plan, options.seconds, pool)
        print("\n".join([tuned.words, *(f"failed   {line}" for line in tuned.failed)]))
    return 1 if tuned.failed else 0


if __name__ == "__main__":
    sys.exit(main())
