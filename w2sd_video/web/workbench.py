"""What the studio does, whatever shows it: configurations to begin from, one model at a time, a folder of clips."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from w2sd_video.messages import ConfigError
from w2sd_video.page import page_html
from w2sd_video.page.index import index_page, read_sidecars
from w2sd_video.page.write import embedded
from w2sd_video.reflection_settings import Inversion
from w2sd_video.rendering.call_arguments import check_call
from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import load
from w2sd_video.rendering.outputs import plain, write_sample, write_sidecar
from w2sd_video.rendering.prompts import check_before_loading, sample_panels
from w2sd_video.rendering.sample import threads_for
from w2sd_video.rendering.script import script_of
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.evaluations import reflected_steps
from w2sd_video.settings.files import read_config
from w2sd_video.settings.model_checks import check_plan
from w2sd_video.settings.scheduler_calls import calls_of_steps
from w2sd_video.settings.schema import BranchConfig, ModelConfig, RenderConfig
from w2sd_video.settings.value_checks import check
from w2sd_video.settings.yaml_text import parse_yaml

Say = Callable[[float, str], object]
"""Is told which share is done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Wish:
    """What is filled in for a clip.

    Attributes:
        configuration: name of the one that all else is as in.
        prompt: what to show.
        strong: settings of the strong branch, YAML.
        weak: settings of the weak branch, YAML.
        steps: sampling steps.
        strength: scale of the reflection's displacement; None for that of the configuration.
        start: where the window of reflected steps begins, a fraction of the steps.
        stop: where it ends; at (0, 1) all steps but the last are reflected.
        inversion: where the weak prediction is made.
        seed: of the noise.
    """

    configuration: str
    prompt: str
    strong: str
    weak: str
    steps: int
    strength: float | None
    start: float
    stop: float
    inversion: Inversion
    seed: int


@dataclass(frozen=True)
class Made:
    """A clip that was made, with what makes it again.

    Attributes:
        name: of its file in the folder.
        script: a script of Python.
        configuration: YAML.
    """

    name: str
    script: str
    configuration: str


class Workbench:
    """Makes clips with a model that stays loaded until another is asked for; one at a time, which the caller sees to.

    Args:
        folder: where clips and their records go; nothing is read or written elsewhere.
        configurations: those that can be chosen, by name.
    """

    def __init__(self, folder: Path, configurations: Mapping[str, RenderConfig]) -> None:
        self.folder, self.configurations = folder, dict(configurations)
        self._model, self._pipe = "", None

    def wish_of(self, configuration: str) -> Wish:
        """Return what is filled in when a configuration is chosen."""
        config = self.configurations[configuration]
        window = config.reflection_steps
        if not isinstance(window, (tuple, list)):  # a window of log-SNRs is shown as the steps that it may have
            steps, of_all = reflected_steps(config), len(calls_of_steps(config))
            window = (steps.start / of_all, 1.0 if window is None else steps.stop / of_all)
        return Wish(
            configuration=configuration,
            prompt=config.prompts[0] if config.prompts else "",
            strong=_branch_text(config.strong),
            weak=_branch_text(config.weak),
            steps=config.steps,
            strength=None if isinstance(config.strength, str) else config.strength,
            start=window[0],
            stop=window[1],
            inversion=config.inversion,
            seed=config.seed,
        )

    def config_of(self, wish: Wish) -> RenderConfig:
        """Return the configuration of a clip, checked.

        Raises:
            ConfigError: a value that makes no sense.
        """
        if wish.configuration not in self.configurations:
            raise ConfigError(f"configuration {wish.configuration!r}: is not among those that can be chosen")
        chosen = self.configurations[wish.configuration]
        config = replace(
            chosen,
            prompts=[wish.prompt],
            strong=_branch("strong", wish.strong),
            weak=_branch("weak", wish.weak),
            steps=_whole("steps", wish.steps),
            strength=chosen.strength if wish.strength is None else float(wish.strength),
            reflection_steps=None if (wish.start, wish.stop) == (0, 1) else (float(wish.start), float(wish.stop)),
            inversion=wish.inversion,
            seed=_whole("seed", wish.seed),
            compare=True,
            output=None,
        )
        for role in ("strong", "weak"):
            if _files(getattr(config, role)) - _files(getattr(chosen, role)):
                raise ConfigError(f"{role}.windows: a file of strengths is named in a configuration, not here")
        check(config)
        check_plan(config)
        return config

    def make(self, wish: Wish, say: Say) -> Made:
        """Sample weak, strong, strong at equal cost and the configuration from one noise, into one file.

        Raises:
            ConfigError: a value that makes no sense, or that this pipeline cannot be given.
            LoadError: a model that cannot be loaded.
            VideoError: an input that cannot be read, or a file that cannot be written.
        """
        config = self.config_of(wish)
        check_before_loading(config)
        with threads_for(config.model.pretrained):
            pipe = self._loaded(config, say)
            check_call(type(pipe), config)
            clips, nfe, seconds = sample_panels(pipe, config, read_inputs(config), say)
            path = self._next_file("png" if len(next(iter(clips.values()))) == 1 else "mp4")
            config = replace(config, output=path.name)
            record = write_sample(path, config, clips, nfe, seconds) | {"script": script_of(pipe, config)}
            write_sidecar(path, record)
        return _made(path.name, record)

    def made(self, name: str) -> Made:
        """Return a clip of the history.

        Raises:
            ConfigError: one that is not there.
        """
        record = self._records().get(Path(name))
        if record is None:
            raise ConfigError(f"{name}: is not in the history")
        return _made(name, record)

    def history(self) -> dict[str, str]:
        """Return what there is to look at again, the latest first: the names of files by what they show."""
        records = self._records()
        return {
            f"{path.stem}: {record['prompt']} (seed {record['seed']})": path.name
            for path, record in sorted(records.items(), reverse=True)
        }

    def page(self, names: list[str]) -> str:
        """Return the page of some clips of the history, which holds them; those of one prompt and seed are compared."""
        records = {path: record for path, record in self._records().items() if path.name in names}
        page = index_page(self.folder, records, address=embedded)
        return page_html(replace(page, title="Weak to strong", text=""))

    def _records(self) -> dict[Path, dict[str, Any]]:
        return {path: record for path, record in read_sidecars(self.folder).items() if len(path.parts) == 1}

    def _next_file(self, ending: str) -> Path:
        numbers = [int(file.stem) for file in self.folder.iterdir() if re.fullmatch(r"\d{4,}", file.stem)]
        return self.folder / f"{max(numbers, default=0) + 1:04d}.{ending}"

    def _loaded(self, config: RenderConfig, say: Say) -> Any:
        model = json.dumps([asdict(config.model), config.device, config.dtype], sort_keys=True)
        if model != self._model:
            say(0.0, f"loading {config.model.pretrained}")
            self._model, self._pipe = "", None  # what is not used any more is freed first
            self._pipe = load(config)
            self._model = model
        return self._pipe


def _made(name: str, record: Mapping[str, Any]) -> Made:
    settings = {key: value for key, value in record["config"].items() if key != "output"}
    return Made(name, record.get("script", ""), yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def configuration_of(name: str) -> RenderConfig:
    """Return a configuration by the name of a packaged one, a file, or the folder of a pipeline (or its hub id).

    A pipeline alone gets a gap of guidance: strong is guided as base, and weak is not.

    Raises:
        ConfigError: no such configuration, or one that makes no sense.
    """
    if (Path(name) / "model_index.json").is_file():
        guided = BranchConfig(guidance_scale=5.0)
        model = ModelConfig(pretrained=name)
        return RenderConfig(model=model, base=guided, strong=guided, weak=BranchConfig(guidance_scale=1.0))
    prompts = [] if read_config(name).get("prompts") else ["a prompt"]
    return parse(["--config", name, *prompts], command=None).config


def _files(branch: BranchConfig) -> set[str]:
    """Return the files that the windows of a branch name."""
    return {window for window in (branch.windows or {}).values() if isinstance(window, str)}


def _branch_text(branch: BranchConfig) -> str:
    """Return what is set in a branch, as YAML."""
    set_values = {name: value for name, value in plain(branch).items() if value is not None}
    return yaml.safe_dump(set_values, sort_keys=False, allow_unicode=True) if set_values else ""


def _branch(role: str, text: str) -> BranchConfig:
    """Return the branch that a YAML text sets, with the types of its fields checked."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BranchConfig, role)
    try:
        values = parse_yaml(text) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{role}: must be lines like guidance_scale: 1.0, not {text!r}")
        if unknown := set(map(str, values)) - {field.name for field in fields(BranchConfig)}:
            known = ", ".join(field.name for field in fields(BranchConfig))
            raise ConfigError(f"{role}: unknown {', '.join(sorted(unknown))}; known are {known}")
        return parser.instantiate(parser.parse_object({role: values}))[role]
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"{role}: {' '.join(str(error).split())}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{role}: not valid YAML: {error}") from error


def _whole(name: str, number: float) -> int:
    if number is None or number != int(number):
        raise ConfigError(f"{name} {number}: must be a whole number")
    return int(number)
