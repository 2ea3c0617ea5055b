"""What is measured of guidance holds for every pipeline that docs/reference/pipelines.md says is reflected.

Two samples from one noise are the single one, twice: no row is known by its value. And the evaluations that are counted
are the rows that the network was run on.
"""

import functools
import inspect
import re
from pathlib import Path

import pytest
import torch
from replay import denoisers_of
from tiny.variants import build

from w2sd_video import Branch, reflection

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md"
REFLECTED = re.findall(r"^\| (\w+) \| reflected", PAGE.read_text(), re.MULTILINE)
LARGER = {"LuminaPipeline": {"height": 64, "width": 64}}
"""Of 2 x 2 latents four rows and their channels cannot be told apart, and are refused."""
COPIES = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")


def latents_of(pipe, call, count):
    """Return the final latents of some samples from one and the same noise, or of a single one for 1."""
    taken = inspect.signature(type(pipe).__call__).parameters
    generators = [torch.Generator().manual_seed(7) for _ in range(count)]
    call = ({"output_type": "latent"} if "output_type" in taken else {}) | call
    if "generator" in taken:
        call["generator"] = generators if count > 1 else generators[0]
    if count > 1:
        copies = [name for name in COPIES if name in taken]
        if copies:
            call[copies[0]] = count
        elif "class_labels" in call:
            call["class_labels"] = list(call["class_labels"])[:1] * count
        elif isinstance(call.get("prompt"), str):
            call["prompt"] = [call["prompt"]] * count
        else:
            raise ValueError("makes one sample a call")
    result = pipe(**call)
    return torch.as_tensor(
        result[0] if not isinstance(result[0], list) else torch.stack(list(map(torch.as_tensor, result[0])))
    )


def counted(pipe, rows):
    """Have the networks of a pipeline count the rows that they are run on, those beside its denoisers too."""
    classes = {type(denoiser) for denoiser in denoisers_of(pipe).values()}
    for denoiser in (part for part in pipe.components.values() if type(part) in classes):
        forward = denoiser.forward

        @functools.wraps(forward)
        def counting(*args, forward=forward, **kwargs):
            rows.append(len(args[0] if args else next(iter(kwargs.values()))))
            return forward(*args, **kwargs)

        denoiser.forward = counting


@pytest.mark.parametrize("name", REFLECTED)
@torch.no_grad()
def test_equal_seeds_are_equal_samples_and_evaluations_are_rows(name):
    pipe, call = build(name)
    call = call | LARGER.get(name, {})
    pipe.set_progress_bar_config(disable=True)
    taken = inspect.signature(type(pipe).__call__).parameters
    if "guidance_scale" in taken:
        call = call | {"guidance_scale": max(3.0, call.get("guidance_scale") or 0.0)}
    if "num_inference_steps" in taken:
        call = call | {"num_inference_steps": 3}
    branches = {"strong": Branch(guidance_scale=4.0), "weak": Branch(guidance_scale=1.0)}
    try:
        with reflection(pipe, **branches):
            alone = latents_of(pipe, call, 1)
    except ValueError as refusal:
        assert "guidance" in str(refusal)
        branches = {"strong": Branch(), "weak": Branch()}
        with reflection(pipe, **branches):
            alone = latents_of(pipe, call, 1)
    rows = []
    counted(pipe, rows)
    with reflection(pipe, **branches) as run:
        latents_of(pipe, call, 1)
    assert sum(run.nfe.values()) == sum(rows), "evaluations are rows"
    if not two_are_one_twice(pipe, call):
        return
    with reflection(pipe, **branches) as run_of_two:
        together = latents_of(pipe, call, 2)
    assert run_of_two.nfe == run.nfe, "of a sample"
    assert is_twice(together, alone)


def two_are_one_twice(pipe, call):
    """Whether the stock pipeline makes two samples of such a call, and of equal seeds equal ones."""
    try:
        return is_twice(latents_of(pipe, call, 2), latents_of(pipe, call, 1))
    except (ValueError, RuntimeError, IndexError, TypeError, AssertionError):
        return False  # what it is given cannot be had twice


def is_twice(together, alone):
    if together.numel() != 2 * alone.numel():
        return False
    halves = together.reshape(2, *alone.shape)
    return all((half - alone).norm() < 2e-3 * alone.norm() for half in halves)
