"""The paper's unbalanced pair (figures 6 and 7) on real pictures: trousers and sneakers of Fashion-MNIST.

Two small DiT that are told no class, by 5,000 and 2,500 pictures the strong one, by 5,000 and 500 the weak one. A judge
whose features are not ours (EfficientNet-Lite0) counts the classes of the samples, all arms from the same noise. Needs
the extra "judges". Run: python examples/studies/fashion_two_classes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video.evaluation.statistics import share
from w2sd_video.metrics.efficientnet import fashion_log_probabilities
from w2sd_video.miniatures import fashion
from w2sd_video.rendering.load import load
from w2sd_video.rendering.sample import sample_clips, threads_for
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.panels import panels, weak_panel
from w2sd_video.settings.schema import RenderConfig

IN_TRAINING = {"strong": 5000 / 7500, "weak": 5000 / 5500}
"""The share of trousers."""
BATCH = 100


def arms(config: RenderConfig) -> Iterator[tuple[str, RenderConfig]]:
    """Yield what is compared, each with the steps of the pair: not at equal cost, as in the paper."""
    strong = replace(config, reflection_steps=0)
    yield "strong", strong
    yield "weak", panels(replace(config, compare=True))["weak"]
    yield "W2SD", config
    yield "W2SD, strength 0.5", replace(config, strength=0.5)
    yield "S2WD", replace(config, strong=config.weak, weak=config.strong)
    yield "AutoGuidance", replace(strong, weak=weak_panel(strong), autoguidance=1.0)


def main(
    out: Path = Path("fashion_two_classes.png"), samples: PositiveInt = 1000, pair: str = "miniature-fashion-two"
) -> dict[str, float]:
    """Sample each arm, and count.

    Args:
        out: the figure.
        samples: of each arm, at least 25.
        pair: the name of its configuration, or its file.

    Returns:
        The share of trousers among trousers and sneakers, by arm.
    """
    toy.check_figure(out)
    config = parse(["--config", pair], command="render").config
    first, second = map(fashion.parse, fashion.TWO)
    rows, shares, shown = [], {}, {}
    with threads_for(config.model.pretrained):
        pipe = load(config)
        pipe.set_progress_bar_config(disable=True)
        for name, settings in arms(config):
            parts = [
                sample_clips(pipe, settings, config.prompts[:1] * len(seeds), list(seeds))[0]
                for seeds in (range(start, min(start + BATCH, samples)) for start in range(0, samples, BATCH))
            ]
            clips = np.concatenate(parts)
            found = fashion_log_probabilities(clips).argmax(1).numpy()
            is_first = found[(found == first) | (found == second)] == first
            of_first = share(is_first.astype(float), np.arange(len(is_first)), len(is_first))
            shares[name], shown[name] = of_first.value, clips[:25, 0, ..., 0]
            interval = f"{of_first.value:.3f} ({of_first.low:.3f} to {of_first.high:.3f})"
            trained = f"{IN_TRAINING[name]:.3f}" if name in IN_TRAINING else ""
            rows.append((name, interval, f"{1 - len(is_first) / len(found):.3f}", trained))
    print(f"{samples} samples each, seeds from 0, {config.steps} steps")
    toy.print_table(["arm", "share of trousers (0.5 is right)", "neither", "trousers in training"], rows)
    figure, axes = plt.subplots(1, len(shown), figsize=(9, 1.9), layout="constrained")
    for axis, (name, pictures) in zip(axes, shown.items(), strict=True):
        height, width = pictures.shape[1:]
        tiles = pictures.reshape(5, 5, height, width).transpose(0, 2, 1, 3).reshape(5 * height, 5 * width)
        axis.imshow(tiles, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{name}: {shares[name]:.2f}", fontsize=8)
        axis.set_axis_off()
    toy.write_figure(figure, out)
    return shares


if __name__ == "__main__":
    CLI(main, as_positional=False)
