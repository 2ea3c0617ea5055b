"""Attention: every kernel gives what torch's own gives, in every denoiser, or is refused in one line."""

import functools
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import diffusers
import pytest
import tiny
import torch
from diffusers.models import attention_dispatch, attention_processor
from diffusers.models.attention_dispatch import AttentionBackendName
from tiny.dit_moe import dit_moe as tiny_dit_moe
from torch.nn import functional
from torch.nn.attention import flex_attention

from w2sd_video.backends import (
    animatediff,
    attention,
    cogvideox,
    dit_moe,
    loading,
    pipeline,
    registered,
    split_attention,
)
from w2sd_video.branch import Branch
from w2sd_video.plugin import reflection

CPU = torch.device("cpu")
DISPATCHED = {
    "cogvideox_2b": (cogvideox, tiny.cogvideox),
    "cogvideox_5b": (cogvideox, functools.partial(tiny.cogvideox, rotary=True)),
    "dit_moe": (dit_moe, tiny_dit_moe),
    "wan_2.2_a14b": (pipeline, functools.partial(tiny.wan, two_stage=True)),
    "ltx": (pipeline, tiny.ltx),
    "flux": (pipeline, tiny.flux),
}


def denoisers(pipe):
    """All denoisers of a pipeline, second ones too."""
    own = [getattr(pipe, name) for name in ("unet", "transformer", "transformer_2") if getattr(pipe, name, None)]
    return own + [
        module for second in registered(pipe).values() for module in (second if isinstance(second, tuple) else [second])
    ]


def run(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    gap = {"strong": Branch(), "weak": Branch(weights="weak")}
    with reflection(pipe, **gap):
        return torch.as_tensor(pipe(**call | {"output_type": "latent"}, generator=generator)[0])


def set_backends(pipe):
    """The kernels that diffusers' dispatcher is told by the denoisers' processors."""
    processors = [module.processor for network in denoisers(pipe) for module in attention._attentions(network)]
    return {getattr(processor, "_attention_backend", "no dispatcher") for processor in processors}


def only_configs(source, target):
    """Copy a checkpoint without its weights: whoever tries to load it fails."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return target


@pytest.fixture
def flex_of_any_width():
    """Older versions of torch have this kernel for heads whose width is a power of 2 only; the tiny Wan's is 12."""
    heads = torch.zeros(1, 2, 128, 12)
    try:
        flex_attention.flex_attention(heads, heads, heads)
    except ValueError as error:
        pytest.skip(f"flex of torch {torch.__version__}: {error}")


@pytest.fixture(params=DISPATCHED)
def family(request, tmp_path):
    """A backend, two folders of one family's tiny pipelines, and the pipeline's call."""
    backend, build = DISPATCHED[request.param]
    build(seed=1)[0].save_pretrained(tmp_path / "weak")
    pipe, call = build()
    pipe.save_pretrained(tmp_path / "pipe")
    return functools.partial(backend.load, tmp_path / "pipe", weights={"weak": tmp_path / "weak"}, device="cpu"), call


def test_flex_attention_runs_in_both_denoisers_and_gives_what_torchs_own_gives(family, flex_of_any_width, monkeypatch):
    load, call = family
    expected = run(load(), call)
    before = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    pipe = load(attention="flex")
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend() == before, "others keep their kernel"
    assert set_backends(pipe) == {AttentionBackendName.FLEX}
    whole, calls = flex_attention.flex_attention, []
    monkeypatch.setattr(flex_attention, "flex_attention", lambda *a, **k: (calls.append(1), whole(*a, **k))[1])
    torch.testing.assert_close(run(pipe, call), expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    layers = sum(len(list(attention._attentions(network))) for network in denoisers(pipe))
    assert len(calls) >= layers


def test_torchs_own_is_diffusers_bit_for_bit_by_either_name(family):
    load, call = family
    default, sdpa, native = load(), load(attention="sdpa"), load(attention="native")
    assert set_backends(default) == set_backends(sdpa) <= {None, "no dispatcher"}
    assert set_backends(native) == {AttentionBackendName.NATIVE}
    results = [run(pipe, call) for pipe in (default, sdpa, native)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# What cannot be had


def test_names_are_diffusers_own():
    assert attention.attention_names() == ["sdpa", *(name.value for name in AttentionBackendName)]
    for backend in (animatediff, cogvideox, dit_moe, pipeline):
        with pytest.raises(ValueError, match=r"^unknown attention 'flahs'; did you mean 'flash'\?$"):
            backend.load("nobody/nothing", attention="flahs", device="cpu")


@pytest.mark.parametrize("name", ["cogvideox", "dit_moe"])
def test_a_kernel_that_does_not_run_is_refused_in_one_line_before_any_weight_is_loaded(name, tmp_path):
    backend, build = {"cogvideox": (cogvideox, tiny.cogvideox), "dit_moe": (dit_moe, tiny_dit_moe)}[name]
    build()[0].save_pretrained(tmp_path / "full")
    folder = only_configs(tmp_path / "full", tmp_path / "configs")
    before = torch.random.get_rng_state()
    for kernel, says in [
        ("_native_efficient", r"does not run on cpu in bfloat16: .*[^.]; use 'sdpa'$"),
        ("xformers", "needs a CUDA device, got cpu; use 'sdpa'$"),
        ("_flash_3", "needs a CUDA device, got cpu"),
    ]:
        with pytest.raises(ValueError, match=f"^attention='{kernel}' {says}") as refusal:
            backend.load(folder, attention=kernel, device="cpu", dtype=torch.bfloat16)
        assert "\n" not in str(refusal.value)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def test_a_package_that_is_not_there_is_named():
    if not attention_dispatch._CAN_USE_SAGE_ATTN:
        with pytest.raises(ValueError, match=r"attention='sage' does not run on cuda in float16: .*sageattention"):
            attention.check_attention("sage", torch.device("cuda"), torch.float16)
    if not diffusers.utils.is_xformers_available():
        with pytest.raises(ModuleNotFoundError, match=r"w2sd-video\[xformers\]"):
            attention.check_attention("xformers", torch.device("cuda"), torch.float16)


def test_a_package_that_imports_and_fails_at_its_first_call(tmp_path):
    """A stand-in for xformers: its wheels for another torch are like this, and the right ones have no CPU kernel."""
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("")
    (tmp_path / "xformers" / "ops.py").write_text(
        "def memory_efficient_attention(query, *others, **settings):\n"
        "    raise NotImplementedError('No operator found with inputs:\\n  query : shape')\n"
    )
    (tmp_path / "xformers-0.0.35.dist-info").mkdir()
    (tmp_path / "xformers-0.0.35.dist-info" / "METADATA").write_text("Name: xformers\nVersion: 0.0.35\n")
    script = (
        "import torch\nfrom w2sd_video.backends import attention\n"
        "try: attention._call_once('xformers', torch.device('cpu'), torch.float32)\n"
        "except ValueError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    says = "attention='xformers' does not run on cpu in float32: No operator found with inputs; use 'sdpa'"
    assert done.stdout.splitlines() == [says]


@pytest.mark.parametrize(("factor", "says"), [(0.0, "by 0.88"), (float("nan"), "by nan")])
def test_a_kernel_that_gives_something_else_is_refused(factor, says, monkeypatch):
    whole = flex_attention.flex_attention
    monkeypatch.setattr(flex_attention, "flex_attention", lambda *a, **k: factor * whole(*a, **k))
    with pytest.raises(ValueError, match=f"^attention='flex' does not run .* differs from torch's own {says}; use"):
        attention.check_attention("flex", CPU, torch.float32)


def test_older_networks_are_refused_what_only_the_dispatcher_has_before_loading(tmp_path):
    for name, build in (("sd", tiny.stable_diffusion), ("animatediff", tiny.animatediff), ("pixart", tiny.pixart)):
        build()[0].save_pretrained(tmp_path / name)
    says = r"cannot be set in a \w+, which attends by AttnProcessor2_0; use 'sdpa' or 'xformers'"
    for backend, name in ((pipeline, "sd"), (animatediff, "animatediff"), (pipeline, "pixart")):
        folder = only_configs(tmp_path / name, tmp_path / f"{name}-configs")
        with pytest.raises(ValueError, match=f"^attention='flex' {says}$"):
            backend.load(folder, attention="flex", device="cpu")


@pytest.mark.parametrize("name", ["mochi", "sana", "hidream_i1"])
def test_xformers_is_refused_where_diffusers_would_put_a_wrong_processor(name):
    from systems import SYSTEMS

    network = SYSTEMS[name].build()[0].transformer
    before = attention._processors(network)
    with pytest.raises(
        ValueError, match=rf"^attention='xformers' cannot be set in a {type(network).__name__}, .*; use 'sdpa'$"
    ):
        attention.set_attention(network, "xformers")
    assert attention._processors(network) == before


def test_what_the_dispatcher_does_not_reach_is_said():
    from systems import SYSTEMS

    network = SYSTEMS["hunyuan_video"].build()[0].transformer
    with pytest.warns(UserWarning, match="set in 2 of the 3 attentions of this HunyuanVideoTransformer3DModel"):
        attention.set_attention(network, "flex")


def test_xformers_is_set_in_every_network_that_works_at_a_step(tmp_path, monkeypatch):
    """Only which networks are asked to: diffusers lets none of them be set without a GPU."""
    tiny.stable_diffusion()[0].save_pretrained(tmp_path / "sd")
    controlled = tiny.stable_diffusion(control=True)[0]
    controlled.controlnet.save_pretrained(tmp_path / "controlnet")
    asked = []
    monkeypatch.setattr(loading, "check_attention", lambda *_: None)
    monkeypatch.setattr(
        diffusers.ModelMixin, "enable_xformers_memory_efficient_attention", lambda network: asked.append(network)
    )
    weak = tiny.unet(seed=9)
    pipe = pipeline.load(
        tmp_path / "sd", controlnet=tmp_path / "controlnet", weights={"weak": weak}, attention="xformers", device="cpu"
    )
    assert asked == [pipe.unet, pipe.controlnet, weak]


def test_perturbed_layers_say_which_attention_they_need(flex_of_any_width):
    pipe, call = tiny.wan()
    attention.set_attention(pipe.transformer, "flex")
    with reflection(pipe, strong=Branch(), weak=Branch(perturbed_layers=[0])):
        with pytest.raises(ValueError, match="load the model with attention='sdpa', or leave the block out"):
            pipe(**call)


@torch.no_grad()
def test_compiled_attention_of_dit_moe_is_one_graph():
    network = tiny_dit_moe()[0].transformer
    tokens = torch.randn(2, 16, network.config.num_attention_heads * network.config.attention_head_dim)
    layer = network.blocks[0].attn
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tokens), layer(tokens))


# In parts


@pytest.fixture
def temporal():
    """An attention of a motion layer, input for it, and its output by the stock processor."""
    pipe, _ = tiny.animatediff()
    layer = pipe.unet.down_blocks[0].motion_modules[0].transformer_blocks[0].attn1
    hidden = torch.randn(10, 4, 8)
    return layer, hidden, layer(hidden)


def test_a_large_batch_is_attended_to_in_parts(temporal, monkeypatch):
    layer, hidden, expected = temporal
    sizes = []
    whole = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda q, *a, **k: (sizes.append(len(q)), whole(q, *a, **k))[1]
    )
    layer.set_processor(split_attention.SplitSDPA())
    assert torch.equal(layer(hidden), expected) and sizes == [10]
    monkeypatch.setattr(split_attention, "LARGEST_BATCH", 4)
    torch.testing.assert_close(layer(hidden), expected)
    assert sizes == [10, 4, 4, 2]
    context, mask = torch.randn(10, 3, 8), torch.zeros(10, 1, 3).masked_fill(torch.rand(10, 1, 3) > 0.7, -1e4)
    parts = layer(hidden, encoder_hidden_states=context, attention_mask=mask)
    monkeypatch.setattr(split_attention, "LARGEST_BATCH", 100)
    torch.testing.assert_close(parts, layer(hidden, encoder_hidden_states=context, attention_mask=mask))


def test_xformers_gets_at_most_its_limit_of_batch_times_heads(temporal, monkeypatch):
    """A stand-in for the library, which has no CPU kernel."""
    layer, hidden, expected = temporal
    rows = []

    def memory_efficient_attention(query, key, value, attn_bias=None, op=None, scale=None):
        rows.append(len(query))
        return functional.scaled_dot_product_attention(query, key, value, attn_bias, scale=scale)

    ops = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops), raising=False)
    monkeypatch.setattr(split_attention, "LARGEST_BATCH", 9)
    layer.set_processor(split_attention.SplitXFormers())
    torch.testing.assert_close(layer(hidden), expected)
    assert layer.heads == 2 and rows == [8, 8, 4]


def test_motion_layers_are_split_and_the_output_is_the_same():
    pipe, call = tiny.animatediff()
    before = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent")[0]
    split_attention.split_motion_attention(pipe.unet, "sdpa")
    split = {name for name, p in pipe.unet.attn_processors.items() if isinstance(p, split_attention.SplitSDPA)}
    assert split == {name for name in pipe.unet.attn_processors if "motion_modules" in name} != set()
    for processor in pipe.unet.attn_processors.values():
        type(processor)()  # as loading an IP-Adapter does
    assert torch.equal(pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent")[0], before)
