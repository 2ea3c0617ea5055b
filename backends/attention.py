"""The kernel that a denoiser attends by: torch's own, xformers, or one of diffusers' dispatcher.

Networks that attend through diffusers' dispatcher (Wan, Flux, LTX, Hunyuan Video, and here CogVideoX and DiT-MoE) take
any kernel that it knows; UNets and the other older networks take torch's own and xformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import attention_backend
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    CogVideoXAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    JointAttnProcessor2_0,
    MochiAttention,
    XFormersAttnProcessor,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.utils import is_xformers_available
from einops import rearrange
from torch import nn
from torch.nn import functional

from w2sd_video._moved import names_of
from w2sd_video.backends.split_attention import SplitSDPA, SplitXFormers
from w2sd_video.messages import first_line, suggest

__getattr__ = names_of(__name__)

SDPA = "sdpa"
XFORMERS = "xformers"

_WITHOUT_CPU = ("flash", "sage", "xformers", "aiter")
"""Beginnings of the names of kernels that no CPU has."""

_HAVE_XFORMERS = {
    *(AttnProcessor2_0, IPAdapterAttnProcessor2_0, JointAttnProcessor2_0),
    *(SplitSDPA, SplitXFormers, XFormersAttnProcessor),
}
"""The processors in whose place diffusers puts the like of xformers; it would put a wrong one in any other's."""

_TOLERANCE = 0.2
"""Of outputs from -1 to 1: kernels that compute in 8 bits are far nearer than this, and garbage is not."""


def attention_names() -> list[str]:
    """Return the names that an attention can be set by: `sdpa`, and those of the installed diffusers' dispatcher."""
    return [SDPA, *(name.value for name in AttentionBackendName)]


def check_name(attention: str) -> None:
    """Refuse an attention that does not exist.

    Raises:
        ValueError: an unknown name; the message says which there are.
    """
    if attention not in attention_names():
        raise ValueError(f"unknown attention {attention!r}; {suggest(attention, attention_names())}")


def check_attention(attention: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse an attention that does not exist or does not run here, which one call on small tensors tells.

    A kernel may be installed and imported and still not run: built for another torch, another GPU or another dtype.
    The call draws no random numbers, and diffusers' own choice of a kernel is afterwards what it was before.

    Args:
        attention: one of `attention_names`; `sdpa` always runs.
        device: where the network will be.
        dtype: that it will have.

    Raises:
        ValueError: an unknown name, or a kernel that does not run; the message gives its reason in one line.
        ModuleNotFoundError: xformers is not installed.
    """
    check_name(attention)
    if attention == SDPA:
        return
    if device.type == "cpu" and attention.lstrip("_").startswith(_WITHOUT_CPU):
        raise ValueError(f"attention={attention!r} needs a CUDA device, got {device}; use 'sdpa'")
    if attention == XFORMERS and not is_xformers_available():
        raise ModuleNotFoundError(
            "attention='xformers' needs xformers: pip install 'w2sd-video[xformers]', or use 'sdpa'"
        )
    _call_once(attention, device, dtype)


def check_network(network: nn.Module, attention: str) -> None:
    """Refuse an attention that a network cannot be set to.

    Args:
        network: a denoiser or a ControlNet; its weights may be on the meta device.
        attention: one of `attention_names`.

    Raises:
        ValueError: nothing of the network attends through diffusers' dispatcher, and xformers has no processor for it.
    """
    processors = _processors(network)
    if attention == SDPA or any(_is_dispatched(processor) for processor in processors):
        return
    names = ", ".join(sorted({type(processor).__name__ for processor in processors})) or "nothing that diffusers knows"
    if not processors or not _HAVE_XFORMERS.issuperset(map(type, processors)):
        allowed = repr(SDPA)
    elif attention != XFORMERS:
        allowed = f"{SDPA!r} or {XFORMERS!r}"
    else:
        return
    raise ValueError(
        f"attention={attention!r} cannot be set in a {type(network).__name__}, which attends by {names}; use {allowed}"
    )


def check_class(kind: Any, config: Mapping[str, Any], attention: str) -> None:
    """Refuse the same by a network's class and config, before any of its weights are loaded (see `check_network`)."""
    if attention != SDPA:
        with init_empty_weights():
            network = kind.from_config(dict(config))
        _dispatch_older(network)
        check_network(network, attention)


def set_attention(network: Any, attention: str) -> None:
    """Set what a network attends by; `sdpa` leaves it as diffusers made it.

    Attentions that diffusers' dispatcher does not reach (that among the words in Hunyuan Video) stay torch's own, which
    a warning says.

    Args:
        network: a denoiser or a ControlNet.
        attention: one of `attention_names`, which `check_attention` has found to run.

    Raises:
        ValueError: the network cannot be set to it.
    """
    if attention == SDPA:
        return
    _dispatch_older(network)
    check_network(network, attention)
    processors = _processors(network)
    reached = sum(_is_dispatched(processor) for processor in processors)
    if not reached:
        network.enable_xformers_memory_efficient_attention()
        return
    with attention_backend(attention):  # diffusers makes what is set the choice of all networks, until this ends
        network.set_attention_backend(attention)
    if reached < len(processors):
        warnings.warn(
            f"attention={attention!r} is set in {reached} of the {len(processors)} attentions of this "
            f"{type(network).__name__}; diffusers' dispatcher does not reach the others",
            stacklevel=2,
        )


class DispatchedCogVideoX(CogVideoXAttnProcessor2_0):
    """The attention of CogVideoX over text and video at once, through diffusers' dispatcher."""

    _attention_backend = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend: video and text (batch, tokens, channels) to the same shapes."""
        if attention_mask is not None:
            raise ValueError(f"attention={self._attention_backend} takes no mask in CogVideoX; use {SDPA!r}")
        text_length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            rearrange(project(tokens), "batch tokens (heads channels) -> batch heads tokens channels", heads=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat(
                    [part[:, :, :text_length], apply_rotary_emb(part[:, :, text_length:], image_rotary_emb)], dim=2
                )
                for part in (query, key)
            )
        by_token = [
            rearrange(part, "batch heads tokens channels -> batch tokens heads channels")
            for part in (query, key, value)
        ]
        attended = dispatch_attention_fn(*by_token, backend=self._attention_backend)
        attended = rearrange(attended, "batch tokens heads channels -> batch tokens (heads channels)")
        for layer in attn.to_out:
            attended = layer(attended)
        return attended[:, text_length:], attended[:, :text_length]


def _dispatch_older(network: nn.Module) -> None:
    """Let the attentions of a CogVideoX go through the dispatcher, which diffusers' own processor does not."""
    for module in _attentions(network):
        if type(module.processor) is CogVideoXAttnProcessor2_0 and not _is_dispatched(module.processor):
            module.set_processor(DispatchedCogVideoX())


def _attentions(network: nn.Module) -> Iterable[Any]:
    """Yield what diffusers takes for an attention."""
    for module in network.modules():
        if isinstance(module, (Attention, MochiAttention, AttentionModuleMixin)):
            yield module


def _processors(network: nn.Module) -> list[Any]:
    return [module.processor for module in _attentions(network)]


def _is_dispatched(processor: Any) -> bool:
    """Return whether a processor takes what `set_attention_backend` sets."""
    return hasattr(processor, "_attention_backend")


def _call_once(attention: str, device: torch.device, dtype: torch.dtype) -> None:
    """Run a kernel on small tensors, and compare it with torch's own.

    Raises:
        ValueError: it does not run, or gives something else.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), attention_backend(attention):
            warnings.simplefilter("ignore")
            ramp = torch.linspace(-1, 1, 128 * 2 * 64, device=device).to(dtype)
            by_token = rearrange(ramp, "(tokens heads channels) -> 1 tokens heads channels", heads=2, channels=64)
            by_head = rearrange(by_token, "samples tokens heads channels -> samples heads tokens channels")
            expected = functional.scaled_dot_product_attention(by_head, by_head, by_head)
            result = dispatch_attention_fn(by_token, by_token, by_token)
            result = rearrange(result, "samples tokens heads channels -> samples heads tokens channels")
            difference = (result - expected).abs().max().item()  # waits for the device, which tells of its errors late
        if not difference < _TOLERANCE:  # nor is NaN
            raise RuntimeError(f"its output differs from torch's own by {difference:.2g}")
    except Exception as error:  # kernels fail in every way there is
        where = f"on {device} in {str(dtype).removeprefix('torch.')}"
        reason = first_line(error).rstrip(".:")
        raise ValueError(f"attention={attention!r} does not run {where}: {reason}; use {SDPA!r}") from error
