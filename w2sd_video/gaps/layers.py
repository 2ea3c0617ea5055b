"""Blocks left out of a denoiser, or whose self-attention looks at nothing but itself.

The weak model is then the same network with less of it (skip-layer, spatiotemporal-skip and perturbed-attention
guidance): no second model in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.hooks._common import _ATTENTION_CLASSES
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from w2sd_video.gaps.swaps import Swap

Layers = Sequence[int | str]
_UNET_STAGES = ("down_blocks", "mid_block", "up_blocks")
"""Parts of a UNet in order of execution, which is not the order in which it registers them."""


def skipped_layers(denoiser: nn.Module, layers: Layers) -> list[Swap]:
    """Return the swaps that leave blocks out: they hand on what they were given.

    Raises:
        ValueError: blocks that the denoiser does not have; when evaluated, a block that gives several tensors of which
            it is not known which is which.
    """
    return [(block, {"forward": _handing_on(block)}) for block in _named("skip_layers", denoiser, layers)]


def perturbed_layers(denoiser: nn.Module, layers: Layers) -> list[Swap]:
    """Return the swaps that make self-attention maps the identity ("perturbed-attention guidance", section 4.1).

    Raises:
        ValueError: blocks that the denoiser does not have, or that do not attend to themselves; when evaluated, an
            attention that is not torch's ``scaled_dot_product_attention``.
    """
    swaps = []
    for block in _named("perturbed_layers", denoiser, layers):
        attentions = [module for name, module in block.named_modules() if _is_self_attention(name, module)]
        if not attentions:
            raise ValueError(f"a branch has perturbed_layers, but {type(block).__name__} has no self-attention")
        swaps += [(attention, {"forward": _with_identity_map(attention)}) for attention in attentions]
    return swaps


def blocks_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer blocks of a denoiser by their names as submodules, in order of execution.

    Of a UNet these are the blocks of its spatial transformers and of its motion layers.
    """
    if any(hasattr(denoiser, stage) for stage in _UNET_STAGES):
        blocks_of_unet = {
            name: module for name, module in denoiser.named_modules() if isinstance(module, BasicTransformerBlock)
        }
        return dict(sorted(blocks_of_unet.items(), key=lambda item: _place_in_unet(item[0])))
    # diffusers' transformers name the lists of their main blocks so; refiners, adapters and norms lie in other ones.
    lists = {name: child for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)}
    blocks = {
        f"{name}.{i}": block
        for name, child in lists.items()
        if name.endswith(("blocks", "layers"))
        for i, block in enumerate(child)
    }
    if "temporal_transformer_blocks" in lists:  # Latte goes through space and time in turn
        blocks = dict(sorted(blocks.items(), key=lambda item: (int(item[0].split(".")[1]), "temporal" in item[0])))
    return blocks


def _place_in_unet(name: str) -> tuple[Any, ...]:
    stage, *rest = name.split(".")
    *outer, inner = [int(part) for part in rest if part.isdigit()]
    return _UNET_STAGES.index(stage), outer, "motion_modules" in rest, inner


def _named(field: str, denoiser: nn.Module, layers: Layers) -> list[nn.Module]:
    """Return blocks by number or name; the name of a module that holds blocks means all of them."""
    blocks = blocks_of(denoiser)
    names, count = list(blocks), len(blocks)
    chosen: dict[str, nn.Module] = {}
    for layer in layers:
        if isinstance(layer, int):
            named = [names[layer]] if -count <= layer < count else []
        else:
            named = [name for name in names if name == layer or name.startswith(f"{layer}.")]
        if not named:
            raise ValueError(
                f"{field} {layer!r}: this {type(denoiser).__name__} has {count} blocks, 0 to {count - 1} from first to "
                f"last or -1 to {-count} from the last, named {', '.join(names[:2])} … {', '.join(names[-1:])}"
            )
        chosen |= {name: blocks[name] for name in named}
    return list(chosen.values())


def _handing_on(block: nn.Module) -> Callable[..., Any]:
    """Return a forward that gives back what the block was given, in the order in which it returns it.

    diffusers registers that order for most of its blocks; what is not registered is evaluated once to be seen.
    """
    forward = block.forward
    parameters = inspect.signature(type(block).forward.__get__(block))
    first_argument = next(iter(parameters.parameters))
    returned: list[str] | None = _registered_order(block)

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        nonlocal returned
        if returned is None:
            if not isinstance(forward(*args, **kwargs), torch.Tensor):
                raise ValueError(
                    f"skip_layers: {type(block).__name__} returns several tensors, and diffusers does not say which is "
                    "which, so it cannot be left out; name other blocks"
                )
            returned = [first_argument]
        arguments = parameters.bind(*args, **kwargs).arguments
        values = [arguments.get(name) for name in returned]
        return values[0] if len(values) == 1 else tuple(values)

    return hand_on


def _registered_order(block: nn.Module) -> list[str] | None:
    """Return the arguments that a block returns anew, in order; None where diffusers does not know, or is wrong."""
    try:
        registered = TransformerBlockRegistry.get(type(block))
    except ValueError:
        return None
    names = [  # earlier versions of diffusers name no arguments, and register no block with others
        getattr(registered, f"{kind}_argument_name", kind) for kind in ("hidden_states", "encoder_hidden_states")
    ]
    order = {registered.return_hidden_states_index: names[0]}
    if registered.return_encoder_hidden_states_index is not None:
        order[registered.return_encoder_hidden_states_index] = names[1]
    if not set(order.values()) <= inspect.signature(type(block).forward).parameters.keys():
        return None  # diffusers registers some blocks (Z-Image's) with names that their arguments do not have
    return [order[index] for index in sorted(order)]


def _is_self_attention(name: str, module: nn.Module) -> bool:
    if not isinstance(module, _ATTENTION_CLASSES):
        return False
    is_cross = getattr(
        module, "is_cross_attention", None
    )  # where a class does not tell, attn2 is diffusers' name for it
    return not (name.endswith("attn2") if is_cross is None else is_cross)


class _IdentityMap(AttentionScoreSkipFunctionMode):
    """diffusers' mode, in which attention gives back its values, and whether there was any that it can do so for."""

    seen: bool

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            arguments = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            self.seen = self.seen or arguments["query"].shape[2] == arguments["value"].shape[2]
        if func is torch.Tensor.split:  # torch 2.8 compiles a call of a name that is not there
            return args[0].split(*args[1:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


_MODES: WeakKeyDictionary[nn.Module, _IdentityMap] = WeakKeyDictionary()
"""Of each attention: torch 2.8 compiles a graph anew for another mode, and for another bound method."""


def _with_identity_map(attention: nn.Module) -> Callable[..., Any]:
    forward, mode = attention.forward, _MODES.setdefault(attention, _IdentityMap())
    is_method = getattr(forward, "__self__", None) is attention
    function, owner = (getattr(forward, "__func__"), (attention,)) if is_method else (forward, ())  # noqa: B009

    def attend(*args: Any, **kwargs: Any) -> Any:
        mode.seen = False
        with mode:
            result = function(*owner, *args, **kwargs)
        if not mode.seen:
            raise ValueError(
                f"perturbed_layers: this {type(attention).__name__} does not attend by torch's own function to the "
                "very tokens that attend; load the model with attention='sdpa', or leave the block out"
            )
        return result

    return attend
