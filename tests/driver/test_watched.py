"""What a loop does to more turns than steps is seen before any network runs: loops written for it, with one fault."""

import random
import threading
import time
from itertools import count, zip_longest

import diffusers
import numpy as np
import pytest
import tiny
import torch
from helpers import NOTHING
from pipelines_table import run
from plain_loop import STRONG, WEAK
from tiny.variants import build

from w2sd_video import Branch, reflection

INVERSIONS = ["paper", "explicit", "current", "implicit"]


class Loop(diffusers.StableDiffusionPipeline):
    """A loop of two evaluations a step with one more line in each turn, of a subclass."""

    @torch.no_grad()
    def __call__(self, prompt, generator=None, guidance_scale=5.0, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        self.turns = None
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)
        memory = {}
        for i, t in enumerate(self.scheduler.timesteps):
            cond, uncond = (self.unet(latents, t, words).sample for words in (text, empty))
            weight = self.weight(guidance_scale, i)
            prediction = self.kept(uncond + weight * (cond - uncond), memory, generator)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
            latents = self.edited(latents)
        return (latents,)

    def weight(self, guidance_scale, i):
        return guidance_scale

    def kept(self, prediction, memory, generator):
        return prediction

    def edited(self, latents):
        return latents


class Momentum(Loop):
    def kept(self, prediction, memory, generator):
        memory["sum"] = prediction + 0.5 * memory.get("sum", 0.0)
        return prediction


class Counter(Loop):
    def kept(self, prediction, memory, generator):
        self.turns = (self.turns or 0) + 1
        return prediction if self.turns < 5 else 0.9 * prediction


class FallingNorms(Loop):
    """Its guidance follows what a log says of earlier turns."""

    def kept(self, prediction, memory, generator):
        norms = memory.setdefault("norms", [])
        norms.append(float(prediction.norm()))
        return 0.9 * prediction if len(norms) > 2 and norms[-2] < norms[-3] else prediction


class HiddenCounter(Loop):
    """What it counts is where no variable shows it."""

    def kept(self, prediction, memory, generator, turns=iter(range(10**6))):  # noqa: B008
        return prediction * (1 + next(turns) % 2)


class LateSwitch:
    def __init__(self):
        self.turns = 0


class CounterInAnObject(Loop):
    """Its guidance ends after so many turns."""

    def kept(self, prediction, memory, generator):
        switch = memory.setdefault("switch", LateSwitch())
        switch.turns += 1
        return prediction if switch.turns < 6 else 0.9 * prediction


class EarlyCounter(Loop):
    """Its first turns are over before two of the same latents follow each other."""

    def kept(self, prediction, memory, generator):
        memory["turns"] = memory.get("turns", 0) + 1
        return prediction if memory["turns"] < 3 else 0.9 * prediction


class LateCounterInAnObject(Loop):
    """It does nothing in as many turns as there are steps, nor in those that look whether it does."""

    def kept(self, prediction, memory, generator):
        switch = memory.setdefault("switch", LateSwitch())
        switch.turns += 1
        return prediction if switch.turns < 18 else 0.9 * prediction


class CounterOfTheModule(Loop):
    def kept(self, prediction, memory, generator):
        return prediction if TURNS["at"] < 18 else 0.9 * prediction

    @torch.no_grad()
    def __call__(self, prompt, generator=None, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, _ = self.encode_prompt(prompt, "cpu", 1, True)
        TURNS["at"] = 0
        for t in self.scheduler.timesteps:
            TURNS["at"] += 1
            prediction = self.kept(self.unet(latents, t, text).sample, {}, generator)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        return (latents,)


TURNS = {"at": 0}


class Exhausted(Loop):
    """It has as many weights as steps, and takes one in each turn."""

    def kept(self, prediction, memory, generator):
        return next(memory.setdefault("weights", iter([1.0] * 6))) * prediction


class ReusesPredictions(Loop):
    @torch.no_grad()
    def __call__(self, prompt, generator=None, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, _ = self.encode_prompt(prompt, "cpu", 1, True)
        for i, t in enumerate(self.scheduler.timesteps):
            if i % 2 == 0:
                prediction = self.unet(latents, t, text).sample
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        return (latents,)


class TorchDraws(Loop):
    def kept(self, prediction, memory, generator):
        torch.rand(1)
        return prediction


class NumpyDraws(Loop):
    def kept(self, prediction, memory, generator):
        np.random.rand()
        return prediction


class PythonDraws(Loop):
    def kept(self, prediction, memory, generator):
        random.random()
        return prediction


class NumpyMomentum(Loop):
    def kept(self, prediction, memory, generator):
        memory["sum"] = prediction.numpy() + 0.5 * memory.get("sum", np.zeros(1))
        return prediction


class Gradient(Loop):
    @torch.enable_grad()
    def __call__(self, prompt, generator=None, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, _ = self.encode_prompt(prompt, "cpu", 1, True)
        for t in self.scheduler.timesteps:
            latents = latents.detach().requires_grad_()
            prediction = self.unet(latents, t, text).sample
            (slope,) = torch.autograd.grad(prediction.square().mean(), latents)
            latents = self.scheduler.step(prediction + slope, t, latents).prev_sample
        return (latents.detach(),)


class Multistep(Loop):
    def kept(self, prediction, memory, generator):
        before, memory["before"] = memory.get("before", prediction), prediction
        return 1.5 * prediction - 0.5 * before


class Draws(Loop):
    def kept(self, prediction, memory, generator):
        torch.randn(1, generator=generator)
        return prediction


class InPlace(Loop):
    def kept(self, prediction, memory, generator):
        memory.setdefault("buffer", torch.zeros(3)).add_(1)
        return prediction


class ReadsAhead(Loop):
    @torch.no_grad()
    def __call__(self, prompt, generator=None, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, _ = self.encode_prompt(prompt, "cpu", 1, True)
        timesteps = self.scheduler.timesteps
        for t, _ in zip_longest(timesteps, timesteps[1:]):
            assert t in list(self.scheduler.timesteps)
            latents = self.scheduler.step(self.unet(latents, t, text).sample, t, latents).prev_sample
        return (latents,)


class GuidedAtFirst(Loop):
    @torch.no_grad()
    def __call__(self, prompt, generator=None, guidance_scale=5.0, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)
        for i, t in enumerate(self.scheduler.timesteps):
            uncond = self.unet(latents, t, empty).sample if i < 3 else None
            prediction = self.unet(latents, t, text).sample
            if uncond is not None:
                prediction = uncond + guidance_scale * (prediction - uncond)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        return (latents,)


class RisingGuidance(Loop):
    def weight(self, guidance_scale, i):
        return guidance_scale + 0.5 * i


def of(cls):
    pipe, call = tiny.stable_diffusion()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    return cls(**parts, requires_safety_checker=False), {"prompt": call["prompt"]}


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_a_loop_that_keeps_nothing_is_reflected(inversion):
    pipe, call = of(Loop)
    stock = run(pipe, call)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion, reflection_steps=3) as done:
        assert not torch.equal(run(pipe, call), stock)
    assert (done.steps, done.reflected_steps, done.nfe["base"]) == (6, 3, 12)


@pytest.mark.parametrize("inversion", INVERSIONS)
@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (Momentum, "keeps memory"),
        (Counter, "keeps self.turns"),
        (Multistep, "keeps prediction"),
        (Draws, "keeps generator"),
        (InPlace, "keeps memory"),
        (NumpyMomentum, "keeps memory"),
        (FallingNorms, "keeps memory"),
        (HiddenCounter, "keeps prediction"),
        (CounterInAnObject, "keeps memory"),
        (EarlyCounter, "keeps memory"),
        (LateCounterInAnObject, "keeps memory"),
        (CounterOfTheModule, "keeps TURNS"),
        (Exhausted, "StopIteration"),
        (TorchDraws, "keeps torch's global generator"),
        (NumpyDraws, "keeps numpy.random"),
        (PythonDraws, "keeps random"),
        (Gradient, "differentiates through its network"),
    ],
)
@pytest.mark.parametrize("gap", ["guidance", "none"])
def test_state_by_turns_is_refused_before_any_network_runs(cls, what, inversion, gap):
    pipe, call = of(cls)
    strong, weak = (STRONG, WEAK) if gap == "guidance" else (Branch(), Branch())
    evaluations = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: evaluations.append(1))
    with (
        reflection(pipe, strong=strong, weak=weak, inversion=inversion, reflection_steps=3) as done,
        pytest.raises(ValueError, match=what),
    ):
        run(pipe, call)
    assert not evaluations and not any(done.nfe.values())
    with reflection(pipe, strong=strong, weak=weak, reflection_steps=0):
        assert torch.equal(run(pipe, call), run(*of(cls)))


class DrawsBeside(Loop):
    """Another thread draws from what all threads share in some of its turns."""

    disturbed = frozenset({2, 3, 4, 5, 6, 11, 40, *range(60, 90)})

    def __call__(self, *args, **kwargs):
        self.numbers = count()
        return super().__call__(*args, **kwargs)

    def edited(self, latents):
        if next(self.numbers) in self.disturbed:
            for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
                thread = threading.Thread(target=draw)
                thread.start()
                thread.join()
        return latents


def test_draws_of_another_thread_are_not_taken_for_the_loops(monkeypatch):
    def reflected():
        pipe, call = of(DrawsBeside)
        with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=3):
            return run(pipe, call)

    beside = reflected()
    monkeypatch.setattr(DrawsBeside, "disturbed", ())
    assert torch.equal(beside, reflected())
    monkeypatch.setattr(DrawsBeside, "disturbed", range(1000))
    with pytest.raises(ValueError, match="keep other threads from drawing"):
        reflected()


class LateCounter(Loop):
    """What it counts is of no consequence before its fourth step."""

    def weight(self, guidance_scale, i):
        self.turns = (self.turns or 0) + 1
        return guidance_scale if i < 3 else guidance_scale + self.turns


def test_state_that_matters_later_is_refused_at_the_latest_in_the_end():
    pipe, call = of(LateCounter)
    with (
        reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=2),
        pytest.raises(ValueError, match=r"self\.turns"),
    ):
        run(pipe, call)


class Records(Loop):
    """It keeps a clock, a log of numbers, one of latents and one of words."""

    def kept(self, prediction, memory, generator):
        self.turns = (self.turns or 0) + 1
        memory["seconds"] = time.perf_counter() - memory.setdefault("began", time.perf_counter())
        memory.setdefault("norms", []).append(float(prediction.norm()))
        memory.setdefault("latents", []).append(prediction.clone())
        memory["said"] = f"{self.turns} turns in {memory['seconds']} s"
        return prediction


class Closure(Loop):
    """Its loop stands in a function of its own."""

    @torch.no_grad()
    def __call__(self, prompt, generator=None, guidance_scale=5.0, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)

        def denoise():
            nonlocal latents
            for i, t in enumerate(self.scheduler.timesteps):
                assert i < num_inference_steps
                cond, uncond = (self.unet(latents, t, words).sample for words in (text, empty))
                prediction = uncond + guidance_scale * (cond - uncond)
                latents = self.scheduler.step(prediction, t, latents).prev_sample

        denoise()
        return (latents,)


class WithGraph(Loop):
    """Its author forgot ``torch.no_grad``."""

    __call__ = Loop.__call__.__wrapped__


class Weights(Loop):
    """Its guidance has a weight for each step, beside the timesteps."""

    place = 0

    @torch.no_grad()
    def __call__(self, prompt, generator=None, guidance_scale=5.0, num_inference_steps=6, **kwargs):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        text, empty = self.encode_prompt(prompt, "cpu", 1, True)
        weights = [6.0, 5.0, 4.0, 3.0, 2.0, 1.5]
        both = [self.scheduler.timesteps, weights]
        pairs = zip(*(reversed(both) if self.place else both), strict=True)
        for step, (*_, last) in enumerate(pairs):
            t, weight = self.scheduler.timesteps[step], weights[step]
            assert float(last) in (float(t), weight)
            cond, uncond = (self.unet(latents, t, words).sample for words in (text, empty))
            latents = self.scheduler.step(uncond + weight * (cond - uncond), t, latents).prev_sample
        return (latents,)


class WeightsFirst(Weights):
    place = 1


@pytest.mark.parametrize("cls", [Weights, WeightsFirst])
def test_what_is_zipped_with_timesteps_goes_along_with_real_steps(cls):
    pipe, call = of(cls)
    stock = run(pipe, call)
    for off in ({"strength": NOTHING}, {"reflection_steps": 0}):
        with reflection(pipe, strong=Branch(), weak=Branch(), **off):
            assert torch.equal(run(pipe, call), stock)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current") as done:
        assert torch.allclose(run(pipe, call), stock, rtol=1e-3, atol=1e-4)
    assert done.reflected_steps == 5


def test_a_loop_that_leaves_its_network_out_is_refused_at_the_latest_when_it_does():
    pipe, call = of(ReusesPredictions)
    with reflection(pipe, strong=Branch(), weak=Branch()), pytest.raises(ValueError, match="in every turn of its loop"):
        run(pipe, call)


@pytest.mark.parametrize("inversion", INVERSIONS)
@pytest.mark.parametrize("cls", [Records, Closure, WithGraph])
def test_records_that_nothing_depends_on_and_loops_in_inner_functions_are_reflected(cls, inversion):
    pipe, call = of(Loop)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion) as plain:
        expected = run(pipe, call)
    pipe, call = of(cls)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion) as done:
        result = run(pipe, call)
    assert torch.equal(result, expected) and not result.requires_grad and done == plain


def test_timesteps_may_be_read_beside_the_loop():
    pipe, call = of(ReadsAhead)
    with reflection(pipe, strong=Branch(), weak=Branch(), reflection_steps=0) as off:
        assert torch.equal(run(pipe, call), run(of(ReadsAhead)[0], call))
    assert off.steps == 6
    with reflection(pipe, strong=Branch(), weak=Branch()), pytest.raises(ValueError, match="keeps _"):
        run(pipe, call)


def test_an_evaluation_that_is_left_out_later_is_not_mistaken_for_the_other_one():
    pipe, call = of(GuidedAtFirst)
    with reflection(pipe, strong=STRONG, weak=WEAK, reflection_steps=3) as done:
        run(pipe, call)
    assert done.nfe == {"base": 9, "strong": 6, "weak": 3}
    with reflection(pipe, strong=STRONG, weak=WEAK), pytest.raises(ValueError, match="fewer rows"):
        run(pipe, call)


def test_weights_that_change_over_the_steps_are_seen_where_a_branch_depends_on_them():
    pipe, call = of(RisingGuidance)
    with reflection(pipe, strong=STRONG, weak=WEAK), pytest.raises(ValueError, match="changes over the steps"):
        run(pipe, call)
    second = Branch(weights=of(Loop)[0].unet)
    with reflection(pipe, strong=Branch(), weak=second) as done:
        assert run(pipe, call).isfinite().all()
    assert done.reflected_steps == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_weights_are_not_taken_for_changing_ones_in_any_precision(dtype):
    pipe, call = of(Loop)
    pipe.unet.to(dtype)
    evaluate = pipe.unet.forward
    pipe.unet.forward = lambda latents, t, words, **kwargs: evaluate(latents.to(dtype), t, words.to(dtype), **kwargs)
    with reflection(pipe, strong=STRONG, weak=WEAK) as done:
        run(pipe, call)
    assert done.reflected_steps == 5


def test_latents_that_are_rounded_to_the_networks_precision_are_not_taken_for_edited_ones():
    pipe, call = tiny.mochi()
    pipe.to(torch.bfloat16)
    stock = run(pipe, call)
    with reflection(pipe, strong=STRONG, weak=STRONG, inversion="current"):
        assert torch.allclose(run(pipe, call), stock, rtol=0.05, atol=0.05)
    with reflection(pipe, strong=STRONG, weak=WEAK) as done:
        assert not torch.equal(run(pipe, call), stock)
    assert done.reflected_steps == done.steps - 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("StableDiffusionPipelineSafe", "momentum"), ("SemanticStableDiffusionPipeline", "edit_momentum")],
)
def test_momentum_of_guidance_in_diffusers_own_loops_is_seen(name, words):
    pipe, call = build(name)
    if "Semantic" in name:
        call |= {"editing_prompt": ["a hat"], "edit_guidance_scale": 5.0, "edit_warmup_steps": 1}
    with reflection(pipe, strong=Branch(), weak=Branch()), pytest.raises(ValueError, match=words):
        run(pipe, call)
