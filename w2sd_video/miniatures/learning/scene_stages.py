"""What each stage of scenes trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, UNetMotionModel
from einops import rearrange, reduce, repeat
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional

from w2sd_video.miniatures import scenes
from w2sd_video.miniatures.learning import bench as pools
from w2sd_video.miniatures.learning import scene_networks as networks
from w2sd_video.miniatures.learning.bench import HELPER, MAIN, Bench
from w2sd_video.miniatures.learning.denoising import Condition, denoiser_task, flow_levels, v_levels
from w2sd_video.miniatures.learning.stage_loop import Task, TrainingError
from w2sd_video.miniatures.scene_judges import SEEN, SceneJudge, halves_of, softened
from w2sd_video.miniatures.training.mixture_of_experts import BALANCE, watched_imbalance
from w2sd_video.miniatures.training.models import TEXT_WIDTH, cogvideox_scheduler, ddim_scheduler

KL_WEIGHT = 1e-5
"""Of the divergence, summed over a latent: just enough to keep latents near to a Gaussian."""
LORA_RANK = 4
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
_OPPOSITE = torch.tensor([1, 0, 3, 2])
"""The label of the opposite direction: of left, right, up, down."""
_MEASURED = 2000
"""Fresh scenes on which judges and autoencoders are measured; fewer where pools are small."""


def t5_task(bench: Bench, batch: int) -> Task:
    """T5's encoder, told the mask or not by turns; see `_reading`."""
    return _reading(bench, networks.t5_text_encoder(), networks.t5_tokenizer(), batch, 101, masked_by_turns=True)


def clip_task(bench: Bench, batch: int) -> Task:
    """CLIP's text encoder; see `_reading`."""
    return _reading(bench, networks.clip_text_encoder(), networks.clip_tokenizer(), batch, 102, masked_by_turns=False)


def _reading(bench: Bench, encoder: nn.Module, tokenizer, batch: int, seed: int, masked_by_turns: bool) -> Task:  # type: ignore[no-untyped-def]
    """Train a text encoder to tell of each token its word, and whether it belongs to the thing named first or second.

    Denoisers are given what it makes of a prompt, and have to find out for themselves what is above and what below.
    """
    words = nn.Linear(TEXT_WIDTH, max(128, len(tokenizer)))
    places = nn.Linear(TEXT_WIDTH, 2)
    network = nn.ModuleDict({MAIN[:-1]: encoder, HELPER[:-1]: nn.ModuleList([words, places])}).to(bench.device)
    size = bench.batch(batch)
    relations = torch.tensor(tokenizer.convert_tokens_to_ids(_pieces(tokenizer)), device=bench.device)

    def loss(step: int) -> Tensor:
        seeds = torch.arange(size, device=bench.device) + seed * 10_000_000 + step * size
        ids, mask = pools.tokens_of(scenes.random_scenes(seeds).prompts(), tokenizer, bench.device)
        is_masked = masked_by_turns and step % 2 == 0
        text = encoder(ids, attention_mask=mask if is_masked else None)[0]
        is_second = torch.isin(ids, relations).cumsum(1).clamp(max=1)
        kept = mask.bool()
        of_words = functional.cross_entropy(words(text[kept]), ids[kept])
        return of_words + functional.cross_entropy(places(text[kept]), is_second[kept])

    return Task(network, loss, 2e-3, decay=0.99)


def _pieces(tokenizer) -> list[str]:  # type: ignore[no-untyped-def]
    """Return the tokens that the words for relations are."""
    return [tokenizer.tokenize(f"a {word}")[-1] for word in scenes.RELATIONS]


def judge_task(bench: Bench, batch: int) -> Task:
    """The judge of clips. Half of them run backwards, so that it has to look at the motion and not at the trail."""
    return _judging(bench, SceneJudge(), batch, seed=103)


def picture_judge_task(bench: Bench, batch: int) -> Task:
    """The judge of pictures, whose trail tells direction and speed."""
    return _judging(bench, SceneJudge(1), batch, seed=104)


def _judging(bench: Bench, judge: SceneJudge, batch: int, seed: int) -> Task:
    judge.to(bench.device)
    size, opposite = bench.batch(batch), _OPPOSITE.to(bench.device)

    def loss(step: int) -> Tensor:
        random = bench.random(seed, step)
        x, labels = _labelled(bench, judge.frames, size, seed * 10_000_000 + step * size, _style(step, 4))
        if judge.frames > 1:
            half = size // 2
            x = torch.cat([x[:half].flip(1), x[half:]])
            labels[: 2 * half, 2] = opposite[labels[: 2 * half, 2]]
        logits = judge(softened(halves_of(x), random))
        losses = [functional.cross_entropy(head, labels[:, k]) for k, head in enumerate(logits.values())]
        return torch.stack(losses).sum()

    return Task(judge, loss, 2e-3, decay=0.995, facts=partial(measure_judge, bench, judge, seed + 1000))


def _labelled(bench: Bench, frames: int, count: int, first: int, style: str) -> tuple[Tensor, Tensor]:
    """Scenes (count, frames, 3, 64, 64), pairs held out of training among them, and the labels of all halves."""
    shown = scenes.random_scenes(torch.arange(count, device=bench.device) + first, held_out=True)
    if frames == 1:
        x = scenes.draw(shown, 1, style)
    else:
        x = scenes.draw(shown, scenes.FRAMES, style, only=torch.tensor(SEEN, device=bench.device))
    return x, shown.seen.flatten(0, 1).clone()


def _style(step: int, every: int) -> str:
    """Return the style of a step's batch: one in so many is of hollow things."""
    return scenes.STYLES[step % every == every - 1]


@torch.no_grad()
def measure_judge(bench: Bench, judge: SceneJudge, seed: int) -> dict[str, float]:
    """Return accuracies on fresh scenes: of each kind for a thing, joint for a scene, joint where blurred or hollow."""
    count = min(_MEASURED, bench.pool or _MEASURED)
    measured: dict[str, float] = {}
    for name, style, soft in (("", "filled", False), ("blurred_", "filled", True), ("hollow_", "hollow", False)):
        correct = []
        for start in range(0, count, 200):
            part = min(200, count - start)
            x, labels = _labelled(bench, judge.frames, part, seed * 10_000_000 + start, style)
            halves = halves_of(x)
            logits = judge(softened(halves, bench.random(seed, start)) if soft else halves)
            correct.append(torch.stack([head.argmax(1) for head in logits.values()], 1) == labels)
        right = torch.cat(correct)
        if not name:
            measured |= dict(zip(scenes.KINDS, right.float().mean(0).tolist(), strict=True))
        measured[f"{name}joint"] = right.unflatten(0, (-1, 2)).flatten(1).all(1).float().mean().item()
    return {name: round(value, 4) for name, value in measured.items()}


def image_vae_task(bench: Bench, batch: int) -> Task:
    """The autoencoder of pictures and of AnimateDiff's frames."""
    vae = networks.image_vae().to(bench.device)
    size = bench.batch(batch)

    def pictures(first: int, count: int, style: str) -> Tensor:
        shown = scenes.random_scenes(torch.arange(count, device=bench.device) + first)
        return scenes.draw(shown, 1, style)[:, 0]

    return autoencoder_task(bench, vae, pictures, size, seed=105)


def video_vae_task(bench: Bench, batch: int) -> Task:
    """The autoencoder of clips."""
    vae = networks.video_vae().to(bench.device)
    size = bench.batch(batch)

    def clips(first: int, count: int, style: str) -> Tensor:
        shown = scenes.random_scenes(torch.arange(count, device=bench.device) + first)
        return rearrange(scenes.draw(shown, networks.VIDEO_FRAMES, style), "n frames rgb ... -> n rgb frames ...")

    return autoencoder_task(bench, vae, clips, size, seed=106)


def autoencoder_task(
    bench: Bench,
    vae: AutoencoderKL | AutoencoderKLCogVideoX,
    samples: Callable[[int, int, str], Tensor],
    size: int,
    seed: int,
) -> Task:
    """Return the training of an autoencoder.

    Args:
        bench: gives chance and the device.
        vae: on the device.
        samples: from the seed of the first, a number and a style to so many pictures or clips, colours before frames.
        size: of a batch.
        seed: of everything that is drawn.
    """

    def loss(step: int) -> Tensor:
        x = samples(seed * 10_000_000 + step * size, size, _style(step, 8))
        if step % 4 and x.shape[-2] == scenes.SIZE:  # half a picture costs half, and is as full
            top = scenes.HALF * (step % 2)
            x = x[..., top : top + scenes.HALF, :]
        posterior = vae.encode(x).latent_dist
        random = bench.random(seed, step)
        chance = torch.randn(posterior.mean.shape, generator=random, device=x.device)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        made = vae.decode(posterior.mean + posterior.std * chance).sample
        return picture_loss(made.float(), x) + KL_WEIGHT * kl.float().flatten(1).sum(1).mean()

    @torch.no_grad()
    def facts() -> dict[str, float]:
        x = samples((seed + 1000) * 10_000_000, min(32, bench.pool or 32), "filled")
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(8)])
        made = torch.cat([vae.decode(part).sample for part in latents.split(8)])
        error = (made.clamp(-1, 1) - x).square().mean()
        psnr = (10 * torch.log10(4 / error)).item()
        return {"scaling_factor": round(1 / latents.std().item(), 4), "psnr": round(psnr, 2)}

    return Task(vae, loss, 2e-3, decay=0.995, facts=facts)


def picture_loss(made: Tensor, x: Tensor) -> Tensor:
    """Squared and absolute error; what is lit and its surroundings count for more than the background."""
    light = reduce(x, "samples rgb ... -> samples 1 ...", "max")
    flat = light.flatten(0, -3).unsqueeze(1)
    # The background is at -0.89; what is lit above -0.7, and two pixels around it, counts three times.
    near = functional.max_pool2d((flat > -0.7).float(), 5, stride=1, padding=2).view_as(light)
    error = (made - x) * (1 + 2 * near)
    return error.square().mean() + 0.3 * error.abs().mean()


def zero_output(layer: nn.Linear | nn.Conv2d) -> None:
    """Have a network's last layer begin with nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def pixart_task(bench: Bench, batch: int, seed: int = 1, width: int = 128, half_of_colours: bool = False) -> Task:
    """PixArt: pictures from text, of all scenes or of those with half of the colours alone."""
    torch.manual_seed(seed)
    network = networks.pixart(width)
    zero_output(network.proj_out)
    network.to(bench.device).eval()
    pool = pools.pictures(bench)
    rows = None
    if half_of_colours:
        assert pool.scenes is not None
        known = torch.tensor([colour in scenes.HALF_OF_COLOURS for colour in scenes.COLOURS], device=bench.device)
        rows = known[pool.scenes.seen[..., 1]].all(1).nonzero()[:, 0]
        if not len(rows):
            raise TrainingError(
                f"none of {len(pool.latents)} pictures has colours of that half only; take a larger pool"
            )

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        text = {"encoder_hidden_states": of.text, "encoder_attention_mask": of.mask}
        return network(noisy, timestep=t, **text).sample

    levels, is_main = v_levels(ddim_scheduler().alphas_cumprod, bench.device), width == 128 and not half_of_colours
    return denoiser_task(bench, network, pool, predict, levels, batch, seed, rows=rows, has_early=is_main)


def cogvideox_task(bench: Bench, batch: int, seed: int = 11) -> Task:
    """CogVideoX: clips from text by v prediction."""
    torch.manual_seed(seed)
    network = networks.cogvideox()
    zero_output(network.proj_out)
    network.to(bench.device).eval()

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        return network(noisy, of.text, t).sample

    levels = v_levels(cogvideox_scheduler().alphas_cumprod, bench.device)
    return denoiser_task(bench, network, pools.videos(bench, False), predict, levels, batch, seed, has_early=True)


def wan_task(bench: Bench, batch: int, seed: int = 12) -> Task:
    """Wan: the same clips by flow matching."""
    torch.manual_seed(seed)
    network = networks.wan()
    zero_output(network.proj_out)
    network.to(bench.device).eval()

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        x = rearrange(noisy, "n frames channels ... -> n channels frames ...")
        made = network(x, t, of.text).sample
        return rearrange(made, "n channels frames ... -> n frames channels ...")

    levels, pool = flow_levels(networks.SHIFT), pools.videos(bench, True)
    return denoiser_task(bench, network, pool, predict, levels, batch, seed, is_flow=True, has_early=True)


def unet_task(bench: Bench, batch: int, seed: int = 13) -> Task:
    """AnimateDiff's spatial network, on frames."""
    torch.manual_seed(seed)
    network = networks.unet()
    zero_output(network.conv_out)
    network.to(bench.device).eval()
    return _of_frames(bench, network, "filled", batch, seed)


def lora_task(bench: Bench, batch: int, seed: int = 15) -> Task:
    """A LoRA of the spatial network, on frames of hollow things: base against fine-tuned on one style."""
    torch.manual_seed(seed)
    network = bench.filled(networks.unet(), "scenes-unet")
    network.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_LAYERS))
    network.to(bench.device)
    return _of_frames(bench, network, "hollow", batch, seed)


def _of_frames(bench: Bench, network: nn.Module, style: str, batch: int, seed: int) -> Task:
    clips = pools.frames(bench, style)
    pool = replace(clips, latents=clips.latents.flatten(0, 1))

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        return network(noisy, t, of.text).sample

    levels = v_levels(ddim_scheduler().alphas_cumprod, bench.device)
    return denoiser_task(bench, network, pool, predict, levels, batch, seed, has_early=style == "filled")


def motion_task(bench: Bench, batch: int, seed: int = 14) -> Task:
    """AnimateDiff's motion layers, under the early and the late spatial network by turns, for both share them."""
    torch.manual_seed(seed)
    late = UNetMotionModel.from_unet2d(bench.filled(networks.unet(), "scenes-unet"), networks.motion_adapter())
    early = UNetMotionModel.from_unet2d(bench.filled_early(networks.unet(), "scenes-unet"), networks.motion_adapter())
    share_motion(late, early)
    for model in (late, early):
        model.freeze_unet2d_params()
        model.to(bench.device).eval()
    turn = [0]

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        model = early if turn[0] % 3 == 2 else late
        text = repeat(of.text, "n tokens width -> (n frames) tokens width", frames=noisy.shape[1])
        made = model(rearrange(noisy, "n frames channels ... -> n channels frames ..."), t, text).sample
        return rearrange(made, "n channels frames ... -> n frames channels ...")

    levels = v_levels(ddim_scheduler().alphas_cumprod, bench.device)
    task = denoiser_task(bench, late, pools.frames(bench), predict, levels, batch, seed)

    def loss(step: int) -> Tensor:
        turn[0] = step
        return task.loss(step)

    return replace(task, loss=loss)


def share_motion(giver: UNetMotionModel, receiver: UNetMotionModel) -> None:
    """Give two models over different spatial networks one set of motion layers."""
    givers_modules = dict(giver.named_modules())
    for name, module in receiver.named_modules():
        if hasattr(module, "motion_modules"):
            module.motion_modules = givers_modules[name].motion_modules


def dit_moe_task(bench: Bench, batch: int, seed: int = 16) -> Task:
    """DiT-MoE: pictures of classes; its weak model is itself with each token sent to the experts that fit it least."""
    torch.manual_seed(seed)
    network = networks.dit_moe().to(bench.device).eval()
    imbalance = watched_imbalance(network)

    def predict(noisy: Tensor, t: Tensor, of: Condition) -> Tensor:
        return network(noisy, t, of.label).sample

    levels, pool = v_levels(ddim_scheduler().alphas_cumprod, bench.device), pools.pictures(bench, with_text=False)
    null = len(scenes.classes())
    return denoiser_task(
        bench, network, pool, predict, levels, batch, seed, null=null, extra=lambda: BALANCE * imbalance()
    )
