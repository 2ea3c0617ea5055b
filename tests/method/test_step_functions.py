"""The operator on its own: no model, no scheduler."""

import pytest
import torch

from w2sd_video import reflect

SHAPES = [(6, 8), (2, 4, 8, 8), (1, 4, 3, 8, 8), (1, 3, 4, 8, 8)]


def down(latents, t):
    return 0.9 * latents + 0.1 * t


def up(latents, t):
    return (latents - 0.3 * t) / 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_moves_by_the_difference_of_the_two_steps(shape, dtype):
    latents = torch.randn(shape, dtype=dtype)
    result = reflect(down, up, latents, 2.0)
    assert result.shape == latents.shape and result.dtype == dtype
    tolerance = 5e-2 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(result, latents - 0.2 * 2.0 / 0.9, atol=tolerance, rtol=tolerance)


def test_strength_scales_and_rounds_repeat():
    latents = torch.randn(3, 5)
    once = reflect(down, up, latents, 1.0) - latents
    torch.testing.assert_close(reflect(down, up, latents, 1.0, strength=0.5), latents + 0.5 * once)
    torch.testing.assert_close(reflect(down, up, latents, 1.0, rounds=3), latents + 3 * once)
    assert torch.equal(reflect(down, up, latents, 1.0, strength=0.0), latents)


def test_functions_get_t_as_it_is_given():
    seen = []
    reflect(lambda x, t: seen.append(t) or x, lambda x, t: seen.append(t) or x, torch.zeros(1), "any object")
    assert seen == ["any object"] * 2


def test_gradients_are_off_by_default_but_not_forbidden():
    weight = torch.ones(1, requires_grad=True)
    assert not reflect(lambda x, t: x * weight, up, torch.randn(2), 1.0).requires_grad
    latents = torch.randn(2, requires_grad=True)
    reflect(lambda x, t: x * weight, up, latents, 1.0).sum().backward()
    torch.testing.assert_close(latents.grad, torch.full((2,), 1 / 0.9))
    assert weight.grad is not None


@pytest.mark.parametrize("culprit", ["step_fn_strong", "step_fn_weak"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x[:1], "shape"),
        (lambda x: x.double(), "dtype"),
        (lambda x: x.to("meta"), "device"),
        (lambda x: x / 0.0, "non-finite"),
        (lambda x: None, "must return a tensor"),
    ],
)
def test_a_step_function_that_breaks_its_promise_is_named(culprit, spoil, said):
    functions = {"step_fn_strong": down, "step_fn_weak": up} | {culprit: lambda x, t: spoil(x)}
    with pytest.raises(ValueError, match=f"{culprit}.*{said}"):
        reflect(functions["step_fn_strong"], functions["step_fn_weak"], torch.randn(2, 3), 1.0)


def test_bad_arguments():
    with pytest.raises(TypeError, match="int64"):
        reflect(down, up, torch.arange(3), 1.0)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        reflect(down, up, torch.zeros(3), 1.0, rounds=0)
