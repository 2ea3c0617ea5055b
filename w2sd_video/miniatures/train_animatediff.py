"""Training of the AnimateDiff track, by the recipe of the paper's video experiment.

A text-to-image UNet is trained on frames, with its text encoder: the weak model. The same UNet trained on is the strong
model. One motion adapter for both is then trained on clips, the spatial weights frozen.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from torch import nn
from transformers import CLIPTextModel

from .data import encoded_pool
from .diffusion import Noising, prompt_embeddings, prompt_tokens, v_loss
from .fit import Budget, fit
from .models import clip_text_encoder, clip_tokenizer, ddim_scheduler, motion_adapter, unet

FRAMES = 8


def pool(out: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoded clips (n, 8, 4, 8, 8) and their prompts' indices."""
    vae = AutoencoderKL.from_pretrained(out / "image_vae")

    def encode(videos: torch.Tensor) -> torch.Tensor:
        latents = vae.encode(videos.flatten(0, 1)).latent_dist.mean * vae.config.scaling_factor
        return latents.unflatten(0, videos.shape[:2])

    return encoded_pool(out / "animatediff_pool.pt", encode, count, FRAMES, seed=11)


def train_weak(out: Path, budget: Budget, seed: int = 3) -> None:
    """Train UNet and text encoder on frames; saved to `out/unet_weak` and `out/clip`."""
    torch.manual_seed(seed)
    latents, labels = pool(out, budget.pool)
    tokenizer = clip_tokenizer()
    denoiser, text_encoder = unet(), clip_text_encoder(tokenizer)
    tokens, scheduler = prompt_tokens(tokenizer), ddim_scheduler()
    noising = Noising(latents.flatten(0, 1), labels.repeat_interleave(FRAMES), scheduler.alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(48)
        return v_loss(denoiser(noisy, t, text_encoder(tokens[label])[0]).sample, v)

    def save() -> None:
        denoiser.save_pretrained(out / "unet_weak")
        text_encoder.save_pretrained(out / "clip")

    fit("unet_weak", nn.ModuleList([denoiser, text_encoder]), loss, out, budget, watch=save)
    save()


def train_strong(out: Path, budget: Budget, seed: int = 4) -> None:
    """Train the weak UNet on, its text encoder kept; saved to `out/unet_strong`."""
    torch.manual_seed(seed)
    latents, labels = pool(out, budget.pool)
    network = UNet2DConditionModel.from_pretrained(out / "unet_weak")
    network.train()
    embeddings = _embeddings(out)
    noising = Noising(latents.flatten(0, 1), labels.repeat_interleave(FRAMES), ddim_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(48)
        return v_loss(network(noisy, t, embeddings[label]).sample, v)

    def save() -> None:
        network.save_pretrained(out / "unet_strong")

    fit("unet_strong", network, loss, out, budget, watch=save)
    save()


def train_motion(out: Path, budget: Budget, seed: int = 5) -> None:
    """Train the motion adapter under the strong and the weak UNet in turn; saved to `out/motion_adapter`."""
    torch.manual_seed(seed)
    latents, labels = pool(out, budget.pool)
    strong = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(out / "unet_strong"), motion_adapter())
    weak = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(out / "unet_weak"), motion_adapter())
    _share_motion(strong, weak)
    strong.freeze_unet2d_params()
    weak.freeze_unet2d_params()
    embeddings = _embeddings(out)
    noising = Noising(latents, labels, ddim_scheduler().alphas_cumprod)

    def loss() -> torch.Tensor:
        noisy, t, label, v = noising.draw(16)
        model = strong if torch.rand(()) < 0.7 else weak
        text = embeddings[label].repeat_interleave(FRAMES, dim=0)
        return v_loss(model(noisy.transpose(1, 2), t, text).sample.transpose(1, 2), v)

    def save() -> None:
        strong.save_motion_modules(out / "motion_adapter")

    fit("motion", strong, loss, out, budget, watch=save)
    save()


def _embeddings(out: Path) -> torch.Tensor:
    return prompt_embeddings(CLIPTextModel.from_pretrained(out / "clip").eval(), prompt_tokens(clip_tokenizer()))


def _share_motion(one: UNetMotionModel, other: UNetMotionModel) -> None:
    """Give two models over different UNets one set of motion layers."""
    theirs = dict(one.named_modules())
    for name, module in other.named_modules():
        if hasattr(module, "motion_modules"):
            module.motion_modules = theirs[name].motion_modules
