"""Networks of metrics written plainly, in the layouts that their authors publish, with random weights."""

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))


def normalised(frames):
    """Frames that have the network's size, uint8 (f, h, w, 3), as CLIP is given them: (f, 3, h, w)."""
    return ((torch.from_numpy(frames).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A block of open_clip."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 3 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(3 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _blocks(width, heads, depth):
    stack = nn.Module()
    stack.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    return stack


class OpenClip(nn.Module):
    """CLIP in the layout of open_clip, with the head widths of ViT-H/14: pictures of 28 x 28, texts of 16 tokens."""

    def __init__(self, words, dim=24, width=160, text_width=128, patch=14, places=4, length=16):
        super().__init__()
        visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        visual.class_embedding = nn.Parameter(torch.randn(width))
        visual.positional_embedding = nn.Parameter(torch.randn(places + 1, width))
        visual.ln_pre, visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        visual.transformer = _blocks(width, width // 80, 2)
        visual.proj = nn.Parameter(torch.randn(width, dim))
        self.visual = visual
        self.transformer = _blocks(text_width, text_width // 64, 3)
        self.token_embedding = nn.Embedding(words, text_width)
        self.positional_embedding = nn.Parameter(torch.randn(length, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(1.7))
        randomise(self)

    def encode_image(self, images):
        v = self.visual
        x = v.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(x)
        for block in v.transformer.resblocks:
            x = block(x)
        return v.ln_post(x[:, 0]) @ v.proj

    def encode_text(self, tokens):
        """Of tokens padded with zeros to the full length, from the highest of each, which ends the text."""
        tokens = F.pad(tokens, (0, len(self.positional_embedding) - tokens.shape[1]))
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return self.ln_final(x[range(len(x)), tokens.argmax(1)]) @ self.text_projection


class _AttentionOfViT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        return self.proj(_attend(*self.qkv(x).chunk(3, -1)))


class _BlockOfViT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = _AttentionOfViT(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class _Attention(nn.Module):
    """Attention of BERT, with what it attends to given; the residual and its norm included."""

    def __init__(self, width, context):
        super().__init__()
        self.self = nn.Module()
        self.self.query = nn.Linear(width, width)
        self.self.key, self.self.value = nn.Linear(context, width), nn.Linear(context, width)
        self.output = _Output(width, width)

    def forward(self, x, context):
        own = self.self
        return self.output(_attend(own.query(x), own.key(context), own.value(context)), x)


class _Output(nn.Module):
    def __init__(self, inside, width):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inside, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class _Layer(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.attention, self.crossattention = _Attention(width, width), _Attention(width, context)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, 2 * width)
        self.output = _Output(2 * width, width)

    def forward(self, x, seen):
        x = self.crossattention(self.attention(x, x), seen)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class ImageReward(nn.Module):
    """ImageReward in its own layout, with its head widths: pictures of 32 x 32."""

    def __init__(self, words, width=128, text_width=64, patch=16, places=4):
        super().__init__()
        vision, text = nn.Module(), nn.Module()
        vision.patch_embed = nn.Module()
        vision.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        vision.cls_token = nn.Parameter(torch.randn(1, 1, width))
        vision.pos_embed = nn.Parameter(torch.randn(1, places + 1, width))
        vision.blocks = nn.ModuleList(_BlockOfViT(width) for _ in range(2))
        vision.norm = nn.LayerNorm(width, 1e-6)
        text.embeddings = nn.Module()
        text.embeddings.word_embeddings = nn.Embedding(words, text_width)
        text.embeddings.position_embeddings = nn.Embedding(40, text_width)
        text.embeddings.LayerNorm = nn.LayerNorm(text_width, 1e-12)
        text.embeddings.register_buffer("position_ids", torch.arange(40)[None])
        text.encoder = nn.Module()
        text.encoder.layer = nn.ModuleList(_Layer(text_width, width) for _ in range(2))
        self.blip = nn.Module()
        self.blip.visual_encoder, self.blip.text_encoder = vision, text
        self.blip.vision_proj, self.blip.text_proj = (
            nn.Linear(width, 8),
            nn.Linear(text_width, 8),
        )  # not part of a reward
        self.mlp = Predictor(text_width)
        randomise(self)

    def forward(self, images, tokens):
        """The rewards (f,) of pictures and the tokens (1, length) of their prompt, before they are standardised."""
        v, t = self.blip.visual_encoder, self.blip.text_encoder
        x = v.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([v.cls_token.expand(len(x), -1, -1), x], 1) + v.pos_embed
        for block in v.blocks:
            x = block(x)
        seen = v.norm(x)
        e = t.embeddings
        y = e.LayerNorm(e.word_embeddings(tokens) + e.position_embeddings.weight[: tokens.shape[1]])
        y = y.expand(len(seen), -1, -1)
        for layer in t.encoder.layer:
            y = layer(y, seen)
        return self.mlp(y[:, 0])[:, 0]


class Predictor(nn.Module):
    """The linear layers of LAION's aesthetic predictor, which ImageReward has as well."""

    def __init__(self, width):
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        drop = nn.Dropout(0.2)
        self.layers = nn.Sequential(layers[0], drop, layers[1], drop, layers[2], drop, layers[3], layers[4])

    def forward(self, x):
        return self.layers(x)


class Inception(nn.Module):
    """A stand-in with the arguments and the widths of the published TorchScript, and some function of the picture."""

    def __init__(self, features=2048, classes=1008):
        super().__init__()
        self.features, self.classes = nn.Linear(3 * 4, features), nn.Linear(features, classes)
        randomise(self)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(img.to(torch.float32) / 128 - 1, (2, 2)).flatten(1)
        features = self.features(pooled).relu()
        if return_features:
            return features
        logits = torch.nn.functional.linear(features, self.classes.weight)
        return (logits if no_output_bias else logits + self.classes.bias).softmax(1)


def randomise(module):
    """Give every weight a value of its own, norms and biases included, so that none can be mistaken for another."""
    generator = torch.Generator().manual_seed(5)
    for name, value in module.named_parameters():
        spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.3
        centre = float(name.endswith("weight") and ("norm" in name.lower() or "ln_" in name))
        value.data = centre + spread * torch.randn(value.shape, generator=generator)
    return module.eval().requires_grad_(False)


def _attend(query, key, value, width=64):
    """Attention of heads of `width` channels."""
    split = [part.unflatten(-1, (-1, width)).transpose(1, 2) for part in (query, key, value)]
    scores = (split[0] @ split[1].transpose(-1, -2) / width**0.5).softmax(-1)
    return (scores @ split[2]).transpose(1, 2).flatten(2)
