"""Tokenizers of a few words, and encoders of text and images that are one or two layers deep."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tiny.parts import randomise

TEXT_WIDTH = 16
TEXT_LENGTH = 16
WORDS = "a red green blue circle square triangle moving left right up down slowly over the sea of".split()
PROMPT = "a red circle moving left"

Tokens = transformers.PreTrainedTokenizerFast


def tokenizer(first: list[str], template: str, **special: Any) -> Tokens:
    """One token a word; `first` are the special tokens with ids 0, 1, …; unknown words share one token."""
    vocabulary = {word: i for i, word in enumerate([*first, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, i) for token, i in vocabulary.items() if token in template]
    )
    return Tokens(tokenizer_object=inner, model_max_length=TEXT_LENGTH, **special)


def clip_tokenizer() -> Tokens:
    start, end = "<start>", "<end>"
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return tokenizer([start, end], f"{start} $A {end}", **names)


def t5_tokenizer() -> Tokens:
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tokenizer(list(names.values()), "$A </s>", **names)


def clip(tokens: Tokens, width: int = TEXT_WIDTH, projected: bool = False, length: int = TEXT_LENGTH) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        # transformers initialises embeddings at 0.02: too small for words to be told from positions.
        initializer_factor=20.0,
        **_special(tokens, "bos", "eos", "pad"),
    )
    return randomise((transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config))


def t5(tokens: Tokens, name: str = "T5") -> Any:
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokens), **sizes, **_special(tokens, "pad", "eos"))
    return randomise(getattr(transformers, f"{name}EncoderModel")(config))


def bert(tokens: Tokens) -> Any:
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return randomise(transformers.BertModel(transformers.BertConfig(vocab_size=len(tokens), **sizes)))


def language_model(tokens: Tokens, name: str = "Llama", head: str = "Model", **changes: Any) -> Any:
    """A decoder of transformers by its name (Llama, Gemma2, Qwen3 …) and its head ("Model", "ForCausalLM")."""
    config = getattr(transformers, f"{name}Config")(
        **_decoder_sizes(tokens) | {"head_dim": TEXT_WIDTH // 2} | _special(tokens, "pad", "eos") | changes
    )
    return randomise(getattr(transformers, f"{name}{head}")(config))


def vision_language_model(
    tokens: Tokens, name: str = "Qwen3VL", head: str = "ForConditionalGeneration", layers: int = 2
) -> Any:
    """A Qwen model of text and images, only ever given text here."""
    text = _decoder_sizes(tokens) | {"num_hidden_layers": layers}
    text |= {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": TEXT_WIDTH, "num_heads": 2, "intermediate_size": 2 * TEXT_WIDTH}
    if name == "Qwen3VL":
        text |= {"head_dim": TEXT_WIDTH // 2}
        vision |= {"out_hidden_size": TEXT_WIDTH, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    else:
        vision |= {"out_hidden_size": TEXT_WIDTH, "fullatt_block_indexes": [0]}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    return randomise(getattr(transformers, f"{name}{head}")(config))


def qwen_tokenizer() -> Tokens:
    """A tokenizer that also brings a chat to its user's words, as a processor of text and images does."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = tokenizer(names, "$A <|im_end|>", pad_token=names[0], eos_token=names[2], unk_token=names[0])
    tokens.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ m.content if m.content is string else m.content[0].text }}{% endif %}{% endfor %}"
    )
    return tokens


def clip_vision(projected: bool = True, size: int = 16) -> Any:
    """CLIP's image encoder: images in four patches."""
    config = transformers.CLIPVisionConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // 2,
        initializer_factor=20.0,
    )
    return randomise(
        (transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel)(config)
    )


def siglip_vision() -> Any:
    """SigLIP's image encoder: images of 16×16 in four patches."""
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**sizes, image_size=16, patch_size=8)
    return randomise(transformers.SiglipVisionModel(config))


def image_processor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def _decoder_sizes(tokens: Tokens) -> dict[str, Any]:
    return {
        "vocab_size": len(tokens),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
    }


def _special(tokens: Tokens, *names: str) -> dict[str, Any]:
    return {f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in names}
