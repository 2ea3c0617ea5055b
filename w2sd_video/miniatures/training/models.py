"""The miniature networks: real diffusers and transformers classes, only very small."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DDIMScheduler,
    MotionAdapter,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from w2sd_video.miniatures.world import SIZE, WORDS

TEXT_LENGTH = 12
"""Tokens of a padded prompt, in both tracks; the longest prompt of the world takes nine."""
TEXT_WIDTH = 64


def clip_tokenizer(world_words: Sequence[str] = WORDS, length: int = TEXT_LENGTH) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in which each word of the world is one token, for prompts of some `length`."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=0,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(world_words)] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    # The trainer breaks ties by chance, so ids are dealt anew: special tokens, words, then the pieces of words.
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in world_words)]
    vocab = {token: i for i, token in enumerate([*words, *sorted(set(trained.get_vocab()) - set(words))])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5_tokenizer(world_words: Sequence[str] = WORDS, length: int = TEXT_LENGTH) -> T5Tokenizer:
    """A unigram tokenizer of the world's words, for prompts of some `length`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in world_words)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def clip_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal transformer layers over the prompt."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=max(128, len(tokenizer)),  # room for all pieces
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Two T5 encoder layers over the prompt."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=4 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def image_vae() -> AutoencoderKL:
    """Frames (n, 3, 32, 32) to latents (n, 4, 8, 8) and back."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def video_vae(*, size: int = SIZE, channels: int = 12) -> AutoencoderKLCogVideoX:
    """Clips (n, 3, 9, size, size) to latents (n, channels, 3, size / 4, size / 4) and back.

    Its class wants widths that 32 divides.
    """
    return AutoencoderKLCogVideoX(
        block_out_channels=(32, 32, 32),
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        layers_per_block=0,
        latent_channels=channels,
        temporal_compression_ratio=4,
        sample_height=size,
        sample_width=size,
    )


def unet(channels: tuple[int, int] = (32, 64), *, latent: int = SIZE // 4) -> UNet2DConditionModel:
    """AnimateDiff's spatial network: two levels over latents so wide, attention to the text on the lower."""
    return UNet2DConditionModel(
        sample_size=latent,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )


def control_net(denoiser: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a `unet`, begun from its weights, that reads pictures (n, 3, 32, 32) in [0, 1]."""
    return ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(16, 32, 64))


def motion_adapter(channels: tuple[int, int] = (32, 64)) -> MotionAdapter:
    """The temporal layers of the AnimateDiff track, for `unet` of the same widths; untrained, they change nothing."""
    adapter = MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        motion_max_seq_length=16,
    )
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return adapter


def transformer(width: int = 128, layers: int = 5) -> CogVideoXTransformer3DModel:
    """The network of the CogVideoX track: 48 video tokens and the text's in one sequence."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=layers,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        time_embed_dim=width,
        text_embed_dim=TEXT_WIDTH,
        max_text_seq_length=TEXT_LENGTH,
        sample_width=SIZE // 4,
        sample_height=SIZE // 4,
        sample_frames=9,
        temporal_compression_ratio=4,
    )


def image_transformer(width: int = 128, *, latent: int = SIZE // 4) -> PixArtTransformer2DModel:
    """PixArt's network: a token for each 2 x 2 latents of a picture, attention to the text in every block."""
    return PixArtTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=6,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        cross_attention_dim=width,
        caption_channels=TEXT_WIDTH,
        sample_size=latent,
    )


def ddim_scheduler() -> DDIMScheduler:
    """AnimateDiff's linear schedule, predicting v; the PixArt track's too."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def cogvideox_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX's own schedule: scaled linear, zero terminal SNR, trailing steps, predicting v."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
