"""Tiny networks of ComfyUI with random weights, and samplings of them."""

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from nodes import KSampler

CPU = torch.device("cpu")
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 96,
    "freq_dim": 16,
    "text_dim": 24,
    "num_heads": 4,
    "num_layers": 3,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
    "text_len": 8,
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "context_dim": 24,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
    "use_checkpoint": False,
    "dtype": torch.float32,
}
EMBEDDING = 24


def randomize(network, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))


def patcher(network, seed):
    """A MODEL of a network with random weights."""
    randomize(network, seed)
    return comfy.model_patcher.ModelPatcher(network.eval(), CPU, CPU)


def wan(seed=0, dtype=torch.float32):
    config = comfy.supported_models.WAN21_T2V({**WAN, "dtype": dtype})
    config.custom_operations = comfy.ops.disable_weight_init
    return patcher(comfy.model_base.WAN21(config, image_to_video=False), seed)


def sd15(seed=0, model_type=comfy.model_base.ModelType.EPS):
    config = comfy.supported_models.SD15(dict(UNET))
    config.custom_operations = comfy.ops.disable_weight_init
    return patcher(comfy.model_base.BaseModel(config, model_type), seed)


def of_config(config, network, seed):
    config.custom_operations = comfy.ops.disable_weight_init
    return patcher(network(config), seed)


def ltx(seed=0):
    small = {
        "cross_attention_dim": 32,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": EMBEDDING,
    }
    settings = {"image_model": "ltxv", "in_channels": 128, "num_layers": 3, "dtype": torch.float32, **small}
    return of_config(comfy.supported_models.LTXV(settings), comfy.model_base.LTXV, seed)


STREAMS = {
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "vec_in_dim": 16,
    "context_in_dim": EMBEDDING,
    "dtype": torch.float32,
}


def hunyuan_video(seed=0):
    further = {"axes_dim": [4, 6, 6], "patch_size": [1, 2, 2], "byt5": False, "meanflow": False}
    further |= {"use_cond_type_embedding": False, "vision_in_dim": None, "in_channels": 16, "out_channels": 16}
    settings = {"image_model": "hunyuan_video", **STREAMS, **further}
    return of_config(comfy.supported_models.HunyuanVideo(settings), comfy.model_base.HunyuanVideo, seed)


def flux(seed=0):
    further = {"axes_dim": [4, 6, 6], "patch_size": 2, "in_channels": 16, "out_channels": 16}
    return of_config(
        comfy.supported_models.Flux({"image_model": "flux", **STREAMS, **further}), comfy.model_base.Flux, seed
    )


def sdxl(seed=0):
    further = {"use_linear_in_transformer": True, "model_channels": 64, "num_classes": "sequential"}
    config = comfy.supported_models.SDXL({**UNET, **further, "adm_in_channels": 16 + 6 * 256})
    return of_config(config, comfy.model_base.SDXL, seed)


def text(seed, **further):
    """A CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, 8, EMBEDDING, generator=generator)
    return [[embedding, {"pooled_output": torch.randn(1, 16, generator=generator), **further}]]


def video(batch=1):
    return {"samples": torch.zeros(batch, 16, 3, 8, 8)}


def image(batch=1):
    return {"samples": torch.zeros(batch, 4, 8, 8)}


class Noise:
    """What RandomNoise gives."""

    def __init__(self, seed=7):
        self.seed = seed

    def generate_noise(self, latent):
        return comfy.sample.prepare_noise(latent["samples"], self.seed, latent.get("batch_index"))


def levels(model, steps, scheduler="simple", denoise=1.0):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, int(steps / denoise))
    return sigmas[-(steps + 1) :]


def sampler(name="euler"):
    return comfy.samplers.sampler_object(name)


def custom(guider, sampler, sigmas, latent, seed=7):
    """SamplerCustomAdvanced."""
    return SamplerCustomAdvanced.execute(Noise(seed), guider, sampler, sigmas, latent)[0]["samples"]


def ksampler(model, positive, negative, latent, steps=4, cfg=3.0, name="euler", denoise=1.0, seed=7):
    """KSampler."""
    return KSampler().sample(model, seed, steps, cfg, name, "simple", positive, negative, latent, denoise)[0]["samples"]


def guider(model, positive, negative, cfg=3.0):
    """CFGGuider."""
    plain = comfy.samplers.CFGGuider(model)
    plain.set_conds(positive, negative)
    plain.set_cfg(cfg)
    return plain
