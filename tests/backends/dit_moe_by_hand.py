"""The published DiT-MoE, as a table of its parameters and as plain arithmetic on its state dict."""

import math

import torch


def published_shapes(depth, width, heads, experts, normed):
    attention = {
        "qkv.weight": (3 * width, width),
        "qkv.bias": (3 * width,),
        "proj.weight": (width, width),
        "proj.bias": (width,),
    }
    if normed:
        attention = {
            "Wqkv.weight": (3 * width, width),
            "Wqkv.bias": (3 * width,),
            "out_proj.weight": (width, width),
            "out_proj.bias": (width,),
            **{f"{norm}.{part}": (width // heads,) for norm in ("q_norm", "k_norm") for part in ("weight", "bias")},
        }

    def feed_forward(name, inner):
        return {
            f"{name}.gate_proj.weight": (inner, width),
            f"{name}.up_proj.weight": (inner, width),
            f"{name}.down_proj.weight": (width, inner),
        }

    block = {f"attn.{key}": shape for key, shape in attention.items()}
    block |= {"adaLN_modulation.1.weight": (6 * width, width), "adaLN_modulation.1.bias": (6 * width,)}
    block |= {"moe.gate.weight": (experts, width), **feed_forward("moe.shared_experts", 2 * width)}
    for i in range(experts):
        block |= feed_forward(f"moe.experts.{i}", 4 * width)
    shapes = {
        "pos_embed": (1, 256, width),
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (1001, width),
        "final_layer.linear.weight": (32, width),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    return shapes | {f"blocks.{i}.{key}": shape for i in range(depth) for key, shape in block.items()}


def published_forward(state, config, x, t, y):
    """Return what the published code computes, token by token where experts are concerned."""
    width = config["num_attention_heads"] * config["attention_head_dim"]

    def linear(name, z):
        return z @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(z, scale=1.0, shift=0.0):
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, correction=0) + 1e-6).sqrt() * scale + shift

    def silu(z):
        return z / (1 + (-z).exp())

    def feed_forward(name, z):
        return linear(f"{name}.down_proj", silu(linear(f"{name}.gate_proj", z)) * linear(f"{name}.up_proj", z))

    def attention(name, z):
        qkv = linear(f"{name}.{'Wqkv' if config['qk_norm'] else 'qkv'}", z)
        q, k, v = qkv.reshape(*z.shape[:2], 3, config["num_attention_heads"], -1).permute(2, 0, 3, 1, 4)
        if config["qk_norm"]:
            q, k = (
                norm(one, state[f"{name}.{of}.weight"], state[f"{name}.{of}.bias"])
                for one, of in ((q, "q_norm"), (k, "k_norm"))
            )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(config["attention_head_dim"])).softmax(-1)
        return linear(
            f"{name}.{'out_proj' if config['qk_norm'] else 'proj'}", (weights @ v).transpose(1, 2).reshape(z.shape)
        )

    def experts(name, z):
        out = feed_forward(f"{name}.shared_experts", z)
        scores = linear(f"{name}.gate", z).softmax(-1)
        for sample in range(z.shape[0]):
            for token in range(z.shape[1]):
                score = scores[sample, token]
                for expert in score.argsort(descending=True)[:2].tolist():
                    out[sample, token] += score[expert] * feed_forward(f"{name}.experts.{expert}", z[sample, token])
        return out

    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, 16)
    z = (
        patches @ state["x_embedder.proj.weight"].reshape(width, 16).T
        + state["x_embedder.proj.bias"]
        + state["pos_embed"]
    )
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = silu(c + state["y_embedder.embedding_table.weight"][y])
    for i in range(config["num_layers"]):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
        z = z + gate1 * attention(f"blocks.{i}.attn", norm(z, 1 + scale1, shift1))
        z = z + gate2 * experts(f"blocks.{i}.moe", norm(z, 1 + scale2, shift2))
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    out = linear("final_layer.linear", norm(z, 1 + scale, shift))
    side = x.shape[-1] // 2
    image = torch.zeros(len(x), out.shape[-1] // 4, *x.shape[2:])
    for token in range(side * side):
        row, column = divmod(token, side)
        patch = out[:, token].reshape(len(x), 2, 2, -1).permute(0, 3, 1, 2)
        image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    return image
