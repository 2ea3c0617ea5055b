"""ImageReward: a BLIP that reads the prompt with the picture before it, and a head of linear layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from w2sd_video.metrics import Score
from w2sd_video.metrics.frames import pixels, score_of_frames
from w2sd_video.metrics.weights import (
    Weights,
    beside,
    count_of,
    file_of,
    fill,
    heads_of,
    linear_layers,
    loading,
    read_checkpoint,
)

IMAGE_REWARD = "THUDM/ImageReward"
FILE = "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the rewards before they are standardised, as published in the authors' code."""
MAX_TOKENS = 35
"""To which the authors' code cuts a prompt."""
HEAD = 64
"""Channels of an attention head, of pictures and of text; all other sizes are those of the weights."""

_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
}
"""How names of the picture's weights begin, in the checkpoint and in transformers' BlipVisionModel."""
_NAMES_IN_BLOCK = {".attn.qkv.": ".self_attn.qkv.", ".attn.proj.": ".self_attn.projection.", ".norm": ".layer_norm"}
"""Parts of the rest of a name in a block, in the same two."""


def image_reward(source: str = IMAGE_REWARD, device: str = "cpu") -> Score:
    """ImageReward v1.0 (Xu et al., arXiv 2304.05977), standardised: about -2 to 2.

    Args:
        source: where ``ImageReward.pt`` is: a folder, the file, or a hub id. A folder may have BERT's tokenizer too.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the model cannot be had.
    """
    with loading("image_reward", source):
        from transformers import BertTokenizer

        weights = read_checkpoint(file_of(source, FILE))
        vision, text = vision_of(weights).to(device), text_of(weights).to(device)
        head = linear_layers(weights, "mlp.layers.").to(device)
        tokenizer = BertTokenizer.from_pretrained(beside(source, "tokenizer_config.json", TOKENIZER))

    def judge(frames: np.ndarray, prompt: str) -> torch.Tensor:
        picture_features = vision(pixel_values=pixels(frames, vision.config.image_size).to(device)).last_hidden_state
        tokens = tokenizer([prompt] * len(frames), truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(
            device
        )
        text_output = text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=picture_features,
            encoder_attention_mask=torch.ones(picture_features.shape[:-1], device=device),
        )
        return (head(text_output.last_hidden_state[:, 0])[:, 0] - MEAN) / STD

    return score_of_frames("image_reward", judge)


def vision_of(weights: Weights) -> Any:
    """Return transformers' BlipVisionModel of ImageReward's weights.

    Raises:
        KeyError, RuntimeError, ValueError: weights of something else.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    vision_weights = _under(weights, "blip.visual_encoder.")
    width, _, patch, _ = vision_weights["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=vision_weights["blocks.0.mlp.fc1.bias"].shape[0],
        num_hidden_layers=count_of(vision_weights, "blocks."),
        num_attention_heads=heads_of(width, HEAD),
        image_size=math.isqrt(vision_weights["pos_embed"].shape[1] - 1) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return fill(BlipVisionModel(config), _to_transformers(vision_weights))


def text_of(weights: Weights) -> Any:
    """Return transformers' BlipTextModel, with attention to a picture, of ImageReward's weights.

    Raises:
        KeyError, RuntimeError, ValueError: weights of something else.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    text_weights = _under(weights, "blip.text_encoder.")
    words, width = text_weights["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=text_weights["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=text_weights["encoder.layer.0.intermediate.dense.bias"].shape[0],
        num_hidden_layers=count_of(text_weights, "encoder.layer."),
        num_attention_heads=heads_of(width, HEAD),
        max_position_embeddings=text_weights["embeddings.position_embeddings.weight"].shape[0],
    )
    return fill(BlipTextModel(config, add_pooling_layer=False), text_weights)


def _under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _to_transformers(weights: Weights) -> Weights:
    renamed: Weights = {}
    for published, value in weights.items():
        start = next((prefix for prefix in _NAMES if published.startswith(prefix)), "")
        name = _NAMES.get(start, "") + published.removeprefix(start)
        for inner, renamed_inner in _NAMES_IN_BLOCK.items():
            name = name.replace(inner, renamed_inner) if start == "blocks." else name
        renamed[name] = value
    return renamed
