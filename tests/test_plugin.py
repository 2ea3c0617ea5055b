"""The plugin on tiny random pipelines of real classes: off is off, on equals a plain loop, after is as before."""

import copy
import inspect

import diffusers
import pytest
import tiny
import torch
from helpers import state

from w2sd_video import Branch, reflection

STEPS = 5
SYSTEMS = {
    "animatediff": tiny.animatediff,
    "animatediff_sdxl": tiny.animatediff_sdxl,
    "cogvideox": tiny.cogvideox,
    "cogvideox_rotary": lambda: tiny.cogvideox(rotary=True),
    "pixart": tiny.pixart,
    "dit": tiny.dit,
    "wan": tiny.wan,
    "wan_two_stage": lambda: tiny.wan(two_stage=True),
    "stable_diffusion": tiny.stable_diffusion,
    "stable_diffusion_xl": tiny.stable_diffusion_xl,
    "flux": tiny.flux,
}
systems = pytest.mark.parametrize("system", SYSTEMS)
STRONG, WEAK = Branch(guidance_scale=4.0), Branch(guidance_scale=1.0)


def run(pipe, call, **changes):
    """Return the final latents: what the scheduler's last step gave (DiT would decode them)."""
    arguments = {**call, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), **changes}
    if isinstance(pipe, diffusers.DiTPipeline):
        return torch.as_tensor(pipe(**arguments, output_type="np").images)
    result = pipe(**arguments, output_type="latent")
    return result.frames if hasattr(result, "frames") else result.images


# --- on equals the plain loop ------------------------------------------------------------------------------------


def plain_loop(latents, scheduler, levels, predict, read):
    """Algorithm 1, `paper` inversion: `levels[i]` is (alpha, sigma), `read(x, p, i)` gives the sample and the noise."""
    steps = len(scheduler.timesteps)
    old_sample = None
    for i, t in enumerate(scheduler.timesteps):
        (alpha, sigma), (alpha_below, sigma_below) = levels[i], levels[i + 1]
        if i < steps - 1:
            unreflected = latents
            clean, noise = read(latents, predict(latents, t, "strong"), i)
            lower = alpha_below * clean + sigma_below * noise
            weak_clean, weak_noise = read(lower, predict(lower, t, "weak"), i)
            if alpha > 0:
                latents = alpha * (lower - sigma_below * weak_noise) / alpha_below + sigma * weak_noise
            else:
                latents = (lower - alpha_below * weak_clean) / sigma_below
            if isinstance(scheduler, diffusers.UniPCMultistepScheduler) and i > 0:
                # Its corrector scales the latents of the step before by sigma over sigma: what is added goes in there.
                scheduler.last_sample = scheduler.last_sample + (latents - unreflected) * levels[i - 1][1] / sigma
        prediction = predict(latents, t, "base")
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            back = scheduler.timesteps[i - 1] if i else None
            generator = plain_loop.generator
            latents, old_sample = scheduler.step(prediction, old_sample, t, back, latents, generator=generator)
        else:
            latents = scheduler.step(prediction, t, latents).prev_sample
    return latents


def alphas_of(scheduler):
    products = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [
        float(scheduler.final_alpha_cumprod)
    ]
    return [(product**0.5, (1 - product) ** 0.5) for product in products]


def read_noise(levels):
    return lambda x, p, i: ((x - levels[i][1] * p) / levels[i][0], p)


def read_velocity(levels):
    return lambda x, p, i: (levels[i][0] * x - levels[i][1] * p, levels[i][1] * x + levels[i][0] * p)


def read_flow(levels):
    return lambda x, p, i: (x - levels[i][1] * p, x + levels[i][0] * p)


def guided(network, scales):
    """`predict(x, t, role)` at each role's scale, from `network(x, t, conditional)`."""

    def predict(x, t, role):
        scale = scales[role]
        cond = network(x, t, True)
        return cond if scale == 1 else network(x, t, False) * (1 - scale) + scale * cond

    return predict


def noise_like(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


SCALES = {"base": 3.0, "strong": 4.0, "weak": 1.0}


def close(result, plain):
    assert (result - plain).norm() / plain.norm() < 2e-4


@torch.no_grad()
def test_animatediff_equals_the_plain_loop():
    pipe, call = tiny.animatediff()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)
    text, negative = pipe.encode_prompt(call["prompt"], "cpu", 1, True)

    def network(x, t, conditional):
        words = (text if conditional else negative).repeat_interleave(call["num_frames"], dim=0)
        return pipe.unet(x, t, encoder_hidden_states=words).sample

    plain = plain_loop(noise_like((1, 4, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK) as reflected:
        close(run(pipe, call), plain)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}


@torch.no_grad()
@pytest.mark.parametrize("rotary", [False, True])
def test_cogvideox_equals_the_plain_loop_with_both_its_schedulers(rotary):
    pipe, call = tiny.cogvideox(rotary=rotary)
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)
    assert levels[0][0] == 0.0, "zero terminal SNR: the first reflection is read as sample"
    text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)
    plain_loop.generator = torch.Generator().manual_seed(7)
    latents = torch.randn((1, 3, 4, 4, 4), generator=plain_loop.generator)
    positions = pipe._prepare_rotary_positional_embeddings(32, 32, 3, "cpu") if rotary else None

    def network(x, t, conditional):
        words = text if conditional else negative
        return pipe.transformer(x, words, t.expand(1), image_rotary_emb=positions).sample

    plain = plain_loop(latents, scheduler, levels, guided(network, SCALES), read_velocity(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK):
        close(run(pipe, call), plain)


@torch.no_grad()
def test_pixart_equals_the_plain_loop_of_a_multistep_solver():
    pipe, call = tiny.pixart()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler = copy.deepcopy(pipe.scheduler)
    levels = [(1 / (1 + s**2) ** 0.5, s / (1 + s**2) ** 0.5) for s in map(float, scheduler.sigmas)]
    text, mask, negative, negative_mask = pipe.encode_prompt(
        call["prompt"], max_sequence_length=tiny.TEXT_LENGTH, clean_caption=False
    )

    def network(x, t, conditional):
        words, kept = (text, mask) if conditional else (negative, negative_mask)
        extra = {"resolution": None, "aspect_ratio": None}
        output = pipe.transformer(x, words, t.expand(1), added_cond_kwargs=extra, encoder_attention_mask=kept).sample
        return output.chunk(2, dim=1)[0]

    plain = plain_loop(noise_like((1, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK):
        close(run(pipe, call), plain)


@torch.no_grad()
def test_dit_equals_the_plain_loop_though_its_conditional_half_comes_first():
    pipe, call = tiny.dit()
    pipe.scheduler.set_timesteps(STEPS)
    scheduler, levels = copy.deepcopy(pipe.scheduler), alphas_of(pipe.scheduler)

    def network(x, t, conditional):
        label = torch.tensor([3 if conditional else 1000])
        return pipe.transformer(x, timestep=t.expand(1), class_labels=label).sample[:, :4]

    plain = plain_loop(noise_like((1, 4, 8, 8)), scheduler, levels, guided(network, SCALES), read_noise(levels))
    seen = []
    with reflection(pipe, strong=STRONG, weak=WEAK):
        handle = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        run(pipe, call)
        handle.remove()
    close(seen[0] * pipe.vae.config.scaling_factor, plain)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("two_stage", [False, True])
def test_wan_equals_the_plain_loop_though_it_guides_by_two_calls(solver, two_stage):
    pipe, call = tiny.wan(two_stage=two_stage)
    if solver == "unipc":
        pipe.scheduler = diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=7.0
        )
    pipe.scheduler.set_timesteps(STEPS)
    scheduler = copy.deepcopy(pipe.scheduler)
    levels = [(1 - s, s) for s in map(float, scheduler.sigmas)]
    text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)

    def network(x, t, conditional):
        late = two_stage and t < 0.9 * 1000
        model = pipe.transformer_2 if late else pipe.transformer
        return model(x, t.expand(1), text if conditional else negative).sample

    plain = plain_loop(noise_like((1, 4, 3, 4, 4)), scheduler, levels, guided(network, SCALES), read_flow(levels))
    with reflection(pipe, strong=STRONG, weak=WEAK) as reflected:
        close(run(pipe, call), plain)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}


# --- branches ----------------------------------------------------------------------------------------------------


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
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, prompt=other)
        without = run(pipe, call)
    with reflection(pipe, **branches):
        assert torch.equal(run(pipe, call), expected)
    assert not torch.equal(expected, without)
    branches = {role: Branch(prompt=other, guidance_scale=1.0) for role in ("base", "strong", "weak")}
    with reflection(pipe, **branches) as reflected:
        assert not torch.equal(run(pipe, call), expected)
    assert reflected.nfe["weak"] == STEPS - 1


@pytest.mark.parametrize("system", ["animatediff", "cogvideox", "wan"])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1.0, 7.5])
def test_all_branches_at_one_scale_are_the_pipeline_at_that_scale(system, scale):
    pipe, call = SYSTEMS[system]()
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, guidance_scale=7.5)
    role = Branch(guidance_scale=scale)
    with reflection(pipe, strong=role, weak=role, base=role) as reflected:
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


def add_lora(pipe, name, seed):
    from peft import LoraConfig

    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]), adapter_name=name)
    for parameter_name, parameter in pipe.unet.named_parameters():
        if f"lora_B.{name}" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)


def test_lora_scales_are_those_of_set_adapters_and_come_back():
    pipe, call = tiny.stable_diffusion()
    add_lora(pipe, "style", 1), add_lora(pipe, "other", 2)
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


# --- schedulers, loops, callbacks, progress ----------------------------------------------------------------------

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
    with reflection(pipe, strong=STRONG, weak=WEAK, strength=0.0):
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
        with reflection(pipe, strong=STRONG, weak=WEAK, strength=0.0) as reflected:
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
    pipe, _ = tiny.animatediff()
    own, signature = pipe.scheduler, inspect.signature(pipe.__call__)
    with reflection(pipe, strong=STRONG, weak=WEAK):
        assert isinstance(pipe.scheduler, diffusers.DDIMScheduler) and pipe.scheduler is not own
        for method in ("step", "set_timesteps"):
            shown, true = (inspect.signature(getattr(scheduler, method)) for scheduler in (pipe.scheduler, own))
            assert shown == true
        assert pipe.scheduler.config == own.config and isinstance(pipe, diffusers.AnimateDiffPipeline)
        assert type(pipe).__name__ == "AnimateDiffPipeline"
        assert inspect.signature(pipe.__call__) == signature


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
    with reflection(pipe, strong=Branch(), weak=Branch()):
        expected = run(pipe, call, prompt=other, guidance_scale=4.0)
    role = Branch(prompt=other, guidance_scale=4.0)
    with reflection(pipe, strong=role, weak=role, base=role) as reflected:
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


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_reflected_is_refused_with_a_reason_before_sampling():
    pipe, call = tiny.stable_diffusion()
    good = pipe.scheduler
    with (
        pytest.raises(ValueError, match="being reflected already"),
        reflection(pipe, strong=STRONG, weak=WEAK),
        reflection(pipe, strong=STRONG, weak=WEAK),
    ):
        run(pipe, call)
    with pytest.raises(ValueError, match="replaced inside"), reflection(pipe, strong=STRONG, weak=WEAK):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
        run(pipe, call)
    assert pipe.scheduler is good
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


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"denoising_end": 0.8}, "denoising_end=0.8 cannot be reflected"),
        ({"guidance_rescale": 0.7, "denoising_end": 0.5}, "reflect no step"),
    ],
)
def test_arguments_that_a_pipeline_counts_in_turns_are_refused(extra, said):
    pipe, call = tiny.stable_diffusion_xl()
    stock = run(pipe, call, **extra)
    with pytest.raises(ValueError, match=said), reflection(pipe, strong=STRONG, weak=WEAK):
        run(pipe, call, **extra)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0):
        assert torch.equal(run(pipe, call, **extra), stock)


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
        ({"guidance_scale": float("inf")}, ValueError, "guidance_scale must be finite"),
        ({"guidance_scale": "6"}, TypeError, "guidance_scale must be a number, got '6'"),
        ({"lora": {"style": "loud"}}, TypeError, r"lora\['style'\] must be a number"),
        ({"weights": 3}, TypeError, "weights must be a module or the name of one, got int"),
        ({"prompt": [1]}, TypeError, "prompt must be text"),
    ],
)
def test_branch_fields_are_checked(fields, error, said):
    with pytest.raises(error, match=said):
        Branch(**fields)
