"""Make clips in a browser: ``w2sd-video studio``, with ``pip install "w2sd-video[web]"``.

Weak, strong, strong at equal cost and W2SD are sampled from the same noise and played in step. The miniatures work out
of the box; other configurations, and folders of pipelines, are named by --config.
"""

from __future__ import annotations

import sys
from pathlib import Path

from w2sd_video.command_parser import OneLineParser, say_interrupted

if __name__ == "__main__":
    sys.excepthook = say_interrupted

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.command_errors import errors_in_one_line
from w2sd_video.settings.command_line import DEFAULT_CONFIG
from w2sd_video.settings.files import packaged_configs

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""


def main(argv: list[str] | None = None) -> int:
    """Serve the studio until it is interrupted."""
    parser = OneLineParser("studio", description=__doc__)
    add = parser.add_argument
    add(
        "--config",
        action="append",
        default=[],
        metavar="NAME|FILE|FOLDER",
        help="a further configuration to choose, or the folder of a pipeline; can be given again",
    )
    add("--folder", default="runs/studio", help="where clips and their records go; runs/studio unless given")
    add("--host", default="127.0.0.1", help="address to listen on; this machine alone unless given")
    add("--port", type=int, default=7860, help="port to listen on; 7860 unless given")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with errors_in_one_line("studio"):
        try:
            from w2sd_video.web.interface import interface, launch
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError('the studio needs Gradio; pip install "w2sd-video[web]"') from error
        from w2sd_video.web.workbench import Workbench, configuration_of

        if not 1 <= options.port <= 65535:
            raise ConfigError(f"port {options.port}: must be from 1 to 65535")
        names = [*options.config, *(name for name in packaged_configs() if name not in options.config)]
        configurations = {name: configuration_of(name) for name in names}
        folder = Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if options.host not in LOOPBACK:
            print(f"whoever reaches {options.host} can sample on this machine and see what is in {folder}", flush=True)
        print(f"studio   http://{options.host}:{options.port} (Ctrl-C ends it), clips in {folder}", flush=True)
        studio = interface(Workbench(folder, configurations), names[0] if options.config else DEFAULT_CONFIG)
        launch(studio, options.host, options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
