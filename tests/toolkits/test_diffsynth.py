"""Pipelines of DiffSynth, reflected: off, by a null gap, and against a loop written plainly."""

import copy
import re
from pathlib import Path

import pytest
import tiny_diffsynth as tiny
import torch
from tiny_diffsynth import STEPS, SYSTEMS, run
from torch import nn

from w2sd_video import Branch, predictor, reflection, sample
from w2sd_video.backends import register

pytestmark = pytest.mark.skipif(tiny.MISSING, reason="needs DiffSynth: pip install --no-deps diffsynth")
systems = pytest.mark.parametrize("system", SYSTEMS)
STRONG, WEAK = Branch(guidance_scale=6.0), Branch(guidance_scale=1.0)


def close(result, plain, tolerance=1e-5):
    assert (result - plain).norm() / plain.norm() < tolerance


def left(pipe):
    """What could be left behind in a pipeline: its class, and the attributes of it and of its parts."""
    parts = [pipe, pipe.scheduler, *pipe.modules()]
    return [(type(part), {name: id(value) for name, value in vars(part).items() if callable(value)}) for part in parts]


def context_of(pipe, call, prompt, system):
    """What a network is given of a prompt."""
    if system.startswith("wan"):
        return {"context": pipe.text_encoder.words(prompt)}
    embedded = next(unit for unit in pipe.units if type(unit).__name__ == "Embedder").process(pipe, prompt)
    if system == "flux":
        return embedded | {"guidance": torch.tensor([3.5])}
    return embedded | {"height": call["height"], "width": call["width"]}


def plain_loop(pipe, call, system, scales, dits=None, prompts=None):
    """Algorithm 1, `paper` inversion, on the pipeline's `model_fn` and sigmas, with nothing of the package in it."""
    own = [pipe.dit, getattr(pipe, "dit2", None)]
    pipe(**call)  # so that the timesteps are set
    sigmas, timesteps = [*map(float, pipe.scheduler.sigmas), 0.0], pipe.scheduler.timesteps
    generator = torch.Generator().manual_seed(call["seed"])
    x = torch.randn(pipe.vae.latents.shape, generator=generator)

    def predict(x, i, role):
        timestep = timesteps[i]
        stage = int(own[1] is not None and float(timestep) < 875)
        scale = scales[role][stage] if isinstance(scales[role], tuple) else scales[role]
        dit = own[stage] if dits is None or role not in dits else dits[role]
        prompt = (prompts or {}).get(role, call["prompt"])

        def network(words):
            context = context_of(pipe, call, words, system)
            with torch.no_grad():
                return pipe.model_fn(dit=dit, latents=x, timestep=timestep[None], **context)

        cond, uncond = network(prompt), network(call["negative_prompt"])
        return uncond + scale * (cond - uncond)

    for i in range(len(timesteps)):
        s, below = sigmas[i], sigmas[i + 1]
        if i < len(timesteps) - 1:
            flow = predict(x, i, "strong")
            lower = x + (below - s) * flow
            flow = predict(lower, i, "weak")
            noise = lower + (1 - s) * flow
            if s < 1:
                x = (1 - s) * (lower - below * noise) / (1 - below) + s * noise
            else:
                x = (lower - (1 - below) * (lower - s * flow)) / below
        x = x + (below - s) * predict(x, i, "base")
    return x


@systems
def test_off_is_the_stock_pipeline_bit_for_bit(system):
    pipe, call = SYSTEMS[system]()
    stock, before, stock_class = run(pipe, call), left(pipe), type(pipe)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0) as reflected:
        assert torch.equal(run(pipe, call), stock)
        assert type(copy.deepcopy(pipe)) is stock_class and isinstance(pipe, stock_class)
    assert (reflected.nfe, reflected.steps, reflected.reflected_steps) == (
        {"base": 2 * STEPS, "strong": 0, "weak": 0},
        STEPS,
        0,
    )
    assert left(pipe) == before
    assert torch.equal(run(pipe, call), stock)


def test_the_line_of_the_guide():
    page = (Path(__file__).parents[2] / "docs" / "guide" / "own-toolkit.md").read_text()
    (block,) = re.findall(r"^## DiffSynth-Studio$.*?```python\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    pipe, call = tiny.wan()
    stock = run(pipe, call)
    called = block.replace('pipe("a red kite", cfg_scale=5.0, seed=0)', "pipe(**call)")
    assert called != block
    names = {"pipe": pipe, "call": call}
    exec(called, names)
    assert names["run"].nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": 0}
    assert not torch.equal(pipe.vae.latents, stock)


@systems
def test_a_null_gap_with_current_is_the_stock_pipeline_to_rounding(system):
    pipe, call = SYSTEMS[system]()
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        close(run(pipe, call), stock)
    dits = tuple(copy.deepcopy(dit) for dit in (pipe.dit, getattr(pipe, "dit2", None)) if dit is not None)
    same = Branch(weights=dits if len(dits) > 1 else dits[0])
    with reflection(pipe, strong=Branch(), weak=same, inversion="current") as reflected:
        close(run(pipe, call), stock)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": 2 * (STEPS - 1)}


@systems
def test_on_equals_a_plain_loop_and_counts_as_a_counting_network(system):
    pipe, call = SYSTEMS[system]()
    plain = plain_loop(pipe, call, system, {"base": call["cfg_scale"], "strong": 6.0, "weak": 1.0})
    stock, calls = run(pipe, call), []
    counted = [dit for dit in (pipe.dit, getattr(pipe, "dit2", None)) if dit is not None]
    layers = [next(layer for layer in dit.modules() if takes_latents(layer)) for dit in counted]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper") as reflected:
        result = run(pipe, call)
    close(result, plain)
    assert (result - stock).norm() / stock.norm() > 0.01
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": STEPS - 1}
    assert len(calls) == sum(reflected.nfe.values())
    assert (reflected.steps, reflected.reflected_steps) == (STEPS, STEPS - 1)
    for hook in hooks:
        hook.remove()


def takes_latents(layer):
    return isinstance(layer, nn.Conv3d) or (isinstance(layer, nn.Linear) and layer.in_features == 64)


def test_weights_prompts_and_layers_of_a_branch():
    pipe, call = tiny.wan()
    other = tiny.wan_dit(5)
    register(pipe, "other", other)
    scales = dict.fromkeys(("base", "strong", "weak"), 5.0)
    plain = plain_loop(pipe, call, "wan", scales, {"weak": other})
    for weights in (other, "other"):
        with reflection(pipe, strong=Branch(), weak=Branch(weights=weights), inversion="paper"):
            close(run(pipe, call), plain)
    plain = plain_loop(pipe, call, "wan", scales, prompts={"weak": "a sea"})
    encoded = pipe.text_encoder.prompts
    encoded.clear()
    with reflection(pipe, strong=Branch(), weak=Branch(prompt="a sea"), inversion="paper"):
        close(run(pipe, call), plain)
    assert encoded.count("a sea   ") == 1
    pipe.dit.blocks, blocks = pipe.dit.blocks[:1], pipe.dit.blocks
    short = copy.deepcopy(pipe.dit)
    pipe.dit.blocks = blocks
    plain = plain_loop(pipe, call, "wan", scales, {"weak": short})
    with reflection(pipe, strong=Branch(), weak=Branch(skip_layers=[1]), inversion="paper"):
        close(run(pipe, call), plain)


def test_a_branch_with_everything_of_another_call_is_that_call():
    pipe, call = tiny.wan()
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="paper"):
        expected = run(pipe, call, prompt="a sea", negative_prompt="grey", cfg_scale=3.0)
    role = Branch(prompt="a sea", negative_prompt="grey", guidance_scale=3.0)
    with reflection(pipe, strong=role, weak=role, base=role, inversion="paper"):
        close(run(pipe, call), expected)
    call = {name: value for name, value in call.items() if name != "seed"}
    torch.manual_seed(11)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="paper"):
        expected = run(pipe, call, prompt="a sea")
    torch.manual_seed(11)
    role = Branch(prompt="a sea")
    with reflection(pipe, strong=role, weak=role, base=role, inversion="paper"):
        close(run(pipe, call), expected)


def test_two_stages_have_their_own_scale_and_weights():
    pipe, call = tiny.wan(two_stage=True)
    scales = {"base": 5.0, "strong": (6.0, 2.0), "weak": (1.0, 0.5)}
    plain = plain_loop(pipe, call, "wan", scales)
    with reflection(
        pipe, strong=Branch(guidance_scale=(6.0, 2.0)), weak=Branch(guidance_scale=(1.0, 0.5)), inversion="paper"
    ):
        close(run(pipe, call), plain)
    plain = plain_loop(pipe, call, "wan", dict.fromkeys(scales, 5.0), {"weak": pipe.dit2})
    for weak in (Branch(experts="low"), Branch(weights=(pipe.dit2, pipe.dit2))):
        with reflection(pipe, strong=Branch(), weak=weak, inversion="paper"):
            close(run(pipe, call), plain)


def test_explicit_asks_the_network_of_the_stage_below():
    """At the last step of high noise the weak prediction is made one timestep lower, by the other network."""
    pipe, call = tiny.wan(two_stage=True)
    told = []
    model_fn = pipe.model_fn
    pipe.model_fn = lambda **given: (
        told.append((float(given["timestep"]), given["dit"] is pipe.dit2)),
        model_fn(**given),
    )[1]
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="explicit", reflection_steps=2):
        run(pipe, call)
    assert {(timestep < 875, is_second) for timestep, is_second in told} == {(True, True), (False, False)}


def test_flux_is_told_its_guidance():
    pipe, call = tiny.flux(guidance=True)
    told, model_fn = [], pipe.model_fn
    pipe.model_fn = lambda **given: (told.append(float(given["guidance"])), model_fn(**given))[1]
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=1) as reflected:
        run(pipe, call)
    assert told == [6.0, 1.0, 3.5] + [3.5] * (STEPS - 1)
    assert reflected.nfe == {"base": STEPS, "strong": 1, "weak": 1}


def test_the_first_frame_of_an_image_stays():
    """Wan 2.2 5B puts the image's latents back after each step; a reflection leaves them, and the network sees them."""
    from PIL import Image

    pipe, call = tiny.wan(
        seperated_timestep=True,
        fuse_vae_embedding_in_latents=True,
        require_vae_embedding=False,
        require_clip_embedding=False,
    )
    image = Image.new("RGB", (16, 16), (200, 30, 90))
    seen, model_fn = [], pipe.model_fn
    pipe.model_fn = lambda **given: (seen.append(given["latents"][:, :, 0].clone()), model_fn(**given))[1]
    stock = run(pipe, call, input_image=image)
    with reflection(pipe, strong=STRONG, weak=WEAK):
        result = run(pipe, call, input_image=image)
    assert not torch.allclose(result[:, :, 1], stock[:, :, 1])
    assert len({frame.sum().item() for frame in seen}) == 1 and torch.equal(result[:, :, 0], seen[0])


def test_half_precision_and_windows_run():
    pipe, call = tiny.wan(dtype=torch.bfloat16)
    stock = run(pipe, call)
    assert stock.dtype == torch.bfloat16
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        close(run(pipe, call).float(), stock.float(), 0.02)
    windowed = Branch(guidance_scale=5.0, windows={"guidance_scale": (0.5, 1.0)})
    with reflection(pipe, strong=Branch(), weak=Branch(), base=windowed, reflection_steps=0) as reflected:
        run(pipe, call)
    assert reflected.nfe["base"] == STEPS + STEPS // 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_behind(error):
    pipe, call = tiny.wan()
    stock, before, calls = run(pipe, call), left(pipe), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 7:
            raise error

    hook = pipe.dit.head.register_forward_hook(fail)
    during = left(pipe)
    with pytest.raises(error), reflection(pipe, strong=STRONG, weak=Branch(skip_layers=[0])):
        run(pipe, call)
    assert left(pipe) == during
    hook.remove()
    assert left(pipe) == before
    assert torch.equal(run(pipe, call), stock)
    with reflection(pipe, strong=STRONG, weak=WEAK):
        first = run(pipe, call)
        assert torch.equal(run(pipe, call), first)  # a call begins anew


INVERSIONS = {
    "explicit": {"inversion": "explicit", "reflection_steps": 2},
    "implicit": {"inversion": "implicit"},
    "autoguidance": {"reflection_steps": 0, "autoguidance": 1.0},
    "reuse": {"inversion": "current", "reading": "native", "reuse": 3, "strength": 0.5},
    "rounds": {"rounds": 2, "reflection_steps": (0.0, 0.5)},
}


@pytest.mark.parametrize("settings", INVERSIONS.values(), ids=INVERSIONS)
@pytest.mark.parametrize("two_stage", [False, True])
def test_the_predictor_and_sample_are_the_pipeline(settings, two_stage):
    pipe, call = tiny.wan(two_stage=two_stage)
    stock = run(pipe, call)
    scale = (6.0, 2.0) if two_stage else 6.0
    branches = {"strong": Branch(guidance_scale=scale), "weak": Branch(guidance_scale=2.0, prompt="a sea")}
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    predict = predictor(pipe, **branches, **call)
    close(sample(predict, predict.latents, predict.scheduler, reflection_steps=0).latents, stock)
    result = sample(predict, predict.latents, predict.scheduler, **settings)
    close(result.latents, expected)
    assert reflected.nfe == {role: 2 * calls for role, calls in result.nfe.items()}
    with pytest.raises(ValueError, match=r"sigma=0.123 is none of the levels"):
        predict(predict.latents, torch.tensor(0.123), "base")


def test_a_reused_gap_is_measured_anew_at_the_edge_of_a_window():
    pipe, call = tiny.wan()
    call = {**call, "num_inference_steps": 8}
    strong = Branch(guidance_scale=6.0, windows={"guidance_scale": (0.5, 1.0)})
    settings = {"inversion": "current", "reading": "native", "reuse": 8}
    with reflection(pipe, strong=strong, weak=Branch(guidance_scale=1.0, prompt="a sea"), **settings) as reflected:
        expected = run(pipe, call)
    assert reflected.nfe["weak"] == 3, "at 0, the first; 4, where guidance begins; and 6, the last that is reflected"
    predict = predictor(pipe, strong=strong, weak=Branch(guidance_scale=1.0, prompt="a sea"), **call)
    result = sample(predict, predict.latents, predict.scheduler, **settings)
    told = sample(predict, predict.latents, predict.scheduler, **settings, stage_changes=[4])
    close(told.latents, expected)
    close(result.latents, expected)
    assert told.nfe["weak"] == result.nfe["weak"] == 3


def test_resampling_draws_after_the_initial_noise():
    pipe, call = tiny.wan()
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="resample") as reflected:
        result = run(pipe, call)
        assert torch.equal(run(pipe, call), result)
        assert not torch.equal(run(pipe, call, seed=8), result)
    assert reflected.nfe == {"base": 2 * STEPS, "strong": 2 * (STEPS - 1), "weak": 0}
    predict = predictor(pipe, strong=Branch(), weak=Branch(), **call)
    latents, trajectory = predict.latents, predict.scheduler
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(torch.randn(latents.shape, generator=generator), latents)
    close(sample(predict, latents, trajectory, inversion="resample", generator=generator).latents, result)


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (
            Branch(control_scale=0.5),
            "control_scale, which WanVideoPipeline cannot be given: DiffSynth scales a Control",
        ),
        (Branch(ip_adapter_scale=0.5), "ip_adapter_scale, which WanVideoPipeline cannot be given"),
        (Branch(perturbed_layers=[0]), "perturbed_layers, which WanVideoPipeline cannot be given"),
        (Branch(guidance_scale=(4.0, 3.0)), "has a pair of guidance_scale, but WanVideoPipeline has one dit"),
        (Branch(experts="low"), "experts='low', but WanVideoPipeline has one dit"),
        (Branch(lora={"style": 1.0}), "a lora that is no adapter of peft in the dit"),
        (Branch(weights="strange"), "no second denoiser named 'strange'"),
        (Branch(weights=nn.Linear(2, 2)), "the second dit is a Linear, the pipeline's is a WanModel"),
        (Branch(skip_layers=[9]), "skip_layers 9: this WanModel has 2 blocks"),
    ],
)
def test_branches_that_cannot_be_had_are_refused(branch, says):
    pipe, _ = tiny.wan()
    before = left(pipe)
    with pytest.raises(ValueError, match=says), reflection(pipe, strong=Branch(), weak=branch):
        raise AssertionError("the block was entered")
    assert left(pipe) == before


def test_networks_of_other_sizes_are_refused():
    pipe, _ = tiny.wan()
    for changes, says in (({"in_dim": 36}, "in_dim=36"), ({"text_dim": 8}, "text_embedding.0.in_features=8")):
        weak = Branch(weights=tiny.wan_dit(5, **changes))
        with pytest.raises(ValueError, match=says), reflection(pipe, strong=Branch(), weak=weak):
            pass
    two, _ = tiny.wan(two_stage=True)
    with (
        pytest.raises(ValueError, match="must be a pair"),
        reflection(two, strong=Branch(), weak=Branch(weights=two.dit2)),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tea_cache_l1_thresh": 0.1, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}, "has tea_cache, which"),
        ({"cfg_merge": True}, "has cfg_merge, which"),
        ({"cfg_scale": 1.0}, "guidance_scale=6, but this call of WanVideoPipeline evaluates no unconditional"),
    ],
)
def test_calls_that_cannot_be_reflected_are_refused_before_a_network_runs(changes, says):
    pipe, call = tiny.wan()
    evaluations = []
    pipe.dit.head.register_forward_hook(lambda *_: evaluations.append(1))
    with reflection(pipe, strong=STRONG, weak=WEAK), pytest.raises(ValueError, match=says):
        run(pipe, call, **changes)
    assert not evaluations
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0):
        run(pipe, call, **{**changes, "tea_cache_l1_thresh": None})


def test_inpainting_and_rescaled_guidance_are_refused_before_a_network_runs():
    pipe, call = tiny.qwen()
    evaluations = []
    pipe.dit.proj_out.register_forward_hook(lambda *_: evaluations.append(1))
    step = pipe.step

    def blended(scheduler, latents, progress_id, noise_pred, **others):
        return step(scheduler, latents, progress_id, noise_pred, latents, torch.ones_like(latents) / 2)

    pipe.step = blended
    with (
        reflection(pipe, strong=STRONG, weak=WEAK),
        pytest.raises(ValueError, match=r"not made of uncond \+ cfg_scale"),
    ):
        run(pipe, call)
    assert not evaluations


def test_unknown_schedulers_and_settings_are_refused():
    from diffsynth.diffusion.flow_match import HiDreamO1FlashScheduler

    pipe, call = tiny.wan()
    for settings in ({"solver": "UniPCMultistepScheduler"}, {"grid": 1.3}):
        with pytest.raises(ValueError, match="leave solver and grid out"):
            reflection(pipe, strong=STRONG, weak=WEAK, **settings).__enter__()
    with reflection(pipe, strong=STRONG, weak=WEAK):
        with pytest.raises(ValueError, match="is being reflected already"):
            reflection(pipe, strong=STRONG, weak=WEAK).__enter__()
        pipe.scheduler = HiDreamO1FlashScheduler()
        with pytest.raises(TypeError, match="HiDreamO1FlashScheduler is not one of the schedulers of DiffSynth"):
            run(pipe, call)


def test_levels_of_ddim_are_those_that_it_steps_through():
    with tiny.imported():
        from diffsynth.diffusion.ddim_scheduler import DDIMScheduler

    from w2sd_video.backends.diffsynth import trajectory_of

    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(prediction_type=prediction_type)
        scheduler.set_timesteps(6)
        trajectory = trajectory_of(scheduler)
        latents, prediction = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
        for i, timestep in enumerate(scheduler.timesteps):
            close(trajectory.denoise(latents, prediction, i), scheduler.step(prediction, timestep, latents), 1e-6)
