"""What the toy studies share: mixtures with an exact score, a tiny network, the four arms, figures and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import matplotlib
import torch
from diffusers.models.embeddings import get_timestep_embedding
from matplotlib import pyplot as plt

from w2sd_video import sample
from w2sd_video.rendering.video import check_output
from w2sd_video.sampler import Predict

SCHEDULER = diffusers.DDIMScheduler(clip_sample=False)
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(latents, timestep) -> predicted noise``; latents (samples, dimensions)."""

matplotlib.use("agg")
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False})
COLOURS = {
    "truth": "black",
    "strong": "tab:blue",
    "weak": "tab:gray",
    "W2SD": "tab:green",
    "S2WD": "tab:red",
    "AutoGuidance": "tab:orange",
    "explicit": "tab:olive",
    "current": "tab:purple",
    "implicit": "tab:brown",
}
COLOURS["paper"] = COLOURS["W2SD"]


@dataclass(frozen=True)
class Mixture:
    """Gaussian peaks (k, dimensions) of one standard deviation, with their shares."""

    peaks: Sequence[Sequence[float]]
    shares: Sequence[float]
    spread: float = 0.5

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return samples (count, dimensions)."""
        peaks = torch.tensor(self.peaks)
        which = torch.multinomial(torch.tensor(self.shares), count, replacement=True, generator=generator)
        return peaks[which] + self.spread * torch.randn(count, peaks.shape[1], generator=generator)

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the exact noise prediction, so that a mixture is a model itself."""
        product = SCHEDULER.alphas_cumprod[int(timestep)].to(latents)
        variance = self.spread**2 * product + 1 - product
        offsets = latents[:, None] - product.sqrt() * torch.tensor(self.peaks).to(latents)  # samples, peaks, dimensions
        logits = torch.tensor(self.shares).to(latents).log() - offsets.square().sum(-1) / (2 * variance)
        return (1 - product).sqrt() / variance * (logits.softmax(-1)[..., None] * offsets).sum(1)

    def counted(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the share of the samples that is nearest to each peak."""
        nearest = torch.cdist(samples, torch.tensor(self.peaks).to(samples)).argmin(1)
        return torch.bincount(nearest, minlength=len(self.peaks)) / len(samples)

    def misplaced(self, samples: torch.Tensor) -> float:
        """Return the share of the samples that would have to go to another peak for the shares to be right."""
        return float((self.counted(samples) - torch.tensor(self.shares)).abs().sum() / 2)


def two_peaks(share_right: float) -> Mixture:
    """Return the paper's 1-D mixture, peaks at -4 and 4."""
    return Mixture([[-4.0], [4.0]], [1 - share_right, share_right])


def four_peaks(*shares: float) -> Mixture:
    """Return a 2-D mixture with peaks at (-4, -4), (-4, 4), (4, -4) and (4, 4)."""
    return Mixture([[-4.0, -4.0], [-4.0, 4.0], [4.0, -4.0], [4.0, 4.0]], shares)


class Network(torch.nn.Module):
    """A small multilayer perceptron that predicts the noise in points."""

    def __init__(self, dimensions: int, width: int = 96) -> None:
        super().__init__()
        self.enter, self.time = torch.nn.Linear(dimensions, width), torch.nn.Linear(32, width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))
        self.leave = torch.nn.Linear(width, dimensions)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the noise in latents (samples, dimensions); one timestep, or one for each sample."""
        hidden = self.enter(latents) + self.time(get_timestep_embedding(timestep.reshape(-1), 32))
        for block in self.blocks:
            hidden = hidden + block(torch.nn.functional.silu(hidden))
        return self.leave(torch.nn.functional.silu(hidden))


def train(
    data: torch.Tensor,
    seed: int,
    steps: int = 3000,
    width: int = 96,
    scheduler: diffusers.DDIMScheduler = SCHEDULER,
    checkpoint: Callable[[int, Network], None] | None = None,
) -> Network:
    """Return a network trained on data (samples, dimensions) to predict what the scheduler calls for.

    The checkpoint function is called after each step.
    """
    torch.manual_seed(seed)
    network = Network(data.shape[1], width)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for step in range(1, steps + 1):
        clean = data[torch.randint(len(data), (512,))]
        noise, timesteps = torch.randn_like(clean), torch.randint(1000, (len(clean),))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = clean if scheduler.config.prediction_type == "sample" else noise
        loss = torch.nn.functional.mse_loss(network(noisy, timesteps), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if checkpoint is not None:
            checkpoint(step, network)
    return network.requires_grad_(False)


def roles(base: Model, strong: Model, weak: Model) -> Predict:
    """Return the function that ``sample`` asks for predictions."""
    models = {"base": base, "strong": strong, "weak": weak}
    return lambda latents, timestep, role: models[role](latents, timestep)


def four_arms(
    strong: Model, weak: Model, noise: torch.Tensor, scheduler: diffusers.DDIMScheduler = SCHEDULER, steps: int = 50
) -> dict[str, torch.Tensor]:
    """Return the samples of the strong and the weak model alone, of W2SD, and with the reflection's roles swapped."""
    arms = {
        "strong": (roles(strong, strong, weak), 0),
        "weak": (roles(weak, strong, weak), 0),
        "W2SD": (roles(strong, strong, weak), steps - 1),
        "S2WD": (roles(strong, weak, strong), steps - 1),
    }
    return {
        name: sample(predict, noise, scheduler, num_inference_steps=steps, reflection_steps=reflected).latents
        for name, (predict, reflected) in arms.items()
    }


def distance(samples: torch.Tensor, others: torch.Tensor) -> float:
    """Return the Wasserstein-1 distance of two equally large samples (count, 1)."""
    return float((samples.sort(0).values - others.sort(0).values).abs().mean())


def seeded(seed: int) -> torch.Generator:
    """Return a generator of a seed's own."""
    return torch.Generator().manual_seed(seed)


def noise(count: int, dimensions: int, seed: int) -> torch.Tensor:
    """Return the noise that sampling starts from."""
    return torch.randn(count, dimensions, generator=seeded(seed))


def plot_densities(axis: plt.Axes, points: dict[str, torch.Tensor]) -> None:
    """Draw the histogram of each set of 1-D samples."""
    for name, drawn in points.items():
        values = drawn.flatten().numpy()
        axis.hist(values, 120, range=(-6.5, 6.5), density=True, histtype="step", label=name, color=COLOURS.get(name))
    axis.set(xlabel="x", ylabel="density")
    axis.legend(loc="upper center")


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Return "mean ± standard deviation" over the seeds."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    deviation = numbers.std() if len(numbers) > 1 else torch.tensor(0.0)
    return f"{numbers.mean():.{digits}f} ± {deviation:.{digits}f}"


def with_error(values: Iterable[float], digits: int = 3) -> str:
    """Return "mean ± standard error of the mean"."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    error = numbers.std() / len(numbers) ** 0.5 if len(numbers) > 1 else torch.tensor(0.0)
    return f"{numbers.mean():.{digits}f} ± {error:.{digits}f}"


def percent(shares: Iterable[float]) -> str:
    """Return "mean ± standard error of the mean" in percent."""
    return with_error((100 * share for share in shares), 0) + " %"


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def verdict(claim: str, held: Sequence[bool], source: str = "the paper") -> None:
    """Print whether a claim of the source held in every seed, which alone counts as agreement."""
    word = "agrees" if all(held) else "does not agree"
    print(f"{claim}: held in {sum(held)} of {len(held)} seeds. Our result {word} with {source}.")


def check_figure(path: Path) -> None:
    """Refuse a name that no figure can be written to, before any work is done for it."""
    if path.suffix != ".png":
        raise SystemExit(f"--out must end in .png, got {path}")
    check_output(path)


def write_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=90, bbox_inches="tight")
    plt.close(figure)
    os.replace(part, path)
