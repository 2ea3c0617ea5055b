"""Compare W2SD with its rivals at equal cost: ``python -m w2sd_video.evaluate --config miniature-cogvideox``.

Every arm (the strong model alone, plain guidance, AutoGuidance, Z-Sampling, FSG, Re-Sampling, W2SD and others) samples
the same prompts from the same noise, with as many steps as a budget of network evaluations (NFE) allows. Its best
setting is looked for on some prompts and reported on others. The folder holds results.csv (every sample), front.csv,
table.md and report.html. An interrupted evaluation goes on where it stopped. Options that are not listed here are those
of ``w2sd_video.render`` and change the configuration (``--base.guidance-scale 1``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from w2sd_video.command_parser import OneLineParser, say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video._moved import names_of
from w2sd_video.evaluation.evaluation_cost import cost_in_words
from w2sd_video.evaluation.every_arm import evaluate_into
from w2sd_video.evaluation.plan import add_options, check_words, plan_of
from w2sd_video.jobs.pool_options import pool_asked_for, shard_of
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.outputs import print_config
from w2sd_video.rendering.prompts import check_before_loading
from w2sd_video.settings.command_line import DEFAULT_CONFIG, parse
from w2sd_video.settings.model_checks import check_plan

__getattr__ = names_of("w2sd_video.evaluate")  # a command is named __main__ when it runs


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation that a command line names, print its table and write its folder."""
    parser = OneLineParser("evaluate", description=__doc__)
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="NAME|FILE", help="W2SD as it is configured")
    add_options(parser)
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    with errors_in_one_line("evaluate"):
        check_words(rest, has_budgets=options.budgets is not None)
        request = parse([*rest, "--config", options.config], command="evaluate")
        config = request.config
        if request.print_config:
            print_config(config)
            return 0
        check_plan(config)
        plan = plan_of(options, config, options.config)
        folder = Path(options.folder or f"runs/{Path(options.config).stem}")
        pool = pool_asked_for(options, config.device)
        shard = shard_of(options.shard)
        if request.dry_run:
            check_before_loading(config)
            print(cost_in_words(config, plan, pool))
            return 0
        evaluation = evaluate_into(folder, config, plan, pool, shard)
        print(evaluation.in_words())
    return 1 if evaluation.failed else 0


if __name__ == "__main__":
    sys.exit(main())
