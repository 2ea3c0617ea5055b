"""Pipelines with a way of their own, and the table that goes through all of them."""

import itertools

import pytest
import torch
from helpers import close
from pipelines_table import pipelines, run, table, told, tried
from tiny.variants import build

from w2sd_video import Branch, reflection

WAYS = {
    "BriaPipeline": "compares the exact class of its scheduler",
    "Cosmos2TextToImagePipeline": "writes into the sigmas of its scheduler",
    "Kandinsky5T2VPipeline": "writes into its latents",
    "PRXPixelPipeline": "sets the number of its timesteps itself",
    "QwenImageControlNetPipeline": "doubles an image, but guides by two calls",
    "StableDiffusionXLAdapterPipeline": "counts the turns of its loop against its steps",
    "StableVideoDiffusionPipeline": "has a guidance scale for each frame",
    "ZImagePipeline": "gives its network a list of latents",
}


@pytest.mark.parametrize("name", WAYS)
def test_a_pipeline_with_a_way_of_its_own_is_reflected(name):
    row = tried(name)
    assert row.status == "reflected", row


@torch.no_grad()
def test_cosmos_is_the_plain_loop_though_its_sigmas_begin_at_80():
    pipe, call = build("Cosmos2TextToImagePipeline")
    given = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs), with_kwargs=True)
    stock = run(pipe, call)
    hook.remove()
    sigmas = pipe.scheduler.sigmas.tolist()
    assert sigmas[0] == pytest.approx(80.0) and sigmas[-1] == sigmas[-2] > 0.0

    def noise_of(x, sigma, scale):
        """The pipeline scales what its network sees, and reads a clean sample from what it answers."""
        told = torch.tensor([sigma / (sigma + 1)])
        seen = {"hidden_states": x * (1 - told), "timestep": told}
        cond, uncond = (pipe.transformer(**arguments | seen)[0] for arguments in given[:2])
        clean = (1 - told) * x - told * (uncond + scale * (cond - uncond))
        return (x - clean) / sigma

    x = given[0]["hidden_states"] * (sigmas[0] + 1)
    for i, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
        if i < len(sigmas) - 2:
            lower = x + (below - sigma) * noise_of(x, sigma, 4.0)
            x = lower - (below - sigma) * noise_of(lower, sigma, 1.0)
        x = x + (below - sigma) * noise_of(x, sigma, 1 + call["guidance_scale"])  # Cosmos counts guidance from 0
    with reflection(pipe, strong=Branch(guidance_scale=4.0), weak=Branch(guidance_scale=1.0)):
        result = run(pipe, call)
    close(result, x.reshape(result.shape), 1e-4)
    assert (result - stock).norm() > 1e-3 * stock.norm()


def test_every_pipeline_class_stands_in_the_table():
    names = list(pipelines())
    assert {"AnimateDiffPipeline", "CogVideoXPipeline", "WanPipeline", "LTX2Pipeline"} <= set(names)
    rows = {name: tried(name) for name in ("LTXLatentUpsamplePipeline", "StableAudioPipeline")}
    assert {row.status for row in rows.values()} == {"not tried"}
    page = table(rows)
    assert "| LTXLatentUpsamplePipeline | not tried | no loop over `scheduler.step` |" in page
    assert told(pipelines()["StableAudioPipeline"]) == "makes audio" and told(pipelines()["WanPipeline"]) == ""
