"""Nothing of the driver waits on the device between the first and the last step of a call."""

import contextlib
from collections import Counter

import pytest
import tiny
import torch
from plain_loop import STEPS, STRONG, WEAK, run
from torch.utils._python_dispatch import TorchDispatchMode

from w2sd_video import reflection


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for: values that come to the host."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.counts[str(function)] += 1
        return function(*args, **kwargs or {})


def waits_between_steps(pipe, call, first, last):
    """Return how often a value came to the host between two calls of the callback."""
    waits, stack = Waits(), contextlib.ExitStack()

    def on_step(pipe, index, timestep, kwargs):
        if index == first:
            stack.enter_context(waits)
        elif index == last:
            stack.close()
        return {}

    run(pipe, call, callback_on_step_end=on_step)
    return waits.counts.total()


@pytest.mark.parametrize("inversion", ["paper", "current", "explicit", "resample-advanced"])
@pytest.mark.parametrize("system", [tiny.stable_diffusion, tiny.cogvideox, tiny.wan, tiny.flux])
def test_the_driver_waits_for_nothing_between_steps(system, inversion):
    pipe, call = system()
    first, last = 0, STEPS - 2
    stock = waits_between_steps(pipe, call, first, last)
    with reflection(pipe, strong=STRONG, weak=WEAK, inversion=inversion):
        reflected = waits_between_steps(pipe, call, first, last)
    assert reflected <= stock * 3, (reflected, stock)  # a stock loop's own waits come in each of three turns
