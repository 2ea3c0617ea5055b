"""The signatures of functions that others look at, or hide."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def named_signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward; of its class's where a wrapper hides the names (torch.compile)."""
    signature = inspect.signature(module.forward)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        inner = uncompiled(module)
        signature = inspect.signature(type(inner).forward.__get__(inner))
    return signature


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Return a function that shows a signature to ``inspect``: pipelines look at it."""

    def shown(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    shown.__signature__ = signature  # type: ignore[attr-defined]
    return shown
