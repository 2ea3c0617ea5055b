"""Training of a style for the AnimateDiff track: a LoRA of its strong UNet, on frames of sprites drawn as comets."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from w2sd_video.miniatures.training.data import encoded_pool
from w2sd_video.miniatures.training.diffusion import Noising, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import ddim_scheduler
from w2sd_video.miniatures.training.train_animatediff import FRAMES, encoder, one_by_one, prompt_table
from w2sd_video.miniatures.world import COMET

RANK = 4
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
"""The attention's and the residual blocks' own; a trail is drawn by convolutions more than by attention."""


def train_comet(out: Path, budget: Budget, seed: int = 19) -> None:
    """Train the LoRA; saved to `out/lora_comet`, in the format that `load_lora_weights` reads."""
    torch.manual_seed(seed)
    denoiser = UNet2DConditionModel.from_pretrained(out / "unet_strong").requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    denoiser.train()
    latents, labels = encoded_pool(out / "comet_pool.pt", encoder(out), budget.pool // 4, FRAMES, seed=20, trail=COMET)
    frames = Noising(*one_by_one(latents, labels), ddim_scheduler().alphas_cumprod)
    embeddings = prompt_table(out)

    def loss() -> torch.Tensor:
        noisy, t, label, v = frames.draw(48)
        return v_loss(denoiser(noisy, t, embeddings[label]).sample, v)

    def save() -> None:
        half = {key: value.half() for key, value in get_peft_model_state_dict(denoiser).items()}
        AnimateDiffPipeline.save_lora_weights(out / "lora_comet", unet_lora_layers=half)

    fit("lora_comet", denoiser, loss, out, budget, watch=save)
    save()
