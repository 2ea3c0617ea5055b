"""Two networks, and one with other conditioning, guidance or layers: both ways in, on networks of both kinds."""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.samplers
import networks
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from networks import sd15, video, wan
from nodes import ConditioningSetTimestepRange, ControlNetApplyAdvanced
from ways import CFG, NEGATIVE, POSITIVE, STEPS, WAYS, ByGuider, ByModel, node, plain_loop

from w2sd_video import Reflection, StrengthSchedule

OFF = Reflection(0)
CURRENT = Reflection(2, inversion="current")
PAPER = Reflection(2, inversion="paper")
FAST = Reflection(0, autoguidance=1.0, autoguidance_steps=(0.5, 1.0), autoguidance_gap="strong")


def v_prediction(seed=0):
    return sd15(seed, comfy.model_base.ModelType.V_PREDICTION)


NETWORKS = {wan: video, sd15: networks.image, v_prediction: networks.image}
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
each_network = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def distance(this, that):
    return float((this - that).abs().max() / that.std())


def counting(model, calls):
    counted = model.clone()
    counted.add_wrapper(
        WrappersMP.APPLY_MODEL, lambda executor, *a, **k: (calls.append(len(a[0])), executor(*a, **k))[1]
    )
    return counted


@each_way
@each_network
def test_off_is_bit_equal_and_does_not_load_the_weak_model(way, make):
    strong, weak, latent = make(0), make(1), NETWORKS[make]()
    assert torch.equal(way.reflected(strong, weak, OFF, latent), way.stock(strong, latent))
    assert weak.model.current_weight_patches_uuid is None


@each_way
@each_network
def test_a_null_gap_is_stock_to_rounding(way, make):
    strong, latent = make(0), NETWORKS[make]()
    copy = make(0)
    for weak in (strong, copy):
        assert distance(way.reflected(strong, weak, CURRENT, latent), way.stock(strong, latent)) < 1e-5


@each_way
@each_network
@pytest.mark.parametrize("settings", [CURRENT, PAPER], ids=["current", "paper"])
def test_on_is_a_plain_loop(way, make, settings):
    strong, weak, latent = make(0), make(1), NETWORKS[make](batch=2)
    reflected = way.reflected(strong, weak, settings, latent)
    assert distance(reflected, plain_loop(strong, weak, latent, 2, settings.inversion)) < 1e-4
    assert distance(reflected, way.stock(strong, latent)) > 0.01


@each_way
def test_from_a_picture_at_half_the_noise(way):
    strong, weak, latent = (
        sd15(0),
        sd15(1),
        {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))},
    )
    assert torch.equal(way.reflected(strong, weak, OFF, latent, denoise=0.5), way.stock(strong, latent, denoise=0.5))
    reflected = way.reflected(strong, weak, CURRENT, latent, denoise=0.5)
    assert distance(reflected, plain_loop(strong, weak, latent, 2, "current", denoise=0.5)) < 1e-4
    assert distance(reflected, way.stock(strong, latent, denoise=0.5)) > 1e-3


@each_way
@pytest.mark.parametrize("make", [wan, sd15], ids=["wan", "sd15"])
def test_what_a_mask_keeps_is_kept(way, make):
    strong, weak, latent = make(0), make(1), NETWORKS[make]()
    latent = {"samples": torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(5))}
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    latent["noise_mask"] = mask
    reflected, stock = way.reflected(strong, weak, PAPER, latent), way.stock(strong, latent)
    kept, painted = (..., slice(4, None)), (..., slice(None, 4))
    assert distance(reflected[kept], stock[kept]) < 1e-5
    assert distance(reflected[painted], stock[painted]) > 0.01
    assert distance(reflected, plain_loop(strong, weak, latent, 2, "paper")) < 1e-4
    assert distance(way.reflected(strong, strong, CURRENT, latent), stock) < 1e-5


@each_way
def test_the_mask_is_that_of_the_strong_model_for_both(way):
    strong, weak = wan(0), wan(1)
    strong.set_model_denoise_mask_function(lambda sigma, mask, extra_options: (mask >= 0.5).to(mask.dtype))
    latent = {**video(), "noise_mask": torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))}
    same = wan(0)
    assert distance(way.reflected(strong, same, CURRENT, latent), way.stock(strong, latent)) < 1e-5
    assert distance(way.reflected(strong, weak, CURRENT, latent), way.stock(strong, latent)) > 0.01


@each_way
def test_evaluations_are_as_many_as_counted(way, caplog):
    calls, calls_of_weak = [], []
    strong, weak = counting(wan(0), calls), counting(wan(1), calls_of_weak)
    with caplog.at_level("INFO"):
        way.reflected(strong, weak, CURRENT, video())
    assert sorted(calls) == [1] * 2 + [2] * STEPS, "strong without guidance in a reflection, and with it at each step"
    assert calls_of_weak == [1, 1]
    assert f"{STEPS} steps, evaluations 4 base, 2 strong, 2 weak" in caplog.text


@each_way
def test_progress_and_previews_count_the_steps(way, monkeypatch):
    progress = []
    prepare = lambda model, steps, x0_output=None: lambda step, x0, x, total: progress.append((step, total, x0.shape))  # noqa: E731
    monkeypatch.setattr("latent_preview.prepare_callback", prepare)
    way.reflected(wan(0), wan(1), CURRENT, video())
    assert progress == [(step, STEPS, (1, 16, 3, 8, 8)) for step in range(STEPS)]


def range_of(model, conditioning, start, end):
    (ranged,) = ConditioningSetTimestepRange().set_range(conditioning, start, end)
    return ranged


@each_way
def test_a_reused_gap_is_measured_anew_where_conditioning_begins(way):
    calls_of_weak, latent = [], networks.image()
    strong, weak = sd15(0), sd15(1)
    weak.model.diffusion_model.register_forward_pre_hook(lambda *_: calls_of_weak.append(1))
    settings = Reflection(3, inversion="current", reuse=3)
    held = way.reflected(strong, weak, settings, latent, weak_positive=networks.text(2))
    assert len(calls_of_weak) == 2, "at steps 0 and 2"
    sigma_of = sd15(0).model.model_sampling.percent_to_sigma
    levels = networks.levels(sd15(0), STEPS)
    edge = next(p / 1000 for p in range(1000) if sigma_of(p / 1000) <= (levels[0] + levels[1]) / 2)
    calls_of_weak.clear()
    first, (second,) = range_of(weak, networks.text(2), 0.0, edge), range_of(weak, networks.text(3), edge, 1.0)
    switched = way.reflected(strong, weak, settings, latent, weak_positive=[*first, second])
    assert len(calls_of_weak) == 3 and distance(held, switched) > 1e-4


@each_way
def test_other_conditioning_and_guidance_of_one_model(way):
    model, poorer, latent = wan(0), networks.text(2), video(batch=2)
    reflected = way.reflected(model, model, CURRENT, latent, weak_positive=poorer)
    assert distance(reflected, plain_loop(model, model, latent, 2, "current", weak_prompts=(poorer, NEGATIVE))) < 1e-4
    guided = way.reflected(model, model, CURRENT, latent, strong_cfg=4.0)
    assert distance(guided, reflected) > 0.01 and distance(guided, way.stock(model, latent)) > 0.01
    assert (
        distance(way.reflected(model, model, CURRENT, latent, strong_cfg=2.0, weak_cfg=2.0), way.stock(model, latent))
        < 1e-5
    )


@each_way
def test_a_controlnet_of_both(way):
    """One that conditioning carries serves strong and weak, and is loaded with them."""
    settings = {
        name: value for name, value in networks.UNET.items() if name not in ("out_channels", "transformer_depth_output")
    }
    network = comfy.cldm.cldm.ControlNet(**settings, hint_channels=3, operations=comfy.ops.disable_weight_init)
    networks.randomize(network, 3)
    controlnet = comfy.controlnet.ControlNet(network, load_device=networks.CPU, manual_cast_dtype=None)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    apply = ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(POSITIVE, NEGATIVE, controlnet, hint, 1.0, 0.0, 1.0)
    strong, weak, latent = sd15(0), sd15(1), networks.image()
    prompts = {"positive": positive, "negative": negative}
    stock = way.stock(strong, latent, **prompts)
    assert distance(stock, way.stock(strong, latent)) > 1e-3
    assert distance(way.reflected(strong, strong, CURRENT, latent, **prompts), stock) < 1e-5
    of_both = way.reflected(strong, weak, CURRENT, latent, **prompts)
    assert distance(of_both, plain_loop(strong, weak, latent, 2, "current", prompts=(positive, negative))) < 1e-4
    without = way.reflected(strong, weak, CURRENT, latent, weak_positive=POSITIVE, weak_negative=NEGATIVE, **prompts)
    assert distance(without, of_both) > 1e-4, "the weak model without it is another"


@each_way
def test_skipped_layers(way):
    model, latent = wan(0), video()
    weak = node("W2SDSkipLayers", model=model, double_blocks="1", single_blocks="")
    shorter = wan(0)
    del shorter.model.diffusion_model.blocks[1]
    assert torch.equal(way.stock(weak, latent), way.stock(shorter, latent))
    reflected = way.reflected(model, weak, CURRENT, latent)
    assert distance(reflected, plain_loop(model, shorter, latent, 2, "current")) < 1e-4
    assert distance(reflected, way.stock(model, latent)) > 0.01


@each_way
def test_blocks_that_there_are_not_are_refused(way):
    model = wan(0)
    for blocks in ({"double_blocks": "3", "single_blocks": ""}, {"double_blocks": "", "single_blocks": "0"}):
        with pytest.raises(ValueError, match=r"WAN21 has no (double_block 3|single_block 0) that can be skipped"):
            way.reflected(model, node("W2SDSkipLayers", model=model, **blocks), CURRENT, video())
    with pytest.raises(ValueError, match="BaseModel has no double_block 0"):
        way.reflected(
            strong := sd15(0),
            node("W2SDSkipLayers", model=strong, double_blocks="0", single_blocks=""),
            CURRENT,
            networks.image(),
        )
    for text, message in (("", "name one"), ("a", "numbers with commas"), ("-1", "from 0"), ("1.5", "whole")):
        with pytest.raises(ValueError, match=message):
            node("W2SDSkipLayers", model=model, double_blocks=text, single_blocks="")


@each_way
@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
def test_an_interrupt_and_an_error_leave_nothing_behind(way, shared, monkeypatch):
    strong, other = wan(0), wan(1)
    weak = node("W2SDSkipLayers", model=strong, double_blocks="1", single_blocks="") if shared else other
    latent = video()
    stock, on = way.stock(strong, latent), way.reflected(strong, weak, CURRENT, latent)

    def interrupting(model, steps, x0_output=None):
        return lambda step, *_: step == 0 and comfy.model_management.interrupt_current_processing(True)

    def failing(executor, *args, **kwargs):
        failures.append(len(failures))
        if len(failures) == 2:
            raise RuntimeError("in the weak model")
        return executor(*args, **kwargs)

    failures = []
    with monkeypatch.context() as patched:
        patched.setattr("latent_preview.prepare_callback", interrupting)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            way.reflected(strong, weak, CURRENT, latent)
    fails = weak.clone()
    fails.add_wrapper(WrappersMP.APPLY_MODEL, failing)
    with pytest.raises(RuntimeError, match="in the weak model"):
        way.reflected(strong, fails, CURRENT, latent)
    for model in (strong, weak):
        assert model.model.current_patcher is None
        assert not (model.hook_patches or model.hook_backup or model.cached_hook_patches or model.current_hooks)
        assert not model.additional_models and model.model_options["transformer_options"].keys() <= {"patches_replace"}
    assert torch.equal(way.stock(strong, latent), stock)
    assert torch.equal(way.reflected(strong, weak, CURRENT, latent), on)
    loaded = comfy.model_management.current_loaded_models
    assert len({id(each.model.model) for each in loaded}) == len(loaded), "one network is loaded twice"


@each_way
@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
def test_with_hardly_any_memory_on_the_device(way, shared, monkeypatch):
    strong, latent = wan(0), video()
    weak = node("W2SDSkipLayers", model=strong, double_blocks="1", single_blocks="") if shared else wan(1)
    on = way.reflected(strong, weak, CURRENT, latent)
    comfy.model_management.unload_all_models()
    # As with --novram: ComfyUI keeps the weights off the device and casts each when it is used.
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    assert torch.equal(way.reflected(strong, weak, CURRENT, latent), on)
    assert strong.model.model_lowvram and weak.model.model_lowvram
    monkeypatch.undo()


def test_both_are_loaded_together(monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, *a, **k: (asked.append({m.model for m in models}), load(models, *a, **k)),
    )
    strong, weak = wan(0), wan(1)
    ByModel.reflected(strong, weak, CURRENT, video())
    assert asked and all(models == {strong.model, weak.model} for models in asked)


def test_strengths_by_noise_level():
    strong, weak, latent = sd15(0), sd15(1), networks.image()
    schedule = node("W2SDStrengthSchedule", log_snr="-20 20", strength="0.5, 0.5")
    assert schedule == StrengthSchedule((-20, 20), (0.5, 0.5))
    inputs = {"start": 0.0, "stop": 0.5, "inversion": "current", "rounds": 1, "iterations": 2, "span": 1}
    inputs |= {"reading": "epsilon", "reuse": 1, "carried": "held"}
    by_schedule = node("W2SDSettings", strength=2.0, schedule=schedule, **inputs)
    once = ByModel.reflected(strong, weak, node("W2SDSettings", strength=1.0, **inputs), latent)
    assert distance(ByModel.reflected(strong, weak, by_schedule, latent), once) < 1e-6
    assert distance(ByModel.reflected(strong, weak, node("W2SDSettings", strength=0.5, **inputs), latent), once) > 1e-3


def test_presets():
    assert node("W2SDPresets", preset="off").reflection_steps == 0
    assert node("W2SDPresets", preset="paper") == Reflection(None, inversion="paper")
    assert node("W2SDPresets", preset="recommended") == Reflection((0, 0.5), inversion="current")
    assert node("W2SDPresets", preset="fast") == FAST


@each_way
@each_network
@pytest.mark.parametrize("gap", ["strong", "base"])
def test_autoguidance_is_a_plain_loop(way, make, gap):
    strong, weak, latent = make(0), make(1), NETWORKS[make](batch=2)
    pushed = way.reflected(strong, weak, replace(FAST, autoguidance_gap=gap), latent)
    assert distance(pushed, plain_loop(strong, weak, latent, 0, "current", pushed=2, gap=gap)) < 1e-4
    assert distance(pushed, way.stock(strong, latent)) > 0.01


def test_autoguidance_is_set_by_a_node_and_works_with_a_corrector():
    strong, weak, latent = wan(0), wan(1), video()
    inputs = {"rounds": 1, "iterations": 2, "inversion": "auto", "span": 1, "reading": "epsilon", "carried": "held"}
    off = {**inputs, "start": 0.0, "stop": 0.0, "strength": 1.0, "reuse": 1}
    assert not node("W2SDSettings", **off).is_on
    settings = node("W2SDSettings", **off, autoguidance=1.0)
    for name in ("euler", "uni_pc"):
        by_node = ByModel.reflected(strong, weak, settings, latent, name)
        assert torch.equal(by_node, ByModel.reflected(strong, weak, FAST, latent, name)), name
        assert distance(by_node, ByModel.stock(strong, latent, name)) > 0.01
    assert (
        distance(ByModel.reflected(strong, strong, FAST, latent, "uni_pc"), ByModel.stock(strong, latent, "uni_pc"))
        < 1e-5
    )


def test_every_sampler_is_reflected_or_refused():
    strong, latent = sd15(0), networks.image()
    refused = set()
    for name in comfy.samplers.SAMPLER_NAMES:
        try:
            null = ByModel.reflected(strong, strong, CURRENT, latent, name)
        except ValueError as error:
            assert "cannot be reflected" in str(error)
            refused.add(name)
            continue
        assert distance(null, ByModel.stock(strong, latent, name)) < 1e-4, name
    no_steps = {"dpm_fast", "dpm_adaptive"}
    correctors = {"uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece"}
    of_guidance = {
        f"{name}_cfg_pp"
        for name in (
            "euler",
            "euler_ancestral",
            "dpmpp_2m",
            "res_multistep",
            "res_multistep_ancestral",
            "gradient_estimation",
        )
    }
    assert refused == no_steps | correctors | of_guidance


def test_sampling_of_the_model_is_patched_alike_or_refused():
    latent = video()
    base = wan(0)
    shifted = [ModelSamplingSD3().patch(base, 3.0)[0] for _ in range(2)]
    assert distance(ByModel.reflected(*shifted, CURRENT, latent), ByModel.stock(shifted[0], latent)) < 1e-5
    skipped = node("W2SDSkipLayers", model=base, double_blocks="1", single_blocks="")
    with pytest.raises(ValueError, match="one network with different model sampling"):
        ByModel.reflected(shifted[0], skipped, CURRENT, latent)
    other = wan(1)  # a network of its own keeps its own shift, which says nothing about a given sigma
    assert (
        distance(
            ByModel.reflected(shifted[0], other, CURRENT, latent), plain_loop(shifted[0], other, latent, 2, "current")
        )
        < 1e-4
    )


def refusals():
    zero_snr = ModelSamplingDiscrete().patch(sd15(0), "v_prediction", True)[0]
    flow = ModelSamplingSD3().patch(sd15(1), 3.0)[0]
    yield "latents of another space", wan(0), sd15(1), {}, "different latents: WAN21 has Wan21 of 16 channels"
    yield "flow over noise", sd15(0), flow, {}, "sampled differently: BaseModel is variance_exploding"
    yield "no such noise", zero_snr, sd15(1), {}, "the sigmas begin at .*, and weak .* knows none above 14.6"
    yield "empty weak positive", wan(0), wan(1), {"weak_positive": []}, "positive conditioning of weak is empty"
    yield "no negative", wan(0), wan(1), {"negative": [], "weak_cfg": 2.0}, "(no|a) negative conditioning"
    yield "guidance that is no number", wan(0), wan(1), {"weak_cfg": float("nan")}, "must be finite"
    yield "uni_pc", wan(0), wan(1), {"name": "uni_pc"}, "UniPC"
    yield (
        "a weak that is reflected",
        wan(0),
        node("W2SDModel", strong=(other := wan(1)), weak=other, strong_cfg=1.0, weak_cfg=1.0),
        {},
        "the weak model has a weak one already",
    )


@each_way
@pytest.mark.parametrize("case", range(8))
def test_what_cannot_be_right_is_refused_before_anything_is_loaded(way, case):
    _, strong, weak, inputs, message = list(refusals())[case]
    latent = video() if type(strong.model).__name__ == "WAN21" else networks.image()
    with pytest.raises(ValueError, match=message):
        way.reflected(strong, weak, CURRENT, latent, **inputs)
    assert not comfy.model_management.current_loaded_models


@each_way
@pytest.mark.parametrize("node_of_cache", [EasyCacheNode, LazyCacheNode])
def test_caches_that_skip_evaluations_are_refused(way, node_of_cache):
    strong, weak, latent = wan(0), wan(1), video()
    cached = node_of_cache.execute(strong, 0.2, 0.15, 0.95, False)[0]
    for pair in ((cached, weak), (weak, cached)):
        with pytest.raises(ValueError, match=f"{node_of_cache.__name__.removesuffix('Node')} .* take it out"):
            way.reflected(*pair, CURRENT, latent)
    assert torch.isfinite(way.reflected(cached, weak, OFF, latent)).all()


def test_sigmas_that_rise_are_refused():
    guider = node(
        "W2SDGuider",
        strong=wan(0),
        weak=wan(1),
        positive=POSITIVE,
        negative=NEGATIVE,
        cfg=CFG,
        strong_cfg=1.0,
        weak_cfg=1.0,
    )
    sampler = node("W2SDSampler", sampler=networks.sampler(), settings=CURRENT)
    with pytest.raises(ValueError, match="fall"):
        networks.custom(guider, sampler, torch.tensor([0.5, 0.9, 0.0]), video())


def test_nodes_that_do_not_belong_together_are_refused():
    strong, weak = wan(0), wan(1)
    of_both = {"strong": strong, "weak": weak, "strong_cfg": 1.0, "weak_cfg": 1.0}
    guider = node("W2SDGuider", **of_both, positive=POSITIVE, negative=NEGATIVE, cfg=CFG)
    model = node("W2SDModel", **of_both, settings=CURRENT)
    sampler = node("W2SDSampler", sampler=networks.sampler(), settings=CURRENT)
    sigmas, latent = networks.levels(strong, STEPS), video()
    with pytest.raises(ValueError, match="W2SD Guider says not how"):
        networks.custom(guider, networks.sampler(), sigmas, latent)
    with pytest.raises(ValueError, match="W2SD Sampler has no weak model"):
        networks.custom(networks.guider(strong, POSITIVE, NEGATIVE), sampler, sigmas, latent)
    with pytest.raises(ValueError, match="both W2SD Model and W2SD Sampler"):
        networks.custom(networks.guider(model, POSITIVE, NEGATIVE), sampler, sigmas, latent)
    with pytest.raises(ValueError, match="reflected already"):
        node("W2SDSampler", sampler=sampler)
    with pytest.raises(ValueError, match="cannot be reflected: it is no function"):
        node("W2SDSampler", sampler=comfy.samplers.Sampler())
    with pytest.raises(ValueError, match="the strong model has a weak one already"):
        node("W2SDModel", **{**of_both, "strong": model})
    dual = comfy.samplers.CFGGuider.__subclasses__()
    dual = next(each for each in dual if each.__name__ == "Guider_DualCFG")(model)
    dual.set_conds(POSITIVE, POSITIVE, NEGATIVE)
    dual.set_cfg(2.0, 2.0)
    with pytest.raises(ValueError, match="Guider_DualCFG guides in a way of its own"):
        networks.custom(dual, networks.sampler(), sigmas, latent)
    with pytest.raises(ValueError, match="negative conditioning"):
        ByGuider.reflected(strong, weak, CURRENT, latent, negative=None)
