"""What surrounds a reflected call: parts looked up anew, nothing left behind, threads."""

import copy
import functools
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import tiny
import torch
from helpers import add_lora, state
from plain_loop import STEPS, STRONG, run
from usual_pipelines import GAP, PIPELINES, denoiser_of, pipelines, reflected

from w2sd_video import Branch, reflection
from w2sd_video.driver.networks import in_place_of


def second(network, gain=1.2):
    return tiny.randomise(copy.deepcopy(network), gain=gain)


# --- state ---------------------------------------------------------------------------------------------------------


@pipelines
def test_what_is_changed_inside_the_block_takes_effect(name):
    pipe, call = PIPELINES[name]()
    attribute = "transformer" if hasattr(pipe, "transformer") else "unet"
    own, other = denoiser_of(pipe), second(denoiser_of(pipe))
    scheduler = pipe.scheduler
    another = diffusers.UniPCMultistepScheduler.from_config(scheduler.config)
    with reflection(pipe, **GAP):
        plain = run(pipe, call)
        setattr(pipe, attribute, other)
        with_other = run(pipe, call)
        pipe.scheduler = another
        with_both = run(pipe, call)
        assert pipe.scheduler is another
        setattr(pipe, attribute, own)
        pipe.scheduler = scheduler
        assert torch.equal(run(pipe, call), plain)
    setattr(pipe, attribute, other)
    assert torch.equal(reflected(pipe, call), with_other) and not torch.equal(with_other, plain)
    pipe.scheduler = another
    assert torch.equal(reflected(pipe, call), with_both) and not torch.equal(with_both, with_other)


def test_a_lora_loaded_or_scaled_inside_the_block_takes_effect():
    pipe, call = tiny.stable_diffusion()
    gap = {"strong": Branch(), "weak": Branch(lora={"style": -1.5})}
    with pytest.raises(ValueError, match="no LoRA adapter named style"), reflection(pipe, **gap):
        pytest.fail("the block was entered")
    add_lora(pipe.unet, "style", 1)
    add_lora(pipe.unet, "other", 2)
    with reflection(pipe, **gap):
        pipe.unet.set_adapters(["style", "other"], [1.0, 0.3])
        inside = run(pipe, call)
        pipe.unet.delete_adapters("style")
        with pytest.raises(ValueError, match="no LoRA adapter named style"):
            run(pipe, call)
        add_lora(pipe.unet, "style", 1)
        pipe.unet.set_adapters(["style", "other"], [1.0, 0.3])
        assert torch.equal(run(pipe, call), inside)
    assert torch.equal(reflected(pipe, call, gap), inside)


def test_pipelines_that_share_parts_stay_stock_wherever_they_are_built():
    pipe, call = tiny.stable_diffusion()
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    from_image = {key: value for key, value in call.items() if key not in ("height", "width")}
    from_image |= {"image": image, "strength": 0.6, "num_inference_steps": 10}

    def image_to_image():
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe, requires_safety_checker=False)

    def others():
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        return [
            (image_to_image(), from_image),
            (diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), from_image),
            (type(pipe)(**pipe.components, requires_safety_checker=False), call),
            (copy.copy(pipe), call),
            (pickle.loads(pickle.dumps(pipe)), call),
        ]

    stock = [run(other, its_call) for other, its_call in others()]
    kept = []

    def build(pipe, index, timestep, kwargs):
        made = others()
        kept.extend(made)
        for (other, its_call), expected in zip(made, stock, strict=True):
            assert torch.equal(run(other, its_call), expected)
        return kwargs

    expected = reflected(pipe, call)
    with reflection(pipe, **GAP):
        made = others()
        for (other, its_call), result in zip(made, stock, strict=True):
            assert torch.equal(run(other, its_call), result)
            assert type(other) in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline)
        assert torch.equal(run(pipe, call, callback_on_step_end=build), expected)
    for (other, its_call), result in zip(made + kept, stock * (1 + STEPS), strict=True):
        assert torch.equal(run(other, its_call), result)


class Stop(BaseException):
    """Like KeyboardInterrupt, it is no Exception."""


@pipelines
@pytest.mark.parametrize("point", ["denoiser", "step", "callback", "text encoder", "set_timesteps", "end"])
@pytest.mark.parametrize("error", [RuntimeError, Stop, KeyboardInterrupt])
def test_after_an_exception_all_is_as_before_and_a_retry_is_a_fresh_call(name, point, error, monkeypatch):
    pipe, call = PIPELINES[name]()
    text = Branch(prompt="a blue square over the sea", guidance_scale=2.0)
    gap = {"strong": STRONG, "weak": text}
    expected, stock = reflected(pipe, call, gap), run(pipe, call)
    if point == "callback" and name == "pixart":
        pytest.skip("it has no callback_on_step_end")
    before, counted = state(pipe), []

    def fails(function, at):
        @functools.wraps(function)
        def failing(*args, **kwargs):
            counted.append(1)
            if len(counted) == at:
                raise error("in the midst")
            return function(*args, **kwargs)

        return failing

    places = {
        "step": (type(pipe.scheduler), "step"),
        "set_timesteps": (type(pipe.scheduler), "set_timesteps"),
        "text encoder": (type(pipe.text_encoder), "forward"),
        "end": (type(pipe), "maybe_free_model_hooks"),
    }
    with reflection(pipe, **gap):
        for at in (1, 2, 4):
            counted.clear()
            with monkeypatch.context() as patch:
                changes = {}
                if point == "callback":
                    changes = {"callback_on_step_end": fails(lambda pipe, i, t, kwargs: kwargs, at)}
                elif point == "denoiser":
                    layer = next(part for part in denoiser_of(pipe).modules() if isinstance(part, torch.nn.Linear))
                    patch.setattr(layer, "_forward_pre_hooks", {0: fails(lambda *given: None, at)})
                else:
                    cls, method = places[point]
                    patch.setattr(cls, method, fails(getattr(cls, method), at))
                if point in ("denoiser", "callback", "step") or at == 1:
                    with pytest.raises(error, match="in the midst"):
                        run(pipe, call, **changes)
        assert pipe.scheduler is not None and torch.equal(run(pipe, call), expected)
    assert torch.equal(run(pipe, call), stock)  # which leaves its own history in the scheduler
    assert state(pipe) == before


# --- threads -------------------------------------------------------------------------------------------------------


def in_threads(*tasks):
    with ThreadPoolExecutor(len(tasks)) as pool:
        started = threading.Barrier(len(tasks))

        def task(function):
            started.wait()
            return function()

        return [future.result(timeout=120) for future in [pool.submit(task, function) for function in tasks]]


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan])
def test_calls_in_two_threads_are_right(build):
    """The same pipeline, and two pipelines that share their network, one of them in a stock loop or in both."""
    pipe, call = build()
    network = denoiser_of(pipe)
    parts = pipe.components | {"tokenizer": copy.deepcopy(pipe.tokenizer)}  # which no two threads may use at a time
    other = type(pipe)(**parts, **({"requires_safety_checker": False} if hasattr(pipe, "unet") else {}))
    other.scheduler = copy.deepcopy(pipe.scheduler)
    for one in (pipe, other):
        one.set_progress_bar_config(disable=True)
    weaker = {"strong": Branch(), "weak": Branch(skip_layers=[0])}
    expected, expected_weaker, stock = reflected(pipe, call), reflected(other, call, weaker), run(pipe, call)
    before = state(pipe)
    for _ in range(3):
        with reflection(pipe, **GAP):
            first, second = in_threads(lambda: run(pipe, call), lambda: run(pipe, call))
            assert torch.equal(first, expected) and torch.equal(second, expected)
        with reflection(pipe, **GAP), reflection(other, **weaker):
            first, second = in_threads(lambda: run(pipe, call), lambda: run(other, call))
            assert torch.equal(first, expected) and torch.equal(second, expected_weaker)
        with reflection(pipe, **GAP):
            first, second = in_threads(lambda: run(pipe, call), lambda: run(other, call))
            assert torch.equal(first, expected) and torch.equal(second, stock)
        first, second = in_threads(lambda: reflected(pipe, call), lambda: reflected(other, call, weaker))
        assert torch.equal(first, expected) and torch.equal(second, expected_weaker)
    assert state(pipe) == before and "forward" not in vars(network)


def test_an_evaluation_of_another_thread_that_began_before_is_not_changed():
    """It stops at the first block while the network's second is to be left out for somebody else."""
    pipe, call = tiny.wan()
    other = type(pipe)(**pipe.components)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    stock, main = run(other, call), threading.get_ident()
    begun, others, ended = (threading.Event() for _ in range(3))

    def stop_or_let_go(*_):
        if threading.get_ident() == main:
            others.set()
            ended.wait(0.5)
        elif not begun.is_set():
            begun.set()
            others.wait(0.5)

    pipe.transformer.blocks[0].register_forward_pre_hook(stop_or_let_go)
    pipe.transformer.register_forward_hook(lambda *_: None if threading.get_ident() == main else ended.set())
    with ThreadPoolExecutor(1) as pool, reflection(pipe, strong=Branch(skip_layers=[1]), weak=Branch()):
        elsewhere = pool.submit(run, other, call)
        begun.wait()
        run(pipe, call)
        assert torch.equal(elsewhere.result(), stock)


def test_an_evaluation_that_begins_while_a_call_waits_for_another_is_answered():
    network, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    expected, begun, ended = network(x), threading.Event(), threading.Event()

    def stop(*_):
        if not begun.is_set():
            begun.set()
            ended.wait(5)

    def begin_later():
        while "forward" not in vars(network):
            time.sleep(0.001)
        return network(x)

    network.register_forward_pre_hook(stop)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(network, x)
        begun.wait()
        second = pool.submit(begin_later)
        second.add_done_callback(lambda _: ended.set())
        with in_place_of(network, lambda evaluate, *args: evaluate(*args)):
            assert torch.equal(first.result(), expected) and torch.equal(second.result(), expected)


def test_a_call_inside_a_call_is_right_or_refused():
    pipe, call = tiny.stable_diffusion()
    other, other_call = tiny.cogvideox()
    expected, expected_other, stock = reflected(pipe, call), reflected(other, other_call), run(pipe, call)
    sharing = type(pipe)(**pipe.components, requires_safety_checker=False)
    results = []

    def call_inside(function):
        def on_step(pipe, index, timestep, kwargs):
            results.append(function())
            return kwargs

        return on_step

    with reflection(pipe, **GAP), reflection(other, **GAP):
        inside = call_inside(lambda: run(other, other_call))
        assert torch.equal(run(pipe, call, callback_on_step_end=inside), expected)
        assert all(torch.equal(result, expected_other) for result in results) and len(results) == STEPS
        results.clear()
        inside = call_inside(lambda: run(sharing, call))
        assert torch.equal(run(pipe, call, callback_on_step_end=inside), expected)
        assert all(torch.equal(result, stock) for result in results) and len(results) == STEPS
        with pytest.raises(ValueError, match="in use by a reflected call"):
            run(pipe, call, callback_on_step_end=call_inside(lambda: run(pipe, call)))
        with pytest.raises(ValueError, match="in use by a reflected call"), reflection(sharing, **GAP):
            run(pipe, call, callback_on_step_end=call_inside(lambda: run(sharing, call)))
        assert torch.equal(run(pipe, call), expected)


def test_a_network_that_is_copied_in_a_callback_is_itself():
    pipe, call = tiny.stable_diffusion()
    stock, copies = run(pipe, call), []

    def keep(pipe, index, timestep, given):
        if index == 1:
            copies.extend([copy.deepcopy(pipe.unet), pickle.loads(pickle.dumps(pipe.unet))])
        return {}

    with reflection(pipe, **GAP):
        run(pipe, call, callback_on_step_end=keep)
    for network in copies:
        pipe.unet = network
        assert torch.equal(run(pipe, call), stock)
        torch.nn.init.zeros_(network.conv_out.weight)
        assert not torch.equal(run(pipe, call), stock)
