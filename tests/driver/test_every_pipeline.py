"""What holds of every pipeline that docs/reference/pipelines.md says is reflected, with a fake network in its place."""

import re
from pathlib import Path

import pytest
import torch
from pipelines_table import run
from replay import denoisers_of
from tiny.variants import build

from w2sd_video import Branch, reflection

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md"
REFLECTED = re.findall(r"^\| (\w+) \| reflected", PAGE.read_text(), re.MULTILINE)


class FakeNetwork:
    """A smooth function of all that a denoiser is given, of the shape of its output; it notes the latents it sees."""

    def __init__(self, denoiser):
        self.real, self.outputs, self.seen = denoiser.forward, {}, []

    def __call__(self, *args, **kwargs):
        samples = args[0] if args else next(iter(kwargs.values()))
        listed = samples if isinstance(samples, (list, tuple)) else [samples]
        self.seen.append(torch.cat([x.detach().flatten() for x in listed]))
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


@pytest.mark.parametrize("name", REFLECTED)
def test_a_loop_without_a_gap_is_the_stock_loop(name, monkeypatch):
    pipe, call = build(name)
    fakes = []
    for denoiser in denoisers_of(pipe).values():
        fakes.append(FakeNetwork(denoiser))
        denoiser.forward = fakes[-1]
    stock = run(pipe, call)
    stock_scale = stock.double().norm()
    for off in ({"reflection_steps": 0}, {"strength": 0.0}):
        with reflection(pipe, strong=Branch(), weak=Branch(), **off):
            assert torch.equal(run(pipe, call), stock)
    with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current") as done:
        null = run(pipe, call)
    assert done.reflected_steps
    assert (null - stock).double().norm() <= 1e-4 * stock_scale
