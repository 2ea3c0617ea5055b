"""The latents of clips, against the pipelines' own decoders."""

import numpy as np
import pytest
import tiny
import torch
from tiny.dit_moe import dit_moe

from w2sd_video.calibration.latents import check_encodable, encode
from w2sd_video.messages import ConfigError


def _framewise(pipe, latents):
    return torch.stack(
        [pipe.vae.decode(one.transpose(0, 1)).sample for one in latents / pipe.vae.config.scaling_factor]
    )


DECODERS = {
    "stable_diffusion": lambda pipe, x: pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[:, None],
    "stable_diffusion_3": lambda pipe, x: pipe.vae.decode(
        x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    ).sample[:, None],
    "animatediff": _framewise,
    "latte": _framewise,
    "cogvideox": lambda pipe, x: pipe.decode_latents(x).transpose(1, 2),
    "wan": lambda pipe, x: pipe.vae.decode(
        x * torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
        + torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    ).sample.transpose(1, 2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", [*DECODERS, "stable_diffusion_xl", "pixart", "dit", "dit_moe"])
def test_encoded_clips_have_the_layout_and_the_scale_of_the_pipeline_s_latents(name):
    pipe, call = dit_moe() if name == "dit_moe" else getattr(tiny, name)()
    asked = {"class_labels": [1, 2]} if "class_labels" in call else {"prompt": ["a cat", "a dog"]}
    frames = call.get("num_frames") or call.get("video_length") or 1
    seen = {}
    step = pipe.scheduler.step

    def kept(*args, **kwargs):
        seen.setdefault("latents", args[2] if len(args) > 2 else kwargs["sample"])
        return step(*args, **kwargs)

    pipe.scheduler.step = kept
    pipe(**call | asked, output_type="np")
    del pipe.scheduler.step
    side = seen["latents"].shape[-1] * 2 ** (len(getattr(pipe.vae.config, "block_out_channels", [1] * 4)) - 1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, frames, side, side, 3), dtype=np.uint8)
    check_encodable(pipe)
    if name == "wan":
        pipe.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[2.0, 0.5, 1.5, 3.0])
    elif name != "cogvideox":
        pipe.vae.register_to_config(shift_factor=0.3 if name == "stable_diffusion_3" else None, scaling_factor=0.4)
    else:
        pipe.vae.register_to_config(scaling_factor=0.4)
        pipe.vae_scaling_factor_image = 0.4
    latents = encode(pipe, pixels)
    halves = 2 if name == "dit" else 1  # it steps both halves of guidance
    assert (halves * len(latents), *latents.shape[1:]) == seen["latents"].shape
    if name in DECODERS:
        x = torch.from_numpy(pixels).movedim(-1, 1 if frames > 1 and name in ("cogvideox", "wan") else 2) / 127.5 - 1
        if name not in ("cogvideox", "wan"):
            x = x.flatten(0, 1)
        straight = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample
        straight = straight.transpose(1, 2) if x.ndim == 5 else straight.unflatten(0, (2, frames))
        torch.testing.assert_close(DECODERS[name](pipe, latents), straight, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_vae_that_says_so_has_its_scale_inverted():
    pipe, _ = tiny.cogvideox()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3), dtype=np.uint8)
    pipe.vae.register_to_config(scaling_factor=0.4, invert_scale_latents=False)
    straight = encode(pipe, pixels)
    pipe.vae.register_to_config(invert_scale_latents=True)
    torch.testing.assert_close(encode(pipe, pixels), straight / 0.4**2)


@pytest.mark.parametrize("name", ["flux", "ltx", "mochi", "sana"])
def test_pipelines_whose_latents_we_cannot_make_are_refused(name):
    with pytest.raises(ConfigError, match="what can be are pipelines of Stable Diffusion, PixArt"):
        check_encodable(getattr(tiny, name)()[0])


def test_videos_for_a_model_of_images_are_refused():
    pipe, _ = tiny.stable_diffusion()
    with pytest.raises(ConfigError, match="4 frames each, but a StableDiffusionPipeline makes images"):
        encode(pipe, np.zeros((2, 4, 16, 16, 3), np.uint8))
