"""Running what a backend loaded: predictions for one's own loop, memory settings."""

import functools

import diffusers
import pytest
import tiny
import torch
from torch import nn

from w2sd_video.backends import animatediff, cogvideox, dit_moe, loading, pipeline, register, registered
from w2sd_video.branch import Branch
from w2sd_video.plugin import reflection
from w2sd_video.sampler import sample

NEGATIVE = "blue sea"
FAMILIES = {
    "sd": (tiny.animatediff, animatediff),
    "sdxl": (tiny.animatediff_sdxl, animatediff),
    "2b": (tiny.cogvideox, cogvideox),
    "5b": (functools.partial(tiny.cogvideox, rotary=True), cogvideox),
    "1.5": (functools.partial(tiny.cogvideox, rotary=True, patch_size_t=2), cogvideox),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """A pipeline, its call, initial noise, its backend, and a second denoiser registered as "weak"."""
    build, backend = FAMILIES[request.param]
    pipe, call = build()
    if backend is cogvideox:
        frames = 4 if request.param == "1.5" else 3
        latents = torch.randn(1, frames, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        # The pipelines' DPM scheduler draws noise at every step; its deterministic sibling is compared.
        pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
        register(pipe, "weak", build(seed=1)[0].transformer)
    else:
        latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        register(pipe, "weak", build(seed=1)[0].unet)
    return pipe, call, latents, backend


def denoiser(pipe):
    return pipe.components.get("transformer") or pipe.unet


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-4 * other.std().item())


def batches(module, act):
    """Return the batch sizes that a module is called with during `act()`."""
    sizes = []

    def note(_, args, kwargs):
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    act()
    hook.remove()
    return sizes


# Predictions


def test_own_loop_equals_the_pipeline(family):
    pipe, call, latents, backend = family
    expected = pipe(**call, negative_prompt=NEGATIVE, latents=latents, output_type="latent")[0]
    base = Branch(guidance_scale=call["guidance_scale"])
    predict = backend.predictor(pipe, call["prompt"], strong=base, weak=base, base=base, negative_prompt=NEGATIVE)
    got = sample(predict, latents, pipe.scheduler, num_inference_steps=3, reflection_steps=0)
    close(got.latents, expected)


def test_own_loop_equals_the_plugin(family):
    pipe, call, latents, backend = family
    branches = {
        "strong": Branch(guidance_scale=2.0),
        "weak": Branch(guidance_scale=1.0, weights="weak", prompt="a green square"),
    }
    settings = {"reflection_steps": 2, "inversion": "explicit"}
    with reflection(pipe, **branches, **settings):
        expected = pipe(**call, negative_prompt=NEGATIVE, latents=latents, output_type="latent")[0]
    base = Branch(guidance_scale=call["guidance_scale"])
    predict = backend.predictor(pipe, call["prompt"], **branches, base=base, negative_prompt=NEGATIVE)
    got = sample(predict, latents, pipe.scheduler, num_inference_steps=3, **settings)
    close(got.latents, expected)


def test_only_what_guidance_needs_is_evaluated(family):
    pipe, call, latents, backend = family
    time = torch.tensor(500)
    encodings = []
    pipe.text_encoder.register_forward_hook(lambda *_: encodings.append(1))
    branches = {role: Branch(guidance_scale=scale) for role, scale in (("base", 1.0), ("strong", 4.0), ("weak", 0.0))}
    predict = backend.predictor(pipe, call["prompt"], **branches, negative_prompt=NEGATIVE)
    encoded = len(encodings)
    given = {}
    for role, size in (("base", 1), ("strong", 2), ("weak", 1)):
        assert batches(denoiser(pipe), lambda role=role: given.update({role: predict(latents, time, role)})) == [size]
    assert len(encodings) == encoded == 2
    close(given["strong"], given["weak"] + 4.0 * (given["base"] - given["weak"]))
    assert not given["base"].requires_grad


def test_prompts_weights_and_defaults(family):
    pipe, call, latents, backend = family
    time, alone = torch.tensor(500), Branch(guidance_scale=1.0)
    several = torch.cat([latents, latents.flip(-1)])
    branches = {"base": Branch(3.0), "strong": alone, "weak": Branch(1.0, prompt="a sea")}
    predict = backend.predictor(pipe, ["a red circle", "a blue sea"], **branches)
    for role in ("base", "strong"):
        both = predict(several, time, role)
        for i, prompt in enumerate(("a red circle", "a blue sea")):
            one = backend.predictor(pipe, prompt, **branches)
            close(one(several[i : i + 1], time, role), both[i : i + 1])
    with pytest.raises(ValueError, match="2 prompts but 1 samples"):
        predict(latents, time, "strong")
    assert predict(several, time, "weak").shape == several.shape

    # Base left out is the pipeline's own: guided by the default scale of its call, with its own weights.
    default = backend.predictor(pipe, call["prompt"], strong=alone, weak=Branch(1.0, weights="weak"))
    scale = {animatediff.AnimateDiffPipeline: 7.5, animatediff.AnimateDiffSDXLPipeline: 5.0}.get(type(pipe), 6.0)
    named = backend.predictor(pipe, call["prompt"], strong=Branch(scale), weak=alone)
    assert torch.equal(default(latents, time, "base"), named(latents, time, "strong"))
    assert not torch.allclose(default(latents, time, "weak"), default(latents, time, "strong"), rtol=0.1)
    half = default(latents.half(), time, "base")
    assert half.dtype == torch.float16

    with pytest.raises(ValueError, match="no second denoiser named 'strange' is loaded for this pipeline"):
        backend.predictor(pipe, call["prompt"], strong=alone, weak=Branch(weights="strange"))
    with pytest.raises(ValueError, match="no LoRA adapter named style"):
        backend.predictor(pipe, call["prompt"], strong=alone, weak=Branch(lora={"style": 1.0}))


def test_lora_is_switched_by_role():
    from peft import LoraConfig

    pipe, call = tiny.cogvideox()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    latents, time = torch.randn(1, 3, 4, 4, 4), torch.tensor(500)
    branches = {role: Branch(1.0, lora={"style": scale}) for role, scale in (("strong", 2.0), ("weak", 0.0))}
    predict = cogvideox.predictor(pipe, call["prompt"], **branches, base=Branch(1.0))
    given = {role: predict(latents, time, role) for role in ("base", "strong", "weak")}
    assert len({value.sum().item() for value in given.values()}) == 3
    pipe.transformer.disable_adapters()
    plain = cogvideox.predictor(pipe, call["prompt"], strong=Branch(1.0), weak=Branch(1.0))
    close(given["weak"], plain(latents, time, "strong"))


def test_a_branch_may_have_its_own_negative_prompt(family):
    pipe, call, latents, backend = family
    time, guided = torch.tensor(500), Branch(guidance_scale=3.0)
    weak = Branch(guidance_scale=3.0, negative_prompt="a green square")
    predict = backend.predictor(pipe, call["prompt"], strong=guided, weak=weak, negative_prompt=NEGATIVE)
    for role, negative in (("strong", NEGATIVE), ("weak", "a green square")):
        alone = backend.predictor(pipe, call["prompt"], strong=guided, weak=guided, negative_prompt=negative)
        close(predict(latents, time, role), alone(latents, time, "strong"))
    assert not torch.allclose(predict(latents, time, "strong"), predict(latents, time, "weak"))
    with pytest.raises(ValueError, match="2 negative prompts but 1 prompts"):
        backend.predictor(pipe, call["prompt"], strong=guided, weak=weak, negative_prompt=["a", "b"])


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (
            Branch(guidance_scale=(4.0, 3.0)),
            "the weak branch is one of a two-stage model, but AnimateDiff",
        ),
        (Branch(weights=(nn.Linear(1, 1), nn.Linear(1, 1))), "is one of a two-stage model"),
        (Branch(experts="high"), "is one of a two-stage model"),
        (Branch(control_scale=0.0), "the weak branch has a control_scale, but AnimateDiffPipeline has no ControlNet"),
    ],
)
def test_predictors_refuse_what_their_pipelines_have_not(branch, says):
    pipe, call = tiny.animatediff()
    with pytest.raises(ValueError, match=says):
        animatediff.predictor(pipe, call["prompt"], strong=Branch(), weak=branch)


# Memory


def test_memory_settings_are_checked():
    cuda = torch.device("cuda")
    for memory in ("device", "offload", "sequential"):
        loading.check_memory(memory, cuda)
    with pytest.raises(ValueError, match="must be one of device, offload, sequential; got 'disk'"):
        loading.check_memory("disk", cuda)
    for backend in (animatediff, cogvideox):
        with pytest.raises(ValueError, match="memory='offload' offloads from an accelerator"):
            backend.load("nobody/nothing", device="cpu", memory="offload")


def test_devices_are_checked_before_anything_is_looked_for():
    assert loading.check_device("auto").type in ("cuda", "mps", "cpu")
    assert loading.check_device("cpu") == loading.check_device(torch.device("cpu")) == torch.device("cpu")
    for backend in (animatediff, cogvideox, dit_moe, pipeline):
        for wrong in ("cuda:99", "gpu"):
            with pytest.raises(ValueError, match=f"device '{wrong}': not available on this machine; use auto or cpu"):
                backend.load("nobody/nothing", device=wrong)


@pytest.mark.parametrize("build", [tiny.animatediff, tiny.cogvideox])
def test_vaes_spare_memory_and_small_ones_decode_whole(build):
    pipe, call = build()
    call |= {"output_type": "pt", "prompt": [call["prompt"]] * 2}
    before = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
    loading.spare_memory(pipe.vae)
    assert pipe.vae.use_slicing and not pipe.vae.use_tiling
    close(pipe(**call, generator=torch.Generator().manual_seed(0))[0], before)
    large = {"sample_height": 480} if build is tiny.cogvideox else {"sample_size": 512}
    pipe.vae.register_to_config(**large)
    loading.spare_memory(pipe.vae)
    assert pipe.vae.use_tiling


@pytest.mark.parametrize("build", [tiny.animatediff, tiny.cogvideox])
def test_offloading_moves_both_denoisers_once_a_video(build, monkeypatch):
    """On a CPU nothing moves, so the moves are written down; diffusers' own offloading runs."""
    pipe, call = build()
    call |= {"output_type": "pt"}
    expected = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
    second = denoiser(build(seed=1)[0])
    name = "unet" if "unet" in pipe.components else "transformer"
    loading.place(pipe, name, [second], torch.device("cpu", 0), "offload")
    moves = []

    def to(module, target, *others):
        if module is second:
            moves.append("leaves" if str(target) == "cpu" else "arrives")
        return nn.Module.to(module, target, *others)

    def also_second(_, args, kwargs, output):
        second(*args, **kwargs)

    monkeypatch.setattr(type(second), "to", to)
    denoiser(pipe).register_forward_hook(also_second, with_kwargs=True)
    for _ in range(2):  # diffusers takes its hooks off and on again after each call
        moves.clear()
        close(pipe(**call, generator=torch.Generator().manual_seed(0))[0], expected)
        changes = [move for i, move in enumerate(moves) if i == 0 or moves[i - 1] != move]
        assert changes == ["leaves", "arrives", "leaves"], "away for the text, there for all steps, away for decoding"
        assert moves.count("arrives") == 3


def test_offloading_keeps_a_second_denoiser_where_a_controlnet_works_with_it(monkeypatch):
    pipe, call = tiny.stable_diffusion(control=True)
    second, moves = tiny.unet(seed=9), []
    loading.place(pipe, "unet", [second], torch.device("cpu", 0), "offload")
    second.register_forward_hook(lambda *_: moves.append("works"))
    monkeypatch.setattr(second, "to", lambda target: moves.append(str(target)))
    pipe.unet.register_forward_hook(
        lambda _, args, kwargs, output: [second(*args, **kwargs), None][1], with_kwargs=True
    )
    pipe(**call)
    steps = ["cpu:0", "works"] * 3
    at = moves.index("works") - 1
    assert moves[at : at + 6] == steps and set(moves[:at] + moves[at + 6 :]) == {"cpu"}


def test_offloading_exchanges_the_stages_of_a_pair(monkeypatch):
    pipe, call = tiny.wan(two_stage=True)
    pair, moves = tuple(tiny.wan(seed=seed)[0].transformer for seed in (1, 2)), []
    loading.place(pipe, "transformer", [pair], torch.device("cpu", 0), "offload")
    for module, name in zip(pair, ("high", "low"), strict=True):
        monkeypatch.setattr(module, "to", lambda target, name=name: moves.append(f"{name} {target}"))
    with reflection(pipe, strong=Branch(), weak=Branch(weights=pair), base=Branch(weights=pair)):
        pipe(**call | {"output_type": "latent"})
    there = [move for i, move in enumerate(moves) if i == 0 or moves[i - 1] != move]
    first, last = there.index("high cpu:0"), there.index("low cpu:0")
    assert "high cpu" in there[first:last], "the high noise one leaves when the low noise stage begins"
    assert "high cpu:0" not in there[last:] and "low cpu:0" not in there[:first]


def test_sequential_offloading_hooks_every_layer_once(tmp_path, monkeypatch):
    """Only the hooks: accelerate runs this mode on no CPU."""
    tiny.stable_diffusion()[0].save_pretrained(tmp_path / "sd")
    monkeypatch.setattr(loading, "check_memory", lambda *_: None)
    weak, adapter = tiny.unet(seed=9), tiny.motion_adapter()
    pipe = animatediff.load(
        tmp_path / "sd", motion_adapter=adapter, weights={"weak": weak}, device="cpu", memory="sequential"
    )
    second = registered(pipe)["weak"]
    assert pipe.motion_adapter is adapter
    for unet in (pipe.unet, second):
        leaves = [m for m in unet.modules() if m._parameters and not list(m.children())]
        assert leaves and all(type(m._hf_hook).__name__ == "AlignDevicesHook" for m in leaves)
        assert all(m._hf_hook.offload and p.device.type == "meta" for m in leaves for p in m.parameters())
    assert second.down_blocks[0].motion_modules is pipe.unet.down_blocks[0].motion_modules
