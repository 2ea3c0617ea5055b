"""Reading a configuration: the command line goes before a file, a file before the defaults."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import jsonargparse

from w2sd_video import __version__
from w2sd_video.command_parser import BLANK, fail, given_nothing
from w2sd_video.messages import ConfigError, suggest
from w2sd_video.presets import PRESETS, Preset
from w2sd_video.settings.files import packaged_configs, read_config
from w2sd_video.settings.prompt_files import PromptLine, read_prompt_file
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.value_checks import check
from w2sd_video.window import Window

DEFAULT_CONFIG = "miniature-animatediff"
"""The packaged configuration that is used where none is named."""

_OF_CONFIGURATIONS = {field.name for field in dataclasses.fields(RenderConfig)} - {"prompts"}
"""Options that are values of a configuration, which are checked with those of its file."""


@dataclass
class CommandLine:
    """A command line, read.

    Attributes:
        config: the configuration; its prompts are those of the lines.
        dry_run: whether to say what would be done, and no more.
        print_config: whether to print the configuration, and no more.
        lines: the prompts, with what a file of prompts says of each.
        options: those that `add_options` has added, and ``prompts``, the file of prompts.
    """

    config: RenderConfig
    dry_run: bool = False
    print_config: bool = False
    lines: list[PromptLine] = dataclasses.field(default_factory=list)
    options: argparse.Namespace = dataclasses.field(default_factory=argparse.Namespace)


AddOptions = Callable[[argparse.ArgumentParser], None]


def parse(argv: list[str], command: str | None = "render", add_options: AddOptions | None = None) -> CommandLine:
    """Read a command line, with the configuration that it names; exits with code 2 and one line if it makes no sense.

    Args:
        argv: the words of the command line.
        command: heads that line; with None there is none, and what makes no sense is a ConfigError.
        add_options: adds options that are no values of a configuration; without them, a file of prompts may hold
            nothing else that samples depend on.

    Raises:
        ConfigError: a value that is out of range, unknown, or does not fit the others.
    """
    parser = _parser(add_options)
    parser.command = command
    argv = parser.prompts_last(argv)
    of_commands = [action for action in parser._actions if action.dest.partition(".")[0] not in _OF_CONFIGURATIONS]
    if option := given_nothing(argv, of_commands):
        parser.error(f"{option}: {BLANK}")
    arguments = parser.parse_args(argv)
    file = read_config(arguments.config) | (PRESETS[arguments.preset] if arguments.preset else {})
    prompts = file.pop("prompts", None)
    merged = parser.parse_args(argv, namespace=parser.parse_object(file))
    try:
        merged = parser.instantiate(merged)
    except ValueError as error:  # of jsonargparse, with that of each type that a value might have had
        raise ConfigError(" ".join((re.search(r"a window .*", str(error)) or [str(error)])[0].split())) from error
    lines = read_prompt_file(merged.prompts) if merged.prompts else []
    if add_options is None and (detailed := next((line for line in lines if not line.is_plain), None)):
        raise ConfigError(f"{detailed.where}: says more than a prompt, which {command} does not follow")
    if merged.prompt or merged.prompts:
        prompts = [*merged.prompt, *(line.prompt for line in lines)]
    values = {
        field.name: getattr(merged, field.name) for field in dataclasses.fields(RenderConfig) if field.name != "prompts"
    }
    if isinstance(prompts, list):  # YAML reads the number of a class as a number
        prompts = [str(prompt) if type(prompt) is int else prompt for prompt in prompts]
    config = RenderConfig(prompts=[] if prompts is None else prompts, **values)
    check(config)
    lines = [*(PromptLine(prompt) for prompt in config.prompts[: len(config.prompts) - len(lines)]), *lines]
    return CommandLine(config, merged.dry_run, merged.print_config, lines, merged)


def refuse_words(words: Sequence[str], instead: Mapping[str, str]) -> None:
    """Refuse options of a render that another command would not follow.

    Args:
        words: of the command line that change the configuration.
        instead: options that mean nothing to the command, and what to take in place of each.

    Raises:
        ConfigError: such an option.
    """
    for word in words:
        if (name := word.split("=")[0]) in instead:
            raise ConfigError(f"{name}: {instead[name]}")


class _Parser(jsonargparse.ArgumentParser):
    """jsonargparse with dashes in the names of options, switches for truth values, and errors of one line."""

    command: str | None = None
    """Which the errors are of; None raises them, as those of the parser of a value inside another (a window)."""

    def add_argument(self, *names: str, **settings: Any) -> Any:
        if names[0].startswith("--") and "_" in names[0]:
            names = (names[0].replace("_", "-"), *names)
        if names[0] == "--output":
            names = ("-o", *names)
        if settings.get("type") is bool:
            settings.pop("type")
            settings["action"] = jsonargparse.ActionYesNo(no_prefix="no-")
        return super().add_argument(*names, **settings)

    def prompts_last(self, argv: list[str]) -> list[str]:
        """Return a command line with its prompts at the end: argparse takes them from one place only."""
        switches = {flag for action in self._actions if action.nargs == 0 for flag in action.option_strings}
        options: list[str] = []
        prompts: list[str] = []
        words = iter(argv)
        for word in words:
            if word == "--":
                prompts += words
            elif not word.startswith("-"):
                prompts.append(word)
            else:
                has_value = word not in switches and "=" not in word
                options += [word, *([value] if has_value and (value := next(words, None)) is not None else [])]
        return [*options, "--", *prompts] if prompts else options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.command is None:
            raise ConfigError(self._plain(message))
        fail(self._plain(message), command=self.command)

    def _plain(self, message: str) -> str:
        # jsonargparse has one exception for all mistakes, so that what is wrong is only in its words.
        if unknown_option := re.match(r"unrecognized arguments: (\S+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings if "_" not in flag]
            name = unknown_option.group(1).split("=")[0]
            if not name.startswith("-"):
                return f"unexpected argument {name!r}"
            return f"unknown option {name}; {suggest(name, flags, '--help lists them')}"
        if keys := re.findall(r'Parser key "([^"]+)"', message):
            key = keys[-1]  # the innermost
            given = re.findall(r"(?:Got value|Given value): (.*)", message)[-1:]
            given = [re.sub(r"Namespace\(class_path=.*?Namespace\((.*?)\).*", r"{\1}", value) for value in given]
            if given and (entry := re.fullmatch(r"NestedArg\(key='(.*)', val=(.*)\)", given[0])):
                return f"{key}.{entry.group(1)} {entry.group(2)}: must be {_expected(f'{key}.{entry.group(1)}')}"
            return f"{' '.join([key, *given])}: must be {_expected(key)}"
        return " ".join(message.split())


@functools.cache
def _parser(add_options: AddOptions | None) -> _Parser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog="python -m w2sd_video.render",
        usage="%(prog)s [PROMPT ...] [-o OUTPUT] [--config NAME|FILE] [--compare] [options]",
        description="Render clips and images from prompts by Weak-to-Strong Diffusion.",
        epilog=f"Packaged configurations: {', '.join(packaged_configs())}.",
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument(
        "prompt", nargs="*", type=str, metavar="PROMPT", default=[], help="what to show, a clip or an image each"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", type=str, help="prompts: a line each (.txt), or .jsonl, .csv, .json"
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        type=str,
        default=DEFAULT_CONFIG,
        help="a packaged configuration, a YAML file, or the .json of an earlier render, to render it again",
    )
    parser.add_argument(
        "--preset",
        type=Preset,
        help="settings of the reflection by name; they go before those of the configuration",
    )
    parser.add_argument("--version", action="version", version=f"w2sd-video {__version__}")
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML and exit")
    parser.add_argument("--dry-run", action="store_true", help="print what would be loaded and evaluated, and exit")
    if add_options is not None:
        add_options(parser)
    parser.add_class_arguments(RenderConfig, as_group=False, skip={"prompts"})
    return parser


def _expected(key: str) -> str:
    """Say in words what a key takes, for example "a whole number or null"."""
    if key == "preset":
        return _in_words(Preset)
    kind: Any = RenderConfig
    for part in key.split("."):
        mappings = [each for each in (kind, *get_args(kind)) if get_origin(each) is dict]
        hints = {part: get_args(mappings[0])[1]} if mappings else {}
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else hints
        if part not in hints:
            break
        kind = hints[part]
    return _in_words(kind)


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if kind is Window:
        return "a window like {start: -2, stop: 1, unit: log_snr}"
    if origin is dict:
        return f"a mapping of names to {_in_words(arguments[1])}"
    if origin is list:
        return f"a list, each {_in_words(arguments[0])}"
    if origin is tuple:
        return "a pair of numbers like [0, 0.5]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(kind, "a mapping of keys to values")
