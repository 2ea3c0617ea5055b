"""The network of DiT-MoE: a class-conditional diffusion transformer whose feed-forward layers are mixtures of experts.

Fei et al., "Scaling Diffusion Transformers to 16 Billion Parameters" (arXiv 2407.11633). Names and shapes of the
parameters are those of the checkpoints at github.com/feizc/DiT-MoE, so their state dicts load as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from einops import rearrange
from torch import nn
from torch.nn import functional

from w2sd_video.backends.grouped_product import Groups

_FREQUENCIES = 256
"""Numbers in a timestep's embedding, as the published networks have it."""


class DiTMoETransformer2DModel(ModelMixin, ConfigMixin):
    """A class-conditional transformer over the patches of a latent image, with routed and shared experts in each block.

    Args:
        sample_size: height and width of the latents.
        patch_size: height and width of a patch; it divides `sample_size`.
        in_channels: of the latents.
        out_channels: twice `in_channels` where the network predicts its variance too, as all published ones do.
        num_layers: blocks.
        num_attention_heads: of each block.
        attention_head_dim: channels of a head; a token has `num_attention_heads * attention_head_dim`.
        mlp_ratio: width of a routed expert over the width of a token.
        num_experts: routed experts of a block.
        num_experts_per_tok: how many of them a token is sent to.
        num_shared_experts: experts that every token is sent to, kept as one network of their joint width.
        num_classes: classes; the label `num_classes` itself is the null class of guidance.
        qk_norm: queries and keys are normalised, as in the sizes XL and G.
        timestep_scale: what a timestep of the scheduler is multiplied by. The networks trained with rectified flow were
            given times from 0 to 1, for which diffusers says 0 to 1000; their scale is 0.001.
    """

    _no_split_modules = ("DiTMoEBlock",)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int = 8,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        mlp_ratio: int = 4,
        num_experts: int = 8,
        num_experts_per_tok: int = 2,
        num_shared_experts: int = 2,
        num_classes: int = 1000,
        qk_norm: bool = False,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.x_embedder = PatchEmbed(
            sample_size, sample_size, patch_size, in_channels, embed_dim=width, pos_embed_type=None
        )
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        side = sample_size // patch_size
        positions = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
        self.pos_embed = nn.Parameter(positions.float()[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            DiTMoEBlock(
                width, num_attention_heads, mlp_ratio, num_experts, num_experts_per_tok, num_shared_experts, qk_norm
            )
            for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(width, patch_size**2 * out_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict epsilon, v or the flow (noise - sample), whichever the network was trained for.

        Args:
            hidden_states: latents (samples, in_channels, sample_size, sample_size).
            timestep: of the scheduler, one for all samples or (samples,).
            class_labels: (samples,), integers from 0 to `num_classes`.
            return_dict: whether to return an output object instead of a tuple.

        Returns:
            The prediction, (samples, out_channels, sample_size, sample_size).
        """
        times = torch.as_tensor(timestep, device=hidden_states.device).expand(len(hidden_states))
        tokens = self.x_embedder(hidden_states) + self.pos_embed
        condition = self.t_embedder(times * self.config.timestep_scale) + self.y_embedder(class_labels)
        for block in self.blocks:
            tokens = block(tokens, condition)
        patches = self.final_layer(tokens, condition)
        side, size = self.config.sample_size // self.config.patch_size, self.config.patch_size
        sample = rearrange(
            patches,
            "samples (rows columns) (height width channels) -> samples channels (rows height) (columns width)",
            rows=side,
            height=size,
            width=size,
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class TimestepEmbedder(nn.Module):
    """Timesteps (samples,) to vectors (samples, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Embed timesteps, which may be fractions."""
        waves = get_timestep_embedding(times, _FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class labels (samples,) to vectors (samples, width); one more than there are classes stands for none."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, class_labels: torch.Tensor) -> torch.Tensor:
        """Look labels up."""
        return self.embedding_table(class_labels)


class DiTMoEAttnProcessor:
    """Attention by the kernel that `set_attention_backend` sets, else by torch's own."""

    _attention_backend = None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend: (samples, tokens, heads, channels) to (samples, tokens, heads * channels)."""
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return rearrange(attended, "samples tokens heads channels -> samples tokens (heads channels)")


class _Attention(nn.Module, AttentionModuleMixin):
    """What both kinds of attention share; the mixin has tools of diffusers know them as attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.processor = DiTMoEAttnProcessor()

    def by_head(self, qkv: torch.Tensor) -> torch.Tensor:
        """Split (samples, tokens, 3 * width) into queries, keys and values (samples, tokens, heads, channels)."""
        return rearrange(
            qkv, "samples tokens (qkv heads channels) -> qkv samples tokens heads channels", qkv=3, heads=self.heads
        )


class SelfAttention(_Attention):
    """Attention among tokens (samples, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend."""
        query, key, value = self.by_head(self.qkv(tokens))
        return self.proj(self.processor(query, key, value))


class NormedSelfAttention(_Attention):
    """The same with normalised queries and keys, under the names that the larger checkpoints give it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.Wqkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend."""
        query, key, value = self.by_head(self.Wqkv(tokens))
        return self.out_proj(self.processor(self.q_norm(query), self.k_norm(key), value))


class Expert(nn.Module):
    """A gated feed-forward network (SwiGLU) over tokens (tokens, width)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself."""
        return self.down_proj(functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens))


class MoEGate(nn.Module):
    """The router: sends each token to the `top_k` experts of the highest scores."""

    def __init__(self, width: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, width).uniform_(-(width**-0.5), width**-0.5))

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the probability of each expert for each token, (tokens, experts), in float32."""
        return functional.linear(tokens, self.weight).float().softmax(dim=-1)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers and the weights of each token's experts, (tokens, top_k) each.

        The weights are the probabilities as they are: they do not sum to 1.
        """
        weights, indices = torch.topk(self.scores(tokens), k=self.top_k, dim=-1, sorted=False)
        return indices, weights.to(tokens.dtype)


class SparseMoE(nn.Module):
    """Routed experts, of which only those that have tokens are evaluated, and shared ones.

    On a device that would have to be waited for to know how many tokens each expert has, all of them are evaluated at
    once, in grouped products, unless something hangs on one of them: a hook, an adapter or a quantised weight.
    """

    def __init__(self, width: int, mlp_ratio: int, num_experts: int, top_k: int, num_shared_experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(width, mlp_ratio * width) for _ in range(num_experts))
        self.gate = MoEGate(width, num_experts, top_k)
        self.shared_experts = Expert(width, num_shared_experts * width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each token's experts, (samples, tokens, width)."""
        tokens = rearrange(hidden_states, "samples tokens width -> (samples tokens) width")
        indices, weights = self.gate(tokens)
        top_k = indices.shape[1]
        numbers, order = rearrange(indices, "tokens top_k -> (tokens top_k)").sort(stable=True)
        by_expert = tokens[order // top_k]
        is_together = tokens.device.type != "cpu" and self._are_plain()
        outputs = (self._together if is_together else self._one_by_one)(by_expert, numbers)
        routed = rearrange(outputs[order.argsort()], "(tokens top_k) width -> tokens top_k width", top_k=top_k)
        mixed = (routed * weights[..., None]).sum(dim=1) + self.shared_experts(tokens)
        return rearrange(mixed, "(samples tokens) width -> samples tokens width", samples=len(hidden_states))

    def _together(self, tokens: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the outputs of tokens (tokens, width) that are sorted by the numbers of their experts, (tokens,)."""
        experts: list[Any] = list(self.experts)
        groups = Groups(numbers, len(experts))
        inwards = torch.stack([torch.cat([one.gate_proj.weight, one.up_proj.weight]).T for one in experts])
        outwards = torch.stack([one.down_proj.weight.T for one in experts])
        gate, up = groups.product(tokens, inwards).chunk(2, dim=1)
        return groups.product(functional.silu(gate) * up, outwards)

    def _one_by_one(self, tokens: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the same, expert by expert."""
        parts = tokens.split(numbers.bincount(minlength=len(self.experts)).tolist())
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)])

    def _are_plain(self) -> bool:
        """Return whether all experts are what they were made as."""
        parts = [part for expert in self.experts for part in (expert, *expert.children())]
        return all(
            type(part) in (Expert, nn.Linear)
            and "forward" not in vars(part)
            and not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
            for part in parts
        )


class DiTMoEBlock(nn.Module):
    """Attention and a mixture of experts, both shifted, scaled and gated by the condition (adaLN)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        num_experts: int,
        top_k: int,
        num_shared_experts: int,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = (NormedSelfAttention if qk_norm else SelfAttention)(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.moe = SparseMoE(width, mlp_ratio, num_experts, top_k, num_shared_experts)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Transform tokens (samples, tokens, width) under a condition (samples, width)."""
        modulation = rearrange(
            self.adaLN_modulation(condition), "samples (parts width) -> parts samples 1 width", parts=6
        )
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        hidden_states = hidden_states + gate1 * self.attn(self.norm1(hidden_states) * (1 + scale1) + shift1)
        return hidden_states + gate2 * self.moe(self.norm2(hidden_states) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Tokens to the pixels of their patches."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return (samples, tokens, values)."""
        shift, scale = rearrange(
            self.adaLN_modulation(condition), "samples (parts width) -> parts samples 1 width", parts=2
        )
        return self.linear(self.norm_final(tokens) * (1 + scale) + shift)
