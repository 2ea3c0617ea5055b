"""The samples of many prompts: the configuration of each, its seed, and the name of its file."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from w2sd_video.messages import ConfigError
from w2sd_video.rendering.video import SUFFIXES
from w2sd_video.settings.model_checks import check_vocabulary
from w2sd_video.settings.prompt_files import PromptLine
from w2sd_video.settings.schema import RenderConfig

SEED_STRIDE = 10**4
"""Sample s of a prompt is sampled from the seed of its first sample + 10,000 s, so that more can be added later."""
NAMES = "{name}-{seed}"
"""Template of the names of files unless given."""
FIELDS = ("name", "index", "prompt", "seed", "sample")
"""What a template can name: the line's name or its index, number of the line, prompt, seed, number of the sample."""
_LONGEST = 200
"""Bytes of a name: file systems allow 255, and what is written beside it and before it has a longer one."""


@dataclass(frozen=True)
class Sample:
    """One file of a job.

    Attributes:
        name: of the file.
        config: how it is made: with one prompt, and its own seed and inputs.
        about: what the file of prompts says besides.
        inputs: hash of the content of each input, by its name.
    """

    name: str
    config: RenderConfig
    about: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def task(self) -> dict[str, Any]:
        """What tells it from the other samples of its job, as plain data."""
        config = self.config
        negative_prompt = config.call.get("negative_prompt")
        return {
            "prompt": config.prompts[0],
            "seed": config.seed,
            "negative_prompt": negative_prompt,
            "inputs": self.inputs,
        }

    @property
    def call(self) -> tuple[Any, ...]:
        """What samples must have in common to be made in one call of the pipeline."""
        return self.config.call.get("negative_prompt"), *sorted(self.config.inputs.items())


def samples_of(
    config: RenderConfig, lines: Sequence[PromptLine], samples: int = 1, names: str | None = None
) -> list[Sample]:
    """Return all samples of some prompts, prompt by prompt.

    Args:
        config: what they have in common; prompt number k without a seed of its own is sampled from ``seed + k``.
        lines: the prompts.
        samples: of each prompt.
        names: template of the names, with one of the endings of outputs or without; None is `NAMES`.

    Raises:
        ConfigError: a template that cannot be filled in, two samples of one name, a line that contradicts the
            configuration.
    """
    template = checked_template(names or NAMES, config)
    made: dict[str, tuple[Sample, str]] = {}
    for index, line in enumerate(lines):
        for sample in _samples_of_line(config, line, index, samples, template):
            earlier = made.setdefault(sample.name, (sample, line.where))
            if earlier[0].config != sample.config:
                raise ConfigError(
                    f"names {template}: two samples would be {sample.name} "
                    f"({earlier[1] or earlier[0].config.prompts[0]}, and {line.where or line.prompt}); "
                    "add {index}, {seed} or {sample}"
                )
    return [sample for sample, _ in made.values()]


def checked_template(template: str, config: RenderConfig) -> str:
    """Return a template of names, with an ending that a file can have.

    Raises:
        ConfigError: an unknown field, a folder in it, or an ending that is none of a file of one sample.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        if unknown := [name for name in fields if name not in FIELDS]:
            raise ValueError(f"unknown field {{{unknown[0]}}}")
        example = template.format(name="a", index=Index(1), prompt="a", seed=1, sample=1)
    except (ValueError, IndexError, KeyError) as error:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ConfigError(f"names {template}: {error}; the fields are {known}") from error
    if "/" in example or "\\" in example or example.startswith("."):
        raise ConfigError(f"names {template}: must be names of files, without folders, that do not begin with a dot")
    suffix = Path(example).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise ConfigError(f"names {template}: unknown ending {suffix!r}; use {', '.join(filter(None, SUFFIXES))}")
    if suffix:
        return template
    return template + (".png" if config.frames == 1 else ".mp4")


class Index(int):
    """A number of four digits, unless a format says otherwise."""

    def __format__(self, spec: str) -> str:
        """Return the number as a text."""
        return super().__format__(spec or "04d")


def _samples_of_line(
    config: RenderConfig, line: PromptLine, index: int, samples: int, template: str
) -> Iterator[Sample]:
    call = dict(config.call)
    if line.negative_prompt is not None:
        if config.base.negative_prompt is not None:
            raise ConfigError(f"{line.where}: negative_prompt: base.negative_prompt is set too; leave one of them out")
        check_vocabulary(config.model, [line.negative_prompt])
        call["negative_prompt"] = line.negative_prompt
    first = config.seed + index if line.seed is None else line.seed
    for number in range(samples):
        seed = first + SEED_STRIDE * number
        fields = {"name": line.name or format(Index(index)), "prompt": line.prompt}
        name = _filled(template, {key: _safe(text) for key, text in fields.items()}, index, seed, number)
        inputs = config.inputs | line.inputs
        own = replace(config, prompts=[line.prompt], seed=seed, inputs=inputs, call=call, output=name)
        yield Sample(name, own, line.about)


def _filled(template: str, texts: dict[str, str], index: int, seed: int, sample: int) -> str:
    """Fill a template in, with texts that are cut so that the name is not too long for a file."""
    cut = dict(texts)
    while True:
        name = template.format(**cut, index=Index(index), seed=seed, sample=sample)
        excess = len(name.encode()) - _LONGEST
        longest = max(cut, key=lambda key: len(cut[key].encode()))
        if excess <= 0 or len(cut[longest]) <= 16:
            return name
        mark = "~" + hashlib.sha256(texts[longest].encode()).hexdigest()[:8]
        kept = cut[longest].removesuffix(mark)
        encoded = kept.encode()[: max(1, len(kept.encode()) - excess - len(mark))]
        cut[longest] = encoded.decode(errors="ignore").rstrip() + mark


def _safe(text: str) -> str:
    """Return a text with what no name of a file can have replaced."""
    replaced = "".join("_" if character in "/\\" or not character.isprintable() else character for character in text)
    return "_" + replaced[1:] if replaced.startswith(".") else replaced
