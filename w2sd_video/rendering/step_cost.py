"""What sampling costs on this machine, measured on a few steps."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace

import torch

from w2sd_video.rendering.inputs import read_inputs
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import to_download

_STEPS = (2, 6)
"""Steps of two samplings, whose difference is the cost of steps alone."""
_ENOUGH = 2.0
"""Seconds of measuring after which it is not repeated: what took long is hardly disturbed by other programs."""
_MOST_NFE = 10**4
"""Evaluations beyond what any sample takes, where seconds allow more."""


@dataclass(frozen=True)
class StepCost:
    """What one sample costs.

    Attributes:
        evaluation: seconds of a network evaluation, above 0.
        rest: seconds of everything else: text, decoding.
        loading: seconds until the model is loaded.
        memory: bytes that were held at most; of a GPU those on it, else those of this process.
    """

    evaluation: float
    rest: float
    loading: float
    memory: int

    def seconds(self, samples: int, nfe: int) -> float:
        """Return the seconds of samples that take so many network evaluations in all, by one worker."""
        return self.loading + samples * self.rest + nfe * self.evaluation

    def nfe_in(self, seconds: float) -> int:
        """Return how many network evaluations a sample may have to take so many seconds, at most 10,000."""
        left = seconds - self.rest
        if left <= 0:
            return 0
        return int(min(left / self.evaluation, _MOST_NFE))

    def in_words(self, samples: int, nfe: int, workers: int) -> list[str]:
        """Say what samples would take, a line for time and one for memory."""
        seconds = self.seconds(samples, nfe)
        by_all = f", about {duration(self.seconds(samples // workers, nfe // workers))} by {workers} workers"
        return [
            f"seconds  about {duration(seconds)}{by_all if workers > 1 else ''} (measured: {self.evaluation:.2g} s an "
            f"evaluation, {self.rest:.2g} s a sample beside, {self.loading:.2g} s to load)",
            f"memory   {self.memory / 1e9:.2g} GB at most while that was measured{', for each worker' * (workers > 1)}",
        ]


def measured_cost(config: RenderConfig, batch: int = 1) -> StepCost | None:
    """Load a model and sample a few steps of one batch; None for a model that is not on this machine.

    Args:
        config: what to sample; the reflection, which costs evaluations and nothing else, is left out.
        batch: samples in one call.

    Raises:
        ConfigError: what this pipeline cannot be given.
        LoadError: a model that cannot be loaded.
    """
    if to_download(config.model):
        return None
    plain = replace(config, reflection_steps=0, autoguidance=0.0)
    begun = time.perf_counter()
    with threads_for(config.model.pretrained):
        pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        loading = time.perf_counter() - begun
        prompts, inputs = [config.prompts[0]] * batch, read_inputs(config)

        def spent(steps: int) -> tuple[float, int]:
            started = time.perf_counter()
            _, nfe = sample_clips(pipe, replace(plain, steps=steps), prompts, list(range(batch)), inputs)
            return time.perf_counter() - started, sum(nfe.values())

        spent(_STEPS[0])  # to warm up
        enough = time.perf_counter() + _ENOUGH
        pairs = [[spent(steps) for steps in _STEPS]]
        while time.perf_counter() < enough:
            pairs.append([spent(steps) for steps in _STEPS])
    short, long = zip(*pairs, strict=True)
    evaluation, rest = _parts(min(short), min(long))
    return StepCost(evaluation / batch, rest / batch, loading, _most_memory())


def _parts(short: tuple[float, int], long: tuple[float, int]) -> tuple[float, float]:
    """Return the seconds of an evaluation and of the rest, from the seconds and evaluations of two samplings.

    Where the noise of the machine hides the difference, all counts as evaluations: no budget is overrun by that.
    """
    (least, few), (most, many) = short, long
    evaluation = (most - least) / (many - few)
    rest = least - few * evaluation
    return (evaluation, rest) if evaluation > 0 and rest >= 0 else (most / many, 0.0)


def cost_lines(cost: StepCost | None, samples: int, nfe: int, workers: int) -> list[str]:
    """Say what samples would take, or that it is not known."""
    if cost is None:
        return ["seconds  unknown: the model is not on this machine to measure them"]
    return cost.in_words(samples, nfe, workers)


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _most_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
