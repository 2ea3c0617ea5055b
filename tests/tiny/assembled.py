"""Pipelines of diffusers put together from what their signatures ask for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from PIL import Image

from tiny import parts, text, video
from tiny.networks import NETWORKS, Settings, network
from tiny.parts import Built, ready
from tiny.text import TEXT_LENGTH, TEXT_WIDTH

_STABLE_FLOW: Settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

COMPONENTS: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": lambda: parts.image_vae(shift_factor=0.0),
    "AutoencoderKLCogVideoX": video.cogvideox_vae,
    "AutoencoderKLHunyuanVideo": video.hunyuan_video_vae,
    "AutoencoderKLLTXVideo": video.ltx_vae,
    "AutoencoderKLQwenImage": lambda: parts.wan_vae("AutoencoderKLQwenImage"),
    "AutoencoderKLWan": parts.wan_vae,
    "AutoTokenizer": text.t5_tokenizer,
    "UNet2DConditionModel": parts.unet,
    "StableUnCLIPImageNormalizer": lambda: StableUnCLIPImageNormalizer(TEXT_WIDTH),
    "SiglipVisionModel": lambda: text.siglip_vision(),
    "SiglipImageProcessor": text.image_processor,
    "BaseGuidance": lambda: diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    "BertModel": lambda: text.bert(text.clip_tokenizer()),
    "BertTokenizer": text.clip_tokenizer,
    "CLIPImageProcessor": text.image_processor,
    "CLIPProcessor": text.image_processor,
    "CLIPTextModel": lambda: text.clip(text.clip_tokenizer(), length=77),
    "CLIPTextModelWithProjection": lambda: text.clip(text.clip_tokenizer(), projected=True, length=77),
    "CLIPTokenizer": text.clip_tokenizer,
    "CLIPVisionModel": lambda: text.clip_vision(projected=False),
    "CLIPVisionModelWithProjection": text.clip_vision,
    "ClassifierFreeGuidance": lambda: diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    "CogVideoXDPMScheduler": lambda: diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction"),
    "CogVideoXDDIMScheduler": lambda: diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    "DDIMScheduler": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "DDPMScheduler": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "DPMSolverMultistepScheduler": lambda: diffusers.DPMSolverMultistepScheduler(**_STABLE_FLOW),
    "EDMEulerScheduler": diffusers.EDMEulerScheduler,
    "EulerDiscreteScheduler": lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    "FlowMatchEulerDiscreteScheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    "GemmaTokenizer": text.qwen_tokenizer,
    "KarrasDiffusionSchedulers": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "LlamaModel": lambda: text.language_model(text.t5_tokenizer()),
    "LlamaTokenizer": text.t5_tokenizer,
    "Qwen2Tokenizer": text.qwen_tokenizer,
    "Qwen3ForCausalLM": lambda: text.language_model(text.qwen_tokenizer(), "Qwen3", "ForCausalLM"),
    "Qwen3Model": lambda: text.language_model(text.qwen_tokenizer(), "Qwen3"),
    "PreTrainedModel": lambda: text.language_model(text.qwen_tokenizer(), "Qwen3"),
    "Gemma2PreTrainedModel": lambda: text.language_model(text.qwen_tokenizer(), "Gemma2"),
    "GemmaPreTrainedModel": lambda: text.language_model(text.qwen_tokenizer(), "Gemma"),
    "GlmModel": lambda: text.language_model(text.qwen_tokenizer(), "Glm"),
    "SchedulerMixin": diffusers.FlowMatchEulerDiscreteScheduler,
    "SmolLM3ForCausalLM": lambda: text.language_model(
        text.qwen_tokenizer(), "SmolLM3", "ForCausalLM", vocab_size=128_001
    ),
    "T5EncoderModel": lambda: text.t5(text.t5_tokenizer()),
    "T5Tokenizer": text.t5_tokenizer,
    "UMT5EncoderModel": lambda: text.t5(text.t5_tokenizer(), "UMT5"),
    "UniPCMultistepScheduler": lambda: diffusers.UniPCMultistepScheduler(**_STABLE_FLOW),
}
"""How each class of component is made; text models of other classes are left out, and their embeddings given."""


def embeddings(*names: str, width: int = TEXT_WIDTH, pooled: tuple[str, ...] = ()) -> Settings:
    """Random text embeddings by argument, their masks of ones beside them."""
    torch.manual_seed(2)
    found: Settings = {}
    for name in names:
        for which in (name, f"negative_{name}"):
            is_mask = "mask" in name
            found[which] = torch.ones(1, 8, dtype=torch.long) if is_mask else torch.randn(1, 8, width)
    for name in pooled:
        found |= {which: torch.randn(1, width) for which in (name, f"negative_{name}")}
    return found


def mask() -> Image.Image:
    """White on the left half of a picture, black on the right."""
    picture = Image.new("L", (32, 32))
    picture.paste(255, (0, 0, 16, 32))
    return picture


def arguments(size: int, frames: int) -> Settings:
    """What to pass for an argument of a pipeline's call, by its name."""
    picture, clip = parts.picture(size), parts.clip_of(frames, size)
    return {
        "prompt": text.PROMPT,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "height": size,
        "width": size,
        "num_frames": frames,
        "image": picture,
        "control_image": picture,
        "original_image": picture,
        "control_mask": mask().resize((size, size)),
        "mask_image": mask().resize((size, size)),
        "video": clip,
        "control_video": clip,
        "controls": clip,
        "pose_video": clip,
        "face_video": clip,
        "mask_video": [mask().resize((size, size))] * frames,
        "strength": 0.8,
        "max_sequence_length": TEXT_LENGTH,
        "clean_caption": False,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
    }


def assemble(
    name: str,
    *,
    size: int = 16,
    frames: int = 9,
    call: Settings | None = None,
    prepare: Callable[[Any], Any] = lambda pipe: None,
    **given: Any,
) -> Built:
    """Make a pipeline of diffusers by its name: `given` components, and for the others what its signature asks for.

    Args:
        name: of the class.
        size: of pictures.
        frames: of clips.
        call: arguments of its call beside those that it takes of `arguments`.
        prepare: is called with it, to make it ready for small pictures for example.
        given: components, of which it takes what it knows.

    Raises:
        LookupError: a component of a class that nothing here makes.
    """
    torch.manual_seed(0)
    cls = getattr(diffusers, name)
    optional = getattr(cls, "_optional_components", [])
    components: Settings = {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.name in given:
            components[parameter.name] = given[parameter.name]
        elif parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            made = _component(parameter.annotation)
            if made is None and parameter.name not in optional:
                wanted = getattr(parameter.annotation, "__name__", parameter.annotation)
                raise LookupError(f"no tiny {parameter.name} of class {wanted}")
            components[parameter.name] = made
    pipe = ready(cls(**components))
    prepare(pipe)
    taken = inspect.signature(cls.__call__).parameters
    filled = arguments(size, frames) | (call or {})
    if any(name.startswith("prompt_embeds") for name in filled):
        filled["prompt"] = None
    return pipe, {key: value for key, value in filled.items() if key in taken}


def like(build: Callable[[], Built], name: str, *, call: Settings | None = None, **given: Any) -> Built:
    """Make a pipeline by its name out of the components of another one."""
    pipe, own_call = build()
    size, frames = own_call.get("height", 16), own_call.get("num_frames", own_call.get("video_length", 9))
    settings = {"requires_safety_checker": False, "safety_checker": None} | pipe.components | given
    return assemble(name, size=size, frames=frames, call=own_call | (call or {}), **settings)


def _component(annotation: Any) -> Any:
    for name in re.findall(r"\w+", annotation.__name__ if isinstance(annotation, type) else str(annotation)):
        name = name.removesuffix("Pil")
        if name in COMPONENTS:
            return COMPONENTS[name]()
        if name in NETWORKS:
            return network(name)
    return None
