"""Tiny random pipelines of real diffusers classes: offline, on CPU, a few milliseconds a step.

Each builder returns `(pipe, call)`: `pipe(**call, generator=…, output_type="latent")` runs. Weights depend on `seed`
alone (it seeds torch), none is zero where a trained one is not, and every network is in `eval()`.
"""

# ruff: noqa: F401 -- the builders are gathered here for the tests
from tiny.image import dit, flux, hidream, nucleus_moe, pixart, sana, stable_diffusion_3
from tiny.parts import motion_adapter, randomise, save_ip_adapter, unet, unet_sdxl
from tiny.stable_diffusion import (
    animatediff,
    animatediff_controlnet,
    animatediff_sdxl,
    animatediff_sparse_controlnet,
    animatediff_video_to_video,
    stable_diffusion,
    stable_diffusion_xl,
)
from tiny.text import PROMPT, TEXT_LENGTH, TEXT_WIDTH
from tiny.video import (
    cogvideox,
    cogvideox_image_to_video,
    cogvideox_transformer,
    cogvideox_video_to_video,
    hunyuan_video,
    latte,
    ltx,
    mochi,
    wan,
    wan_image_to_video,
)
