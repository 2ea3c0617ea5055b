"""What the plugin cannot do is refused, with a reason, before sampling."""

import diffusers
import pytest
import tiny
import torch
from helpers import state
from plain_loop import STEPS, STRONG, WEAK, run

from w2sd_video import Branch, reflection


def test_what_cannot_be_reflected_is_refused_with_a_reason_before_sampling():
    pipe, call = tiny.stable_diffusion()
    good = pipe.scheduler
    with (
        pytest.raises(ValueError, match="being reflected already"),
        reflection(pipe, strong=STRONG, weak=WEAK),
        reflection(pipe, strong=STRONG, weak=WEAK),
    ):
        run(pipe, call)

    def replace(pipe, index, timestep, kwargs):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
        return kwargs

    with (
        pytest.raises(ValueError, match="a callback replaced"),
        reflection(pipe, strong=STRONG, weak=WEAK),
    ):
        run(pipe, call, callback_on_step_end=replace)
    pipe.scheduler = good
    for scheduler, said in [
        (diffusers.LCMScheduler(), "consistency"),
        (diffusers.KDPM2DiscreteScheduler(), "use one of"),
    ]:
        pipe.scheduler = scheduler
        with pytest.raises(TypeError, match=said), reflection(pipe, strong=STRONG, weak=WEAK):
            run(pipe, call)
    pipe.scheduler = good

    class Loopless(diffusers.DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def never_called(self):
            return self.scheduler.step(None, None, None)

        def __call__(self):
            return self.unet

    with pytest.raises(RuntimeError, match="never called"):
        loopless = Loopless(pipe.unet, good)
        with reflection(loopless, strong=STRONG, weak=WEAK):
            loopless()
    with pytest.raises(TypeError, match="needs a scheduler and a denoiser"):
        pipe.unet = None
        with reflection(pipe, strong=STRONG, weak=WEAK):
            pass


@pytest.mark.parametrize(
    ("branch", "call_changes", "said"),
    [
        (Branch(weights="weak"), {}, r"no second denoiser named 'weak'.*loaded are none"),
        (Branch(weights=tiny.unet(cross_attention_dim=8)), {}, "cross_attention_dim=8.*cross_attention_dim=16"),
        (Branch(weights=torch.nn.Linear(1, 1)), {}, "is a Linear, the pipeline's is a UNet2DConditionModel"),
        (Branch(lora={"style": 1.0}), {}, r"no LoRA adapter named style.*loaded are none"),
        (Branch(guidance_scale=4.0), {"guidance_scale": 1.0}, "guidance_scale=4.0.*call it with guidance_scale > 1"),
        (Branch(prompt=["a circle", "a square"]), {}, "2 prompts.*called with 1"),
    ],
)
def test_branches_that_a_pipeline_cannot_be_given(branch, call_changes, said):
    pipe, call = tiny.stable_diffusion()
    before = state(pipe)
    with pytest.raises(ValueError, match=said), reflection(pipe, strong=branch, weak=Branch()):
        run(pipe, call, **call_changes)
    assert state(pipe)["class"] == before["class"] and state(pipe)["modules"] == before["modules"]


def test_a_prompt_for_a_pipeline_without_text_is_refused():
    pipe, call = tiny.dit()
    with (
        pytest.raises(ValueError, match="DiTPipeline takes none"),
        reflection(pipe, strong=Branch(prompt="a"), weak=WEAK),
    ):
        run(pipe, call)


def test_a_prompt_beside_embeddings_is_refused_in_words():
    pipe, call = tiny.cogvideox()
    with torch.no_grad():
        text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)
    embedded = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": negative}
    refused = pytest.raises(ValueError, match="pass negative_prompt as text")
    with refused, reflection(pipe, strong=Branch(prompt="a blue square"), weak=Branch()):
        run(pipe, call, **embedded)


def test_more_reflection_steps_than_steps():
    pipe, call = tiny.animatediff()
    with (
        pytest.raises(ValueError, match=f"from 0 to {STEPS}, the number of steps; got 9"),
        reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=9),
    ):
        run(pipe, call)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"guidance_scale": float("inf")}, ValueError, "guidance_scale must be a finite number"),
        ({"guidance_scale": "6"}, TypeError, "guidance_scale must be a number, got '6'"),
        ({"lora": {"style": "loud"}}, TypeError, r"lora\['style'\] must be a number"),
        ({"weights": 3}, TypeError, "weights must be a module or the name of one, got int"),
        ({"prompt": [1]}, TypeError, "prompt must be text"),
    ],
)
def test_branch_fields_are_checked(fields, error, said):
    with pytest.raises(error, match=said):
        Branch(**fields)
