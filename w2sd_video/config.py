"""One typed configuration for rendering: the command line goes before a file, a file before the defaults."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import jsonargparse
import yaml

from w2sd_video.sampler import Reflection

DEFAULT_CONFIG = "miniature-animatediff"
"""The packaged configuration that is used where none is named."""

Value = int | float | bool | str | None


class ConfigError(ValueError):
    """Something asked for that cannot be done; the message is one line that names the value and what is allowed."""


@dataclass
class BranchConfig:
    """A setting of the model; what is left out is as the pipeline has it, the guidance scale as in base."""

    guidance_scale: float | None = None
    """Scale of classifier-free guidance, -100 to 100; 1 switches it off and halves the evaluations."""
    weights: str | None = None
    """Name of a second denoiser, one of those in model.weights."""
    lora: dict[str, float] | None = None
    """Scale of each LoRA adapter by name, those in model.lora."""
    prompt: str | None = None
    """A prompt for this branch alone."""


@dataclass
class ModelConfig:
    """The pipeline to load."""

    family: Literal["animatediff", "cogvideox"] = "cogvideox"
    """Kind of the pipeline."""
    pretrained: str = ""
    """Hub id or folder of the pipeline, or miniature:NAME for one that comes with this package."""
    variant: str | None = None
    """Variant of the pipeline's files, for example fp16."""
    weights: dict[str, str] = field(default_factory=dict)
    """Hub ids or folders of further denoisers, by the names that branches use."""
    motion_adapter: str | None = None
    """Hub id or folder of AnimateDiff's motion adapter; left out if it lies in the pipeline's own folder."""
    lora: dict[str, str] = field(default_factory=dict)
    """Hub ids or files of LoRA adapters, by the names that branches use."""
    memory: Literal["device", "offload", "sequential"] = "device"
    """All on the device, one component at a time (offload), or one layer at a time (sequential, slowest)."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Millions of parameters of each component, for the estimates of --dry-run."""


@dataclass
class RenderConfig:
    """What to render, and how."""

    prompts: list[str] = field(default_factory=list)
    """What to show, a clip each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The pipeline to load."""
    base: BranchConfig = field(default_factory=lambda: BranchConfig(guidance_scale=1.0))
    """The step that counts."""
    strong: BranchConfig = field(default_factory=BranchConfig)
    """The reflection's way down."""
    weak: BranchConfig = field(default_factory=BranchConfig)
    """The reflection's way back."""
    steps: int = 50
    """Sampling steps, 1 to 1000."""
    reflection_steps: int | tuple[float, float] | None = None
    """Reflected steps counted from the noisiest, or a window of fractions like [0, 0.5]; null: all but the last."""
    strength: float = 1.0
    """Scale of the reflection's displacement, -10 to 10."""
    rounds: int = 1
    """Reflections at each reflected step, 1 to 100."""
    inversion: Literal["paper", "explicit", "current", "implicit"] = "paper"
    """Where the weak prediction is made."""
    iterations: int = 2
    """Fixed-point iterations of the implicit inversion, 1 to 100."""
    height: int | None = None
    """Pixels, 8 to 4096; null: as the model was trained."""
    width: int | None = None
    """Pixels, 8 to 4096; null: as the model was trained."""
    frames: int | None = None
    """Number of frames, 1 to 1024; null: as the model was trained."""
    fps: float = 8.0
    """Frames a second of the file, 0.1 to 120."""
    seed: int = 0
    """Prompt number k, counted from 0, is sampled from seed + k, however many there are."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: a GPU where there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the networks."""
    compare: bool = False
    """Show weak, strong and W2SD next to each other, from the same noise."""
    output: str = "w2sd.mp4"
    """File: .mp4, .gif, .png (a contact sheet); or a folder, for single frames. Several prompts: numbered."""
    call: dict[str, Value] = field(default_factory=dict)
    """More arguments for the pipeline's call, for example max_sequence_length."""


@dataclass
class Request:
    """A command line, read."""

    config: RenderConfig
    dry_run: bool = False
    print_config: bool = False


_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1000),
    "strength": (-10, 10),
    "rounds": (1, 100),
    "iterations": (1, 100),
    "height": (8, 4096),
    "width": (8, 4096),
    "frames": (1, 1024),
    "fps": (0.1, 120),
    "seed": (0, 2**62),
}
_GUIDANCE = (-100, 100)
_OWN_ARGUMENTS = {
    *("prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "generator"),
    *("output_type", "num_videos_per_prompt", "return_dict", "latents"),
}


def packaged_configs() -> list[str]:
    """Return the names of the configurations that come with the package."""
    files = resources.files("w2sd_video.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_config(name: str) -> dict[str, Any]:
    """Read a configuration by the name of a packaged one, or from a YAML file, or from a render's sidecar JSON.

    Raises:
        ConfigError: no such configuration, not YAML or JSON, or a key that does not exist.
    """
    if name in packaged_configs():
        text = resources.files("w2sd_video.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if Path(name).exists():
                raise ConfigError(f"config {name}: cannot be read as text: {error}") from error
            known = ", ".join(packaged_configs())
            raise ConfigError(f"unknown config {name!r}: no such file; the packaged ones are {known}") from error
    try:
        data = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config {name}: not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if name.endswith(".json") and isinstance(data, dict) and isinstance(data.get("config"), dict):
        data = data["config"]
    _check_keys(data if data is not None else {}, RenderConfig, f"config {name}")
    return data or {}


def parse(argv: list[str]) -> Request:
    """Read a command line, with the configuration that it names; exits with code 2 and one line if it makes no sense.

    Raises:
        ConfigError: a value that is out of range, unknown, or does not fit the others.
    """
    parser = _parser()
    file = read_config(parser.parse_args(argv).config)
    prompts = file.pop("prompts", None)
    found = parser.parse_args(argv, namespace=parser.parse_object(file))
    found = parser.instantiate(found)
    if found.prompt or found.prompts:
        prompts = [*found.prompt, *(_read_prompts(found.prompts) if found.prompts else [])]
    values = {one.name: getattr(found, one.name) for one in dataclasses.fields(RenderConfig) if one.name != "prompts"}
    config = RenderConfig(prompts=[] if prompts is None else prompts, **values)
    check(config)
    return Request(config, dry_run=found.dry_run, print_config=found.print_config)


def check(config: RenderConfig) -> None:
    """Check everything that can be checked without a model.

    Raises:
        ConfigError: the first value that is out of range or does not fit the others.
    """
    for name, (low, high) in _RANGES.items():
        _check_range(name, getattr(config, name), low, high)
    if config.base.guidance_scale is None:
        raise ConfigError("base.guidance_scale: is needed; 1 switches guidance off")
    if not config.model.pretrained:
        raise ConfigError("model.pretrained: is needed; the hub id or folder of a pipeline")
    if not isinstance(config.prompts, list):
        raise ConfigError(f"prompts: must be a list of texts, not {config.prompts!r}")
    if not config.prompts:
        raise ConfigError("prompts: none given; write one after the command, or name a file of them with --prompts")
    for prompt in config.prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"prompts: {prompt!r} is not a text")
    for role in ("base", "strong", "weak"):
        _check_branch(role, getattr(config, role), config.model)
    _check_reflection(config)
    for name in config.call:
        if name in _OWN_ARGUMENTS:
            raise ConfigError(f"call.{name}: is set by its own option, and cannot be set here")


def reflected_steps(config: RenderConfig) -> range:
    """Return the steps that are reflected, counted from the noisiest."""
    return Reflection(config.reflection_steps).steps(config.steps)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} {value}: must be from {low} to {high}")


def _check_branch(role: str, branch: BranchConfig, model: ModelConfig) -> None:
    _check_range(f"{role}.guidance_scale", branch.guidance_scale, *_GUIDANCE)
    if branch.weights is not None and branch.weights not in model.weights:
        known = ", ".join(model.weights) or "there are none"
        raise ConfigError(f"{role}.weights {branch.weights!r}: not among model.weights ({known})")
    for name, scale in (branch.lora or {}).items():
        if name not in model.lora:
            raise ConfigError(
                f"{role}.lora {name!r}: not among model.lora ({', '.join(model.lora) or 'there are none'})"
            )
        _check_range(f"{role}.lora.{name}", scale, *_GUIDANCE)


def _check_reflection(config: RenderConfig) -> None:
    chosen = config.reflection_steps
    if isinstance(chosen, int) and not 0 <= chosen <= config.steps:
        raise ConfigError(f"reflection_steps {chosen}: must be from 0 to {config.steps}, the number of steps")
    if isinstance(chosen, (tuple, list)) and not 0 <= chosen[0] <= chosen[1] <= 1:
        raise ConfigError(f"reflection_steps {list(chosen)}: a window must be [start, stop], 0 <= start <= stop <= 1")
    if config.inversion == "explicit" and config.steps - 1 in reflected_steps(config):
        most = config.steps - 1
        raise ConfigError(f"reflection_steps: the explicit inversion cannot reflect the last step; at most {most}")


def _check_keys(data: Any, kind: type, where: str) -> None:
    """Refuse keys that `kind`, a dataclass, does not have, at every depth."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: must be a mapping of keys to values, not {data!r}")
    hints = typing.get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}; {_suggest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(value, typing.cast(type, hints[key]), f"{where}: {key}")


def _suggest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _read_prompts(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"prompts {path}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"prompts {path}: holds no prompt; write one a line")
    return prompts


class _Parser(jsonargparse.ArgumentParser):
    """jsonargparse with dashes in the names of options, switches for truth values, and errors of one line."""

    def add_argument(self, *names: str, **settings: Any) -> Any:
        if names[0].startswith("--") and "_" in names[0]:
            names = (names[0].replace("_", "-"), *names)
        if names[0] == "--output":
            names = ("-o", *names)
        if settings.get("type") is bool:
            settings.pop("type")
            settings["action"] = jsonargparse.ActionYesNo(no_prefix="no-")
        return super().add_argument(*names, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self._plain(message))

    def _plain(self, message: str) -> str:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings if "_" not in flag]
            name = unknown.group(1).split("=")[0]
            if not name.startswith("-"):
                return f"unexpected argument {name!r}"
            near = difflib.get_close_matches(name, flags, n=1)
            return f"unknown option {name}; " + (f"did you mean {near[0]}?" if near else "--help lists them")
        if wrong := re.findall(r'Parser key "([^"]+)"', message):
            key = wrong[-1]
            given = re.findall(r"(?:Got value|Given value): (.*)", message)
            return f"{' '.join([key, *given[-1:]])}: must be {_expected(key)}"
        return " ".join(message.split())


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line on stderr and exit."""
    print(f"w2sd_video.render: {message}", file=sys.stderr)
    raise SystemExit(code)


def _parser() -> _Parser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog="python -m w2sd_video.render",
        usage="%(prog)s [PROMPT ...] [-o OUTPUT] [--config NAME|FILE] [--compare] [options]",
        description="Render clips from prompts by Weak-to-Strong Diffusion.",
        epilog=f"Packaged configurations: {', '.join(packaged_configs())}.",
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("prompt", nargs="*", type=str, metavar="PROMPT", default=[], help="what to show, a clip each")
    parser.add_argument("--prompts", metavar="FILE", type=str, help="a file with a prompt a line")
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        type=str,
        default=DEFAULT_CONFIG,
        help="a packaged configuration, a YAML file, or the .json of an earlier render, to render it again",
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML and exit")
    parser.add_argument("--dry-run", action="store_true", help="print what would be loaded and evaluated, and exit")
    parser.add_class_arguments(RenderConfig, as_group=False, skip={"prompts"})
    return parser


def _expected(key: str) -> str:
    """Say in words what a key takes, for example "a whole number or null"."""
    kind: Any = RenderConfig
    for part in key.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if part not in hints:
            break
        kind = hints[part]
    return _in_words(kind)


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(inner)
    if origin is dict:
        return f"a mapping of names to {_in_words(inner[1])}"
    if origin is tuple:
        return "a pair of numbers like [0, 0.5]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(kind, "a mapping of keys to values")
