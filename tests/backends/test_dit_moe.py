"""DiT-MoE: the network against plain arithmetic, its pipeline against plain loops, reflection by its experts."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from dit_moe_by_hand import published_forward
from tiny.dit_moe import CONFIG, dit_moe, dit_moe_transformer

from w2sd_video import Branch, reflection
from w2sd_video.backends.dit_moe import published_scheduler
from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel, SparseMoE
from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline
from w2sd_video.gaps import swapped, swaps_of
from w2sd_video.miniatures import WEIGHTS
from w2sd_video.miniatures.judges import adherence


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def tiny_pipe(scheduler=None, **changes):
    return dit_moe(scheduler, **changes)[0]


def run(pipe, labels=(3, 5), **call):
    call = {"num_inference_steps": 4, "generator": seeded(), "output_type": "latent"} | call
    return pipe(list(labels), **call).images


@pytest.mark.parametrize("qk_norm", [False, True])
def test_network_computes_what_the_published_code_does(qk_norm):
    model = dit_moe_transformer(qk_norm=qk_norm)
    for parameter in model.blocks.parameters():  # norms and biases too, which begin as ones and zeros
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([3.0, 500.0, 0.4]), torch.tensor([1, 10, 5])
    with torch.no_grad():
        result = model(x, t, y).sample
    expected = published_forward(model.state_dict(), model.config, x, t, y)
    assert result.shape == (3, 8, 8, 8) and result.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_position_embedding_tells_all_patches_apart_by_row_and_column():
    positions = DiTMoETransformer2DModel(**CONFIG).pos_embed[0].unflatten(0, (4, 4))
    half = positions.shape[-1] // 2
    assert torch.equal(positions[0, :, :half], positions[3, :, :half])  # the first half knows the column alone
    assert torch.equal(positions[:, 0, half:], positions[:, 3, half:])
    torch.testing.assert_close(positions[2, 3, 0], torch.tensor(3.0).sin())
    assert not dit_moe_transformer().pos_embed.requires_grad


# The mixture


def dense(layer, tokens, chosen):
    """Return the layer's output with every expert evaluated for every token, `chosen` of them kept."""
    scores = (tokens @ layer.gate.weight.T).softmax(-1)
    kept = torch.zeros_like(scores).scatter(-1, chosen(scores), 1.0) * scores
    outputs = torch.stack([expert(tokens) for expert in layer.experts], dim=-1)
    return (outputs * kept[..., None, :]).sum(-1) + layer.shared_experts(tokens)


@pytest.mark.parametrize("top_k", [1, 2, 3, 6])
def test_mixture_is_the_dense_sum_of_the_chosen_experts(top_k):
    torch.manual_seed(0)
    layer, tokens = SparseMoE(8, 2, 6, 2, 2), torch.randn(3, 5, 8)
    layer.gate.top_k = top_k
    torch.testing.assert_close(layer(tokens), dense(layer, tokens, lambda s: s.topk(top_k).indices))
    indices, weights = layer.gate(tokens.flatten(0, 1))
    assert indices.shape == weights.shape == (15, top_k)
    assert (weights.sum(-1) < 1).all() or top_k == 6  # the probabilities as they are


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 640])
def test_experts_together_give_what_they_give_one_by_one(tokens, dtype):
    torch.manual_seed(0)
    layer, taken = SparseMoE(16, 2, 6, 2, 2).to(dtype), torch.randn(tokens, 16, dtype=dtype)
    for numbers in (torch.randint(0, 6, (tokens,)), torch.full((tokens,), 3), torch.randint(0, 2, (tokens,)) * 5):
        one_by_one, together = (
            layer._one_by_one(taken, numbers.sort().values),
            layer._together(taken, numbers.sort().values),
        )
        torch.testing.assert_close(together, one_by_one, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)
    hook = layer.experts[3].up_proj.register_forward_hook(lambda *_: None)
    assert not layer._are_plain()
    hook.remove()
    assert layer._are_plain()


def test_where_it_is_sent_is_asked_of_no_device(monkeypatch):
    """A device that had to be waited for would be asked by one of these."""
    torch.manual_seed(0)
    layer, tokens = SparseMoE(16, 2, 6, 2, 2), torch.randn(3, 50, 16)
    expected = layer(tokens)
    monkeypatch.setattr(layer, "_one_by_one", layer._together)
    for name in ("tolist", "item", "cpu", "__bool__", "__int__", "__index__", "nonzero", "bincount", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("the device is waited for"))
    result = layer(tokens)
    monkeypatch.undo()
    torch.testing.assert_close(result, expected)


def test_mixture_has_the_gradients_of_the_dense_sum():
    torch.manual_seed(0)
    layer, tokens = SparseMoE(8, 2, 6, 2, 2), torch.randn(3, 5, 8)
    grads = []
    for output in (layer(tokens), dense(layer, tokens, lambda s: s.topk(2).indices)):
        layer.zero_grad()
        output.square().sum().backward()
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_only_experts_with_tokens_are_evaluated():
    layer, evaluated = SparseMoE(8, 2, 6, 2, 2), []
    for i, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda _, inputs, __, i=i: evaluated.append((i, len(inputs[0]))))
    tokens = torch.randn(1, 1, 8).expand(2, 3, 8)  # all the same, so all go the same way
    layer(tokens)
    assert len(evaluated) == 2 and all(count == 6 for _, count in evaluated)


def test_branch_sends_tokens_to_other_experts():
    pipe = tiny_pipe()
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(5), torch.tensor([1, 2])
    layer, tokens = pipe.transformer.blocks[0].moe, torch.randn(1, 9, 16)
    with torch.no_grad(), swapped(swaps_of(pipe.transformer, Branch(experts="bottom"))):
        lowest = layer(tokens)
        weak = pipe.transformer(x, t, y).sample
    torch.testing.assert_close(lowest, dense(layer, tokens, lambda s: s.topk(2, largest=False).indices))
    with torch.no_grad(), swapped(swaps_of(pipe.transformer, Branch(experts=4))):
        torch.testing.assert_close(layer(tokens), dense(layer, tokens, lambda s: s.topk(4).indices))
    assert not torch.allclose(weak, pipe.transformer(x, t, y).sample)


def guided(model, x, t, labels, scale):
    """Return the network's guided prediction and the variance of its conditional half, in two calls."""
    times = torch.full((len(x),), t)
    cond, uncond = (model(x, times, y).sample for y in (torch.tensor(labels), torch.full((len(x),), 10)))
    (eps, variance), base = cond.chunk(2, 1), uncond.chunk(2, 1)[0]
    return base + scale * (eps - base), variance


@torch.no_grad()
def test_ddim_is_a_plain_loop_without_the_learned_variance():
    pipe = tiny_pipe()
    x, alphas = torch.randn(2, 4, 8, 8, generator=seeded()), pipe.scheduler.alphas_cumprod
    for t in (750, 500, 250, 0):
        eps, _ = guided(pipe.transformer, x, t, [3, 5], 2.5)
        before = alphas[t - 250] if t else torch.tensor(1.0)
        x0 = (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    torch.testing.assert_close(run(pipe, guidance_scale=2.5), x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_ddpm_is_a_plain_loop_with_the_learned_variance():
    pipe = tiny_pipe(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    generator, alphas = seeded(), pipe.scheduler.alphas_cumprod
    x = torch.randn(2, 4, 8, 8, generator=generator)
    for t in (750, 500, 250, 0):
        eps, v = guided(pipe.transformer, x, t, [3, 5], 2.5)
        after, before = alphas[t], alphas[t - 250] if t else torch.tensor(1.0)
        alpha, beta = after / before, 1 - after / before
        x0 = (x - (1 - after).sqrt() * eps) / after.sqrt()
        x_next = before.sqrt() * beta / (1 - after) * x0 + alpha.sqrt() * (1 - before) / (1 - after) * x
        if t:
            smallest, largest = (beta * (1 - before) / (1 - after)).log(), beta.log()
            log_variance = smallest + (v + 1) / 2 * (largest - smallest)
            x_next = x_next + (log_variance / 2).exp() * torch.randn(x.shape, generator=generator)
        x = x_next
    torch.testing.assert_close(run(pipe, guidance_scale=2.5), x, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_rectified_flow_is_the_published_loop():
    pipe = tiny_pipe(published_scheduler(rectified_flow=True), timestep_scale=0.001)
    plain = dit_moe_transformer()  # the same weights, told times from 0 to 1
    z, steps = torch.randn(2, 4, 8, 8, generator=seeded()), 4
    for i in range(steps, 0, -1):
        flow, _ = guided(plain, z, i / steps, [3, 5], 2.5)
        z = z - flow / steps
    torch.testing.assert_close(run(pipe, guidance_scale=2.5), z, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_euler_is_a_plain_loop_over_scaled_noise():
    pipe = tiny_pipe(EulerDiscreteScheduler())
    latents, alphas = torch.randn(2, 4, 8, 8, generator=seeded()), pipe.scheduler.alphas_cumprod
    sigmas = ((1 - alphas) / alphas).sqrt()
    x = latents * sigmas[999]
    for t, sigma, after in ((999, sigmas[999], sigmas[0]), (0, sigmas[0], 0.0)):
        x = x + (after - sigma) * guided(pipe.transformer, x / (sigma**2 + 1).sqrt(), t, [3, 5], 2.5)[0]
    for start in ({}, {"latents": latents, "generator": None}):
        result = run(pipe, num_inference_steps=2, guidance_scale=2.5, **start)
        torch.testing.assert_close(result, x, atol=1e-3, rtol=1e-4)


def test_a_seed_belongs_to_a_sample():
    pipe = tiny_pipe(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    both = run(pipe, (3, 5), generator=[seeded(1), seeded(2)])
    for i, (label, seed) in enumerate(((3, 1), (5, 2))):
        torch.testing.assert_close(both[i : i + 1], run(pipe, (label,), generator=[seeded(seed)]), atol=1e-4, rtol=1e-4)


def test_without_guidance_the_null_class_is_not_evaluated():
    pipe, sizes = tiny_pipe(), []
    pipe.transformer.register_forward_hook(
        lambda _, args, kwargs, __: sizes.append((len(args[0]), kwargs["class_labels"].tolist())), with_kwargs=True
    )
    run(pipe, guidance_scale=1.0, num_inference_steps=1)
    assert not pipe.do_classifier_free_guidance
    run(pipe, guidance_scale=1.5, num_inference_steps=1)
    assert pipe.do_classifier_free_guidance and pipe.guidance_scale == 1.5
    assert sizes == [(2, [3, 5]), (4, [10, 10, 3, 5])]


def test_images_callbacks_and_labels():
    pipe, seen = tiny_pipe(), []

    def callback(pipe, index, timestep, kwargs):
        seen.append((index, int(timestep)))
        return {"latents": torch.zeros_like(kwargs["latents"])} if index == 3 else {}

    assert run(pipe, callback_on_step_end=callback).abs().max() == 0
    assert seen == [(0, 750), (1, 500), (2, 250), (3, 0)]
    images = run(pipe, output_type="np")
    assert images.shape == (2, 16, 16, 3) and 0 <= images.min() < images.max() <= 1
    assert [image.size for image in run(pipe, output_type="pil")] == [(16, 16)] * 2
    with torch.no_grad():
        decoded = pipe.vae.decode(run(pipe) / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(torch.tensor(images), (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))
    assert pipe.get_label_ids("disc") == [0] and pipe.get_label_ids(["blue square", "red circle"]) == [1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"labels": ()}, "class_labels is empty"),
        ({"labels": (3, 11)}, "class label 11 is not among 0 to 9"),
        ({"labels": (-1,)}, "class label -1 is not among"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 class labels"),
        ({"latents": torch.zeros(2, 4, 4, 4)}, r"shape \(2, 4, 4, 4\); these class labels need \(2, 4, 8, 8\)"),
        ({"output_type": "png"}, "output_type must be one of pil, np, pt, latent; got 'png'"),
        ({"callback_on_step_end_tensor_inputs": ["labels"]}, "knows only 'latents'; got 'labels'"),
    ],
)
def test_calls_that_cannot_work_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_pipe(), **call)


def test_unknown_label_names_the_known_ones():
    with pytest.raises(ValueError, match="no class is named 'green'; known are blue square, disc, red circle"):
        tiny_pipe().get_label_ids("green")


# Reflection

SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "ddpm": lambda: DDPMScheduler(variance_type="learned_range", clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler,
}


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_reflection_off_is_stock_bit_for_bit(name, guidance_scale):
    pipe = tiny_pipe(SCHEDULERS[name]())
    stock = run(pipe, guidance_scale=guidance_scale)
    with reflection(pipe, strong=Branch(), weak=Branch(experts="bottom"), reflection_steps=0) as off:
        assert torch.equal(run(pipe, guidance_scale=guidance_scale), stock)
    assert off.nfe == {"base": 4 * (1 + (guidance_scale > 1)), "strong": 0, "weak": 0}
    with reflection(pipe, strong=Branch(), weak=Branch(experts="bottom")):
        reflected = run(pipe, guidance_scale=guidance_scale)
    assert reflected.isfinite().all() and not torch.allclose(reflected, stock)
    assert torch.equal(run(pipe, guidance_scale=guidance_scale), stock)


@torch.no_grad()
@pytest.mark.parametrize("experts", ["bottom", 1])
def test_reflection_by_experts_is_the_plain_loop(experts):
    pipe = tiny_pipe()
    with reflection(
        pipe, strong=Branch(guidance_scale=1.0, experts="top"), weak=Branch(guidance_scale=1.0, experts=experts)
    ) as on:
        result = run(pipe, guidance_scale=2.5)
    assert on.nfe == {"base": 8, "strong": 3, "weak": 3}

    def weak(x, t):
        for block in pipe.transformer.blocks:
            block.moe.gate.top_k = 1 if experts == 1 else 2
            if experts == "bottom":
                gate = block.moe.gate

                def lowest(tokens, gate=gate):
                    weights, indices = gate.scores(tokens).sort(dim=-1)
                    return indices[:, :2], weights[:, :2]

                gate.forward = lowest
        prediction = guided(pipe.transformer, x, t, [3, 5], 1.0)[0]
        for block in pipe.transformer.blocks:
            block.moe.gate.top_k = 2
            block.moe.gate.__dict__.pop("forward", None)
        return prediction

    x, alphas = torch.randn(2, 4, 8, 8, generator=seeded()), pipe.scheduler.alphas_cumprod

    def move(x, eps, start, stop):
        x0 = (x - (1 - start).sqrt() * eps) / start.sqrt()
        return stop.sqrt() * x0 + (1 - stop).sqrt() * eps

    for t in (750, 500, 250, 0):
        after, before = alphas[t], alphas[t - 250] if t else torch.tensor(1.0)
        if t:
            denoised = move(x, guided(pipe.transformer, x, t, [3, 5], 1.0)[0], after, before)
            x = move(denoised, weak(denoised, t), before, after)
        x = move(x, guided(pipe.transformer, x, t, [3, 5], 2.5)[0], after, before)
    torch.testing.assert_close(result, x, atol=2e-3, rtol=2e-3)


def test_miniature_knows_its_classes_and_less_of_them_by_its_lowest_experts():
    pipe = DiTMoEPipeline.from_pretrained(WEIGHTS / "dit_moe", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    prompts = list(pipe.labels)

    def joint():
        images = run(pipe, pipe.get_label_ids(prompts), output_type="np", num_inference_steps=6, guidance_scale=1.0)
        return adherence(images, prompts)["joint"]

    highest = joint()
    with swapped(swaps_of(pipe.transformer, Branch(experts="bottom"))):
        lowest = joint()
    assert len(prompts) == 48 and 0.1 < lowest < highest - 0.15
