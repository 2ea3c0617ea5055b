"""Modular pipelines after an exception, in other threads, and given what they cannot take."""

import threading

import diffusers
import pytest
import torch
from modular_by_hand import counted, kept, run
from tiny.modular import modular

from w2sd_video import Branch, reflection


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
@pytest.mark.parametrize("place", [1, 4, 8])
def test_an_exception_leaves_nothing_behind(error, place):
    pipe, call = modular("wan")
    settings = {"guidance_scale": 3.0, "adaptive_projected_guidance_momentum": -0.5}
    pipe.update_components(guider=diffusers.AdaptiveProjectedGuidance(**settings))
    before, scheduler = kept(pipe), {name: str(value) for name, value in vars(pipe.scheduler).items()}
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == place:
            raise error

    handle = pipe.transformer.blocks[0].register_forward_pre_hook(fail)
    try:
        with reflection(pipe, strong=Branch(), weak=Branch(skip_layers=[1])):
            with pytest.raises(error if isinstance(error, type) else type(error)):
                run(pipe, call)
            assert {name: str(value) for name, value in vars(pipe.scheduler).items()} == scheduler
    finally:
        handle.remove()
    assert kept(pipe) == before


def test_other_threads_see_neither_blocks_nor_branches():
    pipe, call = modular("wan")
    other, _ = modular("wan")
    other.update_components(transformer=pipe.transformer)
    stock, results = run(other, call), []
    stop = threading.Event()

    def keep_running():
        while not stop.is_set() or not results:
            results.append(torch.equal(run(other, call), stock))

    thread = threading.Thread(target=keep_running)
    with reflection(pipe, strong=Branch(), weak=Branch(skip_layers=[0])):
        expected = run(pipe, call)
        thread.start()
        reflected = [torch.equal(run(pipe, call), expected) for _ in range(5)]
        stop.set()
        thread.join()
    assert all(reflected)
    assert all(results)


def test_a_method_that_was_taken_before_the_block_is_refused():
    pipe, call = modular("wan")
    expected, before = run(pipe, call), pipe.__call__
    with reflection(pipe, strong=Branch(), weak=Branch(skip_layers=[0])):
        assert not torch.equal(run(pipe, call), expected)
        with pytest.raises(ValueError, match="taken before the block"):
            run(before, call)
    assert torch.equal(run(pipe, call), expected)


def unguided():
    return diffusers.ClassifierFreeGuidance(guidance_scale=3.0, enabled=False)


@pytest.mark.parametrize(
    ("family", "guider", "weak", "words"),
    [
        ("wan", unguided, {"guidance_scale": 3.0}, "evaluates no unconditional prompt"),
        ("wan", unguided, {"negative_prompt": "red"}, "no guider of WanModularPipeline evaluates an unconditional"),
        (
            "wan",
            None,
            {"guidance_scale": (3.0, 1.0)},
            "pair of guidance_scale, but WanModularPipeline has one denoiser",
        ),
        ("wan", None, {"control_scale": 0.5}, "pass controlnet_conditioning_scale to the call"),
        ("wan", None, {"lora": {"paint": 1.0}}, "no LoRA adapter named paint"),
        ("wan", None, {"skip_layers": [9]}, "skip_layers 9: this WanTransformer3DModel has 2 blocks"),
        ("wan", None, {"weights": "poor"}, "no second denoiser named 'poor'"),
        ("wan", None, {"weights": torch.nn.Linear(1, 1)}, "the second denoiser is a Linear"),
        ("wan 2.2", None, {"weights": torch.nn.Linear(1, 1)}, "must be a pair of modules"),
    ],
)
def test_bad_branches_are_one_clear_error_before_any_network_runs(family, guider, weak, words):
    pipe, _ = modular(family, guider=guider and guider())
    with counted(*[p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]) as calls:
        with pytest.raises(ValueError, match=words), reflection(pipe, strong=Branch(), weak=Branch(**weak)):
            pass
        assert not calls


def test_bad_pipelines_and_calls_are_one_clear_error():
    empty = diffusers.WanBlocks().init_pipeline()
    with (
        pytest.raises(ValueError, match="scheduler, transformer of WanModularPipeline are not loaded"),
        reflection(empty, strong=Branch(), weak=Branch(), solver="UniPCMultistepScheduler"),
    ):
        pass
    pipe, call = modular("wan")
    blocks = diffusers.WanBlocks()
    blocks.sub_blocks.pop("denoise")
    pipe._blocks, own = blocks, pipe._blocks
    with (
        pytest.raises(TypeError, match="none of its blocks is a denoise loop"),
        reflection(pipe, strong=Branch(), weak=Branch()),
    ):
        pass
    pipe._blocks = own
    with reflection(pipe, strong=Branch(), weak=Branch()):
        with pytest.raises(ValueError, match="reflected already"), reflection(pipe, strong=Branch(), weak=Branch()):
            pass
    with (
        reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=9),
        pytest.raises(ValueError, match="0 to 3"),
    ):
        run(pipe, call)
    pipe.update_components(scheduler=diffusers.LCMScheduler())
    with pytest.raises(TypeError, match="LCMScheduler"), reflection(pipe, strong=Branch(), weak=Branch()):
        pass
    pipe, call = modular("stable diffusion 3", negative_prompt=None)
    with (
        reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=2.0)),
        pytest.raises(ValueError, match="pass negative_prompt"),
    ):
        run(pipe, call)
    pipe, call = modular("qwen image")
    with (
        reflection(pipe, strong=Branch(), weak=Branch(prompt="a sea")),
        pytest.raises(ValueError, match="has a prompt, but"),
    ):
        run(pipe, call)
