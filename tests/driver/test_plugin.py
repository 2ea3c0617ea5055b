"""The plugin: what goes on working in a reflected call, and what it costs."""

import copy
import inspect

import diffusers
import pytest
import tiny
import torch
from helpers import NOTHING, add_lora, state
from plain_loop import SCALES, STEPS, STRONG, SYSTEMS, WEAK, close, guided, noise_like, run

from w2sd_video import Branch, reflection

systems = pytest.mark.parametrize("system", SYSTEMS)


def test_embedded_guidance_is_told_to_the_network():
    pipe, call = tiny.flux()
    told = []
    forward = pipe.transformer.forward
    pipe.transformer.forward = lambda *a, **k: (told.append(float(k["guidance"])), forward(*a, **k))[1]
    with reflection(pipe, strong=Branch(guidance_scale=6.0), weak=Branch(guidance_scale=1.5), reflection_steps=1):
        run(pipe, call)
    assert told[:3] == pytest.approx([6.0, 1.5, 3.0])


@pytest.mark.parametrize("system", ["animatediff", "cogvideox", "pixart", "wan", "stable_diffusion_xl", "flux"])
def test_a_branch_with_a_prompt_sees_what_that_prompt_gives(system):
    """Base, strong and weak all with another prompt is the pipeline called with that prompt."""
    pipe, call = SYSTEMS[system]()
    other = "a blue square over the sea"
    branches = {role: Branch(prompt=other) for role in ("base", "strong", "weak")}
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="paper"):
        expected = run(pipe, call, prompt=other)
        without = run(pipe, call)
    with reflection(pipe, **branches, inversion="paper"):
        assert torch.equal(run(pipe, call), expected)
    assert not torch.equal(expected, without)
    branches = {role: Branch(prompt=other, guidance_scale=1.0) for role in ("base", "strong", "weak")}
    with reflection(pipe, **branches, inversion="paper") as reflected:
        assert not torch.equal(run(pipe, call), expected)
    assert reflected.nfe["weak"] == STEPS - 1


@pytest.mark.parametrize("system", ["animatediff", "cogvideox", "wan"])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1.0, 7.5])
def test_all_branches_at_one_scale_are_the_pipeline_at_that_scale(system, scale):
    pipe, call = SYSTEMS[system]()
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="paper"):
        expected = run(pipe, call, guidance_scale=7.5)
    role = Branch(guidance_scale=scale)
    with reflection(pipe, strong=role, weak=role, base=role, inversion="paper") as reflected:
        result = run(pipe, call)
    if scale == 7.5:
        close(result, expected)
    else:
        assert not torch.allclose(result, expected)
    per_step = 1 if scale in (0.0, 1.0) else 2
    assert reflected.nfe == {"base": per_step * STEPS, "strong": per_step * (STEPS - 1), "weak": per_step * (STEPS - 1)}


@pytest.mark.parametrize("system", ["animatediff", "cogvideox", "wan"])
def test_a_pure_guidance_gap_costs_no_weak_evaluation_with_current_inversion(system):
    pipe, call = SYSTEMS[system]()
    gap = {"strong": Branch(guidance_scale=4.0), "weak": Branch(guidance_scale=2.0)}
    with reflection(pipe, **gap, inversion="current") as shared:
        result = run(pipe, call)
    assert shared.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": 0}
    same_text = {role: Branch(branch.guidance_scale, prompt=call["prompt"]) for role, branch in gap.items()}
    same_text["weak"] = Branch(2.0, prompt=[call["prompt"]])
    with reflection(pipe, **same_text, inversion="current") as separate:
        close(result, run(pipe, call))
    assert separate.nfe["weak"] == 2 * (STEPS - 1)


def test_lora_scales_are_those_of_set_adapters_and_come_back():
    pipe, call = tiny.stable_diffusion()
    add_lora(pipe.unet, "style", 1), add_lora(pipe.unet, "other", 2)
    pipe.unet.set_adapters(["other"], [0.3])
    stock = run(pipe, call)
    layers = [m for m in pipe.unet.modules() if hasattr(m, "scaling")]
    before = [(dict(layer.scaling), layer.active_adapters) for layer in layers]
    branch = Branch(lora={"style": -1.5})
    with reflection(pipe, strong=branch, weak=branch, base=branch):
        result = run(pipe, call)
    assert [(dict(layer.scaling), layer.active_adapters) for layer in layers] == before
    assert torch.equal(run(pipe, call), stock)
    pipe.unet.set_adapters(["other", "style"], [0.3, -1.5])
    with reflection(pipe, strong=Branch(), weak=Branch()):
        close(run(pipe, call), result)


def test_a_cumulative_gap_sets_several_fields_at_once():
    pipe, call = tiny.animatediff()
    second = tiny.randomise(copy.deepcopy(pipe.unet), gain=1.2)
    weak = Branch(guidance_scale=0.0, weights=second, prompt="a green square")
    with reflection(pipe, strong=STRONG, weak=weak) as reflected:
        assert torch.isfinite(run(pipe, call)).all()
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_the_plugin_walks_every_scheduler_as_sample_does(name, inversion):
    """The pipeline's loop and `sample` are two drivers of one algorithm."""
    from w2sd_video import sample

    pipe, call = tiny.stable_diffusion()
    pipe.scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", **SCHEDULERS[name])
    pipe.scheduler.set_timesteps(STEPS)
    before = state(pipe)
    stock = run(pipe, call)
    with torch.no_grad():
        text, negative = pipe.encode_prompt(call["prompt"], "cpu", 1, True)

        def network(x, t, conditional):
            return pipe.unet(x, t, encoder_hidden_states=text if conditional else negative).sample

        generator = torch.Generator().manual_seed(7)
        latents = torch.randn((1, 4, 8, 8), generator=generator) * pipe.scheduler.init_noise_sigma
        expected = sample(
            guided(network, SCALES), latents, pipe.scheduler, num_inference_steps=STEPS, inversion=inversion,
            generator=generator, reflection_steps=2,
        )  # fmt: skip
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion, reflection_steps=0):
        assert torch.equal(run(pipe, call), stock)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion, reflection_steps=2):
        close(run(pipe, call), expected.latents)
    assert state(pipe)["class"] == before["class"]


def test_eta_keeps_its_noise_in_the_schedulers_own_step():
    pipe, call = tiny.animatediff()
    stock = run(pipe, call, eta=1.0)
    with reflection(pipe, strong=STRONG, weak=WEAK, strength=NOTHING):
        assert torch.equal(run(pipe, call, eta=1.0), stock)


@pytest.mark.parametrize("solver", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_eta_is_ignored_by_what_ignores_it_in_a_stock_call_and_refused_beside_a_solver(solver):
    pipe, call = tiny.animatediff()
    with reflection(pipe, strong=STRONG, weak=WEAK, solver=solver):
        run(pipe, call, eta=0.0)
        with pytest.raises(ValueError, match=f"eta 1.0: {solver} adds no such noise .* take DDIMScheduler or"):
            run(pipe, call, eta=1.0)
    pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
    stock = run(pipe, call, eta=1.0)
    assert torch.equal(run(pipe, call), stock)
    for off in ({"reflection_steps": 0}, {"strength": NOTHING}):
        with reflection(pipe, strong=STRONG, weak=WEAK, **off):
            assert torch.equal(run(pipe, call, eta=1.0), stock)


def test_image_to_image_begins_where_the_stock_pipeline_does():
    pipe, call = tiny.stable_diffusion()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in call.items() if name not in ("height", "width")}
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    for scheduler in (diffusers.DDIMScheduler(clip_sample=False), diffusers.EulerDiscreteScheduler()):
        pipe.scheduler = scheduler
        extra = {"image": image, "strength": 0.6, "num_inference_steps": 10}
        stock = run(pipe, call, **extra)
        with reflection(pipe, strong=STRONG, weak=WEAK, strength=NOTHING) as reflected:
            assert torch.equal(run(pipe, call, **extra), stock)
        assert (reflected.steps, reflected.reflected_steps) == (6, 5)


@pytest.mark.parametrize("system", ["animatediff", "cogvideox", "wan"])
def test_callbacks_and_progress_count_real_steps(system, capsys):
    pipe, call = SYSTEMS[system]()
    pipe.set_progress_bar_config(disable=False)

    def watched():
        seen = []

        def on_step(pipe, index, timestep, kwargs):
            seen.append((index, float(timestep)))
            return kwargs

        run(pipe, call, callback_on_step_end=on_step, callback_on_step_end_tensor_inputs=["latents"])
        return seen

    stock = watched()
    capsys.readouterr()
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=3):
        assert watched() == stock
    shown = capsys.readouterr().err
    assert f"W2SD, 3 of {STEPS} steps reflected" in shown
    assert all(f"{done}/{STEPS}" in shown for done in (0, STEPS)) and f"/{STEPS + 6}" not in shown


def test_a_callback_can_still_change_the_latents():
    pipe, call = tiny.animatediff()

    def on_step(pipe, index, timestep, kwargs):
        return {"latents": torch.zeros_like(kwargs["latents"]) if index == STEPS - 1 else kwargs["latents"]}

    with reflection(pipe, strong=STRONG, weak=WEAK):
        assert not run(pipe, call, callback_on_step_end=on_step).any()


def test_the_scheduler_passes_for_the_one_it_wraps():
    """Seen from the network, in the midst of a call; a callback sees a stock one, and outside it is the pipeline's."""
    pipe, call = tiny.animatediff()
    own, signature, seen = pipe.scheduler, inspect.signature(pipe.__call__), {}
    hook = pipe.unet.register_forward_pre_hook(lambda *_: seen.update(network=pipe.scheduler))

    def look(pipe, index, timestep, kwargs):
        seen["callback"] = pipe.scheduler
        assert pipe.scheduler.timesteps[index] == timestep
        return {}

    with reflection(pipe, strong=STRONG, weak=WEAK):
        assert pipe.scheduler is own
        run(pipe, call, callback_on_step_end=look)
        assert pipe.scheduler is own
        assert type(pipe).__name__ == "AnimateDiffPipeline" and isinstance(pipe, diffusers.AnimateDiffPipeline)
        assert inspect.signature(pipe.__call__) == signature
    hook.remove()
    assert type(seen["callback"]) is diffusers.DDIMScheduler
    assert isinstance(seen["network"], diffusers.DDIMScheduler) and seen["network"] is not own
    for method in ("step", "set_timesteps"):
        shown, true = (inspect.signature(getattr(scheduler, method)) for scheduler in (seen["network"], own))
        assert shown == true
    assert seen["network"].config == own.config


def test_several_samples_are_the_single_ones():
    pipe, call = tiny.cogvideox()
    prompts = ["a red circle moving left", "a blue square moving up"]

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    with reflection(pipe, strong=STRONG, weak=WEAK):
        together = run(pipe, call, prompt=prompts, generator=generators(1, 2))
        apart = [run(pipe, call, prompt=p, generator=generators(s)) for p, s in zip(prompts, (1, 2), strict=True)]
    close(together, torch.cat(apart))


def test_guidance_in_two_calls_without_names():
    """Wan's video-to-video calls its transformer twice and does not say which call is which."""
    text_to_video, call = tiny.wan()
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = diffusers.WanVideoToVideoPipeline(**{name: getattr(text_to_video, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call |= {"video": [torch.rand((3, 32, 32), generator=generator) for _ in range(9)], "strength": 0.8}
    del call["num_frames"]
    other = "a blue square over the sea"
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="paper"):
        expected = run(pipe, call, prompt=other, guidance_scale=4.0)
    role = Branch(prompt=other, guidance_scale=4.0)
    with reflection(pipe, strong=role, weak=role, base=role, inversion="paper") as reflected:
        close(run(pipe, call), expected)
    assert reflected.nfe == {"base": 2 * 4, "strong": 2 * 3, "weak": 2 * 3}


def test_a_pipeline_that_writes_into_its_latents_is_reflected_alike():
    from w2sd_video import Reflection
    from w2sd_video.driver.rehearsal import CallState
    from w2sd_video.driver.walk import Walk, presented

    def loop(in_place):
        state = CallState()
        scheduler = presented(Walk(diffusers.DDIMScheduler(clip_sample=False), Reflection(), state))
        scheduler.set_timesteps(STEPS)
        latents = noise_like((1, 4, 8, 8))
        for t in scheduler.timesteps:
            gain = {"base": 1.0, "strong": 1.2, "weak": 0.8}[state.role]
            following = scheduler.step(gain * torch.tanh(latents), t, latents).prev_sample
            if in_place:
                latents[:] = following
            else:
                latents = following
        return latents

    assert torch.equal(loop(in_place=True), loop(in_place=False))


def test_a_compiled_denoiser_is_told_its_arguments_by_name():
    pipe, call = tiny.cogvideox()
    gap = {"strong": STRONG, "weak": Branch(weights=tiny.randomise(copy.deepcopy(pipe.transformer), gain=1.2))}
    with reflection(pipe, **gap):
        expected = run(pipe, call)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with reflection(pipe, **gap):
        close(run(pipe, call), expected)


def test_offloading_hooks_go_on_working_call_after_call():
    """A pipeline sets its offloading hooks anew at the end of every call."""
    pipe, call = tiny.cogvideox()
    with reflection(pipe, strong=STRONG, weak=WEAK):
        expected = run(pipe, call)
    pipe.enable_model_cpu_offload(device="cpu")
    stock = run(pipe, call)
    with reflection(pipe, strong=STRONG, weak=WEAK) as reflected:
        for _ in range(2):
            assert torch.equal(run(pipe, call), expected)
            assert reflected.nfe["strong"] == 2 * (STEPS - 1)
    assert torch.equal(run(pipe, call), stock)
