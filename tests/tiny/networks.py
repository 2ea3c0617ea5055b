"""Settings of tiny networks of diffusers, by class: one entry a network."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.parts import SDXL_UNET, randomise
from tiny.text import TEXT_LENGTH, TEXT_WIDTH

Settings = dict[str, Any]

_TOKENS: Settings = {"num_attention_heads": 2, "attention_head_dim": 8}
_JOINT: Settings = _TOKENS | {"joint_attention_dim": TEXT_WIDTH}
_FLUX: Settings = _JOINT | {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1}
_WAN: Settings = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
_SD3: Settings = _JOINT | {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "caption_projection_dim": 16,
    "pooled_projection_dim": TEXT_WIDTH,
    "pos_embed_max_size": 8,
}
_SANA: Settings = _TOKENS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": TEXT_WIDTH,
    "sample_size": 16,
}
_COGVIEW: Settings = _TOKENS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": TEXT_WIDTH,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}
_HUNYUAN_DIT: Settings = _TOKENS | {
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 16,
    "cross_attention_dim": TEXT_WIDTH,
    "cross_attention_dim_t5": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "text_len": 77,
    "text_len_t5": 256,
}
_UNET_3D: Settings = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
}

_FOUR_LEVELS: Settings = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4}
_TWO_LEVELS: Settings = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}

NETWORKS: dict[str, Settings] = {
    "AllegroTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "cross_attention_dim": 48,
        "sample_height": 4,
        "sample_width": 4,
        "sample_frames": 3,
        "caption_channels": TEXT_WIDTH,
    },
    "AuraFlowTransformer2DModel": _JOINT
    | {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "caption_projection_dim": 16},
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    },
    "AutoencoderKLAllegro": _FOUR_LEVELS | {"norm_num_groups": 2},
    "AutoencoderKLFlux2": _TWO_LEVELS,
    "AutoencoderKLHunyuanVideo15": {
        "latent_channels": 4,
        "block_out_channels": (16, 16, 16, 16),
        "layers_per_block": 1,
        "spatial_compression_ratio": 8,
    },
    "AutoencoderKLMagvit": _FOUR_LEVELS | {"norm_num_groups": 2},
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "sample_size": 16,
    },
    "BriaTransformer2DModel": _FLUX | {"axes_dims_rope": [0, 4, 4]},
    "ChromaTransformer2DModel": _FLUX
    | {
        "axes_dims_rope": (2, 2, 4),
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "ChronoEditTransformer3DModel": _WAN | {"in_channels": 12, "image_dim": TEXT_WIDTH, "added_kv_proj_dim": 24},
    "CogView3PlusTransformer2DModel": _COGVIEW,
    "CogView4Transformer2DModel": _COGVIEW | {"rope_axes_dim": (8, 8)},
    "ControlNetUnionModel": {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "conditioning_embedding_out_channels": (4, 8),
        "num_trans_channel": 8,
        "num_trans_head": 2,
        "num_proj_channel": 8,
    }
    | SDXL_UNET,
    "CosmosTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "text_embed_dim": TEXT_WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "concat_padding_mask": False,
    },
    "EasyAnimateTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "sample_width": 4,
        "sample_height": 4,
        "num_layers": 2,
        "mmdit_layers": 1,
        "time_embed_dim": 16,
        "text_embed_dim": TEXT_WIDTH,
    },
    "ErnieImageTransformer2DModel": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 32,
        "in_channels": 16,
        "out_channels": 16,
        "text_in_dim": TEXT_WIDTH,
        "rope_axes_dim": (4, 2, 2),
    },
    "Flux2Transformer2DModel": _FLUX | {"timestep_guidance_channels": 8, "axes_dims_rope": (2, 2, 2, 2)},
    "FluxControlNetModel": _FLUX | {"pooled_projection_dim": TEXT_WIDTH, "axes_dims_rope": [2, 2, 4]},
    "FluxTransformer2DModel": _FLUX
    | {"pooled_projection_dim": TEXT_WIDTH, "guidance_embeds": True, "axes_dims_rope": (2, 2, 4)},
    "HunyuanDiT2DControlNetModel": _HUNYUAN_DIT | {"transformer_num_layers": 4},
    "HunyuanDiT2DModel": _HUNYUAN_DIT | {"num_layers": 4},
    "HunyuanVideo15Transformer3DModel": {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": TEXT_WIDTH,
        "text_embed_2_dim": TEXT_WIDTH,
        "image_embed_dim": TEXT_WIDTH,
        "rope_axes_dim": (2, 4, 4),
        "target_size": 32,
        "task_type": "t2v",
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "text_embed_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "rope_axes_dim": (2, 4, 4),
        "has_image_proj": True,
        "image_proj_dim": TEXT_WIDTH,
        "has_clean_x_embedder": True,
    },
    "I2VGenXLUNet": _UNET_3D,
    "Kandinsky3UNet": {
        "time_embedding_dim": 16,
        "groups": 2,
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "block_out_channels": (8, 8),
        "cross_attention_dim": TEXT_WIDTH,
        "encoder_hid_dim": TEXT_WIDTH,
    },
    "Kandinsky5Transformer3DModel": {
        "in_text_dim": TEXT_WIDTH,
        "in_text_dim2": TEXT_WIDTH,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (4, 6, 6),
    },
    "LongCatImageTransformer2DModel": _FLUX | {"pooled_projection_dim": TEXT_WIDTH, "axes_dims_rope": [2, 2, 4]},
    "Lumina2Transformer2DModel": {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (32, 32, 32),
        "cap_feat_dim": TEXT_WIDTH,
    },
    "LuminaNextDiT2DModel": {
        "sample_size": 8,
        "hidden_size": 24,
        "num_layers": 2,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "cross_attention_dim": TEXT_WIDTH,
    },
    "OvisImageTransformer2DModel": _FLUX | {"out_channels": 16, "axes_dims_rope": (2, 2, 4)},
    "PRXTransformer2DModel": {
        "in_channels": 4,
        "context_in_dim": TEXT_WIDTH,
        "hidden_size": 16,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [4, 4],
    },
    "PriorTransformer": _TOKENS | {"num_layers": 1, "embedding_dim": TEXT_WIDTH, "num_embeddings": TEXT_LENGTH},
    "QwenImageControlNetModel": _JOINT
    | {"in_channels": 16, "out_channels": 4, "num_layers": 1, "axes_dims_rope": (2, 2, 4)},
    "QwenImageTransformer2DModel": _JOINT
    | {"in_channels": 16, "out_channels": 4, "num_layers": 2, "axes_dims_rope": (2, 2, 4)},
    "SD3ControlNetModel": _SD3,
    "SanaControlNetModel": _SANA | {"num_layers": 1},
    "SanaTransformer2DModel": _SANA,
    "SanaVideoTransformer3DModel": _SANA
    | {"sample_size": 4, "attention_head_dim": 12, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
    | {"rope_max_seq_len": 32},
    "SkyReelsV2Transformer3DModel": _WAN,
    "T2IAdapter": {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2},
    "UNet2DModel": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "UNet3DConditionModel": _UNET_3D,
    "UNetSpatioTemporalConditionModel": {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "num_attention_heads": 2,
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12,
    },
    "VQModel": _TWO_LEVELS | {"vq_embed_dim": 4},
    "WanVACETransformer3DModel": _WAN | {"vace_layers": [0], "vace_in_channels": 4 * 2 + 64},
    "ZImageTransformer2DModel": {
        "in_channels": 4,
        "dim": 16,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": TEXT_WIDTH,
        "axes_dims": [4, 2, 2],
        "axes_lens": [64, 16, 16],
    },
}


def network(name: str, **changes: Any) -> Any:
    """Make a network by its class, some of its settings changed."""
    return randomise(getattr(diffusers, name)(**NETWORKS.get(name, {}) | changes))
