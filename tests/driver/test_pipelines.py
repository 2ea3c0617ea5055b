"""Pipelines with a way of their own, and the table that goes through all of them."""

import copy
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
    "MarigoldDepthPipeline": "gives its progress bars looks of its own",
    "PRXPixelPipeline": "sets the number of its timesteps itself",
    "QwenImageControlNetPipeline": "doubles an image, but guides by two calls",
    "StableDiffusionXLAdapterPipeline": "counts the turns of its loop against its steps",
    "StableVideoDiffusionPipeline": "has a guidance scale for each frame",
    "ZImageControlNetPipeline": "gives its ControlNet a list of latents",
    "ZImagePipeline": "gives its network a list of latents",
}


@pytest.mark.parametrize("name", WAYS)
def test_a_pipeline_with_a_way_of_its_own_is_reflected(name):
    row = tried(name)
    assert row.status == "reflected", row


@pytest.mark.parametrize("name", ["HunyuanImagePipeline", "Kandinsky5I2VPipeline", "QwenImage21Pipeline"])
def test_a_branch_sets_the_guidance_scale_where_it_is_no_argument_or_acts_on_a_part_of_the_rows(name):
    assert tried(name) == ("reflected", "")


def test_a_distilled_scale_is_a_branchs_to_set():
    assert tried("HunyuanImageRefinerPipeline").remark == "guidance is an argument of the network, or there is none"


def test_evaluations_are_those_of_a_sample_where_it_is_several_pictures():
    pipe, call = build("MarigoldIntrinsicsPipeline")
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0) as done:
        pictures = run(pipe, call)
    assert len(pictures) == 2 and done.nfe["base"] == done.steps == call["num_inference_steps"]


def test_a_network_beside_the_denoiser_is_counted_and_runs_in_steps_only():
    pipe, call = build("Ideogram4Pipeline")
    evaluated = []
    next(pipe.unconditional_transformer.children()).register_forward_hook(lambda *_: evaluated.append(True))
    steps = call["num_inference_steps"]
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0) as done:
        run(pipe, call)
    assert done.nfe == {"base": 2 * steps, "strong": 0, "weak": 0} and len(evaluated) == steps
    evaluated.clear()
    with reflection(pipe, strong=Branch(), weak=Branch(weights=copy.deepcopy(pipe.transformer))) as done:
        run(pipe, call)
    assert 2 * len(evaluated) == sum(done.nfe.values()) > 2 * steps
    with (
        reflection(pipe, strong=Branch(prompt="a blue square"), weak=Branch()),
        pytest.raises(ValueError, match="text"),
    ):
        run(pipe, call)


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
