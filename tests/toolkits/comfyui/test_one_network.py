"""Strong and weak are one network in memory with different LoRAs: ComfyUI would give both the same weights."""

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import networks
import pytest
import torch
from helpers import NOTHING
from networks import sd15, video, wan
from ways import CFG, NEGATIVE, POSITIVE, STEPS, WAYS, ByModel, node, plain_loop

from w2sd_video import Reflection

CURRENT = Reflection(2, inversion="current")
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def distance(this, that):
    return float((this - that).abs().max() / that.std())


def lora(model, seed, names=("q", "v", "o")):
    """A LoRA file's tensors for the linear layers of a network."""
    generator = torch.Generator().manual_seed(seed)
    tensors, layers = {}, tuple(f"attn.{name}.weight" for name in names)
    for key, weight in model.model.state_dict().items():
        if key.endswith((*layers, "to_q.weight")):
            name, shape = key.removesuffix(".weight"), weight.shape
            tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator)
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator)
    assert tensors
    return tensors


def with_lora(model, seed, strength, names=("q", "v", "o")):
    return comfy.sd.load_lora_for_models(model, None, lora(model, seed, names), strength, 0.0)[0]


NETWORKS = {wan: video, sd15: networks.image}
each_network = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def separate(make, *loras):
    """The same weights in a network of their own."""
    model = make(0)
    for seed, strength in loras:
        model = with_lora(model, seed, strength)
    return model


@each_way
@each_network
def test_two_strengths_of_a_lora_on_one_network_are_as_on_two(way, make):
    base, latent = make(0), NETWORKS[make]()
    strong, weak = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    assert strong.model is weak.model
    on_one = way.reflected(strong, weak, CURRENT, latent)
    on_two = way.reflected(separate(make, (0, 0.8)), separate(make, (0, -1.5)), CURRENT, latent)
    assert torch.equal(on_one, on_two)
    assert distance(on_one, way.stock(strong, latent)) > 1e-3
    expected = plain_loop(separate(make, (0, 0.8)), separate(make, (0, -1.5)), latent, 2, "current")
    assert distance(on_one, expected) < 1e-4


@each_way
def test_the_strong_model_is_what_it_is_alone(way):
    """Where nothing is displaced the strong model's weights are all that there is: bit for bit."""
    base, latent = wan(0), video()
    strong, weak = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    stock = way.stock(strong, latent)
    assert torch.equal(way.reflected(strong, weak, Reflection(2, NOTHING, inversion="current"), latent), stock)
    assert torch.equal(way.reflected(strong, weak, Reflection(0), latent), stock)
    assert torch.equal(way.stock(separate(wan, (0, 0.8)), latent), stock)


def test_the_trap_itself():
    """What ComfyUI makes of both when it loads them at once: one set of weights for two models."""
    base = wan(0)
    pair = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    comfy.model_management.load_models_gpu(list(pair))
    loaded = comfy.model_management.current_loaded_models
    assert {id(each.model) for each in loaded} == {id(model) for model in pair}
    name = "diffusion_model.blocks.0.self_attn.q.weight"
    weights = [separate(wan, (0, strength)) for strength in (0.8, -1.5)]
    comfy.model_management.load_models_gpu(weights)
    assert sum(torch.equal(base.model.state_dict()[name], each.model.state_dict()[name]) for each in weights) == 1


@each_way
def test_a_lora_of_the_strong_or_of_the_weak_model_alone(way):
    latent = video()
    for loras_of_strong, loras_of_weak in ([((0, 0.8),), ()], [(), ((0, 0.8),)], [((0, 1.0), (1, 0.5)), ((0, 1.0),)]):
        base = wan(0)
        strong = weak = base
        for seed, strength in loras_of_strong:
            strong = with_lora(strong, seed, strength)
        for seed, strength in loras_of_weak:
            weak = with_lora(weak, seed, strength)
        on_one = way.reflected(strong, weak, CURRENT, latent)
        on_two = way.reflected(separate(wan, *loras_of_strong), separate(wan, *loras_of_weak), CURRENT, latent)
        assert torch.equal(on_one, on_two)


@each_way
def test_what_both_have_stays_in_the_network(way):
    """A LoRA below both is patched as ever, and one that reaches fewer layers is a hook."""
    base = with_lora(wan(0), 1, 1.0)
    strong = with_lora(base, 0, 0.8, names=("q",))
    latent = video()
    reflected = way.reflected(strong, base, CURRENT, latent)
    alone = with_lora(with_lora(wan(0), 1, 1.0), 0, 0.8, names=("q",))
    assert torch.equal(reflected, way.reflected(alone, separate(wan, (1, 1.0)), CURRENT, latent))


@each_way
def test_the_network_is_loaded_once_for_both_and_for_the_next_sampling(way, monkeypatch):
    base, latent = wan(0), video()
    strong, weak = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    loads, load = [], comfy.model_patcher.ModelPatcher.load
    monkeypatch.setattr(
        comfy.model_patcher.ModelPatcher,
        "load",
        lambda *args, **kwargs: (loads.append(args[0]), load(*args, **kwargs))[1],
    )
    first = way.reflected(strong, weak, CURRENT, latent)
    assert len(loads) == 1
    assert torch.equal(way.reflected(strong, weak, CURRENT, latent), first) and len(loads) == 1
    stock = way.stock(strong, latent)
    assert len(loads) == 2 and torch.equal(stock, way.stock(separate(wan, (0, 0.8)), latent))


def test_a_guider_samples_again_what_it_sampled():
    """ComfyUI keeps the guider while its node is unchanged."""
    base, latent = wan(0), video()
    of_both = {"strong": with_lora(base, 0, 0.8), "weak": with_lora(base, 0, -1.5), "strong_cfg": 1.0, "weak_cfg": 1.0}
    guider = node("W2SDGuider", **of_both, positive=POSITIVE, negative=NEGATIVE, cfg=CFG)
    sampler = node("W2SDSampler", sampler=networks.sampler(), settings=CURRENT)
    off = node("W2SDSampler", sampler=networks.sampler(), settings=Reflection(0))
    sigmas = networks.levels(base, STEPS)
    on = networks.custom(guider, sampler, sigmas, latent)
    assert torch.equal(networks.custom(guider, sampler, sigmas, latent), on)
    stock = networks.custom(networks.guider(of_both["strong"], POSITIVE, NEGATIVE), networks.sampler(), sigmas, latent)
    assert torch.equal(networks.custom(guider, off, sigmas, latent), stock)


@each_way
def test_a_lora_after_the_node(way):
    if way is not ByModel:
        pytest.skip("a guider takes no LoRA any more")
    base, latent = wan(0), video()
    reflected = node("W2SDModel", strong=base, weak=base, settings=CURRENT, strong_cfg=1.0, weak_cfg=1.0)
    late = networks.ksampler(with_lora(reflected, 0, 0.8), POSITIVE, NEGATIVE, latent, STEPS, CFG)
    assert torch.equal(late, way.reflected(with_lora(base, 0, 0.8), base, CURRENT, latent))


@each_way
def test_hooks_of_the_user(way):
    """A LoRA that a hook gives to some conditioning, beside LoRAs that the models have."""
    latent = video()

    def hooked(model, conditioning):
        hooks = comfy.hooks.create_hook_lora(lora(model, 2), 0.7, 0.0)
        return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)

    base = wan(0)
    strong, weak = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    positive = hooked(base, POSITIVE)
    on_one = way.reflected(strong, weak, CURRENT, latent, positive=positive)
    on_two = way.reflected(separate(wan, (0, 0.8)), separate(wan, (0, -1.5)), CURRENT, latent, positive=positive)
    assert distance(on_one, on_two) < 1e-4
    assert distance(on_one, way.reflected(strong, weak, CURRENT, latent)) > 0.01
    null = way.reflected(base, base, CURRENT, latent, positive=positive)
    assert distance(null, way.stock(base, latent, positive=positive)) < 1e-5


@each_way
def test_no_patch_is_left_and_memory_may_be_short(way, monkeypatch):
    base, latent = wan(0), video()
    strong, weak = with_lora(base, 0, 0.8), with_lora(base, 0, -1.5)
    stock, on = way.stock(strong, latent), way.reflected(strong, weak, CURRENT, latent)
    weights = {name: tensor.clone() for name, tensor in wan(0).model.state_dict().items()}
    comfy.model_management.unload_all_models()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    assert torch.equal(way.stock(strong, latent), stock) and torch.equal(
        way.reflected(strong, weak, CURRENT, latent), on
    )

    def failing(executor, *args, **kwargs):
        raise RuntimeError("in the weak model")

    fails = weak.clone()
    fails.add_wrapper("apply_model", failing)
    with pytest.raises(RuntimeError, match="in the weak model"):
        way.reflected(strong, fails, CURRENT, latent)
    assert base.model.current_patcher is None and not base.hook_backup
    assert torch.equal(way.stock(strong, latent), stock)
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    assert distance(way.reflected(strong, weak, CURRENT, latent), on) < 1e-5
    assert base.model.model_lowvram
    comfy.model_management.unload_all_models()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("what", ["object_patches", "injections", "weight_wrapper_patches"])
def test_differences_that_comfyui_can_hold_once_only_are_refused(what):
    base = wan(0)
    strong = base.clone()
    if what == "object_patches":
        strong.add_object_patch("manual_cast_dtype", torch.float16)
    elif what == "injections":
        strong.set_injections("x", [object()])
    else:
        strong.add_weight_wrapper("diffusion_model.blocks.0.ffn.0.weight", lambda weight: weight)
    with pytest.raises(ValueError, match=f"one network with different {what.replace('_', ' ')}"):
        ByModel.reflected(strong, base, CURRENT, video())
