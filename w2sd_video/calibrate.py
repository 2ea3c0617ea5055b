"""Tell whether a pair helps: ``python -m w2sd_video.calibrate --config miniature-cogvideox -o strength.json``.

Real clips are noised to every noise level of the sampling, and strong and weak predict the noise through the pipeline's
own call. Where moving strong's prediction away from weak's brings it nearer to the noise, the pair helps; the strength
that brings it nearest goes into the output, which ``w2sd_video.render --strength FILE`` reads. The same is asked of
clips that the base setting samples, alone and reflected: at which strength are they most like the real ones? With a
window it is asked of reflections in it, for a strength is right only where it was found.

Options that are not listed here are those of ``w2sd_video.render`` and change the configuration. With a folder, the
caption of ``a.mp4`` is what ``a.txt`` says; miniatures need no folder, for their world makes the clips. What was found
is kept in a folder beside the output until all is: an interrupted calibration goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from w2sd_video.command_parser import OneLineParser, say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video._moved import names_of
from w2sd_video.calibration.calibration_cost import cost_in_words
from w2sd_video.calibration.options import add_options, calibrated_config, clips_of, configuring_words
from w2sd_video.calibration.pair import calibrate_pair
from w2sd_video.calibration.report import report
from w2sd_video.jobs.pool_options import pool_asked_for, shard_of
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.rendering.outputs import print_config
from w2sd_video.settings.command_line import DEFAULT_CONFIG, parse
from w2sd_video.settings.schema import filled
from w2sd_video.writing import write_whole

__getattr__ = names_of("w2sd_video.calibrate")  # a command is named __main__ when it runs


def main(argv: list[str] | None = None) -> int:
    """Run a command line: print the table and the verdict, and write the strengths; exit codes as of a render."""
    parser = OneLineParser("calibrate", description=__doc__)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="configuration of the pair: its name or a file")
    add_options(parser)
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    output = Path(options.output)
    with errors_in_one_line("calibrate"):
        request = parse(["--config", options.config, *configuring_words(options, rest)], command="calibrate")
        config = calibrated_config(options, request.config)
        if request.print_config:
            print_config(config)
            return 0
        pool = pool_asked_for(options, config.device)
        shard = shard_of(options.shard)
        clips = clips_of(options, config)
        if request.dry_run:
            print(cost_in_words(config, len(clips), options.draws, options.batch, options.samples, pool))
            return 0
        parts = Path(f"{output}.parts")
        findings = calibrate_pair(
            config,
            clips,
            draws=options.draws,
            batch=options.batch,
            samples=options.samples,
            bank=options.ideal,
            folder=parts,
            pool=pool,
            shard=shard,
        )
        if findings is None:
            print(f"left     nothing of this shard ({parts}); without --shard the same command writes {output}")
            return 0
        counts = {"clips": len(clips), "draws": options.draws, "seed": config.seed, "source": options.clips or "world"}
        pair = {role: asdict(filled(config, getattr(config, role))) for role in ("strong", "weak")}
        record = {"pair": pair, "model": asdict(config.model), "counts": counts, **findings.plain()}
        write_whole(output, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(parts)
        print(report(findings, config, counts))
        print(f"\nwritten to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
