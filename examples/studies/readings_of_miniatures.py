"""In which reading a gap is best taken, and by which inversion, on miniatures, where models are not exact.

All arms take the same number of steps from the same noise, all of them reflected but the last; a difference is paired,
with its 95 % interval over prompts. Run: python examples/studies/readings_of_miniatures.py
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
import toy
from calibration_arms import shuffled_prompts
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt

from w2sd_video.evaluation.report import cell_of
from w2sd_video.evaluation.splits import Split
from w2sd_video.evaluation.statistics import Figure, mean, share
from w2sd_video.metrics import load_metric
from w2sd_video.reflection_settings import Inversion, Reading
from w2sd_video.rendering.load import load, quiet
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import RenderConfig

BATCH = 64
READINGS: tuple[Reading, ...] = ("epsilon", "sample", "native")
"""The first is what others are compared with."""


def worth(pipe: Any, config: RenderConfig, split: Split) -> tuple[Figure, Figure, int]:
    """Return likelihood and adherence of what a configuration samples, and its evaluations a clip."""
    measured: list[tuple[np.ndarray, ...]] = []
    for number in range(-(-split.samples // BATCH)):
        places, batch_seeds = zip(*split.batch(number, BATCH), strict=True)
        texts = [split.prompts[place] for place in places]
        clips, nfe = sample_clips(pipe, config, texts, list(batch_seeds))
        scores = [load_metric(name).of(clips, texts) for name in ("likelihood", "adherence")]
        measured.append((np.array(places), *scores))
    place, likelihood, adherence = (np.concatenate(column) for column in zip(*measured, strict=True))
    count = len(split.prompts)
    return mean(likelihood, place, count), share(adherence, place, count), sum(nfe.values())


def main(
    miniatures: tuple[str, ...] = ("pixart", "dit-moe", "scenes-dit-moe"),
    inversions: tuple[Inversion, ...] = ("paper", "current"),
    strengths: tuple[float, ...] = (0.5, 1.0),
    steps: PositiveInt = 10,
    prompts: PositiveInt = 171,
    seeds: PositiveInt = 3,
) -> dict[tuple[str, str, float, str], Figure]:
    """Sample every arm, and print what its samples are worth.

    Args:
        miniatures: names of configurations, without "miniature-"; all of them predict velocity.
        inversions: by which the weak model goes back.
        strengths: of a reflection, the same at all steps.
        steps: of every arm.
        prompts: of the miniature's world, as many of them as there are at most.
        seeds: of each prompt.

    Returns:
        The likelihood, of the other readings less that of the first, by miniature, inversion, strength and reading.
    """
    torch.set_num_threads(1)
    rows, found = [], {}
    for miniature in miniatures:
        pair = replace(parse(["--config", f"miniature-{miniature}"]).config, steps=steps)
        with quiet():
            pipe = load(pair)
        pipe.set_progress_bar_config(disable=True)
        split = Split("report", shuffled_prompts(pair)[:prompts], 0, seeds)
        for inversion, strength in product(inversions, strengths):
            of_reading = {}
            for reading in READINGS:
                config = replace(pair, inversion=inversion, strength=strength, reading=reading)
                likelihood, adherence, nfe = worth(pipe, config, split)
                of_reading[reading] = likelihood
                is_first = reading == READINGS[0]
                difference = likelihood if is_first else likelihood - of_reading[READINGS[0]]
                found[miniature, inversion, strength, reading] = difference
                less = "" if is_first else cell_of(difference, signed=True).text
                figures = cell_of(likelihood).text, cell_of(adherence).text
                rows.append((miniature, inversion, strength, reading, nfe, *figures, less))
    print(f"{steps} steps, {prompts} prompts at most x {seeds} seeds, from the noise of 10000 s + k\n")
    header = ["miniature", "inversion", "strength", "reading", "NFE", "likelihood", "adherence"]
    toy.print_table([*header, f"likelihood less that of {READINGS[0]}"], rows)
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
