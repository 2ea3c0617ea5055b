"""Loops that change their latents after each step, as inpainting does: reflected between the steps, or refused."""

from itertools import pairwise

import diffusers
import pytest
import torch
from helpers import NOTHING, close
from pipelines_table import run
from plain_loop import STRONG, WEAK
from test_watched import Loop, of
from tiny.variants import build

from w2sd_video import Branch, reflection

STEPS = 6


def kept_noise():
    generator = torch.Generator().manual_seed(11)
    return torch.randn((1, 4, 8, 8), generator=generator), torch.randn((1, 4, 8, 8), generator=generator)


class Inpainting(Loop):
    """The upper half is kept, noised as much as the latents of the next step are."""

    def edited(self, latents):
        kept, noise = kept_noise()
        timesteps = self.scheduler.timesteps.tolist()
        self.next = {**dict(pairwise(timesteps)), timesteps[-1]: None}[float(self.t)]
        if self.next is not None:
            kept = self.scheduler.add_noise(kept, noise, torch.tensor([self.next]))
        return torch.cat([kept[:, :, :4], latents[:, :, 4:]], 2)

    @torch.no_grad()
    def __call__(self, prompt, generator=None, guidance_scale=5.0, num_inference_steps=STEPS, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        latents = latents * self.scheduler.init_noise_sigma
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)
        for t in self.scheduler.timesteps:
            self.t = t
            cond, uncond = self.evaluated(latents, t, torch.cat([text, empty])).chunk(2)
            prediction = self.kept(uncond + guidance_scale * (cond - uncond), latents, generator)
            latents = self.scheduler.step(prediction, t, latents, return_dict=False)[0]
            latents = self.edited(latents)
        return (latents,)

    def evaluated(self, latents, t, words):
        return self.unet(self.scheduler.scale_model_input(torch.cat([latents] * 2), t), t, words).sample


class InPlace(Inpainting):
    def edited(self, latents):
        latents[:, :, :4] = super().edited(latents)[:, :, :4]
        return latents


class SteersByPrediction(Inpainting):
    def kept(self, prediction, memory, generator):
        self.last = prediction
        return prediction

    def edited(self, latents):
        return latents + 0.1 * self.last


class PredictsFromLatents(Inpainting):
    def kept(self, prediction, latents, generator):
        return prediction + 0.1 * latents


class TellsOfLatents(Inpainting):
    def evaluated(self, latents, t, words):
        return super().evaluated(latents, t, words + latents.mean())


class Mirrored(Inpainting):
    def evaluated(self, latents, t, words):
        return super().evaluated(latents.flip(-1), t, words).flip(-1)


class EditsLate(Inpainting):
    def edited(self, latents):
        return super().edited(latents) if float(self.t) < 500 else latents


def plain(pipe, call, inversion, push=0.0):
    """Algorithm 1 for a network of noise, with the loop's own edit after each step alone."""
    scheduler, alphas = pipe.scheduler, pipe.scheduler.alphas_cumprod
    scheduler.set_timesteps(STEPS)
    is_on_sigmas = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    text, empty = pipe.encode_prompt(call["prompt"], "cpu", 1, True)

    def level(i):
        if is_on_sigmas:
            return 1.0, float(scheduler.sigmas[i])
        before = scheduler.config.num_train_timesteps // STEPS
        t = int(scheduler.timesteps[i]) if i < STEPS else int(scheduler.timesteps[-1]) - before
        product = float(alphas[t]) if t >= 0 else float(scheduler.final_alpha_cumprod)
        return product**0.5, (1 - product) ** 0.5

    def predict(x, of_level, t, scale):
        shown = x / (1 + of_level[1] ** 2) ** 0.5 if is_on_sigmas else x
        cond, uncond = pipe.unet(torch.cat([shown] * 2), t, torch.cat([text, empty])).sample.chunk(2)
        return uncond + scale * (cond - uncond)

    for i, t in enumerate(scheduler.timesteps):
        at, below, x = level(i), level(i + 1), latents
        if i < STEPS - 1:
            strong = predict(x, at, t, 4.0)
            if inversion == "paper":
                x = below[0] * (x - at[1] * strong) / at[0] + below[1] * strong
                weak = predict(x, below, t, 1.0)
                x = at[0] * (x - below[1] * weak) / below[0] + at[1] * weak
            else:
                weak = predict(x, at, t, 1.0)
                x = x + (at[0] * below[1] / below[0] - at[1]) * (strong - weak)
        prediction = predict(x, at, t, 5.0)
        if push:
            prediction = prediction + push * (prediction - predict(x, at, t, 1.0))
        scheduler.is_scale_input_called = True
        pipe.t = t
        latents = pipe.edited(scheduler.step(prediction, t, x, return_dict=False)[0])
    return latents


@pytest.mark.parametrize("cls", [Inpainting, InPlace])
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
@pytest.mark.parametrize("inversion", ["paper", "current"])
@torch.no_grad()
def test_an_inpainting_loop_equals_the_plain_loop(cls, scheduler, inversion):
    pipe, call = of(cls)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    wanted = plain(pipe, call, inversion)
    stock = run(pipe, call)
    with reflection(pipe, undo_edits=True, strong=STRONG, weak=WEAK, inversion=inversion) as done:
        close(run(pipe, call), wanted)
    of_weak = STEPS - 1 if inversion == "paper" else 0  # strong's rows, at the same latents
    assert done.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": of_weak}
    assert (wanted - stock).norm() > 1e-2 * stock.norm()
    with reflection(pipe, undo_edits=True, strong=STRONG, weak=WEAK, inversion=inversion, strength=NOTHING):
        assert torch.equal(run(pipe, call), stock)


@torch.no_grad()
def test_autoguidance_in_an_inpainting_loop_equals_the_plain_loop():
    pipe, call = of(Inpainting)
    wanted = plain(pipe, call, "current", push=0.5)
    with reflection(pipe, undo_edits=True, strong=STRONG, weak=WEAK, inversion="current", autoguidance=0.5):
        close(run(pipe, call), wanted)


@pytest.mark.parametrize("name", ["FluxInpaintPipeline", "FluxKontextInpaintPipeline"])
@torch.no_grad()
def test_packed_inpainting_equals_the_plain_loop(name):
    pipe, call = build(name)
    weak = build(name)[0].transformer
    for parameter in weak.parameters():
        parameter.mul_(0.9)
    shown = {}

    def recorded(method):
        def call_recorded(*args, **kwargs):
            shown[method.__name__] = method(*args, **kwargs)
            return shown[method.__name__]

        return call_recorded

    evaluations, forward = [], pipe.transformer.forward

    def seen(*args, **kwargs):
        evaluations.append(kwargs)
        return forward(*args, **kwargs)

    pipe.prepare_latents, pipe.prepare_mask_latents = map(recorded, (pipe.prepare_latents, pipe.prepare_mask_latents))
    pipe.transformer.forward = seen
    stock = run(pipe, call)
    del pipe.transformer.forward
    with reflection(pipe, undo_edits=True, strong=Branch(), weak=Branch(weights=weak), inversion="paper") as done:
        result = run(pipe, call)
    assert done.reflected_steps == done.steps - 1 > 1

    prepared = shown["prepare_latents"]
    latents, noise, image = prepared[:3] if len(prepared) == 4 else (prepared[0], prepared[-1], prepared[1])
    mask = shown["prepare_mask_latents"][0]
    sigmas = pipe.scheduler.sigmas.tolist()[-done.steps - 1 :]
    given, size = evaluations[0], latents.shape[1]

    def predict(network, x, sigma):
        inputs = torch.cat([x, given["hidden_states"][:, size:]], 1)
        timestep = torch.full_like(given["timestep"], sigma)
        return network(**given | {"hidden_states": inputs, "timestep": timestep})[0][:, :size]

    assert torch.equal(given["hidden_states"][:, :size], latents)
    for i in range(done.steps):
        down = sigmas[i + 1] - sigmas[i]
        if i < done.steps - 1:
            lower = latents + down * predict(pipe.transformer, latents, sigmas[i])
            flow, below = predict(weak, lower, sigmas[i]), sigmas[i + 1]
            sample, noise_of_weak = lower - sigmas[i] * flow, lower + (1 - sigmas[i]) * flow  # at the level it is told
            if sigmas[i] < 1:
                latents = (1 - sigmas[i]) * (lower - below * noise_of_weak) / (1 - below) + sigmas[i] * noise_of_weak
            else:
                latents = (lower - (1 - below) * sample) / below
        latents = latents + down * predict(pipe.transformer, latents, sigmas[i])
        kept = (1 - sigmas[i + 1]) * image + sigmas[i + 1] * noise
        latents = (1 - mask) * kept + mask * latents
    close(result, latents)
    assert (result - stock).norm() > 1e-3 * stock.norm()


@pytest.mark.parametrize("inversion", ["paper", "current"])
@pytest.mark.parametrize("name", ["FluxInpaintPipeline", "FluxKontextInpaintPipeline", "QwenImageInpaintPipeline"])
def test_unless_it_is_asked_for_such_a_loop_is_refused_before_any_network_runs(name, inversion):
    pipe, call = build(name)
    with (
        pytest.raises(ValueError, match=r"changes its latents in every turn .* pass undo_edits=True"),
        reflection(pipe, strong=Branch(), weak=Branch(), inversion=inversion) as done,
    ):
        run(pipe, call)
    assert not any(done.nfe.values())


@pytest.mark.parametrize("inversion", ["paper", "current"])
@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (SteersByPrediction, "keeps latents"),
        (PredictsFromLatents, "keeps the latents that it changes in every turn"),
        (TellsOfLatents, "keeps the latents that it changes in every turn"),
        (Mirrored, "changes its latents in every turn"),
        (EditsLate, "changes its latents in some turns"),
    ],
)
def test_what_cannot_be_undone_is_refused(cls, what, inversion):
    pipe, call = of(cls)
    evaluations = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: evaluations.append(1))
    with (
        reflection(pipe, undo_edits=True, strong=STRONG, weak=WEAK, inversion=inversion, reflection_steps=4) as done,
        pytest.raises(ValueError, match=what),
    ):
        run(pipe, call)
    assert cls is EditsLate or not (evaluations or any(done.nfe.values()))
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0):
        assert torch.equal(run(pipe, call), run(*of(cls)))


@pytest.mark.parametrize(
    "name",
    [
        "FluxControlNetInpaintPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "QwenImageEditInpaintPipeline",
        "ZImageInpaintPipeline",
    ],
)
def test_without_a_gap_all_networks_see_what_they_see_in_a_stock_loop(name):
    pipe, call = build(name)
    stock = run(pipe, call)
    with reflection(pipe, undo_edits=True, strong=Branch(), weak=Branch(), inversion="current") as done:
        close(run(pipe, call), stock, 1e-4)
    assert done.reflected_steps


def test_a_controlnet_is_given_the_latents_that_its_denoiser_is_given():
    pipe, call = build("StableDiffusionXLControlNetInpaintPipeline")
    seen = {}

    def noting(name, forward):
        def noted(samples, *args, **kwargs):
            seen.setdefault(name, []).append(samples.clone())
            return forward(samples, *args, **kwargs)

        return noted

    for name in ("unet", "controlnet"):
        network = getattr(pipe, name)
        network.forward = noting(name, network.forward)
    with reflection(pipe, undo_edits=True, strong=Branch(), weak=Branch(), inversion="paper"):
        run(pipe, call)
    assert len(seen["unet"]) > 3
    assert all(torch.equal(one, other) for one, other in zip(seen["unet"], seen["controlnet"], strict=True))
