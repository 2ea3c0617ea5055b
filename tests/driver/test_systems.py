"""One suite for every system in systems.py: off is stock, on is a plain loop, a gap is what it says."""

import functools
import itertools

import diffusers
import pytest
import tiny
import torch
from gaps_by_hand import BY_HAND
from helpers import NOTHING, close, run, state
from peft import LoraConfig, get_peft_model_state_dict
from replay import Replay, denoisers_of
from systems import SYSTEMS

from w2sd_video import Branch, reflection

STRONG, WEAK = Branch(guidance_scale=4.0), Branch(guidance_scale=1.0)
systems = pytest.mark.parametrize("name", SYSTEMS)


@functools.cache
def built(name):
    return SYSTEMS[name].build()


@systems
def test_off_is_stock_bit_for_bit_and_after_is_as_before(name):
    pipe, call = built(name)
    stock, before = run(pipe, call), state(pipe)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), stock)
    assert (off.nfe["strong"], off.nfe["weak"], off.reflected_steps) == (0, 0, 0)
    with reflection(pipe, strong=STRONG, weak=WEAK, strength=NOTHING) as on:
        assert torch.equal(run(pipe, call), stock)
    assert on.reflected_steps == on.steps - 1 > 0
    assert state(pipe) == before


@systems
def test_an_exception_inside_leaves_nothing_changed(name):
    pipe, call = built(name)
    run(pipe, call)  # transformers adds hooks of its own at the first call
    before = state(pipe)
    calls = itertools.count()

    class StopError(Exception):
        pass

    def fail_late(module, args, kwargs):
        if next(calls) == 3:
            raise StopError

    denoiser = next(iter(denoisers_of(pipe).values()))
    handle = denoiser.register_forward_pre_hook(fail_late, with_kwargs=True)
    with pytest.raises(StopError), reflection(pipe, strong=STRONG, weak=WEAK):
        run(pipe, call)
    handle.remove()
    assert state(pipe) == before


@systems
@torch.no_grad()
def test_on_is_the_plain_loop(name):
    pipe, call = built(name)
    call = call | {"num_inference_steps": 4}  # a divisor of 1000, for DDIM rounds its stride down
    stock = Replay(SYSTEMS[name], pipe, call, run)
    expected = stock.finish(plain_loop(stock, SYSTEMS[name].predicts), run)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion="paper") as reflected:
        close(run(pipe, call), expected, SYSTEMS[name].rounding)
    steps, halves = len(stock.timesteps), 1 if SYSTEMS[name].guidance == "embedded" else 2
    assert reflected.nfe == {"base": halves * steps, "strong": halves * (steps - 1), "weak": steps - 1}
    assert (expected - stock.output).norm() > 1e-3 * stock.output.norm()


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.conditioning])
def test_the_image_that_a_network_is_conditioned_on_is_not_reflected(name):
    pipe, call = built(name)
    seen = []
    for denoiser in denoisers_of(pipe).values():
        forward = denoiser.forward

        @functools.wraps(forward)
        def looked_at(hidden_states, *args, forward=forward, **kwargs):
            seen.append(SYSTEMS[name].conditioning(hidden_states)[-1:].clone())
            return forward(hidden_states, *args, **kwargs)

        denoiser.forward = looked_at
    run(pipe, call)
    image = seen[0]
    with reflection(pipe, strong=STRONG, weak=WEAK):
        run(pipe, call)
    for denoiser in denoisers_of(pipe).values():
        del denoiser.forward
    assert image.any() and all(torch.equal(one, image) for one in seen)


CASES = [(name, gap) for name, system in SYSTEMS.items() for gap in system.gaps]


@pytest.mark.parametrize(("name", "gap"), CASES, ids=["-".join(case) for case in CASES])
def test_a_gap_in_every_role_is_the_pipeline_set_up_by_hand(name, gap):
    pipe, call = SYSTEMS[name].build() if gap == "lora" else built(name)
    branch, by_hand = BY_HAND[gap](pipe, SYSTEMS[name].blocks)
    stock = {"strong": Branch(), "weak": Branch(), "reflection_steps": 1}
    with reflection(pipe, **stock):
        without = run(pipe, call)
    before = state(pipe)
    with reflection(pipe, base=branch, strong=branch, weak=branch, reflection_steps=1):
        result = run(pipe, call)
    assert state(pipe) == before
    with by_hand() as changes, reflection(pipe, **stock):
        expected = run(pipe, call, **changes)
    close(result, expected)
    assert (expected - without).norm() > 1e-3 * without.norm()


def test_motion_and_style_lora_loaded_from_files(tmp_path):
    """As published ones are loaded: files, two adapters, set by name."""
    for name, layers in (("motion", "motion_modules"), ("style", "attentions")):
        pipe, call = tiny.animatediff()
        torch.manual_seed(len(name))
        layers = rf".*\.{layers}\..*\.(to_q|to_v)"
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights="gaussian"))
        state_dict = {key: torch.randn_like(value) / 4 for key, value in get_peft_model_state_dict(pipe.unet).items()}
        pipe.save_lora_weights(tmp_path / name, unet_lora_layers=state_dict)
    pipe, call = tiny.animatediff()
    for name in ("motion", "style"):
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    branch = Branch(lora={"motion": 0.7, "style": -1.5})
    with reflection(pipe, strong=branch, weak=branch, base=branch):
        result = run(pipe, call)
    pipe.set_adapters(["motion", "style"], [0.7, -1.5])
    with reflection(pipe, strong=Branch(), weak=Branch()):
        close(run(pipe, call), result)
        pipe.set_adapters(["motion", "style"], [0.7, 0.0])
        assert not torch.allclose(run(pipe, call), result, rtol=1e-2)


# --- the plain loop ----------------------------------------------------------------------------------------------


def plain_loop(stock, predicts):
    """Algorithm 1 with `paper` inversion: strong down, weak back up from below at the same timestep, then the step."""
    scheduler, generator, latents, old = stock.scheduler, stock.generator, stock.latents, None
    levels = levels_of(scheduler, stock.timesteps)
    is_scaled = isinstance(scheduler, diffusers.EulerDiscreteScheduler)

    def network(x, i, level, scale):
        seen = x / (level[0] ** 2 + level[1] ** 2) ** 0.5 if is_scaled else x
        return stock.predict(seen, i, scale)

    for i, t in enumerate(stock.timesteps):
        here, below = levels[i], levels[i + 1]
        if i < len(stock.timesteps) - 1:
            sample, noise = read(predicts, latents, network(latents, i, here, 4.0), here, here, is_scaled)
            lower = below[0] * sample + below[1] * noise
            sample, noise = read(predicts, lower, network(lower, i, below, 1.0), here, below, is_scaled)
            if here[0] > 0:
                latents = here[0] * (lower - below[1] * noise) / below[0] + here[1] * noise
            else:  # no signal yet: the latents are the noise
                latents = (lower - below[0] * sample) / below[1]
        prediction = network(latents, i, here, None)
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            back = stock.timesteps[i - 1] if i else None
            latents, old = scheduler.step(prediction, old, t, back, latents, generator=generator)
        else:
            latents = scheduler.step(prediction, t, latents).prev_sample
    return latents


def levels_of(scheduler, timesteps):
    """(alpha, sigma) at each timestep, and after the last one."""
    if not hasattr(scheduler, "sigmas"):
        products = [float(scheduler.alphas_cumprod[t]) for t in timesteps] + [float(scheduler.final_alpha_cumprod)]
        return [(product**0.5, (1 - product) ** 0.5) for product in products]
    all_timesteps = scheduler.timesteps.tolist()
    sigmas = scheduler.sigmas.tolist()[all_timesteps.index(float(timesteps[0])) :]
    if isinstance(scheduler, diffusers.EulerDiscreteScheduler):
        return [(1.0, sigma) for sigma in sigmas]
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler) and not scheduler.config.use_flow_sigmas:
        return [((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5) for sigma in sigmas]
    if getattr(scheduler.config, "invert_sigmas", False):
        return [(sigma, 1 - sigma) for sigma in sigmas]
    return [(1 - sigma, sigma) for sigma in sigmas]


def read(predicts, x, prediction, told, at, is_scaled):
    """Return sample and noise that a prediction means at the level the network was told."""
    alpha, sigma = told
    if predicts == "epsilon":
        return (x - at[1] * prediction) / at[0] if at[0] else x, prediction
    if predicts == "velocity":
        return alpha * x - sigma * prediction, sigma * x + alpha * prediction
    direction = -prediction if predicts == "inverted_flow" else prediction
    return x - sigma * direction, x + alpha * direction
