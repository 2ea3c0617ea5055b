"""What `sample` keeps of gradients, and what it says of latents and predictions that cannot be right."""

import diffusers
import pytest
import torch

from w2sd_video import sample

SETTINGS = {"num_inference_steps": 4}


def network(latents, timestep, role):
    return 0.5 * latents


def test_gradients_are_off_unless_the_latents_ask_for_them():
    layer = torch.nn.Linear(4, 4)
    recorded = []

    def predict(latents, timestep, role):
        prediction = layer(latents)
        recorded.append(prediction.requires_grad)
        return prediction

    result = sample(predict, torch.randn(2, 4), diffusers.DDIMScheduler(), **SETTINGS)
    assert not result.latents.requires_grad and not any(recorded)

    latents = torch.randn(2, 4, requires_grad=True)
    sample(predict, latents, diffusers.DDIMScheduler(clip_sample=False), **SETTINGS).latents.sum().backward()
    assert latents.grad is not None and bool((latents.grad != 0).any()) and layer.weight.grad is not None
    with torch.no_grad():
        assert not sample(predict, latents, diffusers.DDIMScheduler(), **SETTINGS).latents.requires_grad


@pytest.mark.parametrize(
    ("latents", "error", "said"),
    [
        (torch.arange(4), TypeError, "latents must be a floating-point tensor, got torch.int64"),
        ([0.0, 1.0], TypeError, "latents must be a floating-point tensor, got list"),
        (torch.tensor([0.0, float("nan")]), ValueError, "latents must be finite"),
    ],
)
def test_latents_that_cannot_be_right(latents, error, said):
    with pytest.raises(error, match=said):
        sample(network, latents, diffusers.DDIMScheduler(), **SETTINGS)


@pytest.mark.parametrize("role", ["base", "strong", "weak"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x[:1], r"changed the shape of the latents from torch.Size\(\[2, 3\]\) to torch.Size\(\[1, 3\]\)"),
        (lambda x: x.half(), "changed the dtype of the latents from torch.float32 to torch.float16"),
        (lambda x: x.to("meta"), "changed the device of the latents from cpu to meta"),
        (lambda x: (x,), "must return a tensor, got tuple"),
        (lambda x: x / 0.0, "returned non-finite values"),
    ],
)
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.HeunDiscreteScheduler])
def test_a_prediction_that_cannot_be_right_is_named_by_its_role_and_step(scheduler, role, spoil, said):
    seen = []

    def predict(latents, timestep, asked):
        seen.append(asked)
        spoilt = asked == role and seen.count("base") >= 1 + (role == "base")
        return spoil(latents) if spoilt else network(latents, timestep, asked)

    step = 0 if scheduler is diffusers.HeunDiscreteScheduler and role == "base" else 1
    with pytest.raises(ValueError, match=f"predict as '{role}' at step {step} {said}"):
        sample(predict, torch.randn(2, 3), scheduler(), **SETTINGS)


def test_whether_predictions_are_finite_is_looked_at_once():
    """Every look would wait on the device, as `bool` and `item` of a tensor do."""
    looks = {}
    for steps in (3, 12):
        looks[steps] = 0

        class Counting(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None, steps=steps):
                looks[steps] += function in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist)
                return super().__torch_function__(function, types, args, kwargs or {})

        latents = torch.randn(2, 3).as_subclass(Counting)
        sample(network, latents, diffusers.DDIMScheduler(clip_sample=False), num_inference_steps=steps)
    assert looks[3] == looks[12] == 2  # the latents at the beginning, the predictions at the end
