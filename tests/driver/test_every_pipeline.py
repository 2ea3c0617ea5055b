"""What holds of every pipeline that docs/reference/pipelines.md says is reflected, with a fake network in its place."""

import re
from pathlib import Path

import pytest
import torch
from helpers import NOTHING
from pipelines_table import run
from replay import denoisers_of
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.driver.turns import ProbeRequest
from w2sd_video.driver.walk import Walk

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md"
REFLECTED = re.findall(r"^\| (\w+) \| reflected", PAGE.read_text(), re.MULTILINE)
EDITING = re.findall(r"^\| (\w+) \| refused \|.* `undo_edits=True`", PAGE.read_text(), re.MULTILINE)
"""Those that change their latents after each step, and are reflected if that is to be undone between."""


class FakeNetwork:
    """A smooth function of all that a denoiser is given, of the shape of its output.

    It notes the latents that it sees, and how many were asked for before.
    """

    def __init__(self, denoiser, seen, asked=()):
        self.real, self.outputs, self.seen, self.asked = denoiser.forward, {}, seen, asked

    def __call__(self, *args, **kwargs):
        samples = args[0] if args else next(iter(kwargs.values()))
        listed = samples if isinstance(samples, (list, tuple)) else [samples]
        self.seen.append((len(self.asked), torch.cat([x.detach().flatten() for x in listed])))
        key = tuple(x.shape for x in listed), kwargs.get("return_dict"), kwargs.get("kv_cache_mode")
        if key not in self.outputs:
            lists = {name: list(value) if isinstance(value, list) else value for name, value in kwargs.items()}
            self.outputs[key] = self.real(*args, **lists)
        output = self.outputs[key]
        others = [x for x in (*args[1:], *kwargs.values()) if x is not samples and isinstance(x, torch.Tensor)]
        pushed = sum(sorted(float(torch.sin(value.double().mean())) for value in others))

        def smooth(out, x):
            rows = x.reshape(len(out), -1) if len(x) == len(out) else x.reshape(1, -1).expand(len(out), -1)
            size = out[0].numel()
            filled = rows.repeat(1, -(-size // rows.shape[1]))[:, :size].reshape(out.shape)
            return (0.5 * torch.tanh(filled) + 0.1 * torch.sin(filled.flatten(1).mean(1) + pushed).view(
                -1, *[1] * (out.ndim - 1)
            ).to(filled)).to(out.dtype)  # fmt: skip

        first = output[0]
        faked = (
            [smooth(out[None], x[None])[0] for out, x in zip(first, listed, strict=True)]
            if isinstance(first, (list, tuple))
            else smooth(first, listed[0])
        )
        if isinstance(output, tuple):
            return faked, *output[1:]
        return type(output)(**{**output, next(iter(output)): faked})


@pytest.fixture
def asked(monkeypatch):
    """What the walk handed back, scaled for the network."""
    asked, step = [], Walk._step

    def recorded(walk, *args, **kwargs):
        result = step(walk, *args, **kwargs)
        if walk.at < len(walk.turns) and not isinstance(walk.turns[walk.at].asked, ProbeRequest):
            asked.append(walk.scale_model_input(result[0], walk.turns[walk.at].timestep).flatten())
        return result

    monkeypatch.setattr(Walk, "_step", recorded)
    return asked


@pytest.mark.parametrize("name", [*REFLECTED, *EDITING])
def test_a_loop_without_a_gap_is_the_stock_loop_and_what_is_asked_is_seen(name, asked):
    pipe, call = build(name)
    seen = []
    for denoiser in denoisers_of(pipe).values():
        denoiser.forward = FakeNetwork(denoiser, seen, asked)
    stock = run(pipe, call)

    def share_seen(**settings):
        """Return the result, and the least share of what was asked for that was among what the next turn saw.

        A turn whose rows were evaluated before, at the same latents, sees nothing.
        """
        seen.clear(), asked.clear()
        with reflection(pipe, strong=Branch(), weak=Branch(), undo_edits=name in EDITING, **settings) as done:
            result = run(pipe, call)
        shares = []
        for number, latents in enumerate(asked, start=1):
            after = [x for before, x in seen if before == number]
            shares += [float(torch.isin(latents, torch.cat(after)).float().mean())] if after else []
        assert 2 * len(shares) >= done.steps, "every step but the first of a pass is asked for and evaluated"
        return result, min(shares), done

    off, stock_share, _ = share_seen(reflection_steps=0)
    assert torch.equal(off, stock)
    result, share, done = share_seen(strength=NOTHING)
    assert torch.equal(result, stock) and share >= stock_share and done.reflected_steps
    null, share, _ = share_seen(inversion="current")
    assert (null - stock).double().norm() <= 1e-4 * stock.double().norm() and share >= stock_share
