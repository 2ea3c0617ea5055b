"""Nothing of the driver waits on the device between the first and the last step of a call."""

import contextlib
import sys
from collections import Counter

import pytest
import tiny
import torch
from plain_loop import STEPS, STRONG, WEAK, run
from torch.utils._python_dispatch import TorchDispatchMode

from w2sd_video import Branch, reflection


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for, by the package whose code asks for a value on the host."""

    def __init__(self):
        super().__init__()
        self.by = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.by[asker()] += 1
        return function(*args, **kwargs or {})


def asker():
    """Return the package of the innermost frame that is not of torch or of this file."""
    frame = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("torch", __name__):
            return package
        frame = frame.f_back
    return ""


def waits_between_steps(pipe, call, first, last):
    """Return how often a value came to the host between two calls of the callback, by who asked."""
    waits, stack = Waits(), contextlib.ExitStack()

    def on_step(pipe, index, timestep, kwargs):
        if index == first:
            stack.enter_context(waits)
        elif index == last:
            stack.close()
        return {}

    run(pipe, call, callback_on_step_end=on_step)
    return waits.by


GAPS = {"guidance": (STRONG, WEAK), "skipped layers": (Branch(), Branch(skip_layers=[1]))}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("inversion", ["paper", "current", "explicit", "implicit", "resample", "resample-advanced"])
@pytest.mark.parametrize(
    "system", [tiny.stable_diffusion, tiny.cogvideox, tiny.wan, tiny.flux, tiny.stable_diffusion_3]
)
def test_the_driver_waits_for_nothing_between_steps(system, inversion, gap):
    pipe, call = system()
    strong, weak = GAPS[gap]
    with reflection(pipe, strong=strong, weak=weak, inversion=inversion) as done:
        waits = waits_between_steps(pipe, call, 0, STEPS - 2)
    assert done.reflected_steps == STEPS - 1
    assert not waits["w2sd_video"], waits


def test_waits_are_told_by_who_asks():
    ours = {"__name__": "w2sd_video.example", "torch": torch}
    exec("def ask(x): return float(x)", ours)
    with Waits() as waits:
        ours["ask"](torch.ones(()))
    assert waits.by == {"w2sd_video": 1}
