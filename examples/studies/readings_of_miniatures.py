"""In which reading a gap is best taken, and by which inversion, on miniatures, where models are not exact.

All arms take the same number of steps from the same noise, all of them reflected but the last; a difference is paired,
with its 95 % interval over prompts. Run: python examples/studies/readings_of_miniatures.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt

from w2sd_video.calibration.real_clips import known_prompts
from w2sd_video.evaluation.report import cell_of
from w2sd_video.evaluation.splits import Split
from w2sd_video.evaluation.statistics import Figure, mean, share
from w2sd_video.metrics import load_metric
from w2sd_video.reflection_settings import Inversion, Reading
from w2sd_video.rendering.load import load, quiet
from w2sd_video.rendering.sample import sample_clips
from w2sd_video.settings.command_line import parse

BATCH = 64
READINGS: tuple[Reading, ...] = ("epsilon", "sample", "native")
"""The first is what others are compared with."""


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
    score, adherence, rows, found = load_metric("likelihood"), load_metric("adherence"), [], {}
    for miniature in miniatures:
        pair = replace(parse(["--config", f"miniature-{miniature}"]).config, steps=steps)
        with quiet():
            pipe = load(pair)
        pipe.set_progress_bar_config(disable=True)
        known = known_prompts(pair)
        chosen = [known[k] for k in np.random.default_rng(0).permutation(len(known))[:prompts]]
        split = Split("report", chosen, 0, seeds)
        batches = [split.batch(k, BATCH) for k in range(-(-split.samples // BATCH))]
        place = np.array([place for batch in batches for place, _ in batch])
        for inversion in inversions:
            for strength in strengths:
                first: Figure | None = None
                for reading in READINGS:
                    config = replace(pair, inversion=inversion, strength=strength, reading=reading)
                    measured = []
                    for batch in batches:
                        texts = [chosen[place] for place, _ in batch]
                        clips, nfe = sample_clips(pipe, config, texts, [seed for _, seed in batch])
                        measured.append((score.of(clips, texts), adherence.of(clips, texts)))
                    values, are_right = (np.concatenate(column) for column in zip(*measured, strict=True))
                    likelihood = mean(values, place, len(chosen))
                    difference = likelihood if first is None else likelihood - first
                    first = first or likelihood
                    found[miniature, inversion, strength, reading] = difference
                    of_row = cell_of(likelihood).text, cell_of(share(are_right, place, len(chosen))).text
                    less = cell_of(difference, signed=True).text if reading != READINGS[0] else ""
                    rows.append((miniature, inversion, strength, reading, sum(nfe.values()), *of_row, less))
    print(f"{steps} steps, {prompts} prompts at most x {seeds} seeds, from the noise of 10000 s + k\n")
    header = ["miniature", "inversion", "strength", "reading", "NFE", "likelihood", "adherence"]
    toy.print_table([*header, f"likelihood less that of {READINGS[0]}"], rows)
    return found


if __name__ == "__main__":
    CLI(main, as_positional=False)
