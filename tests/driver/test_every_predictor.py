"""Every pipeline that docs/reference/pipelines.md says is reflected has a predictor, or is refused one by a reason."""

import functools
import inspect

import pytest
import torch
from pipelines_table import run
from replay import denoisers_of
from test_every_pipeline import EDITING, REFLECTED, FakeNetwork
from tiny.variants import build

from w2sd_video import Branch, predictor, sample

IN_PARTS = "LTXI2VLongMultiPromptPipeline"
"""The one whose loop goes through its timesteps one by one, each for many parts of a clip."""
IN_SEVERAL_LOOPS = "WanAnimatePipeline"
"""The one that makes its clip segment by segment, of which a predictor is there for the first."""
WITH_VARIANCES = tuple(name for name in REFLECTED if name.startswith(("IF", "KandinskyV22")))
"""Those whose networks predict the variance of a step that draws noise."""


@pytest.fixture
def stepped(monkeypatch):
    """A function that has the results of a scheduler's steps noted, and gives the list."""

    def noting(scheduler):
        results, step = [], type(scheduler).step

        @functools.wraps(step)
        def noted(*args, **kwargs):
            result = step(*args, **kwargs)
            results.append(result[0] if isinstance(result, tuple) else result.prev_sample)
            return result

        monkeypatch.setattr(type(scheduler), "step", noted)
        return results

    yield noting


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted({*REFLECTED} - {IN_PARTS, IN_SEVERAL_LOOPS, *WITH_VARIANCES}))
def test_sample_with_a_predictor_is_the_stock_loop(name, stepped):
    pipe, call = build(name)
    for denoiser in denoisers_of(pipe).values():
        denoiser.forward = FakeNetwork(denoiser, [])
    results = stepped(pipe.scheduler)
    run(pipe, call)
    stock, steps = results[-1], len(results)
    taken, generator = inspect.signature(type(pipe).__call__).parameters, torch.Generator().manual_seed(7)
    given = {"generator": generator, "output_type": "latent"}
    torch.manual_seed(0)
    arguments = {name: value for name, value in given.items() if name in taken} | call
    with predictor(pipe, strong=Branch(), weak=Branch(), **arguments) as predict:
        draws = {"generator": generator} if "generator" in taken else {}
        latents, nfe = sample(
            predict, predict.latents, predict.scheduler, begin=predict.begin, reflection_steps=0, **draws
        )
    assert (latents - stock).double().norm() <= 1e-4 * stock.double().norm()
    assert nfe["base"] == steps


def test_a_pipeline_that_goes_through_its_timesteps_in_parts_is_refused():
    pipe, call = build(IN_PARTS)
    with pytest.raises(ValueError, match="goes through its timesteps in parts"):
        predictor(pipe, strong=Branch(), weak=Branch(), **call)


@pytest.mark.parametrize("name", ["IFPipeline", "KandinskyV22Pipeline"])
def test_a_network_that_predicts_variances_too_is_refused(name):
    pipe, call = build(name)
    with pytest.raises(ValueError, match="predicts the variance of the steps of DDPMScheduler beside"):
        predictor(pipe, strong=Branch(), weak=Branch(), **call)


@pytest.mark.parametrize("name", EDITING)
def test_a_loop_that_changes_its_latents_after_each_step_is_refused(name):
    pipe, call = build(name)
    with pytest.raises(ValueError, match=r"changes its latents in every turn|predicts the variance"):
        predictor(pipe, strong=Branch(), weak=Branch(), **call)
