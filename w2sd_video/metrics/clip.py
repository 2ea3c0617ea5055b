"""Frames against their prompt, and for beauty, by CLIP."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from w2sd_video.metrics import Score
from w2sd_video.metrics.frames import pixels, score_of_frames
from w2sd_video.metrics.weights import beside, file_of, linear_layers, loading, read_checkpoint

CLIP = "openai/clip-vit-large-patch14"
PICK_SCORE = "yuvalkirstain/PickScore_v1"
AESTHETICS = "camenduru/improved-aesthetic-predictor"
AESTHETICS_FILE = "sac+logos+ava1-l14-linearMSE.pth"


def clip_score(source: str = CLIP, device: str = "cpu") -> Score:
    """Cosine of the embeddings of frame and prompt, times 100 (Hessel et al., arXiv 2104.08718), -100 to 100.

    The factor is 100 whatever scale a model was trained to. The model is ViT-L/14 as in most papers on generation. The
    authors' own score is of ViT-B/32, puts "A photo depicts" before the caption, has a factor of 2.5 in place of 100
    and no negative values.

    Args:
        source: a CLIP model of transformers with its tokenizer, a folder or a hub id.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the model cannot be had.
    """
    return _of_prompt("clip_score", source, device, factor=100)


def pick_score(source: str = PICK_SCORE, device: str = "cpu") -> Score:
    """PickScore, a CLIP ViT-H/14 tuned to people's choices (Kirstain et al., arXiv 2305.01569): about 20 to 23.

    It is the scaled cosine that the authors publish, before their softmax over the pictures of one prompt.

    Args:
        source: a CLIP model of transformers, a folder or a hub id.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the model cannot be had.
    """
    return _of_prompt("pick_score", source, device)


def aesthetics(source: str = AESTHETICS, device: str = "cpu") -> Score:
    """LAION's improved aesthetic predictor, about 1 to 10: five linear layers on CLIP's embedding.

    The prompt is not read. VBench takes the older predictor of one layer, and a tenth of it.

    Args:
        source: where ``sac+logos+ava1-l14-linearMSE.pth`` is: a folder, the file, or a hub id. The author publishes it
            outside of the hub; the default is a copy there. A folder may have the files of CLIP ViT-L/14 too.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: a model that cannot be had.
    """
    with loading("aesthetics", source):
        head = linear_layers(read_checkpoint(file_of(source, AESTHETICS_FILE)), "layers.").to(device)
    clip_source = beside(source, "config.json", CLIP)
    with loading("aesthetics", clip_source):
        model = _clip_model(clip_source, device)
        if model.config.projection_dim != head[0].in_features:
            sizes = f"{head[0].in_features} numbers, and this CLIP gives {model.config.projection_dim}"
            raise ValueError(f"the predictor wants embeddings of {sizes}")

    def judge(frames: np.ndarray, _: str) -> torch.Tensor:
        vision_output = model.vision_model(
            pixel_values=pixels(frames, model.config.vision_config.image_size).to(device)
        )
        embedding = model.visual_projection(vision_output.pooler_output)
        return head(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]

    return score_of_frames("aesthetics", judge)


def judge_by_prompt(model: Any, tokenizer: Any, frames: np.ndarray, prompt: str, whole: bool = False) -> torch.Tensor:
    """Return CLIP's logits (f,) of frames (f, height, width, 3) given a prompt, which is cut to the length it knows.

    Args:
        model: a CLIPModel.
        tokenizer: of its prompts.
        frames: uint8 (f, height, width, 3).
        prompt: of all of them.
        whole: see `w2sd_video.metrics.frames.pixels`.
    """
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").to(model.device)
    images = pixels(frames, model.config.vision_config.image_size, whole).to(model.device)
    return model(**tokens, pixel_values=images).logits_per_image[:, 0]


def clip_tokenizer(source: str) -> Any:
    """Return the tokenizer in the folder that a source is, else OpenAI's, whose vocabulary all CLIP models share."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(beside(source, "tokenizer_config.json", CLIP))


def _of_prompt(name: str, source: str, device: str, factor: float | None = None) -> Score:
    """Return the score that is the cosine times a factor, the one that the model was trained to unless given."""
    with loading(name, source):
        model, tokenizer = _clip_model(source, device), clip_tokenizer(source)
    if factor is not None:
        model.logit_scale.fill_(math.log(factor))
    return score_of_frames(name, lambda frames, prompt: judge_by_prompt(model, tokenizer, frames, prompt))


def _clip_model(source: str, device: str) -> Any:
    from transformers import CLIPModel

    model, loading_info = CLIPModel.from_pretrained(source, output_loading_info=True)
    if loading_info["missing_keys"]:
        raise ValueError(f"it is no CLIP model: {len(loading_info['missing_keys'])} weights are missing")
    return model.float().eval().requires_grad_(False).to(device)
