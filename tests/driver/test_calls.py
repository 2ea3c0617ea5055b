"""What surrounds a reflected call: parts looked up anew, nothing left behind, arguments as they came."""

import copy
import functools
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import tiny
import torch
from helpers import add_lora, state
from plain_loop import STEPS, STRONG, WEAK, run

from w2sd_video import Branch, reflection

GAP = {"strong": STRONG, "weak": WEAK}
PIPELINES = {
    "animatediff": tiny.animatediff,
    "cogvideox": tiny.cogvideox,
    "wan": tiny.wan,
    "stable_diffusion": tiny.stable_diffusion,
    "pixart": tiny.pixart,
}
pipelines = pytest.mark.parametrize("name", PIPELINES)


def denoiser_of(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def reflected(pipe, call, gap=GAP, **changes):
    with reflection(pipe, **gap):
        return run(pipe, call, **changes)


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
    before, counted = state(pipe), [0]

    def fails(function, at):
        @functools.wraps(function)
        def failing(*args, **kwargs):
            counted[0] += 1
            if counted[0] == at:
                raise error("in the midst")
            return function(*args, **kwargs)

        return failing

    places = {
        "denoiser": (type(denoiser_of(pipe)), "forward"),
        "step": (type(pipe.scheduler), "step"),
        "set_timesteps": (type(pipe.scheduler), "set_timesteps"),
        "text encoder": (type(pipe.text_encoder), "forward"),
        "end": (type(pipe), "maybe_free_model_hooks"),
    }
    with reflection(pipe, **gap):
        for at in (1, 2, 4):
            counted[0] = 0
            with monkeypatch.context() as patch:
                if point == "callback":
                    changes = {"callback_on_step_end": fails(lambda pipe, i, t, kwargs: kwargs, at)}
                else:
                    changes = {}
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
    other = type(pipe)(**pipe.components, **({"requires_safety_checker": False} if hasattr(pipe, "unet") else {}))
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


# --- arguments -----------------------------------------------------------------------------------------------------


def app_of(base):
    class App(base):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    return App


def seeded_app_of(base):
    """It makes the generator itself, and knows of a scale and of text by names of its own."""

    class App(base):
        def __call__(self, text, *, seed=0, w=3.0, **kwargs):
            kwargs.pop("generator", None)
            return super().__call__(
                prompt=text, guidance_scale=w, generator=torch.Generator().manual_seed(seed), **kwargs
            )

    return App


@pipelines
@pytest.mark.parametrize("levels", [1, 2])
def test_a_subclass_of_args_and_kwargs_is_the_pipeline_itself(name, levels):
    pipe, call = PIPELINES[name]()
    gap = {"strong": STRONG, "weak": Branch(guidance_scale=1.0, prompt="a blue square")}
    settings = {**gap, "inversion": "resample-advanced"}
    stock = run(pipe, call)
    with reflection(pipe, **settings) as plain:
        expected = run(pipe, call)
    cls = type(pipe)
    for _ in range(levels):
        cls = app_of(cls)
    pipe.__class__ = cls
    with reflection(pipe, **settings) as run_of_app:
        assert torch.equal(run(pipe, call), expected)
        prompt = {key: value for key, value in call.items() if key not in ("prompt", "num_inference_steps")}
        generator = torch.Generator().manual_seed(7)
        pipe(call["prompt"], **prompt, num_inference_steps=STEPS, generator=generator, output_type="latent")
    assert run_of_app == plain
    with reflection(pipe, **GAP, reflection_steps=0):
        assert torch.equal(run(pipe, call), stock)
    assert type(pipe) is cls


def test_a_subclass_that_makes_the_generator_itself_keeps_it():
    pipe, call = tiny.wan()
    settings = {**GAP, "inversion": "resample-advanced"}
    with reflection(pipe, **settings):
        expected = run(pipe, call)
    pipe.__class__ = seeded_app_of(type(pipe))
    call = {key: value for key, value in call.items() if key not in ("guidance_scale", "prompt")} | {"seed": 7}
    prompt = tiny.wan()[1]["prompt"]
    scale = tiny.wan()[1].get("guidance_scale", 5.0)
    with reflection(pipe, **settings):
        assert torch.equal(run(pipe, call | {"text": prompt, "w": scale}), expected)


def test_arguments_refusals_and_callbacks_reach_through_a_subclass():
    pipe, call = tiny.stable_diffusion_xl()
    stock = run(pipe, call, denoising_end=0.8)
    pipe.__class__ = app_of(type(pipe))
    with reflection(pipe, **GAP, strength=0.0):
        assert torch.equal(run(pipe, call, denoising_end=0.8), stock)
    with reflection(pipe, **GAP):
        seen = []
        run(pipe, call, callback_on_step_end=lambda p, i, t, kwargs: seen.append(i) or kwargs)
    assert seen == list(range(STEPS))
    pipe, call = tiny.cogvideox()
    with torch.no_grad():
        text, negative = pipe.encode_prompt(call["prompt"], max_sequence_length=tiny.TEXT_LENGTH)
    embedded = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": negative}
    pipe.__class__ = app_of(type(pipe))
    refused = pytest.raises(ValueError, match="pass negative_prompt as text")
    with refused, reflection(pipe, strong=Branch(), weak=Branch(prompt="a blue square")):
        run(pipe, call, **embedded)


def test_a_subclass_that_goes_past_super_is_not_passed_over_in_silence():
    class App(diffusers.WanPipeline):
        def __call__(self, *args, **kwargs):
            return diffusers.WanPipeline.__call__(self, *args, **kwargs)

    pipe, call = tiny.wan()
    pipe.__class__ = App
    with pytest.raises(ValueError, match=r"WanPipeline.__call__ by super"), reflection(pipe, **GAP) as done:
        run(pipe, call)
    assert not any(done.nfe.values())


def test_a_method_that_was_taken_before_the_block_is_refused_and_one_of_inside_is_stock_after_it():
    pipe, call = tiny.stable_diffusion()
    call |= {"num_inference_steps": STEPS, "output_type": "latent"}

    def seeded():
        return call | {"generator": torch.Generator().manual_seed(7)}

    stock, before = pipe(**seeded()).images, pipe.__call__
    with reflection(pipe, **GAP):
        expected = pipe(**seeded()).images
        inside = pipe.__call__
        assert torch.equal(inside(**seeded()).images, expected)
        for past in (before, functools.partial(type(pipe).__mro__[2].__call__, pipe)):
            with pytest.raises(ValueError, match="taken before the block"):
                past(**seeded())
        with pytest.raises(ValueError, match="taken before the block"):
            pipe(**seeded(), callback_on_step_end=lambda *_: before(**seeded()))
        assert torch.equal(pipe(**seeded()).images, expected)
    assert torch.equal(before(**seeded()).images, stock) and torch.equal(inside(**seeded()).images, stock)


def test_a_call_with_arguments_that_stand_by_is_reflected():
    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, **GAP):
        expected = run(pipe, call)

    class Fast(type(pipe)):
        __call__ = functools.partialmethod(diffusers.StableDiffusionPipeline.__call__, num_inference_steps=STEPS)

    pipe.__class__ = Fast
    arguments = call | {"generator": torch.Generator().manual_seed(7), "output_type": "latent"}
    del arguments["num_inference_steps"]
    with reflection(pipe, **GAP) as done:
        assert torch.equal(pipe(**arguments).images, expected)
    assert done.reflected_steps == STEPS - 1 and type(pipe) is Fast


def test_a_wrong_argument_is_the_stock_error():
    pipe, call = tiny.wan()
    for wrong in ({"colour": "red"}, {}):
        args = () if wrong else tuple(range(99))
        with pytest.raises(TypeError), reflection(pipe, **GAP):
            pipe(*args, **call | wrong)


@pipelines
@pytest.mark.parametrize("off", [True, False])
def test_wrappers_of_a_networks_forward_see_arguments_as_the_pipeline_gives_them(name, off):
    """DeepCache reads the UNet's timestep by position."""
    pipe, call = PIPELINES[name]()
    network, given = denoiser_of(pipe), []
    forward = network.forward

    def wrapped(*args, **kwargs):
        given.append((len(args), sorted(kwargs)))
        return forward(*args, **kwargs)

    network.forward = wrapped
    stock, shape = run(pipe, call), given[0]
    settings = {"reflection_steps": 0} if off else {"strength": 0.0}
    with reflection(pipe, **GAP, **settings):
        assert torch.equal(run(pipe, call), stock)
    assert set(map(str, given)) == {str(shape)}
    assert network.forward is wrapped


@pipelines
@pytest.mark.parametrize("where", ["object", "class", "bound"])
def test_a_patched_step_of_the_scheduler_goes_on_working(name, where, monkeypatch):
    pipe, call = PIPELINES[name]()
    expected, expected_stock = reflected(pipe, call), run(pipe, call)
    called = []
    if where == "class":
        step = type(pipe.scheduler).step
        wrapped = functools.wraps(step)(lambda *a, **k: (called.append(1), step(*a, **k))[1])
        monkeypatch.setattr(type(pipe.scheduler), "step", wrapped)
    else:
        step = pipe.scheduler.step
        function = lambda *a, **k: (called.append(1), step(*a, **k))[1]  # noqa: E731
        if where == "bound":
            plain = type(pipe.scheduler).step
            function = types.MethodType(
                lambda self, *a, **k: (called.append(1), plain(self, *a, **k))[1], pipe.scheduler
            )
        pipe.scheduler.step = function
    assert torch.equal(run(pipe, call), expected_stock)
    str(pipe.scheduler)  # diffusers writes into the configuration when it is shown
    before = state(pipe)
    called.clear()
    assert torch.equal(reflected(pipe, call), expected)
    assert len(called) == STEPS
    with reflection(pipe, **GAP, reflection_steps=0):
        assert torch.equal(run(pipe, call), expected_stock)
    assert state(pipe) == before


@pytest.mark.parametrize(
    ("weak", "more"), [(Branch(), 0), (Branch(guidance_scale=1.0), 0), (Branch(prompt="a dog"), 1)]
)
@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan])
def test_text_is_encoded_once_more_and_only_where_a_branch_has_one(build, weak, more):
    pipe, call = build()
    runs = []
    pipe.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    run(pipe, call)
    stock = len(runs)
    with reflection(pipe, strong=Branch(), weak=weak):
        run(pipe, call)
    assert len(runs) - stock == stock * (1 + more)


def test_a_callback_in_inference_mode_is_called():
    pipe, call = tiny.stable_diffusion()
    with torch.inference_mode(), reflection(pipe, strong=Branch(), weak=Branch(prompt="a cat")) as done:
        run(pipe, call, callback_on_step_end=lambda pipe, i, t, shown: shown)
    assert done.reflected_steps == done.steps - 1
