"""Which experts of a mixture the tokens are sent to (the paper's gap between top-2 and bottom-2 experts)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from w2sd_video.gaps.swaps import Swap

_TOKEN_CHOICE = ("top_k", "num_activated_experts")
"""How routers, and the layers around them, call the number of experts a token: diffusers has no common name."""
_EXPERT_CHOICE = "capacity_factor"
"""How routers whose experts choose their tokens call the mean number of experts a token."""


def expert_routing(denoiser: nn.Module, experts: int | str) -> list[Swap]:
    """Return the swaps that send the tokens of a mixture to other experts.

    Token-choice routers (DiT-MoE, HiDream) choose for each token the experts with the highest scores, expert-choice
    ones (NucleusMoE) for each expert the tokens with the highest scores: "bottom" chooses the lowest instead. A number
    is that of experts a token, on average where the experts choose. Weights are still the scores of what was chosen.

    Args:
        denoiser: a model with routers that choose by ``torch.topk``.
        experts: "top", "bottom" or a number.

    Raises:
        ValueError: a model without experts, or more experts a token than there are.
    """
    routers = [module for module in denoiser.modules() if _is_router(module)]
    if not routers:
        raise ValueError(
            f"a branch has experts={experts!r}, but this {type(denoiser).__name__} is no mixture of experts: it has no "
            "router; leave it out"
        )
    if experts == "bottom":
        return [(router, {"forward": _choosing_lowest(router.forward)}) for router in routers]
    if experts == "top":
        return []
    most = min(_number_of_experts(router) for router in routers)
    if int(experts) > most:
        raise ValueError(f"a branch has experts={experts}, but each router has only {most}; use 1 to {most}")
    changes = [(module, _counts(module, int(experts))) for module in denoiser.modules()]
    return [(module, counts) for module, counts in changes if counts]


def _is_router(module: nn.Module) -> bool:
    return isinstance(getattr(module, "top_k", None), int) or hasattr(module, _EXPERT_CHOICE)


def _number_of_experts(router: nn.Module) -> int:
    # What routers call the number; those that do not keep it have a row of weights for each expert.
    names = ("n_routed_experts", "num_routed_experts", "num_experts", "n_experts")
    counts: list[int] = [getattr(router, name) for name in names if isinstance(getattr(router, name, None), int)]
    return counts[0] if counts else len(router.weight)  # type: ignore[arg-type]


def _counts(module: nn.Module, experts: int) -> dict[str, Any]:
    """Return the attributes in which a module keeps the number of experts a token, at another number."""
    attributes = module.__dict__
    counts: dict[str, Any] = {name: experts for name in _TOKEN_CHOICE if isinstance(attributes.get(name), int)}
    return counts | ({_EXPERT_CHOICE: float(experts)} if _EXPERT_CHOICE in attributes else {})


class _LowestScores(TorchFunctionMode):
    """Makes ``torch.topk`` choose the lowest values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.topk, torch.Tensor.topk):
            kwargs = {**(kwargs or {}), "largest": False}
        return func(*args, **(kwargs or {}))


def _choosing_lowest(forward: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        with _LowestScores():
            return forward(*args, **kwargs)

    return choose
