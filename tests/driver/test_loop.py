"""The pipeline's loop: what it counts is meant in real steps, and what it does to the turns of one step is watched."""

import types

import diffusers
import pytest
import tiny
import torch
from helpers import NOTHING, close
from pipelines_table import run as result_of
from plain_loop import STRONG, WEAK, run
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.driver.guards import Caches

NULL = {"strong": Branch(), "weak": Branch(), "inversion": "current"}


def image():
    return torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def image_to_image(scheduler=None):
    pipe, call = tiny.stable_diffusion()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler or pipe.scheduler
    return pipe, {name: value for name, value in call.items() if name not in ("height", "width")} | {"image": image()}


WINDOWS = {
    "control": (tiny.animatediff_controlnet, {"control_guidance_start": 0.2, "control_guidance_end": 0.7}),
    "denoising end": (tiny.stable_diffusion_xl, {"denoising_end": 0.5}),
    "adapter": (lambda: build("StableDiffusionXLAdapterPipeline"), {"adapter_conditioning_factor": 0.5}),
    "truncated guidance": (lambda: build("Lumina2Pipeline"), {"cfg_trunc_ratio": 0.5}),
    "skipped layers": (
        lambda: build("StableDiffusion3Pipeline"),
        {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7},
    ),
    "timesteps and strength": (
        lambda: image_to_image(diffusers.DPMSolverMultistepScheduler()),
        {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], "strength": 0.75},
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_in_real_steps(name):
    make, window = WINDOWS[name]
    pipe, call = make()
    call = {**call, "num_inference_steps": 6, **window}
    stock = result_of(pipe, call)
    without = result_of(pipe, {name: value for name, value in call.items() if name not in window})
    assert not torch.equal(stock, without)
    with reflection(pipe, **NULL):
        close(result_of(pipe, call), stock)
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0):
        assert torch.equal(result_of(pipe, call), stock)
    with reflection(pipe, strong=Branch(), weak=Branch(), strength=NOTHING) as done:
        assert torch.equal(result_of(pipe, call), stock)
    assert done.reflected_steps == done.steps - ("denoising_end" not in window)


def test_temporal_reasoning_ends_after_the_real_steps_it_was_given():
    """ChronoEdit drops its frames between at one step, from its latents and from what its scheduler remembers."""
    pipe, call = build("ChronoEditPipeline")
    pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    call |= {"num_frames": 9, "enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 2}
    stock = result_of(pipe, call)
    with reflection(pipe, **NULL):
        close(result_of(pipe, call), stock)
    with reflection(pipe, strong=Branch(), weak=Branch(), strength=NOTHING):
        assert torch.equal(result_of(pipe, call), stock)


def test_two_stages_of_one_schedule_walk_their_own_steps():
    """A base model up to ``denoising_end``, then a refiner from there: together the stock steps, each reflected."""
    pipe, call = tiny.stable_diffusion_xl()
    call |= {"num_inference_steps": 10}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**{k: v for k, v in pipe.components.items() if v is not None})
    refiner.set_progress_bar_config(disable=True)
    with reflection(pipe, strong=STRONG, weak=WEAK) as base:
        latents = run(pipe, call, num_inference_steps=10, denoising_end=0.7)
    sizes = ("height", "width")
    rest = {name: value for name, value in call.items() if name not in sizes} | {"denoising_start": 0.7}
    stock = run(refiner, rest, num_inference_steps=10, image=latents)
    with reflection(refiner, **NULL) as refined:
        close(run(refiner, rest, num_inference_steps=10, image=latents), stock)
    assert (base.steps, base.reflected_steps) == (7, 7)
    assert (refined.steps, refined.reflected_steps) == (3, 2)


@pytest.mark.parametrize("window", [(0.0, 0.5), (0.5, 1.0)])
def test_windows_are_of_the_steps_that_the_loop_takes(window):
    """The steps that ``denoising_end`` leaves to others are none of a base model's, whatever counts them."""
    pipe, call = tiny.stable_diffusion_xl()
    call |= {"num_inference_steps": 10, "denoising_end": 0.6}
    guided = Branch(guidance_scale=4.0, windows={"guidance_scale": window})
    with reflection(pipe, strong=guided, weak=WEAK) as by_branch:
        by_idle_steps = result_of(pipe, call)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=window) as by_steps:
        assert torch.equal(result_of(pipe, call), by_idle_steps)
    assert by_branch.reflected_steps == by_steps.reflected_steps == 3
    with reflection(
        pipe, strong=STRONG, weak=WEAK, reflection_steps=0, autoguidance=1.0, autoguidance_steps=window
    ) as pushed:
        result_of(pipe, call)
    assert pushed.nfe["weak"] == 3
    with (
        pytest.raises(ValueError, match="reflection_steps must be from 0 to 6"),
        reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=7),
    ):
        result_of(pipe, call)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("every", [1, 2])
def test_the_old_callback_is_called_as_in_a_stock_loop(steps, every):
    pipe, call = tiny.pixart()
    pipe.scheduler = diffusers.DDIMScheduler()  # at one step PixArt goes on with the second thing that is returned
    call |= {"num_inference_steps": steps, "callback_steps": every}

    def seen():
        shown = []
        result_of(pipe, call | {"callback": lambda i, t, latents: shown.append((i, int(t), latents.clone()))})
        return shown

    stock = seen()
    with reflection(pipe, strong=Branch(), weak=Branch(), strength=NOTHING):
        off = seen()
    with reflection(pipe, strong=STRONG, weak=WEAK):
        on = seen()
    assert [entry[:2] for entry in on] == [entry[:2] for entry in stock] and len(stock) == -(-steps // every)
    assert all(torch.equal(one[2], other[2]) for one, other in zip(off, stock, strict=True))


def test_loops_that_cannot_be_walked_are_refused():
    pipe, call = tiny.stable_diffusion()

    class ByIndex(diffusers.StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, prompt, **kwargs):
            self.scheduler.set_timesteps(4)
            latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            text, _ = self.encode_prompt(prompt, "cpu", 1, False)
            for i in range(len(self.scheduler.timesteps)):
                t = self.scheduler.timesteps[i]
                latents = self.scheduler.step(self.unet(latents, t, text).sample, t, latents).prev_sample
            return (latents,)

    by_index = ByIndex(**{k: v for k, v in pipe.components.items()}, requires_safety_checker=False)
    stock = by_index(call["prompt"])[0]
    with reflection(by_index, strong=Branch(), weak=Branch(), reflection_steps=0):
        assert torch.equal(by_index(call["prompt"])[0], stock)
    with pytest.raises(ValueError, match="outside of a loop"), reflection(by_index, **NULL):
        by_index(call["prompt"])


def test_a_loop_that_steps_twice_at_a_timestep_or_leaves_one_out_is_stock_off_and_refused_on():
    class Uneven(diffusers.StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, prompt, steps_at, **kwargs):
            self.scheduler.set_timesteps(4)
            latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            text, _ = self.encode_prompt(prompt, "cpu", 1, False)
            for i, t in enumerate(self.scheduler.timesteps):
                for _ in range(steps_at[i]):
                    latents = self.scheduler.step(self.unet(latents, t, text).sample, t, latents).prev_sample
            return (latents,)

    pipe, call = tiny.stable_diffusion()
    uneven = Uneven(**pipe.components, requires_safety_checker=False)
    for steps_at in ([2, 2, 2, 2], [1, 0, 1, 1], [1, 2, 0, 2]):
        stock = uneven(call["prompt"], steps_at)[0]
        with reflection(uneven, strong=Branch(), weak=Branch(), reflection_steps=0):
            assert torch.equal(uneven(call["prompt"], steps_at)[0], stock)
        with pytest.raises((ValueError, RuntimeError), match="cannot be reflected"), reflection(uneven, **NULL):
            uneven(call["prompt"], steps_at)


@pytest.mark.parametrize("make", [tiny.stable_diffusion, tiny.wan])
def test_an_interruption_in_the_midst_of_a_step_lets_it_end(make):
    """Of another thread, for example, which may come in a turn that only watches as well."""
    pipe, call = make()
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    after_steps, evaluations = [], []

    def keep(pipe, index, timestep, given):
        after_steps.append(given["latents"].clone())
        return {}

    def interrupt_at(number):
        evaluations.clear()

        def interrupt(*_):
            evaluations.append(1)
            if len(evaluations) == number:
                pipe._interrupt = True

        return denoiser.register_forward_pre_hook(interrupt)

    handle = interrupt_at(0)
    with reflection(pipe, strong=STRONG, weak=WEAK):
        run(pipe, call, callback_on_step_end=keep)
    handle.remove()
    total, ended_at = len(evaluations), []
    for number in (1, 2, 7, total // 2, total - 6, total - 1):
        handle = interrupt_at(number)
        with reflection(pipe, strong=STRONG, weak=WEAK) as reflected:
            result = run(pipe, call)
            assert pipe.interrupt
        handle.remove()
        ended_at.append(reflected.steps)
        assert torch.equal(result, after_steps[reflected.steps - 1])
    assert ended_at[0] == 1 and len(set(ended_at)) > 1


def test_a_loop_that_is_stopped_in_the_midst_of_a_step_is_no_result():
    class Stopped(diffusers.StableDiffusionPipeline):
        stop_at, interrupt = 0, False

        @torch.no_grad()
        def __call__(self, prompt, **kwargs):
            self.scheduler.set_timesteps(4)
            self.interrupt = False  # of its own
            latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            text, _ = self.encode_prompt(prompt, "cpu", 1, False)
            for t in self.scheduler.timesteps:
                prediction = self.unet(latents, t, text).sample
                if self.interrupt:
                    break
                latents = self.scheduler.step(prediction, t, latents).prev_sample
            return (latents,)

    pipe, call = tiny.stable_diffusion()
    stopped, evaluations = Stopped(**pipe.components, requires_safety_checker=False), []

    def stop(*_):
        evaluations.append(1)
        stopped.interrupt = len(evaluations) == stopped.stop_at

    pipe.unet.register_forward_pre_hook(stop)
    with reflection(stopped, **NULL):
        expected = stopped(call["prompt"])[0]
        stopped.stop_at = len(evaluations) - 2
        evaluations.clear()
        with pytest.raises(ValueError, match="was stopped there"):
            stopped(call["prompt"])
        assert torch.equal(stopped(call["prompt"])[0], expected)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "result",
    [
        lambda latents: {"seed": 1, "images": latents},
        lambda latents: types.SimpleNamespace(images=latents),
        lambda latents: latents,
        lambda latents: iter(latents),
        lambda latents: (),
        lambda latents: None,
    ],
)
def test_evaluations_are_of_a_sample_whatever_a_loop_returns(result, samples):
    class Own(diffusers.StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, prompt):
            self.scheduler.set_timesteps(4)
            latents = torch.randn((samples, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            text, _ = self.encode_prompt(prompt, "cpu", samples, False)
            for t in self.scheduler.timesteps:
                latents = self.scheduler.step(self.unet(latents, t, text).sample, t, latents).prev_sample
            return result(latents)

    pipe, call = tiny.stable_diffusion()
    own = Own(**pipe.components, requires_safety_checker=False)
    with reflection(own, strong=Branch(), weak=Branch(skip_layers=[0])) as reflected:
        own(call["prompt"])
    assert reflected.nfe == {"base": 4, "strong": 3, "weak": 3}


def test_enumerate_is_the_builtin_one_outside_a_call():
    pipe, call = tiny.wan()
    module = __import__(type(pipe).__module__, fromlist=["_"])
    with reflection(pipe, strong=STRONG, weak=WEAK):
        assert "enumerate" not in vars(module)

        def fails(*_):
            assert "enumerate" in vars(module)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(pipe, call, callback_on_step_end=fails)
        assert "enumerate" not in vars(module)
        again = run(pipe, call)
    with reflection(pipe, strong=STRONG, weak=WEAK):
        assert torch.equal(run(pipe, call), again)


GUIDERS = {
    "start": lambda: diffusers.ClassifierFreeGuidance(3.0, start=0.5),
    "zero star": lambda: diffusers.ClassifierFreeZeroStarGuidance(3.0),
    "momentum": lambda: diffusers.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.7),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_a_guider_is_told_real_steps_and_keeps_momentum_of_them_only(guider):
    pipe, call = build("HunyuanVideo15Pipeline")
    plain = result_of(pipe, call)
    pipe.guider = GUIDERS[guider]()
    stock = result_of(pipe, call)
    assert not torch.equal(stock, plain)
    with reflection(pipe, **NULL):
        close(result_of(pipe, call), stock)


def test_a_second_guider_keeps_momentum_of_real_steps_only():
    pipe, call = build("HunyuanImagePipeline")
    pipe.ocr_guider = diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=0)
    stock = result_of(pipe, call)
    with reflection(pipe, **NULL):
        close(result_of(pipe, call), stock)


def test_a_pipeline_that_needs_more_of_its_network_than_a_prediction_is_refused_before_it_runs():
    pipe, call = build("Flux2KleinKVPipeline")
    with pytest.raises(ValueError, match="more of its network than a prediction"), reflection(pipe, **NULL) as done:
        result_of(pipe, call)
    assert not any(done.nfe.values())


def test_a_cache_of_one_branch_is_not_given_to_another():
    caches, keys = Caches(), torch.ones(2)
    caches.note((torch.zeros(1), keys), Branch())
    caches.check({"latents": torch.zeros(1), "keys": keys}, Branch())
    with pytest.raises(ValueError, match="kept from an evaluation of another branch"):
        caches.check({"latents": torch.zeros(1), "keys": keys}, Branch(skip_layers=[0]))


def test_a_cache_that_a_network_fills_is_its_branchs_own():
    pipe, call = build("QwenImage21Pipeline")
    with reflection(pipe, strong=Branch(guidance_scale=4.0), weak=Branch(guidance_scale=1.0)) as done:
        by_guidance = result_of(pipe, call)
    assert done.reflected_steps
    with reflection(pipe, strong=Branch(guidance_scale=4.0), weak=Branch(guidance_scale=1.0)):
        close(result_of(pipe, call | {"use_kv_cache": False}), by_guidance)
    with reflection(pipe, strong=Branch(), weak=Branch(skip_layers=[0])):
        assert result_of(pipe, call | {"use_kv_cache": False}).isfinite().all()
        with pytest.raises(ValueError, match=r"kept from an evaluation of another branch.*use_kv_cache=False"):
            result_of(pipe, call)


@pytest.mark.parametrize("make", [tiny.dit, lambda: build("TextToVideoSDPipeline")])
def test_resampling_draws_from_the_generators_of_the_samples(make):
    pipe, call = make()
    call |= {"num_inference_steps": 3}

    def sample(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        changed = {"class_labels": [1] * len(seeds)} if "class_labels" in call else {}
        if "prompt" in call:
            changed = {"prompt": [call["prompt"]] * len(seeds)}
        is_latent = "prompt" in call
        out = pipe(**call | changed, generator=generators, output_type="latent" if is_latent else "np")
        return torch.as_tensor(out.frames if is_latent else out.images)

    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="resample"):
        close(sample([1, 2]), torch.cat([sample([1]), sample([2])]))
