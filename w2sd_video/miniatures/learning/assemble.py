"""From packs to the folders that `from_pretrained` loads, and a configuration for each pair."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import (
    AnimateDiffPipeline,
    CogVideoXPipeline,
    DiTPipeline,
    ModelMixin,
    PixArtAlphaPipeline,
    UNetMotionModel,
    WanPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from w2sd_video.backends.dit_moe_pipeline import DiTMoEPipeline
from w2sd_video.miniatures import fashion, scenes
from w2sd_video.miniatures.learning import scene_networks as networks
from w2sd_video.miniatures.learning.bench import HELPER, MAIN
from w2sd_video.miniatures.learning.packs import read_pack
from w2sd_video.miniatures.learning.scene_stages import LORA_LAYERS, LORA_RANK
from w2sd_video.miniatures.learning.stage_list import SEEDS, STAGES
from w2sd_video.miniatures.learning.stage_loop import State, TrainingError
from w2sd_video.miniatures.saving import forget_origin, save_pipeline
from w2sd_video.miniatures.scene_judges import JUDGES, SceneJudge
from w2sd_video.miniatures.training.models import cogvideox_scheduler, ddim_scheduler

N = TypeVar("N", bound=nn.Module)
CONFIGS = "configs"
"""Folder beside the pipelines for the configurations of their pairs."""


def assemble(packs: Path, folder: Path) -> dict[str, str]:
    """Write every pipeline and judge that the packs in a folder are enough for, each whole or not at all.

    Args:
        packs: where they are.
        folder: for the pipelines; what is there of the same names is replaced.

    Returns:
        By the name of each pipeline or judge what was written, or why it was not.

    Raises:
        TrainingError: no packs, or a damaged one.
    """
    states: dict[str, State] = {}
    for path in sorted(packs.glob("*.safetensors")):
        states |= read_pack(path)
    if not states:
        raise TrainingError(f"{packs} holds no packs (*.safetensors); name the folder that --weights wrote")
    folder.mkdir(parents=True, exist_ok=True)
    said = {}
    for name, make in MAKERS.items():
        part = folder / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            said[name] = make(states, part)
        except _MissingError as missing:
            said[name] = f"left out: {missing}"
            continue
        finally:
            if name not in said or said[name].startswith("left out"):
                shutil.rmtree(part, ignore_errors=True)
        forget_origin(part)
        shutil.rmtree(folder / name, ignore_errors=True)
        part.rename(folder / name)
    for name, text in configurations(folder).items():
        (folder / CONFIGS).mkdir(exist_ok=True)
        (folder / CONFIGS / f"{name}.yaml").write_text(text, encoding="utf-8")
    return said


class _MissingError(Exception):
    """A stage that the packs do not have."""


def _average(states: Mapping[str, State], stage: str, early: bool = False) -> dict[str, torch.Tensor]:
    if stage not in states:
        raise _MissingError(f"there is no stage {stage} in the packs")
    if STAGES[stage].finishes and not states[stage].finished:  # others build on it, or judge by it
        raise _MissingError(f"the stage {stage} is not finished")
    weights = states[stage].early if early else states[stage].average
    if weights is None:
        raise _MissingError(f"the stage {stage} has no early weights yet")
    return {key.removeprefix(MAIN): value.float() for key, value in weights.items() if not key.startswith(HELPER)}


def _filled(network: N, states: Mapping[str, State], stage: str, early: bool = False) -> N:
    unexpected = network.load_state_dict(_average(states, stage, early), strict=False).unexpected_keys
    if unexpected:
        raise TrainingError(f"the stage {stage} has {unexpected[0]}, which its network has not")
    return network.eval()


def _image_vae(states: Mapping[str, State], stage: str = "scenes-image-vae", size: int = scenes.SIZE) -> Any:
    vae = _filled(networks.image_vae(size), states, stage)
    vae.register_to_config(scaling_factor=states[stage].facts["scaling_factor"])
    return vae


def _video_vae(states: Mapping[str, State]) -> Any:
    vae = _filled(networks.video_vae(), states, "scenes-video-vae")
    vae.register_to_config(scaling_factor=states["scenes-video-vae"].facts["scaling_factor"])
    return vae


def _pixart(states: Mapping[str, State], folder: Path, stage: str = "scenes-pixart") -> str:
    pipe = PixArtAlphaPipeline(
        vae=_image_vae(states),
        text_encoder=_filled(networks.t5_text_encoder(), states, "scenes-t5"),
        tokenizer=networks.t5_tokenizer(),
        transformer=_filled(networks.pixart(), states, stage),
        scheduler=ddim_scheduler(),
    )
    seconds: dict[str, ModelMixin] = {"transformer_weak": _filled(networks.pixart(), states, stage, early=True)}
    if stage == "scenes-pixart":
        others = {"transformer_narrow": ("scenes-pixart-narrow", 64), "transformer_half": ("scenes-pixart-half", 128)}
        seconds |= {
            name: _filled(networks.pixart(width), states, other)
            for name, (other, width) in others.items()
            if other in states
        }
    save_pipeline(folder, pipe, **seconds)
    return _said(states, stage, seconds)


def _cogvideox(states: Mapping[str, State], folder: Path) -> str:
    pipe = CogVideoXPipeline(
        vae=_video_vae(states),
        text_encoder=_filled(networks.t5_text_encoder(), states, "scenes-t5"),
        tokenizer=networks.t5_tokenizer(),
        transformer=_filled(networks.cogvideox(), states, "scenes-cogvideox"),
        scheduler=cogvideox_scheduler(),
    )
    weak = _filled(networks.cogvideox(), states, "scenes-cogvideox", early=True)
    save_pipeline(folder, pipe, transformer_weak=weak)
    return _said(states, "scenes-cogvideox", {"transformer_weak": weak})


def _wan(states: Mapping[str, State], folder: Path) -> str:
    vae = _video_vae(states)
    scale = vae.config.scaling_factor
    channels = vae.config.latent_channels
    vae.register_to_config(
        **networks.flow_vae_config(), latents_mean=[0.0] * channels, latents_std=[1 / scale] * channels
    )
    pipe = WanPipeline(
        vae=vae,
        text_encoder=_filled(networks.t5_text_encoder(), states, "scenes-t5"),
        tokenizer=networks.t5_tokenizer(),
        transformer=_filled(networks.wan(), states, "scenes-wan"),
        scheduler=networks.flow_scheduler(),
    )
    weak = _filled(networks.wan(), states, "scenes-wan", early=True)
    save_pipeline(folder, pipe, transformer_weak=weak)
    return _said(states, "scenes-wan", {"transformer_weak": weak})


def _animatediff(states: Mapping[str, State], folder: Path) -> str:
    unet, weak = (_filled(networks.unet(), states, "scenes-unet", early) for early in (False, True))
    moving = UNetMotionModel.from_unet2d(unet, networks.motion_adapter())
    _filled(moving, states, "scenes-motion")
    moving.save_motion_modules(str(folder / "motion_adapter"))
    adapter = type(networks.motion_adapter()).from_pretrained(folder / "motion_adapter")
    pipe = AnimateDiffPipeline(
        vae=_image_vae(states),
        text_encoder=_filled(networks.clip_text_encoder(), states, "scenes-clip"),
        tokenizer=networks.clip_tokenizer(),
        unet=unet,
        motion_adapter=adapter,
        scheduler=ddim_scheduler(),
    )
    save_pipeline(folder, pipe, unet_weak=weak)
    if "scenes-lora" in states:
        styled = networks.unet()
        styled.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_LAYERS))
        styled.load_state_dict(_average(states, "scenes-lora"), strict=False)
        layers = {key: value.half() for key, value in get_peft_model_state_dict(styled).items()}
        AnimateDiffPipeline.save_lora_weights(folder / "lora_hollow", unet_lora_layers=layers)
    return _said(states, "scenes-motion", {"unet_weak": weak})


def _dit_moe(states: Mapping[str, State], folder: Path) -> str:
    pipe = DiTMoEPipeline(
        transformer=_filled(networks.dit_moe(), states, "scenes-dit-moe"),
        vae=_image_vae(states),
        scheduler=ddim_scheduler(),
        id2label=dict(enumerate(scenes.classes())),
    )
    save_pipeline(folder, pipe)
    return _said(states, "scenes-dit-moe", {})


def _named(id2label: dict[int, str], **components: Any) -> DiTPipeline:
    """Return a pipeline whose folder says the names of its classes: its class reads them, but does not write them."""
    pipe = DiTPipeline(**components, id2label=id2label)
    pipe.register_to_config(id2label={str(number): name for number, name in id2label.items()})
    return pipe


def _fashion(states: Mapping[str, State], folder: Path) -> str:
    pipe = _named(
        transformer=_filled(networks.fashion_dit(), states, "fashion-dit"),
        vae=_image_vae(states, "fashion-vae", networks.FASHION_SIZE),
        scheduler=ddim_scheduler(),
        id2label=dict(enumerate(fashion.CLASSES)),
    )
    weak = _filled(networks.fashion_dit(), states, "fashion-dit", early=True)
    save_pipeline(folder, pipe, transformer_weak=weak)
    return _said(states, "fashion-dit", {"transformer_weak": weak})


def _fashion_two(
    states: Mapping[str, State],
    folder: Path,
    strong: str = "fashion-two-strong",
    weak: str = "fashion-two-weak",
) -> str:
    def network() -> Any:
        return networks.fashion_dit(*networks.TWO_CLASSES)

    pipe = _named(
        transformer=_filled(network(), states, strong),
        vae=_image_vae(states, "fashion-vae", networks.FASHION_SIZE),
        scheduler=ddim_scheduler(),
        id2label={0: " or ".join(fashion.TWO)},
    )
    second = _filled(network(), states, weak)
    save_pipeline(folder, pipe, transformer_weak=second)
    return _said(states, strong, {"transformer_weak": second})


def _judge(states: Mapping[str, State], folder: Path, of_clips: bool) -> str:
    stage = "scenes-judge" if of_clips else "scenes-picture-judge"
    judge = _filled(SceneJudge() if of_clips else SceneJudge(1), states, stage)
    judge.save_pretrained(folder, **states[stage].facts)
    return f"joint accuracy on fresh scenes {states[stage].facts.get('joint')}"


def _fashion_judge(states: Mapping[str, State], folder: Path) -> str:
    judge = nn.Linear(fashion.FEATURES, len(fashion.CLASSES))
    weights = _average(states, "probe-fashion")
    judge.load_state_dict(weights)
    folder.mkdir(parents=True)
    save_file({key: value.half() for key, value in weights.items()}, folder / "model.safetensors")
    facts = states["probe-fashion"].facts
    (folder / "config.json").write_text(json.dumps({"measured": facts}, indent=2) + "\n")
    return f"accuracy on pictures of the test {facts.get('accuracy')}"


def write_real_pictures(data: Path, folder: Path, of_each: int = 100) -> None:
    """Write pictures of the test of Fashion-MNIST beside the judge, so many of each class."""
    pictures, labels = fashion.read_pictures(data, training=False)
    rows = np.concatenate([np.flatnonzero(labels == label)[:of_each] for label in range(len(fashion.CLASSES))])
    target = folder / fashion.JUDGE
    target.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target / "real.npz", pictures=pictures[rows], labels=labels[rows])


MAKERS: dict[str, Callable[[Mapping[str, State], Path], str]] = {
    "scenes_pixart": _pixart,
    **{f"scenes_pixart_{seed}": partial(_pixart, stage=f"seeds-pixart-{seed}") for seed in SEEDS},
    "scenes_animatediff": _animatediff,
    "scenes_cogvideox": _cogvideox,
    "scenes_wan": _wan,
    "scenes_dit_moe": _dit_moe,
    "fashion": _fashion,
    "fashion_two": _fashion_two,
    **{
        f"fashion_two_{seed}": partial(
            _fashion_two, strong=f"seeds-fashion-two-strong-{seed}", weak=f"seeds-fashion-two-weak-{seed}"
        )
        for seed in SEEDS
    },
    JUDGES[True]: lambda states, folder: _judge(states, folder, True),
    JUDGES[False]: lambda states, folder: _judge(states, folder, False),
    fashion.JUDGE: _fashion_judge,
}
"""By the name of the folder what makes it of the trained stages."""


def _said(states: Mapping[str, State], stage: str, seconds: Mapping[str, Any]) -> str:
    beside = f", beside it {', '.join(seconds)}" if seconds else ""
    return f"{stage} at step {states[stage].step}{beside}"


_PROMPT = "a red circle moving left above a small blue square moving up"
_VIDEO = {"height": 64, "width": 64, "fps": 8, "dtype": "float32"}
_PICTURE = {"frames": 1, "dtype": "float32"}
_T5 = {"max_sequence_length": networks.TEXT_LENGTH}
_PIXART = {**_T5, "clean_caption": False, "use_resolution_binning": False}


def _pair(
    about: str,
    prompt: str,
    family: str,
    name: str,
    guidance: float,
    rest: Mapping[str, Any],
    weak: str | None = "transformer_weak",
    branches: Mapping[str, Any] | None = None,
) -> tuple[str, str, str | None, dict[str, Any]]:
    model: dict[str, Any] = {"family": family, "pretrained": f"miniature:{name}"}
    strong: dict[str, Any] = {"guidance_scale": 1.0}
    below: dict[str, Any] = {"guidance_scale": 1.0}
    if weak is not None:
        model["weights"] = {"weak": f"miniature:{name}/{weak}"}
        below["weights"] = "weak"
    settings = {
        "prompts": [prompt],
        "model": model,
        "base": {"guidance_scale": guidance},
        "strong": strong,
        "weak": below,
        **(branches or {}),
        "steps": 20,
        **rest,
    }
    return about, name, weak, settings


_PAIRS: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "miniature-scenes-pixart": _pair(
        "Pictures of scenes by PixArt-alpha over the same network trained an eighth of the steps.",
        _PROMPT, "pipeline", "scenes_pixart", 3.0, {**_PICTURE, "height": 64, "width": 64, "call": _PIXART},
    ),
    "miniature-scenes-pixart-2": _pair(
        "The pair of miniature-scenes-pixart from another seed of the training.",
        _PROMPT, "pipeline", "scenes_pixart_2", 3.0, {**_PICTURE, "height": 64, "width": 64, "call": _PIXART},
    ),
    "miniature-scenes-pixart-3": _pair(
        "The pair of miniature-scenes-pixart from a third seed of the training.",
        _PROMPT, "pipeline", "scenes_pixart_3", 3.0, {**_PICTURE, "height": 64, "width": 64, "call": _PIXART},
    ),
    "miniature-scenes-pixart-narrow": _pair(
        "Pictures of scenes by PixArt-alpha over a network of half its width, a quarter of its size.",
        _PROMPT, "pipeline", "scenes_pixart", 3.0, {**_PICTURE, "height": 64, "width": 64, "call": _PIXART},
        weak="transformer_narrow",
    ),
    "miniature-scenes-pixart-half": _pair(
        "Pictures of scenes by PixArt-alpha over the same network trained on half of the colours: red, green and blue.",
        _PROMPT, "pipeline", "scenes_pixart", 3.0, {**_PICTURE, "height": 64, "width": 64, "call": _PIXART},
        weak="transformer_half",
    ),
    "miniature-scenes-animatediff": _pair(
        "Clips of scenes by AnimateDiff over an early checkpoint of its spatial network, one motion adapter for both.",
        _PROMPT, "animatediff", "scenes_animatediff", 3.0, {"frames": 16, **_VIDEO}, weak="unet_weak",
    ),
    "miniature-scenes-animatediff-lora": _pair(
        "Clips of hollow things by AnimateDiff with a LoRA of that style, at scale 1 over the same at -1.",
        _PROMPT, "animatediff", "scenes_animatediff", 3.0, {"frames": 16, **_VIDEO}, weak=None,
        branches={
            "base": {"guidance_scale": 3.0, "lora": {"hollow": 1.0}},
            "strong": {"guidance_scale": 1.0, "lora": {"hollow": 1.0}},
            "weak": {"guidance_scale": 1.0, "lora": {"hollow": -1.0}},
        },
    ),
    "miniature-scenes-cogvideox": _pair(
        "Clips of scenes by CogVideoX over the same network trained an eighth of the steps.",
        _PROMPT, "cogvideox", "scenes_cogvideox", 3.0, {"frames": 17, **_VIDEO, "call": _T5},
    ),
    "miniature-scenes-wan": _pair(
        "Clips of scenes by Wan, CogVideoX's twin by flow matching, over the network trained an eighth of the steps.",
        _PROMPT, "pipeline", "scenes_wan", 3.0, {"frames": 17, **_VIDEO, "call": _T5},
    ),
    "miniature-scenes-dit-moe": _pair(
        "Pictures of scenes by DiT-MoE, the best 2 of 8 experts over the worst 2: the paper's gap of experts.",
        scenes.classes()[0], "dit_moe", "scenes_dit_moe", 1.5, _PICTURE, weak=None,
        branches={"strong": {"experts": "top"}, "weak": {"experts": "bottom"}},
    ),
    "miniature-fashion": _pair(
        "Real clothes (Fashion-MNIST) by DiT over the same network trained an eighth of the steps.",
        "ankle boot", "pipeline", "fashion", 2.0, _PICTURE,
    ),
    "miniature-fashion-two": _pair(
        "Trousers and sneakers (Fashion-MNIST) by two small DiT: 5,000 and 2,500 pictures over 5,000 and 500.",
        " or ".join(fashion.TWO), "pipeline", "fashion_two", 1.0, _PICTURE,
    ),
    "miniature-fashion-two-2": _pair(
        "The pair of miniature-fashion-two from another seed of the training.",
        " or ".join(fashion.TWO), "pipeline", "fashion_two_2", 1.0, _PICTURE,
    ),
    "miniature-fashion-two-3": _pair(
        "The pair of miniature-fashion-two from a third seed of the training.",
        " or ".join(fashion.TWO), "pipeline", "fashion_two_3", 1.0, _PICTURE,
    ),
}  # fmt: skip


def configurations(folder: Path) -> dict[str, str]:
    """Return the text of the configuration of every pair whose weights are in a folder, by its name."""
    import yaml

    texts = {}
    for config, (about, name, weak, settings) in _PAIRS.items():
        is_there = (folder / name / "model_index.json").is_file() and (weak is None or (folder / name / weak).is_dir())
        if config.endswith("lora"):
            is_there = is_there and (folder / name / "lora_hollow").is_dir()
            settings["model"]["lora"] = {"hollow": f"miniature:{name}/lora_hollow"}
        if is_there:
            head = f"# {about}\n# Trained by python -m w2sd_video.miniatures.train; no download, seconds on a CPU.\n"
            texts[config] = head + yaml.safe_dump(settings, sort_keys=False, width=120)
    return texts
