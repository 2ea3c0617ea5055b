"""What each stage of Fashion-MNIST trains."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from w2sd_video.miniatures import fashion
from w2sd_video.miniatures.learning import scene_networks as networks
from w2sd_video.miniatures.learning.bench import Bench, Pool, picture_encoder
from w2sd_video.miniatures.learning.denoising import Condition, denoiser_task, v_levels
from w2sd_video.miniatures.learning.scene_stages import autoencoder_task, zero_output
from w2sd_video.miniatures.learning.stage_loop import Task, TrainingError
from w2sd_video.miniatures.training.models import ddim_scheduler

MAJORITY = 5000
"""Pictures of the first class that the unbalanced pair is trained on, as in the paper's figures 6 and 7."""
_JUDGED_BY = 6000
"""Pictures that the judge is trained on."""
_TESTED = 1000


def as_tensor(bench: Bench, pictures: np.ndarray) -> Tensor:
    """Pictures uint8 (n, 28, 28) to (n, 3, 32, 32) in [-1, 1], on the device."""
    frames = torch.from_numpy(fashion.as_frames(pictures)).to(bench.device)
    return rearrange(frames, "n height width rgb -> n rgb height width").float() / 127.5 - 1


def vae_task(bench: Bench, batch: int) -> Task:
    """The autoencoder."""
    grey, _ = fashion.read_pictures(bench.fashion_mnist)
    vae = networks.image_vae(networks.FASHION_SIZE).to(bench.device)

    def pictures(first: int, count: int, style: str) -> Tensor:
        rows = np.random.default_rng(first).integers(len(grey), size=count)
        return as_tensor(bench, grey[rows])

    return autoencoder_task(bench, vae, pictures, bench.batch(batch), seed=201)


@torch.no_grad()
def pool(bench: Bench) -> Pool:
    """Return all training pictures, encoded, with their classes."""

    def make() -> Pool:
        grey, label = fashion.read_pictures(bench.fashion_mnist)
        count = bench.pool or len(grey)
        encode = picture_encoder(bench, "fashion-vae", networks.image_vae(networks.FASHION_SIZE))
        parts = [
            encode(as_tensor(bench, grey[start : min(start + 1024, count)])[:, None])[:, 0].half()
            for start in range(0, count, 1024)
        ]
        return Pool(torch.cat(parts), label=torch.from_numpy(label[:count].astype(np.int64)).to(bench.device))

    return bench.kept(f"fashion-{bench.pool or 'all'}", make)


def dit_task(bench: Bench, batch: int, seed: int = 21) -> Task:
    """DiT: pictures of ten classes."""
    return _dit(bench, pool(bench), networks.NULL_CLASS, 128, 4, batch, seed)


def two_classes_task(bench: Bench, batch: int, second: int = 500, seed: int = 22) -> Task:
    """A small DiT that is told no class, of 5,000 pictures of one and fewer of another: the paper's unbalanced pair."""
    everything = pool(bench)
    assert everything.label is not None
    first_class, second_class = (fashion.CLASSES.index(name) for name in fashion.TWO)
    of_first = (everything.label == first_class).nonzero()[:MAJORITY, 0]
    of_second = (everything.label == second_class).nonzero()[:second, 0]
    rows = torch.cat([of_first, of_second])
    pictures = Pool(everything.latents[rows], label=torch.zeros_like(rows))
    return _dit(bench, pictures, None, *networks.TWO_CLASSES, batch, seed)


def _dit(bench: Bench, pictures: Pool, null: int | None, width: int, layers: int, batch: int, seed: int) -> Task:
    torch.manual_seed(seed)
    network = networks.fashion_dit(width, layers)
    zero_output(network.proj_out_2)
    network.to(bench.device).eval()  # or its own dropout of classes would draw from elsewhere

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        return network(noisy, timestep=t, class_labels=of.label).sample

    levels = v_levels(ddim_scheduler().alphas_cumprod, bench.device)
    return denoiser_task(bench, network, pictures, predict, levels, batch, seed, null=null, has_early=null is not None)


def judge_task(bench: Bench, batch: int) -> Task:
    """The judge: a linear layer over the features that EfficientNet-Lite0 finds in real pictures."""
    features, labels = _features(bench, True, _JUDGED_BY)
    judge = torch.nn.Linear(fashion.FEATURES, len(fashion.CLASSES)).to(bench.device)
    scale = features.std(0).mean()

    def loss(step: int) -> Tensor:
        picked = torch.randint(
            len(features), (bench.batch(batch),), generator=bench.random(202, step), device=bench.device
        )
        return functional.cross_entropy(judge(features[picked]), labels[picked]) + 1e-4 * judge.weight.square().sum()

    @torch.no_grad()
    def facts() -> dict[str, float]:
        fresh, right = _features(bench, False, _TESTED)
        return {"accuracy": round((judge(fresh).argmax(1) == right).float().mean().item(), 4)}

    return Task(judge, loss, 1e-3 / float(scale), decay=0.99, facts=facts)


def _features(bench: Bench, training: bool, count: int) -> tuple[Tensor, Tensor]:
    """Return the features of pictures (n, 1280) and their classes, kept in the folder."""
    name = f"fashion-features-{'train' if training else 'test'}-{bench.pool or count}"

    def make() -> Pool:
        if bench.features is None:
            raise TrainingError("the judge of fashion needs a network that finds features")
        grey, label = fashion.read_pictures(bench.fashion_mnist, training)
        rows = np.arange(min(count, bench.pool or count))
        found = bench.features(fashion.as_frames(grey[rows]), bench.device)
        return Pool(found, label=torch.from_numpy(label[rows].astype(np.int64)).to(bench.device))

    kept = bench.kept(name, make)
    assert kept.label is not None
    return kept.latents.float(), kept.label
