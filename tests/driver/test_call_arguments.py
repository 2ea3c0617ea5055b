"""The arguments of a reflected call: as they came, also through subclasses, wrappers and patches."""

import functools
import types

import diffusers
import pytest
import tiny
import torch
from helpers import NOTHING, close, state
from plain_loop import STEPS, STRONG, run
from tiny.variants import build
from usual_pipelines import GAP, PIPELINES, denoiser_of, pipelines, reflected

from w2sd_video import Branch, reflection


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


def in_the_name_of(base):
    """Two calls, each with a prompt of its own, by a function that passes for the one it wraps."""

    class App(base):
        @functools.wraps(base.__call__)
        def __call__(self, prompt, **kwargs):
            first = super().__call__("a blue square", **kwargs).images
            return super().__call__(prompt, **kwargs | {"latents": first})

    return App


def test_a_subclass_in_the_name_of_its_base_is_not_taken_for_the_loop():
    pipe, call = tiny.stable_diffusion()
    with reflection(pipe, strong=STRONG, weak=Branch(prompt="a red circle")):
        first = run(pipe, call | {"prompt": "a blue square"})
        expected = run(pipe, call, latents=first)
    pipe.__class__ = in_the_name_of(type(pipe))
    with reflection(pipe, strong=STRONG, weak=Branch(prompt="a red circle")) as reflected:
        assert torch.equal(run(pipe, call), expected)
    assert reflected.steps == 2 * STEPS


def test_a_loop_in_the_name_of_another_counts_real_steps():
    class Own(diffusers.StableDiffusionPipeline):
        @torch.no_grad()
        @functools.wraps(diffusers.StableDiffusionPipeline.__call__)
        def __call__(self, prompt, num_inference_steps, **kwargs):
            self.scheduler.set_timesteps(num_inference_steps)
            latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            text, _ = self.encode_prompt(prompt, "cpu", 1, False)
            for i, t in enumerate(self.scheduler.timesteps):
                prediction = self.unet(latents, t, text).sample * (1.5 if i < 2 else 1.0)
                latents = self.scheduler.step(prediction, t, latents).prev_sample
            return (latents,)

    pipe, call = tiny.stable_diffusion()
    own = Own(**pipe.components, requires_safety_checker=False)
    stock = own(call["prompt"], num_inference_steps=STEPS)[0]
    with reflection(own, strong=Branch(), weak=Branch(skip_layers=[0]), strength=NOTHING):
        torch.testing.assert_close(own(call["prompt"], num_inference_steps=STEPS)[0], stock)


def test_arguments_refusals_and_callbacks_reach_through_a_subclass():
    pipe, call = tiny.stable_diffusion_xl()
    stock = run(pipe, call, denoising_end=0.8)
    pipe.__class__ = app_of(type(pipe))
    with reflection(pipe, **GAP, strength=NOTHING):
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
    settings = {"reflection_steps": 0} if off else {"strength": NOTHING}
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


@pytest.mark.parametrize("reflected_steps", [0, 3])
@pytest.mark.parametrize("cond_first", [False, True])
def test_a_controlnet_that_is_evaluated_twice_a_step_is_told_the_text_of_each(cond_first, reflected_steps):
    class InTurn(diffusers.StableDiffusionControlNetPipeline):
        @torch.no_grad()
        def __call__(self, prompt, negative_prompt, image):
            self.scheduler.set_timesteps(4)
            latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
            texts = self.encode_prompt(prompt, "cpu", 1, True, negative_prompt)
            for t in self.scheduler.timesteps:
                predicted = {}
                for words in texts if cond_first else texts[::-1]:
                    down, mid = self.controlnet(latents, t, words, image, return_dict=False)
                    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                    predicted[words] = self.unet(latents, t, words, **residuals).sample
                cond, uncond = (predicted[words] for words in texts)
                latents = self.scheduler.step(uncond + 3 * (cond - uncond), t, latents).prev_sample
            return (latents,)

    pipe, _ = tiny.stable_diffusion(control=True)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    in_turn = InTurn(**parts | unchecked)
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = in_turn("a red circle", "blurry", image)[0]
    role = Branch(prompt="a red circle")
    settings = {"inversion": "current", "reflection_steps": reflected_steps}
    with reflection(in_turn, strong=role, weak=role, base=role, **settings):
        close(in_turn("a blue square moving left", "blurry", image)[0], expected)


def test_a_branch_with_a_prompt_takes_the_place_of_embeddings_in_a_list():
    """Z-Image has one tensor a sample; the text of a branch left beside them would say nothing."""
    pipe, call = build("ZImagePipeline")
    pipe.set_progress_bar_config(disable=True)
    text, negative = pipe.encode_prompt(call["prompt"], device="cpu", do_classifier_free_guidance=True)
    embedded = call | {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": negative}
    gap = {"strong": Branch(), "weak": Branch(prompt="a blue square over the sea", negative_prompt="")}
    assert torch.equal(reflected(pipe, embedded, gap), reflected(pipe, call, gap))
    own = {"strong": Branch(), "weak": Branch()}
    assert not torch.equal(reflected(pipe, embedded, gap), reflected(pipe, embedded, own))
    only_half = embedded | {"negative_prompt_embeds": None}
    with pytest.raises(ValueError, match=r"^When `prompt_embeds` is provided without"):  # the stock error
        reflected(pipe, only_half, gap)


def test_a_callback_in_inference_mode_is_called():
    pipe, call = tiny.stable_diffusion()
    with torch.inference_mode(), reflection(pipe, strong=Branch(), weak=Branch(prompt="a cat")) as done:
        run(pipe, call, callback_on_step_end=lambda pipe, i, t, shown: shown)
    assert done.reflected_steps == done.steps - 1


class Renaming(diffusers.DDIMScheduler):
    def step(self, noise, t, x, **others):
        return super().step(1.05 * noise, t, x, **others)


class Hiding(diffusers.DDIMScheduler):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


def renamed_in_place(scheduler):
    step = scheduler.step
    scheduler.step = lambda noise, t, x, **others: step(noise, t, x, **others)


STEPPING = {
    "subclass that renames": lambda pipe: setattr(pipe, "scheduler", Renaming.from_config(pipe.scheduler.config)),
    "subclass that hides": lambda pipe: setattr(pipe, "scheduler", Hiding.from_config(pipe.scheduler.config)),
    "patch that renames": lambda pipe: renamed_in_place(pipe.scheduler),
}


@pytest.mark.parametrize("name", STEPPING)
def test_a_step_that_names_its_arguments_otherwise_is_given_those_that_it_shows(name):
    """Pipelines look whether it takes an ``eta``, which none of these shows."""
    pipe, call = tiny.stable_diffusion()
    STEPPING[name](pipe)
    stock = run(pipe, call, eta=1.0)
    for settings in ({"reflection_steps": 0}, {"strength": NOTHING}):
        with reflection(pipe, **GAP, **settings):
            assert torch.equal(run(pipe, call, eta=1.0), stock)
    assert not torch.equal(reflected(pipe, call), stock)
