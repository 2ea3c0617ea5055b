"""Training of the AnimateDiff track, by the recipe of the paper's video experiment.

A text-to-image UNet is trained on frames together with its text encoder. Trained on, it is the strong model; trained on
with captions of which most are wrong, as captions from the web are, it is the weak one. One motion adapter for both is
then trained on clips, their spatial weights frozen. (A weak UNet trained from scratch can't share the adapter.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from einops import rearrange, repeat
from torch import nn
from transformers import CLIPTextModel

from w2sd_video.miniatures.training.data import encoded_pool
from w2sd_video.miniatures.training.diffusion import Noising, prompt_embeddings, prompt_tokens, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import (
    clip_text_encoder,
    clip_tokenizer,
    ddim_scheduler,
    motion_adapter,
    unet,
)

FRAMES = 8
WRONG_CAPTIONS = 0.6
"""Share of the weak UNet's frames that carry another frame's caption."""


def encoder(out: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """What encodes clips (n, frames, 3, 32, 32) frame by frame to scaled latents (n, frames, 4, 8, 8)."""
    vae = AutoencoderKL.from_pretrained(out / "image_vae")

    def encode(videos: torch.Tensor) -> torch.Tensor:
        frames = rearrange(videos, "clips frames rgb height width -> (clips frames) rgb height width")
        latents = vae.encode(frames).latent_dist.mean * vae.config.scaling_factor
        return rearrange(latents, "(clips frames) ... -> clips frames ...", clips=len(videos))

    return encode


def pool(out: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoded clips (n, 8, 4, 8, 8) and their prompts' indices."""
    return encoded_pool(out / "animatediff_pool.pt", encoder(out), count, FRAMES, seed=11)


def train_base(out: Path, budget: Budget, seed: int = 3) -> None:
    """Train UNet and text encoder on frames; saved to `out/unet_base` and `out/clip`."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    denoiser, text_encoder = unet(), clip_text_encoder(tokenizer)
    tokens, noising = prompt_tokens(tokenizer), _frames(out, budget)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(48)
        return v_loss(denoiser(noisy, t, text_encoder(tokens[label])[0]).sample, v)

    def save() -> None:
        denoiser.save_pretrained(out / "unet_base")
        text_encoder.save_pretrained(out / "clip")

    fit("unet_base", nn.ModuleList([denoiser, text_encoder]), loss, out, budget, watch=save)
    save()


def train_strong(out: Path, budget: Budget, seed: int = 4) -> None:
    """Train the base UNet on, its text encoder kept; saved to `out/unet_strong`."""
    torch.manual_seed(seed)
    _train_on("unet_strong", _frames(out, budget), out, budget)


def train_weak(out: Path, budget: Budget, seed: int = 9) -> None:
    """Train the base UNet on with wrong captions among the right ones; saved to `out/unet_weak`."""
    torch.manual_seed(seed)
    frames = _frames(out, budget)
    wrong_labels = frames.labels[torch.randperm(len(frames.labels))]
    frames.labels = torch.where(torch.rand(len(wrong_labels)) < WRONG_CAPTIONS, wrong_labels, frames.labels)
    _train_on("unet_weak", frames, out, budget)


def _train_on(name: str, frames: Noising, out: Path, budget: Budget) -> None:
    denoiser, embeddings = UNet2DConditionModel.from_pretrained(out / "unet_base"), prompt_table(out)
    denoiser.train()

    def loss() -> torch.Tensor:
        noisy, t, label, v = frames.draw(48)
        return v_loss(denoiser(noisy, t, embeddings[label]).sample, v)

    def save() -> None:
        denoiser.save_pretrained(out / name)

    fit(name, denoiser, loss, out, budget, watch=save)
    save()


def _frames(out: Path, budget: Budget) -> Noising:
    """The frames of all clips, one by one."""
    return Noising(*one_by_one(*pool(out, budget.pool)), ddim_scheduler().alphas_cumprod)


def one_by_one(latents: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (n, FRAMES, ...) and their labels (n,) as frames (n * FRAMES, ...) and a label for each."""
    frames = rearrange(latents, "clips frames ... -> (clips frames) ...")
    return frames, repeat(labels, "clips -> (clips frames)", frames=FRAMES)


def train_motion(out: Path, budget: Budget, seed: int = 5) -> None:
    """Train the motion adapter under the strong and the weak UNet in turn; saved to `out/motion_adapter`."""
    torch.manual_seed(seed)
    latents, labels = pool(out, budget.pool)
    strong = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(out / "unet_strong"), motion_adapter())
    weak = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(out / "unet_weak"), motion_adapter())
    _share_motion(strong, weak)
    strong.freeze_unet2d_params()
    weak.freeze_unet2d_params()
    embeddings = prompt_table(out)
    noising = Noising(latents, labels, ddim_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(16)
        model = strong if torch.rand(()) < 0.7 else weak  # base and strong are both sampled with the strong one
        text = repeat(embeddings[label], "clips tokens width -> (clips frames) tokens width", frames=FRAMES)
        prediction = model(rearrange(noisy, "clips frames channels ... -> clips channels frames ..."), t, text).sample
        return v_loss(rearrange(prediction, "clips channels frames ... -> clips frames channels ..."), v)

    def save() -> None:
        strong.save_motion_modules(out / "motion_adapter")

    fit("motion", strong, loss, out, budget, watch=save)
    save()


def prompt_table(out: Path) -> torch.Tensor:
    """What the pipeline feeds its UNet for PROMPTS."""
    return prompt_embeddings(CLIPTextModel.from_pretrained(out / "clip").eval(), prompt_tokens(clip_tokenizer()))


def _share_motion(giver: UNetMotionModel, receiver: UNetMotionModel) -> None:
    """Give two models over different UNets one set of motion layers."""
    givers_modules = dict(giver.named_modules())
    for name, module in receiver.named_modules():
        if hasattr(module, "motion_modules"):
            module.motion_modules = givers_modules[name].motion_modules
