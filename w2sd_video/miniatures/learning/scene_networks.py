"""The networks of scenes and of Fashion-MNIST: real classes of diffusers and transformers, of a few million parameters.

They are sized so that a model mixes up attributes as large models do, and so that a track fits a file of 16 MiB.
"""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    MotionAdapter,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.miniatures import scenes
from w2sd_video.miniatures.training import mixture_of_experts, models
from w2sd_video.miniatures.training.models import TEXT_WIDTH

TEXT_LENGTH = 18
"""Tokens of a padded prompt; the longest of the world has fifteen words, and two marks."""
LATENT = scenes.SIZE // 4
"""Height and width of latents."""
VIDEO_FRAMES = 17
"""Frames of a clip for CogVideoX and Wan, whose autoencoder takes 1 + 4 k."""
FASHION_SIZE = 32
"""Height and width of a picture of Fashion-MNIST, its 28 pixels with a margin."""
NULL_CLASS = 1000
"""What `DiTPipeline` asks for when it asks for no class, whatever the number of classes."""
SHIFT = 3.0
"""Of the flow-matching twin's noise levels, as Wan has it for small videos."""
MOTION_CHANNELS = (48, 96)
TWO_CLASSES = (64, 3)
"""Width and layers of the networks of two classes."""


def clip_tokenizer() -> CLIPTokenizer:
    """AnimateDiff's tokenizer, a token for each word of scenes."""
    return models.clip_tokenizer(scenes.WORDS, TEXT_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """The tokenizer of the other tracks, a token for each word of scenes."""
    return models.t5_tokenizer(scenes.WORDS, TEXT_LENGTH)


def clip_text_encoder() -> CLIPTextModel:
    """Two causal layers over a prompt."""
    return models.clip_text_encoder(clip_tokenizer())


def t5_text_encoder() -> T5EncoderModel:
    """Two layers over a prompt."""
    return models.t5_text_encoder(t5_tokenizer())


def image_vae(size: int = scenes.SIZE) -> AutoencoderKL:
    """Pictures (n, 3, size, size) to latents (n, 4, size / 4, size / 4) and back."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,  # so that it may be trained on parts of a picture
    )


def video_vae() -> AutoencoderKLCogVideoX:
    """Clips (n, 3, 17, 64, 64) to latents (n, 8, 5, 16, 16) and back."""
    return models.video_vae(size=scenes.SIZE, channels=8)


def pixart(width: int = 128) -> PixArtTransformer2DModel:
    """Pictures from text: 64 tokens, attention to the text in every block."""
    return models.image_transformer(width, latent=LATENT)


def cogvideox(width: int = 128) -> CogVideoXTransformer3DModel:
    """Clips from text: 320 tokens of a clip and the text's in one sequence."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=5,
        in_channels=8,
        out_channels=8,
        patch_size=2,
        time_embed_dim=width,
        text_embed_dim=TEXT_WIDTH,
        max_text_seq_length=TEXT_LENGTH,
        sample_width=LATENT,
        sample_height=LATENT,
        sample_frames=VIDEO_FRAMES,
        temporal_compression_ratio=4,
    )


def wan(width: int = 128) -> WanTransformer3DModel:
    """CogVideoX's twin by flow matching: the same latents, attention to the text in every block."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=4 * width,
        num_layers=6,
        rope_max_seq_len=32,
    )


def unet() -> UNet2DConditionModel:
    """AnimateDiff's spatial network: two levels over 16 x 16 latents, attention to the text on the lower."""
    return models.unet(MOTION_CHANNELS, latent=LATENT)


def motion_adapter() -> MotionAdapter:
    """AnimateDiff's temporal layers; untrained, they change nothing."""
    return models.motion_adapter(MOTION_CHANNELS)


def dit_moe() -> DiTMoETransformer2DModel:
    """Pictures of classes by eight routed experts, two a token, and two shared ones."""
    return mixture_of_experts.dit_moe(LATENT, len(scenes.classes()))


def fashion_dit(width: int = 128, layers: int = 4) -> DiTTransformer2DModel:
    """Pictures of clothes by class: 64 tokens."""
    return DiTTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=FASHION_SIZE // 4,
        patch_size=1,
        num_embeds_ada_norm=NULL_CLASS,
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Wan's: straight lines from noise to clips, their levels shifted towards noise."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def flow_vae_config() -> dict[str, Any]:
    """What `WanPipeline` asks of its autoencoder's config, of that of CogVideoX, whose latents the twin shares."""
    return {"scale_factor_temporal": 4, "scale_factor_spatial": 4, "z_dim": 8}
