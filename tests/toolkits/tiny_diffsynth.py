"""Tiny random pipelines of DiffSynth: its loops, schedulers and networks, with stand-ins for texts and images."""

import importlib.util
import sys
import types
from contextlib import contextmanager

import torch
from torch import nn
from transformers.utils import is_torchvision_available

MISSING = importlib.util.find_spec("diffsynth") is None
STEPS = 4
NEGATIVE = "blurred"


@contextmanager
def imported():
    """Let DiffSynth be imported without torchvision and modelscope, which it needs to train and to download.

    The registry's torchvision is built for CUDA, and does not load beside a torch for the CPU.
    """
    is_torchvision_available()  # transformers looks once, and is not to find the stand-in
    stand_ins = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms", "modelscope")}
    stand_ins["torchvision"].transforms = stand_ins["torchvision.transforms"]
    stand_ins["modelscope"].snapshot_download = None
    missing = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


class Words:
    """A tokenizer and a text encoder in one: a random, fixed vector for each letter of a prompt."""

    def __init__(self, width):
        self.table = torch.randn(128, width, generator=torch.Generator().manual_seed(3))

    def __call__(self, prompt):
        return torch.stack([self.table[ord(letter) % 128] for letter in prompt.ljust(8)[:8]])[None]


class TextEncoder(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words, self.prompts, self.dtype = words, [], torch.float32

    def forward(self, ids, mask):
        self.prompts.append("".join(map(chr, ids[0])))
        return self.words(self.prompts[-1]).to(self.dtype)


def tokenized(prompt, **_):
    ids = torch.tensor([[ord(letter) for letter in prompt.ljust(8)[:8]]])
    return ids, torch.ones_like(ids)


class Vae(nn.Module):
    """Hands latents through, and keeps them."""

    upsampling_factor = 8
    scaling_factor = 1.0

    def __init__(self, channels=16):
        super().__init__()
        self.model, self.latents = types.SimpleNamespace(z_dim=channels), None

    def decode(self, latents, **_):
        self.latents = latents
        return latents[:, :3]

    def encode(self, videos, **_):
        return torch.stack([video.mean() * torch.ones(16, 1, 2, 2) for video in videos])

    forward = decode


def wan_dit(seed, **changes):
    from diffsynth.models.wan_video_dit import WanModel

    torch.manual_seed(seed)
    sizes = {"dim": 24, "in_dim": 16, "ffn_dim": 32, "out_dim": 16, "text_dim": 12, "freq_dim": 16, "eps": 1e-6}
    shape = {"patch_size": (1, 2, 2), "num_heads": 2, "num_layers": 2, "has_image_input": False}
    return loud(WanModel(**sizes | shape | changes))


def wan(two_stage=False, dtype=torch.float32, **changes):
    with imported():
        from diffsynth.pipelines.wan_video import WanVideoPipeline
    pipe = WanVideoPipeline(device="cpu", torch_dtype=dtype)
    pipe.tokenizer, pipe.text_encoder, pipe.vae = tokenized, TextEncoder(Words(12)), Vae()
    pipe.text_encoder.dtype = dtype
    pipe.dit = wan_dit(1, **changes)
    pipe.dit2 = wan_dit(2, **changes) if two_stage else None
    call = {"prompt": "a red kite", "negative_prompt": NEGATIVE, "height": 16, "width": 16, "num_frames": 5}
    return pipe.to(dtype=dtype), call | {"output_type": "floatpoint", "sigma_shift": 3.0} | common(5.0)


def flux_dit(seed, guidance=False):
    from diffsynth.models import flux_dit as parts

    torch.manual_seed(seed)
    dit = parts.FluxDiT.__new__(parts.FluxDiT)
    nn.Module.__init__(dit)
    dim, heads = 32, 2
    dit.pos_embedder = parts.RoPEEmbedding(dim, 10000, [4, 6, 6])
    dit.time_embedder = parts.TimestepEmbeddings(256, dim)
    dit.guidance_embedder = parts.TimestepEmbeddings(256, dim) if guidance else None
    dit.pooled_text_embedder = nn.Sequential(nn.Linear(12, dim), nn.SiLU(), nn.Linear(dim, dim))
    dit.context_embedder, dit.x_embedder = nn.Linear(12, dim), nn.Linear(64, dim)
    dit.blocks = nn.ModuleList([parts.FluxJointTransformerBlock(dim, heads)])
    dit.single_blocks = nn.ModuleList([parts.FluxSingleTransformerBlock(dim, heads)])
    dit.final_norm_out, dit.final_proj_out = parts.AdaLayerNormContinuous(dim), nn.Linear(dim, 64)
    dit.input_dim = 64
    return loud(dit)


def flux(guidance=False):
    with imported():
        from diffsynth.diffusion.base_pipeline import PipelineUnit
        from diffsynth.pipelines.flux_image import FluxImagePipeline, FluxImageUnit_PromptEmbedder

    class Embedder(PipelineUnit):
        def __init__(self):
            names = {"seperate_cfg": True, "input_params": ()}
            super().__init__(
                **names, input_params_posi={"prompt": "prompt"}, input_params_nega={"prompt": "negative_prompt"}
            )
            self.words = Words(12)

        def process(self, pipe, prompt):
            embedded = self.words(prompt)
            return {"prompt_emb": embedded, "pooled_prompt_emb": embedded.mean(1), "text_ids": torch.zeros(1, 8, 3)}

    pipe = FluxImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.dit, pipe.vae_decoder = flux_dit(1, guidance), Vae()
    pipe.vae = pipe.vae_decoder
    pipe.units = [Embedder() if isinstance(unit, FluxImageUnit_PromptEmbedder) else unit for unit in pipe.units]
    call = {"prompt": "a red kite", "negative_prompt": NEGATIVE, "height": 32, "width": 32}
    return pipe, call | common(1.0 if guidance else 3.0)


def qwen_dit(seed):
    from diffsynth.models import qwen_image_dit as parts

    torch.manual_seed(seed)
    dit = parts.QwenImageDiT.__new__(parts.QwenImageDiT)
    nn.Module.__init__(dit)
    dim, heads = 32, 2
    dit.pos_embed = parts.QwenEmbedRope(theta=10000, axes_dim=[4, 6, 6], scale_rope=True)
    dit.time_text_embed = parts.TimestepEmbeddings(
        256, dim, diffusers_compatible_format=True, scale=1000, align_dtype_to_timestep=False
    )
    dit.txt_norm, dit.img_in, dit.txt_in = parts.RMSNorm(12, eps=1e-6), nn.Linear(64, dim), nn.Linear(12, dim)
    block = parts.QwenImageTransformerBlock(dim=dim, num_attention_heads=heads, attention_head_dim=dim // heads)
    dit.transformer_blocks = nn.ModuleList([block])
    dit.norm_out, dit.proj_out = parts.AdaLayerNorm(dim, single=True), nn.Linear(dim, 64)
    return loud(dit)


def qwen():
    with imported():
        from diffsynth.diffusion.base_pipeline import PipelineUnit
        from diffsynth.pipelines.qwen_image import QwenImagePipeline, QwenImageUnit_PromptEmbedder

    class Embedder(PipelineUnit):
        def __init__(self):
            names = {"seperate_cfg": True, "input_params": ()}
            super().__init__(
                **names, input_params_posi={"prompt": "prompt"}, input_params_nega={"prompt": "negative_prompt"}
            )
            self.words = Words(12)

        def process(self, pipe, prompt):
            return {"prompt_emb": self.words(prompt), "prompt_emb_mask": torch.ones(1, 8, dtype=torch.long)}

    pipe = QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.dit, pipe.vae = qwen_dit(1), Vae()
    pipe.units = [Embedder() if isinstance(unit, QwenImageUnit_PromptEmbedder) else unit for unit in pipe.units]
    call = {"prompt": "a red kite", "negative_prompt": NEGATIVE, "height": 32, "width": 32}
    return pipe, call | common(4.0)


def common(scale):
    return {"cfg_scale": scale, "seed": 7, "num_inference_steps": STEPS, "progress_bar_cmd": list}


def loud(network):
    """Give a network of random weights something to say: layers that begin at zero are drawn too."""
    for parameter in network.parameters():
        if not parameter.any() or parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3 / max(1.0, parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.1)
    return network.eval()


def run(pipe, call, **changes):
    """Return the final latents of a call."""
    pipe(**{**call, **changes})
    return pipe.vae.latents


SYSTEMS = {
    "wan": wan,
    "wan_two_stage": lambda: wan(two_stage=True),
    "qwen": qwen,
    "flux": flux,
}
