"""Pictures of two classes (figures 6 and 7 of the paper): reflection between networks trained on unbalanced pictures.

The paper's horses and cars of CIFAR-10 are circles and squares here, 16 x 16 pixels of the world of the miniatures, in
the same numbers: the strong network sees 5,000 circles and 2,500 squares, the weak one 5,000 and 500. A classifier
trained on other pictures counts the samples. Run: python examples/studies/two_classes.py
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch
import toy
from jsonargparse import CLI
from jsonargparse.typing import PositiveInt
from matplotlib import pyplot as plt

from w2sd_video.miniatures.world import SIZE, Attributes, Motion
from w2sd_video.miniatures.world import draw as draw_sprite

CIRCLES, SQUARES = 5000, {"strong": 2500, "weak": 500}
SCHEDULER = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample")
"""A multilayer perceptron predicts clean pictures far better than the noise in them."""
CROP = slice(SIZE // 4, 3 * SIZE // 4)


def pictures(shape: str, count: int, seed: int) -> torch.Tensor:
    """Return pictures (count, 256) of one shape at random places and sizes, about -1 to 1."""
    random = np.random.default_rng(seed)
    centres = (SIZE - 1) / 2 + random.uniform(-2, 2, size=(count, 1, 2))
    radii = random.uniform(4.4, 5.6, size=count)
    looks = Attributes(shape, "yellow", "right")
    frames = [draw_sprite(looks, Motion(*placed), trail=())[0] for placed in zip(centres, radii, strict=True)]
    return torch.tensor(np.stack(frames)[:, CROP, CROP, 0]).flatten(1) / 127.5 - 1


def labelled(circles: int, squares: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures of both shapes and whether each is a circle."""
    both = torch.cat([pictures("circle", circles, 2 * seed), pictures("square", squares, 2 * seed + 1)])
    return both, torch.cat([torch.ones(circles), torch.zeros(squares)])


def train_classifier(seed: int) -> torch.nn.Module:
    """Return a network whose output is positive for circles."""
    torch.manual_seed(seed)
    data, is_circle = labelled(2000, 2000, seed)
    network = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(500):
        batch = torch.randint(len(data), (256,))
        noisy = data[batch] + 0.1 * torch.randn(256, data.shape[1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(noisy)[:, 0], is_circle[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def main(
    out: Path = Path("two_classes.png"), seeds: PositiveInt = 3, samples: PositiveInt = 500, steps: PositiveInt = 1500
) -> dict[str, list[float]]:
    """Train both networks for each seed, and sample in four ways from the same noise.

    Args:
        out: the figure.
        seeds: how often everything is repeated, pictures and training included.
        samples: pictures drawn in each arm, at least 25.
        steps: training steps of a network.

    Returns:
        The share of circles, by arm and seed.
    """
    toy.check_figure(out)
    classifier = train_classifier(seed=1000)
    fresh, is_circle = labelled(1000, 1000, seed=2000)
    accuracy = float(((classifier(fresh)[:, 0] > 0) == is_circle).float().mean())
    circles: dict[str, list[float]] = {}
    for seed in range(seeds):
        strong, weak = (
            toy.train(labelled(CIRCLES, squares, seed)[0], seed, steps, width=256, scheduler=SCHEDULER)
            for squares in SQUARES.values()
        )
        arms = toy.four_arms(strong, weak, toy.noise(samples, 256, 1000 + seed), SCHEDULER)
        for name, drawn in arms.items():
            circles.setdefault(name, []).append(float((classifier(drawn)[:, 0] > 0).float().mean()))

    print(f"{seeds} seeds, {samples} samples each, T = 50; accuracy of the classifier: {accuracy:.4f}")
    data = {name: f"{CIRCLES / (CIRCLES + squares):.3f}" for name, squares in SQUARES.items()}
    toy.print_table(
        ["arm", "share of circles (0.5 is right)", "circles in the training data"],
        [(name, toy.spread(shares_by_seed), data.get(name, "")) for name, shares_by_seed in circles.items()],
    )
    figure, axes = plt.subplots(1, 4, figsize=(6, 1.8), layout="constrained")
    for axis, (name, drawn) in zip(axes, arms.items(), strict=True):
        tiles = drawn[:25].reshape(5, 5, 16, 16).permute(0, 2, 1, 3).reshape(80, 80)
        axis.imshow(tiles.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(f"{name}: {circles[name][-1]:.2f} circles", fontsize=8)
        axis.set_axis_off()
    toy.write_figure(figure, out)
    error = {name: [abs(share - 0.5) for share in shares_by_seed] for name, shares_by_seed in circles.items()}
    toy.verdict(
        "W2SD brings the ratio of the classes nearer to 1:1 than the strong model alone, S2WD takes it further away",
        [
            w2sd < strong < s2wd
            for strong, w2sd, s2wd in zip(error["strong"], error["W2SD"], error["S2WD"], strict=True)
        ],
    )
    return circles


if __name__ == "__main__":
    CLI(main, as_positional=False)
