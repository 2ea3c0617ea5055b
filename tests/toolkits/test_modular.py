"""Modular pipelines of diffusers, reflected: against loops over their own blocks written plainly, and stock calls."""

import contextlib
import copy
import functools
import threading

import diffusers
import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks
from helpers import add_lora, close
from tiny.assembled import mask
from tiny.modular import FAMILIES, modular
from tiny.parts import picture

from w2sd_video import Branch, StrengthSchedule, predictor, reflection, sample
from w2sd_video.backends import register
from w2sd_video.backends.modular import SecondDenoiser

DENOISERS = ("transformer", "transformer_2", "unet")


@functools.lru_cache
def tiny_pipe(name):
    return modular(name)


def run(pipe, call, **changes):
    return pipe(generator=torch.Generator().manual_seed(7), output="latents", **{**call, **changes})


def weaker(pipe, factor=1.1):
    """Return other weights for the pipeline: a module, or a pair of a two-stage model."""
    networks = [copy.deepcopy(getattr(pipe, name)) for name in DENOISERS if name in pipe.components]
    for network in networks:
        for parameter in network.parameters():
            parameter.data.mul_(factor)
    return networks[0] if len(networks) == 1 else tuple(networks)


@contextlib.contextmanager
def counted(*networks):
    """Give the networks that are evaluated, in order, however they were reached."""
    calls = []
    originals = {type(network): type(network).forward for network in networks}

    def counting(original):
        @functools.wraps(original)
        def forward(self, *args, **kwargs):
            calls.append(id(self))
            return original(self, *args, **kwargs)

        return forward

    for cls, original in originals.items():
        cls.forward = counting(original)
    try:
        yield calls
    finally:
        for cls, original in originals.items():
            cls.forward = original


def kept(pipe):
    """Return everything of a pipeline that a reflected call might leave changed."""

    def tree(blocks):
        return id(blocks), [(name, tree(block)) for name, block in blocks.sub_blocks.items()]

    guiders = [part for part in pipe.components.values() if hasattr(part, "prepare_inputs")]
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {
        "class": type(pipe),
        "blocks": tree(pipe._blocks),
        "attributes": {name: id(value) for name, value in vars(pipe).items()},
        "guiders": [(id(guider), {name: str(value) for name, value in vars(guider).items()}) for guider in guiders],
        "forwards": [[vars(module).get("forward") for module in network.modules()] for network in networks],
    }


# --- a plain loop over the blocks of a pipeline ---------------------------------------------------------------------


def loops(blocks):
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        return [blocks]
    return [loop for block in blocks.sub_blocks.values() for loop in loops(block)]


def plain_run(pipe, call, strong, weak, reflected, inversion="paper"):
    """Run a pipeline whose loop is this one: its own blocks, and algorithm 1 of the paper by hand.

    `strong` and `weak` are functions that put the components of a role in place for one evaluation.
    """
    pipe = copy.copy(pipe)
    pipe._blocks = copy.deepcopy(pipe._blocks)

    def loop_step(blocks):
        def step(components, state, i, t):
            *predicting, stepping = blocks
            if i < reflected:
                state.latents = plain_reflection(pipe, predicting, state, i, t, strong, weak, inversion)
            for block in (*predicting, stepping):
                components, state = block(components, state, i=i, t=t)
            return components, state

        return step

    for loop in loops(pipe._blocks):
        loop.loop_step = loop_step(list(loop.sub_blocks.values()))
    return run(pipe, call)


def plain_reflection(pipe, predicting, state, i, t, strong, weak, inversion):
    """Down by strong's prediction, up by weak's, in noise; where there is no signal yet in the denoised sample."""
    scheduler, x = pipe.scheduler, state.latents

    def predicted(role, latents):
        copied = copy.copy(state)
        copied.latents = latents
        with role(pipe, i):
            for block in predicting:
                block(pipe, copied, i=i, t=t)
        return copied.noise_pred

    at_sigma = scheduler.timesteps.tolist().index(float(t))
    s, s_below = (float(sigma) for sigma in scheduler.sigmas[at_sigma : at_sigma + 2])
    explodes = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    a, a_below = (1.0, 1.0) if explodes else (1 - s, 1 - s_below)

    def read(latents, prediction):
        """Return the denoised sample and the noise: of predicted noise (Euler), or of the flow."""
        if explodes:
            return latents - s * prediction, prediction
        return latents - s * prediction, latents + a * prediction

    sample, noise = read(x, predicted(strong, x))
    is_first_frame = first_frame(state, x)
    lower = torch.where(is_first_frame, x, a_below * sample + s_below * noise)
    at = lower if inversion == "paper" else x
    # Euler's blocks scale latents for the level that they are told; those below it are at another.
    in_scale = at * ((1 + s**2) / (1 + s_below**2)) ** 0.5 if explodes and inversion == "paper" else at
    sample, noise = read(at, predicted(weak, in_scale))
    if a == 0:
        noise = (lower - a_below * sample) / s_below
    else:
        sample = (lower - s_below * noise) / a_below
    return torch.where(is_first_frame, x, a * sample + s * noise)


def first_frame(state, latents):
    """Where latents are those of an image that LTX goes on from, which are not stepped."""
    mask = getattr(state, "conditioning_mask", None)
    return torch.zeros_like(latents, dtype=torch.bool) if mask is None else (mask > 0).unsqueeze(-1).expand_as(latents)


def role(networks=(), guider=None):
    """Return what puts other networks, or a guider, in place of a pipeline's for one evaluation."""

    @contextlib.contextmanager
    def in_place(pipe, i):
        before = dict(vars(pipe))
        names = [name for name in DENOISERS if name in pipe.components]
        vars(pipe).update(zip(names, networks, strict=False))
        if guider is not None:
            pipe.guider = guider
        try:
            yield
        finally:
            vars(pipe).update(before)

    return in_place


# --- families -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name):
    """Off is the stock call bit for bit, no gap is it to rounding, on is the plain loop, and nothing is left behind."""
    pipe, call = tiny_pipe(name)
    weak = weaker(pipe)
    networks = [getattr(pipe, each) for each in DENOISERS if each in pipe.components]
    weak_networks = weak if isinstance(weak, tuple) else (weak,)
    with counted(*networks) as calls:
        stock = run(pipe, call)
        of_stock = len(calls)
    before = kept(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), stock)
    assert off.nfe == {"base": of_stock, "strong": 0, "weak": 0}
    begun = round(call.get("strength", 1.0) * call["num_inference_steps"])
    assert (off.steps, off.reflected_steps) == (begun, 0)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with (
        counted(*networks) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=2, inversion="paper") as on,
    ):
        reflected = run(pipe, call)
    assert on.reflected_steps == 2
    assert on.nfe["weak"] == sum(calls.count(id(network)) for network in weak_networks)
    assert on.nfe["base"] + on.nfe["strong"] == sum(calls.count(id(network)) for network in networks)
    assert on.nfe["base"] == of_stock
    assert on.nfe["weak"] == on.nfe["strong"] == on.reflected_steps * of_stock // begun
    assert kept(pipe) == before
    expected = plain_run(pipe, call, role(), role(weak_networks), 2)
    close(reflected, expected, 1e-4)
    assert not torch.allclose(reflected, stock, rtol=1e-2, atol=1e-2)
    assert torch.equal(run(pipe, call), stock)


def predicted(pipe, call, branches, **settings):
    generator = torch.Generator().manual_seed(7)
    with predictor(pipe, **branches, **call, generator=generator) as predict:
        return sample(predict, predict.latents, predict.scheduler, begin=predict.begin, generator=generator, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"reflection_steps": 2, "inversion": "paper"},
        {"reflection_steps": 3, "inversion": "current", "reading": "native", "reuse": 3},
    ],
    ids=["paper", "reuse"],
)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "ltx image to video"])
def test_sample_with_a_predictor_is_the_pipeline_reflected(name, settings):
    """Some blocks lay out the latents anew after their loop: then the numbers are the same, in another order."""
    pipe, call = tiny_pipe(name)
    branches = {"strong": Branch(), "weak": Branch(weights=weaker(pipe))}
    before = kept(pipe)
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    result = predicted(pipe, call, branches, **settings)
    assert torch.equal(result.latents.flatten().sort().values, expected.flatten().sort().values)
    rows = reflected.nfe["base"] // result.nfe["base"]
    assert reflected.nfe == {each: rows * calls for each, calls in result.nfe.items()}
    assert kept(pipe) == before and not [each for each in threading.enumerate() if each.name.startswith("predictor")]


@pytest.mark.parametrize("guider", ["APG", "windowed"])
def test_a_predictor_with_texts_scales_and_guiders_that_know_the_step(guider):
    chosen = {
        "APG": diffusers.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
        "windowed": diffusers.ClassifierFreeGuidance(3.0, start=0.3, stop=0.9),
    }[guider]
    pipe, call = modular("wan", guider=chosen)
    branches = {"strong": Branch(guidance_scale=4.0), "weak": Branch(prompt="a sea", guidance_scale=2.0)}
    with reflection(pipe, **branches, inversion="current"):
        expected = run(pipe, call)
    assert torch.equal(predicted(pipe, call, branches, inversion="current").latents, expected)


def test_a_reused_gap_is_measured_anew_where_the_guider_begins_and_ends():
    pipe, call = modular("wan", guider=diffusers.ClassifierFreeGuidance(3.0, start=0.3, stop=0.7))
    call |= {"num_inference_steps": 10}
    branches = {"strong": Branch(), "weak": Branch(weights=weaker(pipe))}
    settings = {"inversion": "current", "reuse": 5}
    with reflection(pipe, **branches, **settings) as reflected:
        expected = run(pipe, call)
    assert reflected.nfe["weak"] == reflected.nfe["strong"] == 6  # at 0 without signal, 1, 3 (guided: 2), 7 and 8
    assert torch.equal(predicted(pipe, call, branches, **settings).latents, expected)
    told = predicted(pipe, call, branches, **settings, stage_changes=[3, 7])
    assert torch.equal(told.latents, expected)


def test_blocks_that_step_a_part_of_their_latents_have_no_predictor():
    pipe, call = tiny_pipe("ltx image to video")
    with pytest.raises(ValueError, match=r"and those of its state have \(1, 48, 4\), so that it can have no predictor"):
        predicted(pipe, call, {"strong": Branch(), "weak": Branch(weights=weaker(pipe))})
    with pytest.raises(ValueError, match="not loaded"):
        predictor(diffusers.WanBlocks().init_pipeline(), strong=Branch(), weak=Branch())


REFUSED = {
    "LTX2AutoBlocks": "side by side",
    "HeliosAutoBlocks": "not one of a loop",
    "WanAnimate2Blocks": "not one of a loop",
    "MiniMaxH3Blocks": "side by side",
    "EchoBlocks": "needs a scheduler and a denoiser",
}


@pytest.mark.parametrize("blocks", [name for name in REFUSED if hasattr(diffusers, name)])  # some are newer than others
def test_a_loop_of_another_kind_is_refused(blocks):
    pipe = getattr(diffusers, blocks)().init_pipeline()
    for name, part in pipe.components.items():
        if part is None:
            pipe.__dict__[name] = diffusers.DDIMScheduler() if "scheduler" in name else torch.nn.Identity()
    with pytest.raises(TypeError, match=REFUSED[blocks]), reflection(pipe, strong=Branch(), weak=Branch()):
        pass


# --- guiders --------------------------------------------------------------------------------------------------------

LAYERS = functools.partial(LayerSkipConfig, indices=[0], fqn="auto")
GUIDERS = {
    "ClassifierFreeGuidance": {},
    "ClassifierFreeGuidance, original": {"use_original_formulation": True},
    "ClassifierFreeGuidance, a window": {"start": 0.3, "stop": 0.8},
    "ClassifierFreeZeroStarGuidance": {},
    "AdaptiveProjectedGuidance": {"adaptive_projected_guidance_momentum": -0.5},
    "AdaptiveProjectedMixGuidance": {
        "adaptive_projected_guidance_momentum": -0.5,
        "adaptive_projected_guidance_start_step": 1,
    },
    "TangentialClassifierFreeGuidance": {},
    "AutoGuidance": {"auto_guidance_config": LAYERS(dropout=1.0)},
    "SkipLayerGuidance": {
        "skip_layer_config": LAYERS(),
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    },
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0], "seg_guidance_start": 0.0, "seg_guidance_stop": 1.0},
}


def guider_of(name, scale=3.0):
    return getattr(diffusers, name.partition(",")[0])(guidance_scale=scale, **GUIDERS[name])


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_keeps_a_state_for_each_role(name):
    """Also momentum, which is that of a guider of the role's own, called once a step."""
    pipe, call = tiny_pipe("wan")
    pipe.update_components(guider=guider_of(name))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), stock)
    before = kept(pipe)
    scale = 1.5 + GUIDERS[name].get("use_original_formulation", False)
    with reflection(
        pipe, strong=Branch(), weak=Branch(guidance_scale=scale), inversion="current", reflection_steps=3
    ) as on:
        reflected = run(pipe, call)
    assert kept(pipe) == before
    assert on.nfe["strong"] == off.nfe["base"]
    pipe.update_components(guider=guider_of(name))
    strong, weak = role(guider=guider_of(name)), role(guider=guider_of(name, 1.5))
    expected = plain_run(pipe, call, strong, weak, 3, "current")
    torch.testing.assert_close(reflected, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reflected, stock, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("guider", "family"),
    [
        (lambda: diffusers.guiders.MagnitudeAwareGuidance(guidance_scale=3.0), "wan"),
        (
            lambda: diffusers.PerturbedAttentionGuidance(
                3.0, perturbed_guidance_config=LAYERS(), perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0
            ),
            "wan",
        ),
    ],
    ids=["magnitude-aware", "perturbed attention"],
)
def test_guiders_that_fail_by_themselves_do_so(guider, family):
    """The day that one of them does not, the page that names them is to be changed."""
    pipe, call = tiny_pipe(family)
    pipe.update_components(guider=guider())
    with pytest.raises(Exception, match=r"must be a 2-tuple|not registered"):
        run(pipe, call, num_inference_steps=6)


def test_momentum_sees_each_step_once_however_often_a_role_is_evaluated():
    pipe, call = tiny_pipe("wan")
    settings = {"guidance_scale": 3.0, "adaptive_projected_guidance_momentum": -0.5}
    pipe.update_components(guider=diffusers.AdaptiveProjectedGuidance(**settings))
    seen = []
    original = diffusers.guiders.adaptive_projected_guidance.MomentumBuffer.update
    updates = diffusers.guiders.adaptive_projected_guidance.MomentumBuffer

    def update(self, value):
        seen.append(self.running_average if isinstance(self.running_average, int) else self.running_average.clone())
        return original(self, value)

    updates.update = update
    try:
        weak = Branch(guidance_scale=1.5)
        with reflection(
            pipe, strong=Branch(), weak=weak, inversion="implicit", iterations=3, reflection_steps=(0.34, 1)
        ):
            run(pipe, call)
    finally:
        updates.update = original
    assert len(seen) == 3 + 2 * 4
    # Base begins in step 0; strong and weak, first evaluated in step 1, begin there; weak's three all begin alike.
    zeros = [isinstance(value, int) and value == 0 for value in seen]
    assert zeros == [True, True, True, True, True, False, False, False, False, False, False]
    assert torch.equal(seen[7], seen[8])
    assert torch.equal(seen[8], seen[9])


# --- branches -------------------------------------------------------------------------------------------------------


def test_two_stages_have_networks_and_guiders_of_their_own():
    pipe, call = tiny_pipe("wan 2.2")
    call = call | {"num_inference_steps": 4}
    pipe.update_components(guider_2=diffusers.ClassifierFreeGuidance(guidance_scale=2.0))
    boundary = pipe.config.boundary_ratio * 1000
    stock = run(pipe, call)
    assert {bool(t >= boundary) for t in pipe.scheduler.timesteps} == {True, False}
    weak = weaker(pipe)
    with (
        counted(pipe.transformer) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(weights=weak), reflection_steps=4, inversion="paper"),
    ):
        reflected = run(pipe, call)
    high = sum(bool(t >= boundary) for t in pipe.scheduler.timesteps)
    assert calls.count(id(weak[0])) == 2 * high
    assert calls.count(id(weak[1])) == 2 * (4 - high)
    torch.testing.assert_close(reflected, plain_run(pipe, call, role(), role(weak), 4), rtol=1e-4, atol=1e-4)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=(3.0, 1.0)), inversion="current"):
        only_low = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=(1.0, 2.0)), inversion="current") as only_high:
        assert not torch.equal(run(pipe, call), only_low)
    assert only_high.nfe["strong"] == 2 * 3
    assert not torch.equal(only_low, stock)


def test_a_text_is_encoded_once_more_before_the_first_step():
    pipe, call = tiny_pipe("wan")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0))
    other = {"prompt": "a blue square", "negative_prompt": "green"}
    with reflection(pipe, strong=Branch(), weak=Branch(**other), base=Branch(**other), reflection_steps=0):
        changed = run(pipe, call)
    assert torch.equal(changed, run(pipe, call | other))
    stock = run(pipe, call)
    same = {"prompt": call["prompt"]}
    with reflection(pipe, strong=Branch(), weak=Branch(**same), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with reflection(pipe, strong=Branch(), weak=Branch(**other), inversion="current") as gap:
        state = pipe(generator=torch.Generator().manual_seed(7), **call)
    assert gap.nfe == {"base": 6, "strong": 4, "weak": 4}
    assert not torch.equal(state.latents, stock)
    stock = pipe(generator=torch.Generator().manual_seed(7), **call)
    assert torch.equal(state.prompt_embeds, stock.prompt_embeds)


@pytest.mark.parametrize("field", ["lora", "skip_layers", "perturbed_layers"])
def test_what_changes_a_network_from_within_does_so_for_its_role(field):
    pipe, call = modular("wan")
    add_lora(pipe.transformer, "paint", 3)
    pipe.transformer.set_adapters(["paint"], [0.0])
    value = {"lora": {"paint": 1.0}, "skip_layers": [0], "perturbed_layers": [0]}[field]
    stock = run(pipe, call)
    before = kept(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(**{field: value}), reflection_steps=0):
        changed = run(pipe, call)
    assert not torch.equal(changed, stock)
    with reflection(pipe, strong=Branch(), weak=Branch(**{field: value})):
        reflected = run(pipe, call)
    assert not torch.equal(reflected, stock)
    with reflection(pipe, strong=Branch(), weak=Branch(**{field: value}), inversion="current"):
        assert not torch.equal(run(pipe, call), stock)
    assert kept(pipe) == before
    assert torch.equal(run(pipe, call), stock)
    window = Branch(**{field: value}, windows={field: (0, 0)})
    with reflection(pipe, strong=Branch(), weak=window, inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)


def test_a_guidance_gap_at_one_latent_shares_its_evaluations():
    pipe, call = tiny_pipe("wan")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0))
    with (
        counted(pipe.transformer) as calls,
        reflection(pipe, strong=Branch(), weak=Branch(guidance_scale=1), inversion="current") as gap,
    ):
        run(pipe, call)
    assert gap.nfe == {"base": 6, "strong": 4, "weak": 0}
    assert len(calls) == 10


def test_autoguidance_and_windows():
    pipe, call = tiny_pipe("wan")
    weak = weaker(pipe)
    settings = {"strong": Branch(), "reflection_steps": 0, "autoguidance": 1.0}
    with reflection(pipe, weak=Branch(weights=weak), **settings) as pushed:
        both = run(pipe, call)
    assert pushed.nfe == {"base": 6, "strong": 0, "weak": 6}
    assert not torch.equal(both, run(pipe, call))
    late = {"windows": {"weights": (0.6, 1.0)}}
    with reflection(pipe, weak=Branch(weights=weak, **late), **settings):
        assert not torch.equal(run(pipe, call), both)
    schedule = StrengthSchedule((-1.0, 1.0), (0.0, 0.0))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak), strength=schedule) as none:
        assert torch.equal(run(pipe, call), stock)
    assert none.reflected_steps == 0


def test_weights_may_be_a_component_of_the_pipeline_or_registered():
    pipe, call = modular("wan")
    weak = weaker(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak)):
        expected = run(pipe, call)
    register(pipe, "poor", weak)
    with reflection(pipe, strong=Branch(), weak=Branch(weights="poor")):
        assert torch.equal(run(pipe, call), expected)
    blocks = pipe.blocks
    blocks.sub_blocks.insert("weak", SecondDenoiser("weak_transformer", diffusers.WanTransformer3DModel), 0)
    parts = pipe.components
    pipe = blocks.init_pipeline()
    pipe.update_components(**parts, weak_transformer=weak)
    with reflection(pipe, strong=Branch(), weak=Branch(weights="weak_transformer")):
        assert torch.equal(run(pipe, call), expected)


def test_a_distilled_network_is_told_the_scale_of_its_role():
    pipe, call = tiny_pipe("flux 2")
    with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(guidance_scale=1.5), reflection_steps=0):
        told = run(pipe, call)
    assert torch.equal(told, run(pipe, call, guidance_scale=1.5))
    assert not torch.equal(told, run(pipe, call, guidance_scale=4.0))


@pytest.mark.parametrize("solver", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_solvers_with_a_history_keep_it_without_a_gap(solver):
    """And with one the stock plugin, in a pipeline with a `__call__`, gives the same."""
    pipe, call = modular("wan")
    flow = (
        {} if "Heun" in solver else {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 7.0}
    )
    pipe.update_components(scheduler=getattr(diffusers, solver)(**flow))
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    weak = weaker(pipe)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weak)):
        reflected = run(pipe, call)
    of_one_call = diffusers.WanPipeline(
        **{name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    )
    of_one_call.set_progress_bar_config(disable=True)
    arguments = call | {"guidance_scale": 3.0, "output_type": "latent", "negative_prompt": ""}
    with reflection(of_one_call, strong=Branch(), weak=Branch(weights=weak)):
        same = of_one_call(generator=torch.Generator().manual_seed(7), **arguments).frames
    torch.testing.assert_close(reflected, same, rtol=1e-4, atol=1e-4)


def test_inpainting_that_noises_the_unmasked_part_anew_is_reflected():
    """The blocks after a step act on its latents only, and not on those of a reflection."""
    pipe, call = tiny_pipe("stable diffusion xl")
    call = call | {
        "image": picture(16),
        "mask_image": mask().resize((16, 16)),
        "strength": 0.9,
        "num_inference_steps": 4,
    }
    stock = run(pipe, call)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current"):
        torch.testing.assert_close(run(pipe, call), stock, rtol=1e-5, atol=1e-5)
    with reflection(pipe, strong=Branch(), weak=Branch(weights=weaker(pipe))) as on:
        reflected = run(pipe, call)
    assert on.steps == 3
    unmasked = stock == reflected
    assert unmasked.any()
    assert not unmasked.all()


# --- ends of all kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
@pytest.mark.parametrize("place", [1, 4, 8])
def test_an_exception_leaves_nothing_behind(error, place):
    pipe, call = tiny_pipe("wan")
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


# --- bad input ------------------------------------------------------------------------------------------------------


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
    pipe, call = tiny_pipe("qwen image")
    with (
        reflection(pipe, strong=Branch(), weak=Branch(prompt="a sea")),
        pytest.raises(ValueError, match="has a prompt, but"),
    ):
        run(pipe, call)
