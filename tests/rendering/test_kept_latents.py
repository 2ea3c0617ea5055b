"""Latents that are kept before they are decoded give the very frames, in each pipeline's own way of decoding."""

import inspect

import numpy as np
import pytest
import torch
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.rendering.kept_latents import Kept, LatentsDiffer, decoding, keeping, read_kept

NAMES = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "FluxPipeline"),
    *(
        "AnimateDiffPipeline",
        "CogVideoXPipeline",
        "WanPipeline",
        "LTXPipeline",
        "HunyuanVideoPipeline",
        "LattePipeline",
    ),
    *("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "VideoToVideoSDPipeline"),
)
"""Packed, scaled and decoded in chunks, in the memory layout of an encoder, and blended with an image."""


def frames(pipe, call, seed=7, steps=None):
    taken = inspect.signature(type(pipe).__call__).parameters
    call = {name: value for name, value in call.items() if name != "output_type"}
    call |= {"num_inference_steps": steps} if steps else {}
    call |= {"generator": torch.Generator().manual_seed(seed)} if "generator" in taken else {}
    result = pipe(**call, output_type="np")
    return np.asarray(next(iter(result.values())))


@pytest.fixture(params=NAMES)
def kept(request, tmp_path):
    pipe, call = build(request.param)
    pipe.set_progress_bar_config(disable=True)
    step, file = type(pipe.scheduler).step, tmp_path / "latents.safetensors"
    with keeping(pipe, file, lambda: {"seconds": 2}):
        with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
            made = frames(pipe, call)
    assert type(pipe.scheduler).step is step and "decode" not in vars(pipe.vae), "nothing of it is left"
    return pipe, call, made, file


def test_they_are_decoded_to_the_very_frames(kept):
    pipe, call, made, file = kept
    latents = read_kept(file)
    assert latents.about == {"seconds": 2}
    with decoding(pipe, latents):
        assert np.array_equal(frames(pipe, call, steps=2), made)
    assert not np.array_equal(frames(pipe, call, steps=2), made), "which two steps alone do not give"


def test_what_is_not_what_it_was_is_not_decoded(kept):
    pipe, call, _, file = kept
    latents = read_kept(file)
    decoded = latents.decoded.clone()
    decoded[(0,) * decoded.ndim] += 1e-3
    with pytest.raises(LatentsDiffer), decoding(pipe, Kept(latents.last, decoded)):
        frames(pipe, call, steps=2)
    assert "decode" not in vars(pipe.vae)


def test_latents_that_are_not_finite_are_not_kept(tmp_path):
    pipe, call = build("StableDiffusionPipeline")
    torch.nn.init.constant_(pipe.unet.conv_out.bias, torch.nan)
    with keeping(pipe, tmp_path / "latents.safetensors", dict):
        frames(pipe, call)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_file_is_none(damage, tmp_path):
    file = tmp_path / "latents.safetensors"
    if damage is not None:
        file.write_bytes(damage)
    assert read_kept(file) is None
