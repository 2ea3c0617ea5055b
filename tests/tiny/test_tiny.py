"""The tiny pipelines are worth testing with: what a denoiser is told really reaches its output."""

import pytest
import torch

import tiny

BUILDERS = (
    tiny.animatediff,
    tiny.animatediff_sdxl,
    tiny.stable_diffusion,
    tiny.stable_diffusion_xl,
    tiny.cogvideox,
    tiny.pixart,
    tiny.dit,
    tiny.wan,
    tiny.flux,
)
VARIANTS = {builder.__name__: builder for builder in BUILDERS} | {
    "wan_two_stage": lambda: tiny.wan(two_stage=True),
    "cogvideox_rotary": lambda: tiny.cogvideox(rotary=True),
    "cogvideox_1_5": lambda: tiny.cogvideox(rotary=True, patch_size_t=2),
}
TEXT = ("encoder_hidden_states", "class_labels")


@pytest.mark.parametrize("name", VARIANTS)
def test_latents_time_and_text_reach_the_output(name):
    pipe, call = VARIANTS[name]()
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    calls = []
    hook = denoiser.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    first = _run(pipe, call)
    hook.remove()
    assert torch.equal(first, _run(pipe, call)), "not deterministic"

    # The first call of a two-stage pipeline is always to its first transformer.
    args, kwargs = calls[0]
    names = ["hidden_states", "timestep"] if "transformer" in pipe.components else ["sample", "timestep"]
    kwargs = dict(zip(names, args, strict=False)) | kwargs | {"return_dict": False}
    before = denoiser(**kwargs)[0]
    for key, change in (
        (names[0], lambda x: x + 0.5 * torch.randn_like(x)),
        ("timestep", lambda x: x / 2),
        (next(k for k in TEXT if kwargs.get(k) is not None), lambda x: x.roll(1, 0) if x.ndim < 2 else x.flip(-1)),
    ):
        torch.manual_seed(1)
        after = denoiser(**kwargs | {key: change(kwargs[key])})[0]
        assert (after - before).std() > 0.01 * before.std(), f"{key} hardly changes the output"


@pytest.mark.parametrize("name", VARIANTS)
def test_prompt_and_seed_change_the_result(name):
    pipe, call = VARIANTS[name]()
    first = _run(pipe, call)
    assert first.isfinite().all()
    other = {"class_labels": [5]} if "class_labels" in call else {"prompt": "a blue square moving right"}
    for result in (_run(pipe, call | other), _run(pipe, call, seed=1)):
        assert (result - first).std() > 0.01 * first.std()


def _run(pipe, call, seed=0):
    with torch.no_grad():
        output = pipe(**call, generator=torch.Generator().manual_seed(seed), output_type="latent")[0]
    return torch.as_tensor(output)
