"""For each gap a branch, and the way to set a pipeline up like it by hand.

Each function takes the pipeline and the names of blocks, and returns the branch and a function that gives a context
manager, which yields arguments for the pipeline's call.
"""

import copy
from contextlib import ExitStack, contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from replay import denoisers_of
from torch.nn import functional

from w2sd_video import Branch

OTHER = "a blue square over the sea"


def by_call(branch, **changes):
    """A gap that is nothing but another argument of the call."""

    @contextmanager
    def by_hand():
        yield changes

    return lambda pipe, blocks: (branch, by_hand)


def guidance(pipe, blocks):
    second = {"guidance_scale_2": 5.0} if len(denoisers_of(pipe)) == 2 else {}
    return by_call(Branch(guidance_scale=5.0), guidance_scale=5.0, **second)(pipe, blocks)


@torch.no_grad()
def weights(pipe, blocks):
    seconds = {name: copy.deepcopy(denoiser) for name, denoiser in denoisers_of(pipe).items()}
    generator = torch.Generator().manual_seed(3)
    for second in seconds.values():
        for parameter in second.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    modules = tuple(seconds.values())
    return Branch(weights=modules[0] if len(modules) == 1 else modules), lambda: replaced(pipe, seconds)


def one_stage(stage):
    """One denoiser of two for all steps; each step keeps its own guidance scale."""

    def gap(pipe, blocks):
        names = list(denoisers_of(pipe))
        used = getattr(pipe, names[("high", "low").index(stage)])
        return Branch(experts=stage), lambda: replaced(pipe, dict.fromkeys(names, used))

    return gap


@contextmanager
def replaced(target, attributes):
    before = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield {}
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def lora(pipe, blocks):
    """Adapters go in by diffusers where it loads LoRA for the model, and by peft where it does not."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v", "qkv"])
    denoisers = denoisers_of(pipe).values()
    for denoiser in denoisers:
        if hasattr(denoiser, "add_adapter"):
            denoiser.add_adapter(config, adapter_name="style")
        else:
            inject_adapter_in_model(config, denoiser, "style")
        for name, parameter in denoiser.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)

    @contextmanager
    def by_hand():
        for denoiser in denoisers:
            for layer in denoiser.modules():
                if isinstance(layer, LoraLayer):
                    layer.set_scale("style", -1.5)
        yield {}

    return Branch(lora={"style": -1.5}), by_hand


def ip_adapter(scale):
    @contextmanager
    def by_hand(pipe):
        pipe.set_ip_adapter_scale(scale)
        try:
            yield {}
        finally:
            pipe.set_ip_adapter_scale(0.8)

    return lambda pipe, blocks: (Branch(ip_adapter_scale=scale), lambda: by_hand(pipe))


# --- layers ------------------------------------------------------------------------------------------------------


def skip_layers(pipe, blocks):
    return Branch(skip_layers=blocks), lambda: in_all_blocks(pipe, blocks, removed)


def perturbed_layers(pipe, blocks):
    return Branch(perturbed_layers=blocks), lambda: in_all_blocks(pipe, blocks, values_handed_on)


@contextmanager
def in_all_blocks(pipe, blocks, change):
    with ExitStack() as stack:
        for denoiser in denoisers_of(pipe).values():
            for name in blocks:
                stack.enter_context(change(denoiser, name))
        yield {}


@contextmanager
def removed(denoiser, name):
    """Take a block out of its list."""
    parent, _, index = name.rpartition(".")
    blocks = denoiser.get_submodule(parent)
    block = blocks.pop(int(index))
    try:
        yield
    finally:
        blocks.insert(int(index), block)


@contextmanager
def values_handed_on(denoiser, name):
    """An identity for an attention map: what goes into the output projection is what the value projection gave."""
    block = denoiser.get_submodule(name)
    with ExitStack() as stack:
        for attention in self_attentions(block):
            for value, output in streams(attention):
                kept = []
                hook = value.register_forward_hook(lambda module, args, result, kept=kept: kept.append(result))
                stack.callback(hook.remove)
                width = output.in_features  # DiT-MoE projects queries, keys and values at once, values last
                hook = output.register_forward_pre_hook(
                    lambda module, args, kept=kept, width=width: (kept.pop()[..., -width:], *args[1:])
                )
                stack.callback(hook.remove)
        yield


def self_attentions(block):
    """All attentions of a block but the second one, if that one looks at the text."""
    for name, module in block.named_modules():
        looks_at_text = name.endswith("attn2") and getattr(module, "is_cross_attention", True)
        if any(hasattr(module, value) for value, _ in _STREAMS) and not looks_at_text:
            yield module


_STREAMS = [("to_v", "to_out"), ("add_v_proj", "to_add_out"), ("to_v_t", "to_out_t"), ("qkv", "proj")]


def streams(attention):
    """The value and the output projection of each stream of an attention (image; text, if it attends jointly)."""
    for value, output in _STREAMS:
        value, output = getattr(attention, value, None), getattr(attention, output, None)
        if value is not None and output is not None:
            yield value, output[0] if isinstance(output, torch.nn.ModuleList) else output


# --- experts -----------------------------------------------------------------------------------------------------


def experts(setting):
    """The mixture computed without a router: every expert on every token, and of these what is to count."""
    mixtures = {"MOEFeedForwardSwiGLU": of_tokens, "SparseMoE": of_tokens, "NucleusMoELayer": of_experts}

    @contextmanager
    def by_hand(pipe):
        layers = [layer for layer in pipe.transformer.modules() if type(layer).__name__ in mixtures]
        for layer in layers:
            layer.forward = mixtures[type(layer).__name__](layer, setting)
        try:
            yield {}
        finally:
            for layer in layers:
                del layer.forward

    return lambda pipe, blocks: (Branch(experts=setting), lambda: by_hand(pipe))


def of_tokens(layer, setting):
    """Each token takes experts (DiT-MoE, HiDream)."""
    count = 1 if setting == 1 else layer.gate.top_k

    def mixture(x):
        scores = functional.linear(x, layer.gate.weight).softmax(dim=-1)
        chosen = scores.argsort(dim=-1, descending=setting != "bottom")[..., :count]
        weights = scores * torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        outputs = torch.stack([expert(x) for expert in layer.experts], dim=-1)
        return (outputs * weights[..., None, :]).sum(dim=-1) + layer.shared_experts(x)

    return mixture


def of_experts(layer, setting):
    """Each expert takes tokens (NucleusMoE); the weights of a token's experts add up to one scale."""

    def mixture(x, unmodulated, timestep=None):
        time = timestep[:, None].expand_as(unmodulated)
        scores = layer.gate(torch.cat([time, unmodulated], dim=-1)).softmax(dim=-1)
        a_token = 1 if setting == 1 else layer.capacity_factor
        count = int(-(-a_token * x.shape[1] // layer.num_experts))
        chosen = scores.argsort(dim=1, descending=setting != "bottom")[:, :count]
        weights = scores * torch.zeros_like(scores).scatter(1, chosen, 1.0)
        weights = layer.route_scale * weights / (weights.sum(dim=-1, keepdim=True) + 1e-12)
        gate, up = torch.einsum("bsd,edf->bsef", x, layer.experts.gate_up_proj).chunk(2, dim=-1)
        outputs = torch.einsum("bsef,efd->bsed", functional.silu(gate) * up, layer.experts.down_proj)
        return (outputs * weights[..., None]).sum(dim=2) + layer.shared_expert(x)

    return mixture


BY_HAND = {
    "guidance": guidance,
    "prompt": by_call(Branch(prompt=OTHER), prompt=OTHER),
    "negative_prompt": by_call(Branch(negative_prompt=OTHER), negative_prompt=OTHER),
    "weights": weights,
    "lora": lora,
    "skip_layers": skip_layers,
    "perturbed_layers": perturbed_layers,
    "control": by_call(Branch(control_scale=0.4), controlnet_conditioning_scale=0.4),
    "control_off": by_call(Branch(control_scale=0), controlnet_conditioning_scale=0.0),
    "ip_adapter": ip_adapter(0.3),
    "ip_adapter_off": ip_adapter(0.0),
    "experts_bottom": experts("bottom"),
    "experts_one": experts(1),
    "experts_high": one_stage("high"),
    "experts_low": one_stage("low"),
}
