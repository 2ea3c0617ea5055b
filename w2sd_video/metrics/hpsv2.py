"""Human Preference Score v2.1: a CLIP in open_clip's layout, read into transformers' model."""

from __future__ import annotations

import math
from typing import Any

from einops import rearrange

from w2sd_video.metrics import Score
from w2sd_video.metrics.clip import clip_tokenizer, judge_by_prompt
from w2sd_video.metrics.frames import score_of_frames
from w2sd_video.metrics.weights import Weights, count_of, file_of, fill, heads_of, loading, read_checkpoint

HPSV2 = "xswu/HPSv2"
FILE = "HPS_v2.1_compressed.pt"

VISION_HEAD, TEXT_HEAD = 80, 64
"""Channels of an attention head of ViT-H/14; all other sizes are those of the weights."""

_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
"""How names of weights begin, in open_clip and in transformers' CLIPModel; what begins otherwise is left out."""
_NAMES_IN_BLOCK = {
    ".ln_": ".layer_norm",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}
"""Parts of the rest of a name, in the same two."""


def hpsv2(source: str = HPSV2, device: str = "cpu") -> Score:
    """HPS v2.1 (Wu et al., arXiv 2306.09341), times 100 as in its benchmark: about 20 to 35.

    As in the authors' code, a frame that is not square gets black beside it and loses nothing.

    Args:
        source: where ``HPS_v2.1_compressed.pt`` is: a folder, the file, or a hub id. A folder may have CLIP's
            tokenizer too.
        device: that the network runs on.

    Raises:
        MetricUnavailableError: the model cannot be had.
    """
    with loading("hpsv2", source):
        model = clip_of(read_checkpoint(file_of(source, FILE))).to(device)
        tokenizer = clip_tokenizer(source)
    model.logit_scale.fill_(math.log(100))  # the benchmark's factor in place of the one that was trained
    return score_of_frames(
        "hpsv2", lambda frames, prompt: judge_by_prompt(model, tokenizer, frames, prompt, whole=True)
    )


def clip_of(weights: Weights) -> Any:
    """Return transformers' CLIPModel of a ViT-H/14 of open_clip; its sizes but for those of the heads are read off.

    Raises:
        KeyError, RuntimeError, ValueError: weights of something else.
    """
    from transformers import CLIPConfig, CLIPModel

    width, _, patch, _ = weights["visual.conv1.weight"].shape
    places = weights["visual.positional_embedding"].shape[0] - 1
    words, text_width = weights["token_embedding.weight"].shape
    dim = weights["text_projection"].shape[1]
    vision = {
        "hidden_size": width,
        "intermediate_size": weights["visual.transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        "num_hidden_layers": count_of(weights, "visual.transformer.resblocks."),
        "num_attention_heads": heads_of(width, VISION_HEAD),
        "image_size": math.isqrt(places) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        "num_hidden_layers": count_of(weights, "transformer.resblocks."),
        "num_attention_heads": heads_of(text_width, TEXT_HEAD),
        "max_position_embeddings": weights["positional_embedding"].shape[0],
        "vocab_size": words,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "hidden_act": "gelu",
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=dim))
    return fill(model, to_transformers(weights))


def to_transformers(weights: Weights) -> Weights:
    """Rename open_clip's weights: queries, keys and values apart, projections transposed."""
    renamed: Weights = {}
    for published, value in weights.items():
        start = next((prefix for prefix in _NAMES if published.startswith(prefix)), None)
        if start is None:
            continue
        name = _NAMES[start] + published.removeprefix(start)
        for inner, renamed_inner in _NAMES_IN_BLOCK.items():
            name = name.replace(inner, renamed_inner)
        if ".attn.in_proj_" in name:
            for part, rows in zip("qkv", rearrange(value, "(qkv width) ... -> qkv width ...", qkv=3), strict=True):
                renamed[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = rows
        else:
            renamed[name] = value.T if published in ("visual.proj", "text_projection") else value
    return renamed
