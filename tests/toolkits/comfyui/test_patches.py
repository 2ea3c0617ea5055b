"""What nodes put into a model beside weights: functions of guidance, patches, wrappers, caches, context windows."""

import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import networks
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from networks import sd15, video, wan
from test_one_network import with_lora
from ways import CFG, NEGATIVE, POSITIVE, STEPS, WAYS, ByGuider, ByModel, node, plain_loop

from w2sd_video import Reflection
from w2sd_video.backends.comfyui import patches

OFF = Reflection(0)
CURRENT = Reflection(2, inversion="current")
HELD = Reflection(3, inversion="current", reuse=3)
ALL = Reflection(STEPS, inversion="current")
PUSHED = Reflection(0, autoguidance=1.0)
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def distance(this, that):
    return float((this - that).abs().max() / that.std())


def with_negative(model):
    """The model, given the negative prompt at cfg 1 too."""
    told = model.clone()
    told.model_options["disable_cfg1_optimization"] = True
    return told


def middle_steps(model):
    """The parts of a sampling between which the second and third of four steps are, as ranges of sigma are given."""
    sampling, sigmas = model.get_model_object("model_sampling"), networks.levels(model, STEPS)
    percents = [p / 1000 for p in range(1001)]
    edges = [(sigmas[i] + sigmas[i + 1]) / 2 for i in (0, 2)]
    return [next(p for p in percents if sampling.percent_to_sigma(p) <= edge) for edge in edges]


def with_function_wrapper(model):
    """A model whose network answers otherwise below a noise level."""
    edge = networks.levels(model, STEPS)[1]

    def wrapper(apply_model, args):
        output = apply_model(args["input"], args["timestep"], **args["c"])
        return output * (1.2 if args["timestep"][0] <= edge else 1.0)

    other = model.clone()
    other.set_model_unet_function_wrapper(wrapper)
    return other


def with_wrapper(model):
    """The same by a wrapper of another kind."""
    edge = networks.levels(model, STEPS)[1]

    def wrapper(executor, *args, **kwargs):
        options = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict) and "sigmas" in each)
        return executor(*args, **kwargs) * (1.2 if options["sigmas"][0] <= edge else 1.0)

    other = model.clone()
    other.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    return other


GUIDANCE = {
    "APG": (wan, lambda model: APG.execute(model, 0.5, 5.0, 0.0)[0]),
    "CFG-Zero*": (wan, lambda model: CFGZeroStar.execute(model)[0]),
    "CFGNorm": (wan, lambda model: CFGNorm.execute(model, 1.0)[0]),
    "TCFG": (wan, lambda model: TCFG.execute(model)[0]),
    "Mahiro": (wan, lambda model: Mahiro.execute(model)[0]),
    "PerpNeg": (wan, lambda model: PerpNeg.execute(model, networks.text(9), 1.0)[0]),
    "RescaleCFG": (sd15, lambda model: RescaleCFG().patch(model, 0.7)[0]),
    "linear": (sd15, lambda model: VideoLinearCFGGuidance().patch(model, 2.0)[0]),
    "PAG": (sd15, lambda model: PerturbedAttentionGuidance.execute(model, 3.0)[0]),
    "SAG": (sd15, lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]),
    "SLG": (wan, lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, *middle_steps(model), "1", "")[0]),
    "SLG of the negative": (wan, lambda model: SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "1", "")[0]),
}
PATCHES = {
    "deep shrink": (
        sd15,
        lambda model: PatchModelAddDownscale.execute(model, 1, 2.0, *middle_steps(model), True, "area", "area")[0],
    ),
    "FreeU": (sd15, lambda model: FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]),
    "model function wrapper": (wan, with_function_wrapper),
    "wrapper": (wan, with_wrapper),
}
LATENTS = {wan: video, sd15: networks.image}
each_node = pytest.mark.parametrize("name", GUIDANCE | PATCHES)


@each_way
@each_node
def test_a_node_of_strong_acts_in_both_of_its_roles(way, name):
    """The steps that count and those of a reflection have it, given both prompts where those that count are guided."""
    make, patched = (GUIDANCE | PATCHES)[name]
    latent = LATENTS[make]()
    strong, weak, base = patched(make(0)), make(1), patched(make(0))
    reflected = way.reflected(strong, weak, CURRENT, latent)
    is_guidance = name in GUIDANCE
    in_a_reflection = patched(with_negative(make(0)) if is_guidance else make(0))
    expected = plain_loop(in_a_reflection, make(1), latent, 2, "current", base=base)
    assert distance(reflected, expected) < 1e-4
    assert distance(reflected, way.reflected(make(0), weak, CURRENT, latent)) > 1e-4


@each_way
@pytest.mark.parametrize("name", ["APG", "PerpNeg", "PAG", "SLG"])
def test_a_node_of_weak_acts_in_its_role_alone(way, name):
    make, patched = GUIDANCE[name]
    latent = LATENTS[make]()
    reflected = way.reflected(make(0), patched(make(1)), CURRENT, latent)
    of_weak = patched(with_negative(make(1)))
    assert distance(reflected, plain_loop(make(0), of_weak, latent, 2, "current")) < 1e-4
    assert distance(reflected, way.reflected(make(0), make(1), CURRENT, latent)) > 1e-4


@each_node
def test_one_network_with_and_without_a_node(name, way=ByModel):
    make, patched = (GUIDANCE | PATCHES)[name]
    model, latent = make(0), LATENTS[make]()
    for on_one, on_two in (
        ((patched(model), model), (patched(make(0)), make(0))),
        ((model, patched(model)), (make(0), patched(make(0)))),
    ):
        one, two = (way.reflected(*pair, CURRENT, latent) for pair in (on_one, on_two))
        assert torch.equal(one, two)
    both = patched(model)
    assert distance(way.reflected(both, both, CURRENT, latent), way.stock(patched(make(0)), latent)) < 1e-4


@each_way
def test_steps_without_guidance_are_as_stock_at_cfg_1(way, monkeypatch):
    """Where no step that counts has a negative prompt, a reflection needs none."""
    monkeypatch.setattr("ways.CFG", 1.0)
    latent, patched = video(), GUIDANCE["SLG"][1]
    strong, weak = patched(wan(0)), wan(1)
    reflected = way.reflected(strong, weak, CURRENT, latent, cfg=1.0)
    assert distance(reflected, plain_loop(patched(wan(0)), weak, latent, 2, "current")) < 1e-4


@each_way
@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
def test_momentum_is_that_of_each_role(way, shared):
    """APG keeps it in a variable around its function, which all roles of a model have, and its clones too."""

    def with_momentum(model):
        return APG.execute(model, 0.5, 5.0, -0.75)[0]

    latent = video()
    strong = with_momentum(wan(0))
    if shared:
        weak = node("W2SDSkipLayers", model=strong, double_blocks="1", single_blocks="")
        of_weak = node("W2SDSkipLayers", model=with_negative(wan(0)), double_blocks="1", single_blocks="")
        of_weak = with_momentum(of_weak)
    else:
        weak, of_weak = with_momentum(wan(1)), with_momentum(with_negative(wan(1)))
    first = way.reflected(strong, weak, ALL, latent)
    in_a_reflection, base = with_momentum(with_negative(wan(0))), with_momentum(wan(0))
    expected = plain_loop(in_a_reflection, of_weak, latent, 3, "current", base=base)
    reflected = way.reflected(strong, weak, Reflection(3, inversion="current"), latent)
    assert distance(reflected, expected) < 1e-4
    assert torch.equal(way.reflected(strong, weak, ALL, latent), first), "nothing is left of a sampling"
    assert torch.equal(way.stock(strong, latent), way.stock(with_momentum(wan(0)), latent))


def of_an_object(model):
    """A function of guidance that is a method, and keeps something in its object."""

    class Growing:
        def __init__(self):
            self.weight = 0.0

        def guide(self, args):
            self.weight = 0.0 if args["sigma"][0] >= 1 else self.weight + 0.1
            return args["denoised"] * (1 + self.weight)

    grown = model.clone()
    grown.set_model_sampler_post_cfg_function(Growing().guide)
    return grown


def of_a_list(model):
    """A function of guidance that keeps something in a list around it."""
    weight = [0.0]

    def guide(args):
        weight[0] = 0.0 if args["sigma"][0] >= 1 else weight[0] + 0.1
        return args["denoised"] * (1 + weight[0])

    grown = model.clone()
    grown.set_model_sampler_post_cfg_function(guide)
    return grown


@each_way
@pytest.mark.parametrize("growing", [of_an_object, of_a_list])
def test_what_a_function_keeps_elsewhere_is_that_of_each_role(way, growing):
    latent, weak = video(), wan(1)
    reflected = way.reflected(growing(wan(0)), weak, CURRENT, latent)
    expected = plain_loop(growing(wan(0)), weak, latent, 2, "current", base=growing(wan(0)))
    assert distance(reflected, expected) < 1e-4
    assert distance(reflected, way.reflected(wan(0), weak, CURRENT, latent)) > 1e-4


def of_a_variable(model):
    """The same in a variable around the function."""
    weight = 0.0

    def guide(args):
        nonlocal weight
        weight = 0.0 if args["sigma"][0] >= 1 else weight + 0.1
        return args["denoised"] * (1 + weight)

    grown = model.clone()
    grown.set_model_sampler_post_cfg_function(guide)
    return grown


def test_a_role_that_comes_late_begins_as_the_sampling_did(way=ByModel):
    """Wherever a function keeps what the steps before were told, which strong was not."""
    settings, weak = Reflection((0.5, 1.0), inversion="current"), wan(1)
    variable, *others = (
        way.reflected(growing(wan(0)), weak, settings, video()) for growing in (of_a_variable, of_an_object, of_a_list)
    )
    assert all(torch.equal(variable, other) for other in others)


def with_context_windows(model, schedule="standard_static"):
    return WanContextWindowsManualNode.execute(model, 5, 4, schedule, 1, False, "pyramid")[0]


@each_way
@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
def test_context_windows(way, schedule):
    latent = {"samples": torch.zeros(1, 16, 4, 8, 8)}
    strong, weak = with_context_windows(wan(0), schedule), with_context_windows(wan(1), schedule)
    reflected = way.reflected(strong, weak, CURRENT, latent)
    assert distance(reflected, plain_loop(strong, weak, latent, 2, "current")) < 1e-4
    assert distance(reflected, way.reflected(wan(0), wan(1), CURRENT, latent)) > 1e-4


def with_object(model):
    other = model.clone()
    forward = other.get_model_object("diffusion_model.blocks.0.forward")
    other.add_object_patch("diffusion_model.blocks.0.forward", lambda *args, **kwargs: forward(*args, **kwargs))
    return other


SWITCHING = {
    **GUIDANCE,
    **PATCHES,
    "replaced forward": (wan, with_object),
    "context windows": (wan, with_context_windows),
}


@pytest.mark.parametrize("name", SWITCHING)
def test_a_gap_is_not_held_over_what_may_switch(name, way=ByGuider):
    make, patched = SWITCHING[name]
    latent = LATENTS[make]()
    for role, pair in (("strong", (patched(make(0)), make(1))), ("weak", (make(0), patched(make(1))))):
        with pytest.raises(ValueError, match=rf"reuse=3 holds a gap .* {role} has what may act .* set reuse to 1"):
            way.reflected(*pair, HELD, latent)
        assert not comfy.model_management.current_loaded_models
    nothing_held = Reflection(2, inversion="current", reuse=2)
    pair = patched(make(0)), make(1)
    assert torch.equal(way.reflected(*pair, nothing_held, latent), way.reflected(*pair, CURRENT, latent))


@each_way
def test_the_reason_names_the_node(way):
    strong = SkipLayerGuidanceDiT.execute(wan(0), 3.0, 0.0, 0.5, "1", "")[0]
    name = r"\(sampler_post_cfg_function: SkipLayerGuidanceDiT.execute of comfy_extras.nodes_slg\)"
    with pytest.raises(ValueError, match=name):
        way.reflected(strong, wan(1), HELD, video())


@each_way
def test_a_gap_is_held_over_what_does_not_switch(way):
    """Skipped layers, LoRAs and model sampling are known, and torch.compile is."""
    calls = []
    settings = Reflection(STEPS, inversion="current", reuse=STEPS)
    strong = ModelSamplingSD3().patch(with_lora(wan(0), 0, 0.8), 3.0)[0]
    weak = node("W2SDSkipLayers", model=strong, double_blocks="1", single_blocks="")
    counted = with_lora(weak, 1, 0.1)
    counted.set_model_denoise_mask_function(calls.append)  # which no sampling without a mask calls
    assert way.reflected(strong, counted, settings, video()).isfinite().all() and not calls


def test_what_is_known_not_to_switch():
    compiled = wan(0).clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    assert patches.is_compiled(compiled, with_wrappers(compiled))
    skipping = node("W2SDSkipLayers", model=compiled, double_blocks="1", single_blocks="")
    assert not patches.acting(skipping, with_wrappers(skipping), {"positive": [{}]})
    assert not patches.is_compiled(wan(0), wan(0).model_options)


def with_wrappers(model):
    """The options of a model, as a guider has them."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    return options


class Scheduled(comfy.controlnet.ControlNet):
    """One of a node package's own, with strengths of its own for each noise level."""


@each_way
def test_a_gap_is_not_held_over_what_conditioning_brings(way):
    options = {"patches": {"attn1_patch": [lambda q, k, v, options: (q, k, v)]}}
    hook = comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    positive = comfy.hooks.set_hooks_for_conditioning(POSITIVE, group)
    with pytest.raises(ValueError, match="attn1_patch"):
        way.reflected(sd15(0), sd15(1), HELD, networks.image(), positive=positive)
    control = Scheduled(None, load_device=networks.CPU, manual_cast_dtype=None)
    with pytest.raises(ValueError, match="control: Scheduled of"):
        way.reflected(sd15(0), sd15(1), HELD, networks.image(), weak_positive=networks.text(0, control=control))


@each_way
def test_a_gap_is_not_held_over_a_mask_that_changes(way):
    strong = DifferentialDiffusion.execute(wan(0), 1.0)[0]
    masked = {**video(), "noise_mask": torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))}
    with pytest.raises(ValueError, match="denoise_mask_function: DifferentialDiffusion"):
        way.reflected(strong, wan(1), HELD, masked)
    way.reflected(strong, wan(1), HELD, video())
    way.reflected(wan(0), DifferentialDiffusion.execute(wan(1), 1.0)[0], HELD, masked)


def caching(model, prompts=((0,), (0, 1), (1, 0))):
    """A cache in the place of the network's forward pass, as TeaCache is."""
    network, kept = model.model.diffusion_model, {}

    def cached(apply_model, args):
        forward = network._forward

        def answer(x, *others, **options):
            if len(x) in kept and tuple(args["cond_or_uncond"]) in prompts:  # a prompt's alone, or both
                return x + kept[len(x)]
            output = forward(x, *others, **options)
            if args["timestep"][0] < networks.levels(model, STEPS)[1]:
                kept[len(x)] = output - x
            return output

        network._forward = answer
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del network._forward

    other = model.clone()
    other.set_model_unet_function_wrapper(cached)
    return other


def under_another_key(node):
    """ComfyUI's cache, unknown by its name."""

    def cached(model):
        other = node.execute(model, 1e9, 0.0, 1.0, False)[0]
        holder = other.model_options["transformer_options"].pop("easycache")
        options = {"easycache": holder}

        def hidden(executor, *args, **kwargs):
            executor.class_obj.model_options["transformer_options"].update(options)
            return executor(*args, **kwargs)

        other.wrappers[WrappersMP.OUTER_SAMPLE] = {"w2sd": [], "hidden": [], **other.wrappers[WrappersMP.OUTER_SAMPLE]}
        other.wrappers[WrappersMP.OUTER_SAMPLE]["hidden"] = [hidden]
        return other

    return cached


@each_way
@pytest.mark.parametrize("settings", [ALL, PUSHED], ids=["reflected", "pushed"])
@pytest.mark.parametrize(
    "cache", [caching, under_another_key(EasyCacheNode), under_another_key(LazyCacheNode)], ids=["own", "easy", "lazy"]
)
def test_what_answers_in_the_place_of_the_network_is_refused(way, cache, settings):
    latent = video()
    for pair in ((cache(wan(0)), wan(1)), (wan(0), cache(wan(1)))):
        with pytest.raises(ValueError, match=r"an evaluation of .* ran \d+ layers of the network, and an earlier one"):
            way.reflected(*pair, settings, latent)
        for model in pair:
            assert not any(layer._forward_pre_hooks for layer in model.model.modules())
    assert way.reflected(cache(wan(0)), wan(1), OFF, latent).isfinite().all()


def test_a_cache_of_one_prompt_is_seen_where_prompts_come_one_by_one(monkeypatch):
    strong = caching(wan(0), [(1,)])
    monkeypatch.setattr(type(strong.model), "memory_required", lambda *args, **options: 1e30)
    with pytest.raises(ValueError, match="an evaluation of the strong model ran"):
        ByModel.reflected(strong, wan(1), CURRENT, video())


def test_caches_of_a_guider_are_refused():
    """Nodes may change what a guider samples with, and leave its model alone."""
    model = node("W2SDModel", strong=wan(0), weak=wan(1), settings=CURRENT, strong_cfg=1.0, weak_cfg=1.0)
    guider = networks.guider(model, POSITIVE, NEGATIVE, CFG)
    cached = EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0]
    guider.model_options = cached.model_options
    with pytest.raises(ValueError, match=r"EasyCache of the strong model .* take it out"):
        networks.custom(guider, networks.sampler(), networks.levels(model, STEPS), video())


class Rescaling(comfy.samplers.CFGGuider):
    """A guider that changes what is predicted in another method than most."""

    def outer_predict_noise(self, *args, **kwargs):
        return 0.9 * super().outer_predict_noise(*args, **kwargs)


def test_guiders_that_change_a_prediction_are_refused():
    model = node("W2SDModel", strong=wan(0), weak=wan(1), settings=CURRENT, strong_cfg=1.0, weak_cfg=1.0)
    sigmas, latent = networks.levels(model, STEPS), video()
    own, put_in = Rescaling(model), networks.guider(model, POSITIVE, NEGATIVE, CFG)
    own.set_conds(POSITIVE, NEGATIVE)
    predict = put_in.predict_noise
    put_in.predict_noise = lambda *args, **kwargs: 0.9 * predict(*args, **kwargs)
    for guider in (own, put_in):
        with pytest.raises(ValueError, match="guides in a way of its own"):
            networks.custom(guider, networks.sampler(), sigmas, latent)
