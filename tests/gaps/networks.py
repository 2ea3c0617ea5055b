"""What the tests of gaps share."""

import pytest
import torch

from w2sd_video import Branch, reflection
from w2sd_video.gaps import swapped, swaps_of

TOKENS, WIDTH = 6, 8
STEPS = 4


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attributes(module):
    """Return every attribute of every submodule, by identity."""
    return [{name: id(value) for name, value in vars(one).items()} for one in module.modules()]


@torch.no_grad()
def with_branch(module, branch, *args, **kwargs):
    """Evaluate a module as a branch says, and check that nothing is left changed."""
    before = attributes(module)
    swaps = swaps_of(module, branch)
    with swapped(swaps):
        result = module(*args, **kwargs)
    with pytest.raises(KeyError), swapped(swaps):
        raise KeyError
    assert attributes(module) == before
    return result


def run(pipe, call, **changes):
    arguments = {**call, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), **changes}
    result = pipe(**arguments, output_type="latent")
    return result.frames if hasattr(result, "frames") else result.images


def reflected(pipe, call, branches=None, **changes):
    """Run with a reflection whose branches are the pipeline's own, unless told."""
    with reflection(pipe, **(branches or {"strong": Branch(), "weak": Branch()})):
        return run(pipe, call, **changes)


def everywhere(**fields):
    return {role: Branch(**fields) for role in ("base", "strong", "weak")}
