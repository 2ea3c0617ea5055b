"""A network sees what the sampler asks for: at other noise levels, with all rows that it looks at, as it is now."""

import copy

import diffusers
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor2_0,
)
from helpers import add_lora, close
from plain_loop import STEPS, STRONG, WEAK, alphas_of, noise_like, plain_loop, read_noise, run
from tiny import parts, text
from tiny.variants import build

from w2sd_video import Branch, reflection


def other(network):
    return tiny.randomise(copy.deepcopy(network), gain=1.2)


# --- rows ----------------------------------------------------------------------------------------------------------


def two_ip_adapters(folder):
    """As many adapters as a guided sample has rows."""
    pipe, call = tiny.stable_diffusion(ip_adapter=True)
    for number in range(2):
        torch.manual_seed(number)
        tiny.randomise(pipe.unet.encoder_hid_proj, gain=1.0 + number)
        tiny.save_ip_adapter(pipe, folder / f"{number}.safetensors")
    pipe.unload_ip_adapter()
    pipe.register_modules(image_encoder=text.clip_vision(), feature_extractor=text.image_processor())
    names = [f"{number}.safetensors" for number in range(2)]
    pipe.load_ip_adapter(str(folder), subfolder=["", ""], weight_name=names, image_encoder_folder=None)
    pipe.set_ip_adapter_scale([0.8, 0.5])
    return pipe, call | {"ip_adapter_image": [parts.picture(seed=1), parts.picture(seed=2)]}


@pytest.mark.parametrize("masked", [None, list, torch.cat])
def test_a_row_is_taken_of_each_of_several_ip_adapters_and_not_one_of_them(tmp_path, masked):
    pipe, call = two_ip_adapters(tmp_path)
    if masked:
        left = torch.zeros(1, 1, 16, 16)
        left[..., :8] = 1
        call |= {"cross_attention_kwargs": {"ip_adapter_masks": masked([left, 1 - left])}}
    role = Branch(guidance_scale=1.0)
    expected = run(pipe, call, guidance_scale=1.0)
    with reflection(pipe, strong=role, weak=role, base=role) as done:
        run(pipe, call)
    with reflection(pipe, strong=role, weak=role, base=role, inversion="current"):
        close(run(pipe, call), expected)
    assert done.nfe == {"base": STEPS, "strong": STEPS - 1, "weak": STEPS - 1}


class SharedAttention(AttnProcessor2_0):
    """All samples look at what they have in common, as of StyleAligned."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None:
            common = 3 * hidden_states.mean(0, keepdim=True).expand_as(hidden_states)
            encoder_hidden_states = torch.cat([hidden_states, common], 1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def by_processor(unet):
    unet.set_attn_processor(SharedAttention())


def by_frames(unet):
    """Text2Video-Zero's: it splits the rows by two, those of guidance, and looks at the first frame of each half."""
    unet.set_attn_processor(CrossFrameAttnProcessor2_0(batch_size=2))


def by_patch(unet):
    for module in unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            forward = module.forward
            module.forward = lambda states, *args, forward=forward, **kwargs: forward(
                states + states.mean(0, keepdim=True), *args, **kwargs
            )


@pytest.mark.parametrize("change", [by_processor, by_frames, by_patch])
def test_rows_that_look_at_each_other_are_evaluated_together(change):
    """Against a plain loop that evaluates both halves of guidance whatever the scale."""
    pipe, call = tiny.stable_diffusion()
    change(pipe.unet)
    call |= {"prompt": ["a red circle", "a blue square"]}
    embeds, empty = pipe.encode_prompt(call["prompt"], "cpu", 1, True)
    pipe.scheduler.set_timesteps(STEPS)
    scales = {"base": 3.0, "strong": STRONG.guidance_scale, "weak": WEAK.guidance_scale}

    @torch.no_grad()
    def predict(x, t, role):
        uncond, cond = pipe.unet(torch.cat([x] * 2), t, torch.cat([empty, embeds])).sample.chunk(2)
        return uncond + scales[role] * (cond - uncond)

    levels = alphas_of(pipe.scheduler)
    plain = plain_loop(noise_like((2, 4, 8, 8)), copy.deepcopy(pipe.scheduler), levels, predict, read_noise(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK):
        close(run(pipe, call, guidance_scale=3.0), plain, 2e-4)


# --- levels --------------------------------------------------------------------------------------------------------


class OwnLoop(diffusers.StableDiffusionPipeline):
    """A loop that looks up by its index what it is handed, where it is told to."""

    @torch.no_grad()
    def __call__(self, prompt, scaled_by="scheduler", told_by="timestep", num_inference_steps=STEPS):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = noise_like((1, 4, 8, 8)) * self.scheduler.init_noise_sigma
        words, _ = self.encode_prompt(prompt, "cpu", 1, False)
        for i, t in enumerate(self.scheduler.timesteps):
            if scaled_by == "scheduler":
                samples = self.scheduler.scale_model_input(latents, t)
            else:
                samples = latents / (self.scheduler.sigmas[i] ** 2 + 1) ** 0.5
            told = t if told_by == "timestep" else self.scheduler.timesteps[i]
            latents = self.scheduler.step(self.unet(samples, told, words).sample, t, latents).prev_sample
        return (latents,)


def own_loop(scheduler):
    pipe, call = tiny.stable_diffusion()
    own = OwnLoop(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    return own, call["prompt"], Branch(weights=other(pipe.unet))


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_a_loop_that_scales_latents_by_its_index_is_right(inversion):
    """What the weak branch is asked for may lie at the next level, which is not the one that they are scaled by."""
    pipe, prompt, weak = own_loop(diffusers.EulerDiscreteScheduler(**parts.STABLE))
    with reflection(pipe, strong=Branch(), weak=weak, inversion=inversion):
        close(pipe(prompt, scaled_by="index")[0], pipe(prompt)[0], 1e-4)


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_a_loop_that_tells_timesteps_by_its_index_is_right_or_refused(inversion):
    """The explicit inversion has the network told the timestep of the next step."""
    pipe, prompt, weak = own_loop(diffusers.DDIMScheduler(**parts.STABLE, clip_sample=False))
    with reflection(pipe, strong=Branch(), weak=weak, inversion=inversion) as done:
        expected = pipe(prompt)[0]
        if inversion != "explicit":
            close(pipe(prompt, told_by="index")[0], expected)
            return
        with pytest.raises(ValueError, match="explicit"):
            pipe(prompt, told_by="index")
        assert not any(done.nfe.values())


def test_a_pipeline_of_diffusers_that_tells_noise_levels_by_its_index_is_refused_too():
    pipe, call = build("Cosmos2TextToImagePipeline")
    with (
        reflection(pipe, strong=Branch(), weak=Branch(), inversion="explicit"),
        pytest.raises(ValueError, match="explicit"),
    ):
        run(pipe, call)


# --- what callbacks change -----------------------------------------------------------------------------------------


def test_a_lora_that_a_callback_scales_is_scaled_beside_a_branch_with_another_lora():
    def make():
        pipe, call = tiny.stable_diffusion()
        for number, name in enumerate(("style", "detail")):
            add_lora(pipe.unet, name, number)
        pipe.unet.set_adapters(["style", "detail"], [1.0, 1.0])
        return pipe, call

    def scale(pipe, index, timestep, kwargs):
        pipe.unet.set_adapters(["style", "detail"], [1.0, 0.2 * index])
        return {}

    stock = run(*make(), callback_on_step_end=scale)
    pipe, call = make()
    role = Branch(lora={"style": 1.0})
    with reflection(pipe, strong=role, weak=role, base=role, inversion="current"):
        close(run(pipe, call, callback_on_step_end=scale), stock)


@pytest.mark.parametrize("at", [0, 2, STEPS - 2])
@pytest.mark.parametrize("part", ["unet", "controlnet"])
def test_a_callback_that_replaces_a_network_is_refused(part, at):
    pipe, call = tiny.stable_diffusion(control=True)
    weak = Branch(control_scale=0.2)
    replaced = other(getattr(pipe, part))

    def replace(pipe, index, timestep, kwargs):
        if index == at:
            setattr(pipe, part, replaced)
        return {}

    with (
        reflection(pipe, strong=Branch(), weak=weak),
        pytest.raises(ValueError, match=f"a callback replaced the pipeline's {part}"),
    ):
        run(pipe, call, callback_on_step_end=replace)


def test_a_loop_that_goes_on_with_another_network_is_refused_when_it_does():
    class TwoExperts(OwnLoop):
        @torch.no_grad()
        def __call__(self, prompt, experts, num_inference_steps=6):
            self.scheduler.set_timesteps(num_inference_steps)
            latents = noise_like((1, 4, 8, 8))
            words, _ = self.encode_prompt(prompt, "cpu", 1, False)
            for i, t in enumerate(self.scheduler.timesteps):
                network = experts[1] if i == 1 else experts[0]
                latents = self.scheduler.step(network(latents, t, words).sample, t, latents).prev_sample
            return (latents,)

    pipe, call = tiny.stable_diffusion()
    loop = TwoExperts(**pipe.components, requires_safety_checker=False)
    experts = [pipe.unet, other(pipe.unet)]
    with (
        reflection(loop, strong=Branch(), weak=Branch(weights=other(pipe.unet))),
        pytest.raises(ValueError, match="does not evaluate its network in every turn"),
    ):
        loop(call["prompt"], experts)


def test_a_second_network_of_another_precision_is_refused_in_words():
    pipe, _ = tiny.stable_diffusion()
    weak = Branch(weights=copy.deepcopy(pipe.unet).half())
    with pytest.raises(ValueError, match=r"float16.*float32"), reflection(pipe, strong=Branch(), weak=weak):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("of_new", [False, True])
def test_a_callback_that_changes_the_noise_levels_is_refused(of_new):
    pipe, call = tiny.stable_diffusion()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**parts.STABLE)

    def change(pipe, index, timestep, kwargs):
        if of_new:
            pipe.scheduler.sigmas = 0.9 * pipe.scheduler.sigmas
        else:
            pipe.scheduler.sigmas[index + 1 :] *= 0.9
        return {}

    stock = run(pipe, call, callback_on_step_end=change)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0):
        assert torch.equal(run(pipe, call, callback_on_step_end=change), stock)
    with reflection(pipe, strong=STRONG, weak=WEAK), pytest.raises(ValueError, match="noise levels changed"):
        run(pipe, call, callback_on_step_end=change)


def test_a_run_is_filled_in_by_all_passes_of_a_subclass():
    """A small picture first, then a large one from it."""

    class Larger(diffusers.StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            small = super().__call__(*args, **kwargs).images
            larger = torch.nn.functional.interpolate(small, scale_factor=2)
            return super().__call__(*args, **kwargs | {"latents": larger, "height": 32, "width": 32})

    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, strong=STRONG, weak=WEAK) as done:
        run(pipe, call)
    once = copy.deepcopy(done)
    pipe.__class__ = Larger
    with reflection(pipe, strong=STRONG, weak=WEAK) as done:
        for _ in range(2):
            run(pipe, call)
            assert done.nfe == {role: 2 * calls for role, calls in once.nfe.items()}
            assert (done.steps, done.reflected_steps) == (2 * once.steps, 2 * once.reflected_steps)


class MergesLater(OwnLoop):
    """It begins with words of its own and goes on with those of the call (PhotoMaker, FaceID)."""

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=6):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = noise_like((1, 4, 8, 8))
        words, _ = self.encode_prompt(prompt, "cpu", 1, False)
        first, _ = self.encode_prompt("a photo", "cpu", 1, False)
        for i, t in enumerate(self.scheduler.timesteps):
            prediction = self.unet(latents, t, first if i < 3 else words).sample
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        return (latents,)


def test_text_that_comes_in_later_beside_a_branch_with_text_is_refused():
    pipe, call = tiny.stable_diffusion()
    loop = MergesLater(**pipe.components, requires_safety_checker=False)
    with reflection(loop, strong=Branch(), weak=Branch(skip_layers=["mid_block"])):
        loop(call["prompt"])
    with (
        reflection(loop, strong=Branch(), weak=Branch(prompt="a blue square")),
        pytest.raises(ValueError, match="changed in the call"),
    ):
        loop(call["prompt"])


def test_text_for_evaluations_that_come_in_later_is_refused_in_words():
    pipe, call = build("StableDiffusion3Pipeline")
    call |= {"num_inference_steps": 6, "skip_guidance_layers": [0]}
    call |= {"skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    with (
        reflection(pipe, strong=Branch(), weak=Branch(prompt="a blue square")),
        pytest.raises(ValueError, match="more often than in its first step"),
    ):
        run(pipe, call, num_inference_steps=6)
