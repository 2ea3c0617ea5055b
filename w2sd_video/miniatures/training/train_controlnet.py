"""Training of a ControlNet for the AnimateDiff track: from the outline of a sprite in each frame to the sprite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from einops import rearrange

from w2sd_video.miniatures.training.data import random_clips, to_pixels
from w2sd_video.miniatures.training.diffusion import noised, v_loss
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.models import control_net, ddim_scheduler
from w2sd_video.miniatures.training.train_animatediff import FRAMES, encoder, one_by_one, prompt_table
from w2sd_video.miniatures.world import edges


def train_edges(out: Path, budget: Budget, seed: int = 21) -> None:
    """Train on frames, under the strong UNet; saved to `out/controlnet_edges`."""
    torch.manual_seed(seed)
    rng, encode = np.random.default_rng(seed), encoder(out)
    denoiser = UNet2DConditionModel.from_pretrained(out / "unet_strong").requires_grad_(False).eval()
    controlnet: ControlNetModel = control_net(denoiser)
    embeddings, alphas_cumprod = prompt_table(out), ddim_scheduler().alphas_cumprod

    def loss() -> torch.Tensor:
        clips, labels = random_clips(rng, 6, FRAMES)
        with torch.no_grad():
            latents, labels = one_by_one(encode(clips), labels)
        pictures = edges(to_pixels(rearrange(clips, "clips frames ... -> (clips frames) ...")))
        outlines = rearrange(torch.from_numpy(pictures), "frames height width rgb -> frames rgb height width") / 255
        noisy, t, label, v = noised(latents, labels, alphas_cumprod)
        text = embeddings[label]
        down, mid = controlnet(noisy, t, text, controlnet_cond=outlines, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return v_loss(denoiser(noisy, t, text, **residuals).sample, v)

    def save() -> None:
        controlnet.save_pretrained(out / "controlnet_edges")

    fit("controlnet_edges", controlnet, loss, out, budget, watch=save)
    save()
