"""Where stages are trained: their folder, their device, what earlier stages left there, and pools of encoded clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from w2sd_video.miniatures import scenes
from w2sd_video.miniatures.learning import scene_networks
from w2sd_video.miniatures.learning.scene_networks import TEXT_LENGTH, VIDEO_FRAMES
from w2sd_video.miniatures.learning.stage_loop import State, TrainingError, read_state
from w2sd_video.writing import whole

N = TypeVar("N", bound=nn.Module)
MAIN, HELPER = "main.", "helper."
"""Starts of the names of parameters where a network is trained with others that nobody needs afterwards."""
_ENCODED = 64
"""Clips that are drawn and encoded together on a CPU; on a GPU eight times as many."""


@dataclass(frozen=True)
class Pool:
    """Encoded clips or pictures with their texts, in half precision.

    Attributes:
        latents: (n, ...), scaled to unit variance.
        text: embeddings (n, tokens, width), or None for pictures that have a class.
        mask: which tokens are of the text and not of its padding (n, tokens), or None.
        label: classes (n,), or None for what has a text.
        scenes: what is shown, of scenes.
        empty_text: embedding of no text (tokens, width), and its mask (tokens,).
    """

    latents: Tensor
    text: Tensor | None = None
    mask: Tensor | None = None
    label: Tensor | None = None
    scenes: scenes.Scenes | None = None
    empty_text: Tensor | None = None
    empty_mask: Tensor | None = None


@dataclass
class Bench:
    """A folder and a device to train in.

    Attributes:
        out: folder of checkpoints and pools.
        device: that everything runs on.
        fashion_mnist: folder of that data set, or None.
        pool: clips in a pool; None is as many as the device bears.
        features: finds the features (n, d) of pictures uint8 (n, height, width, 3) on a device, for a judge that is a
            layer over a network which is not ours.
    """

    out: Path
    device: torch.device
    fashion_mnist: Path | None = None
    pool: int | None = None
    features: Callable[[np.ndarray, torch.device], Tensor] | None = None
    _pools: dict[str, Pool] = field(default_factory=dict)

    def path(self, stage: str) -> Path:
        """Return where the checkpoint of a stage is."""
        return self.out / "stages" / f"{stage}.pt"

    def batch(self, size: int) -> int:
        """Return how many samples make a batch: on a CPU an eighth of what a GPU takes."""
        return size if self.device.type == "cuda" else max(2, size // 8)

    def random(self, seed: int, step: int) -> torch.Generator:
        """Return the chance of a step: the same wherever training was interrupted."""
        return torch.Generator(self.device).manual_seed(seed * 10_000_019 + step)

    def result(self, stage: str) -> State:
        """Return what a finished stage left.

        Raises:
            TrainingError: it is not finished.
        """
        state = read_state(self.path(stage))
        if state is None or not state.finished:
            raise TrainingError(f"the stage {stage} is not finished; give its run more minutes")
        return state

    def filled(self, network: N, stage: str) -> N:
        """Return a network with what a finished stage left, on the device and not to be trained."""
        return self._with(network, self.result(stage).average)

    def filled_early(self, network: N, stage: str) -> N:
        """Return a network with the early weights of a stage, likewise."""
        early = self.result(stage).early
        if early is None:
            raise TrainingError(f"the stage {stage} has no early weights; it was too short")
        return self._with(network, early)

    def _with(self, network: N, weights: dict[str, Tensor]) -> N:
        weights = {key.removeprefix(MAIN): value for key, value in weights.items() if not key.startswith(HELPER)}
        if unexpected := network.load_state_dict(weights, strict=False).unexpected_keys:
            raise TrainingError(f"the weights of {type(network).__name__} have {unexpected[0]}, which it has not")
        return network.to(self.device, torch.float32).eval().requires_grad_(False)

    def kept(self, name: str, make: Callable[[], Pool]) -> Pool:
        """Return a pool, from memory or from the folder if it was made before."""
        if name not in self._pools:
            path = self.out / "pools" / f"{name}.pt"
            if path.is_file():
                stored = torch.load(path, map_location=self.device, weights_only=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                made = make()
                stored = {key: value for key, value in vars(made).items() if isinstance(value, Tensor)}
                if made.scenes is not None:
                    stored["scenes"] = dict(vars(made.scenes))
                with whole(path) as part:
                    torch.save(stored, part)
            if "scenes" in stored:
                stored["scenes"] = scenes.Scenes(**stored["scenes"])
            self._pools = {name: Pool(**stored)}  # one at a time: a GPU is shared
        return self._pools[name]

    def size_of_pool(self, on_a_gpu: int, on_a_cpu: int) -> int:
        """Return how many clips a pool has."""
        return self.pool or (on_a_gpu if self.device.type == "cuda" else on_a_cpu)

    @torch.no_grad()
    def encoded(
        self,
        count: int,
        seed: int,
        frames: int,
        encode: Callable[[Tensor], Tensor],
        texts: tuple[PreTrainedTokenizerBase, PreTrainedModel, bool] | None,
        style: str = "filled",
    ) -> Pool:
        """Draw scenes and encode them.

        Args:
            count: of clips.
            seed: of the pool.
            frames: of a clip.
            encode: from clips (n, frames, 3, 64, 64) to scaled latents.
            texts: the tokenizer and the text encoder, and whether it is told the mask; None for classes.
            style: of `scenes.STYLES`.
        """
        size = _ENCODED * (8 if self.device.type == "cuda" else 1)
        seeds = torch.arange(count, device=self.device) + seed * 10_000_000
        latents = [encode(scenes.draw(scenes.random_scenes(part), frames, style)).half() for part in seeds.split(size)]
        shown = scenes.random_scenes(seeds)
        if texts is None:
            return Pool(torch.cat(latents), label=class_of(shown), scenes=shown)
        text, mask = encoded_text(shown.prompts(), *texts, self.device)
        empty, empty_mask = encoded_text([""], *texts, self.device)
        return Pool(torch.cat(latents), text, mask, None, shown, empty[0], empty_mask[0])


def class_of(shown: scenes.Scenes) -> Tensor:
    """Return the place of each scene's upper thing in `scenes.classes()`."""
    shape, colour, direction = shown.seen[:, 0, :3].unbind(-1)
    return (shape * len(scenes.COLOURS) + colour) * len(scenes.DIRECTIONS) + direction


@torch.no_grad()
def encoded_text(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    uses_mask: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return what a pipeline feeds its denoiser for prompts: embeddings (n, tokens, width) in half, and their mask."""
    parts = []
    masks = []
    for start in range(0, len(prompts), 4096):
        ids, mask = tokens_of(prompts[start : start + 4096], tokenizer, device)
        text = encoder(ids, attention_mask=mask if uses_mask else None)[0]
        parts.append((text * mask[..., None] if uses_mask else text).half())  # Wan's pipeline cuts the padding off
        masks.append(mask)
    return torch.cat(parts), torch.cat(masks).bool()


def tokens_of(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the ids of prompts, padded as the pipelines pad, and their mask, (n, tokens) each."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids.to(device), tokens.attention_mask.to(device)


def t5(bench: Bench, uses_mask: bool) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, bool]:
    """Return the tokenizer and the trained encoder of all tracks but AnimateDiff's."""
    return scene_networks.t5_tokenizer(), bench.filled(scene_networks.t5_text_encoder(), "scenes-t5"), uses_mask


def clip_text(bench: Bench) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, bool]:
    """Return AnimateDiff's tokenizer and trained encoder, which is told no mask."""
    return scene_networks.clip_tokenizer(), bench.filled(scene_networks.clip_text_encoder(), "scenes-clip"), False


def picture_encoder(
    bench: Bench, stage: str = "scenes-image-vae", network: AutoencoderKL | None = None
) -> Callable[[Tensor], Tensor]:
    """Return what encodes clips (n, frames, 3, size, size) frame by frame, to (n, frames, 4, size / 4, size / 4)."""
    vae = bench.filled(network or scene_networks.image_vae(), stage)
    scale = bench.result(stage).facts["scaling_factor"]

    def encode(clips: Tensor) -> Tensor:
        pictures = rearrange(clips, "n frames ... -> (n frames) ...")
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(512)])
        return rearrange(latents * scale, "(n frames) ... -> n frames ...", n=len(clips))

    return encode


def clip_encoder(bench: Bench) -> Callable[[Tensor], Tensor]:
    """Return what encodes clips (n, 17, 3, 64, 64) to (n, 5, 8, 16, 16)."""
    stage = "scenes-video-vae"
    vae, scale = bench.filled(scene_networks.video_vae(), stage), bench.result(stage).facts["scaling_factor"]

    def encode(clips: Tensor) -> Tensor:
        videos = rearrange(clips, "n frames rgb ... -> n rgb frames ...")
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in videos.split(32)])
        return rearrange(latents * scale, "n channels frames ... -> n frames channels ...")

    return encode


def pictures(bench: Bench, with_text: bool = True, style: str = "filled") -> Pool:
    """Return the pool of single pictures, latents (n, 4, 16, 16), with texts or with classes."""

    count = bench.size_of_pool(131_072, 24_576)

    def make() -> Pool:
        encode = picture_encoder(bench)
        texts = t5(bench, uses_mask=True) if with_text else None
        return bench.encoded(count, 1, 1, lambda clips: encode(clips)[:, 0], texts, style)

    return bench.kept(f"pictures-{'text' if with_text else 'class'}-{style}-{count}", make)


def frames(bench: Bench, style: str = "filled") -> Pool:
    """Return AnimateDiff's pool of clips encoded frame by frame, latents (n, 16, 4, 16, 16)."""

    count = bench.size_of_pool(24_576, 2048)

    def make() -> Pool:
        return bench.encoded(count, 2, scenes.FRAMES, picture_encoder(bench), clip_text(bench), style)

    return bench.kept(f"frames-{style}-{count}", make)


def videos(bench: Bench, uses_mask: bool) -> Pool:
    """Return the pool of clips of CogVideoX, or of Wan, whose text encoder is told the mask; (n, 5, 8, 16, 16)."""

    count = bench.size_of_pool(32_768, 2048)

    def make() -> Pool:
        return bench.encoded(count, 3, VIDEO_FRAMES, clip_encoder(bench), t5(bench, uses_mask))

    return bench.kept(f"videos-{'masked' if uses_mask else 'plain'}-{count}", make)
