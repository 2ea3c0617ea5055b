"""The signatures of functions that others look at, or hide, and arguments by the names in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partialmethod
from types import CodeType
from typing import Any

from torch import nn

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def declared_signature(cls: type, method: str, *names: str) -> inspect.Signature:
    """Return the signature, without ``self``, in the first of a class's bases that names the arguments of a method.

    Wrappers of ``(self, *args, **kwargs)`` hide them, and a subclass may name them otherwise.

    Args:
        cls: the class.
        method: the name of the method.
        names: of arguments that there must be, if a base has them.
    """
    functions = [getattr(base, method) for base in cls.__mro__ if method in vars(base)]
    signatures = [inspect.signature(function) for function in functions]
    naming = [signature for signature in signatures if not _hides(signature)] or signatures[:1]
    signature = next((named for named in naming if named.parameters.keys() >= set(names)), naming[0])
    return signature.replace(parameters=_without_self(signature))


def layers_of(function: Any) -> Iterator[Any]:
    """Give a function and what it wraps, from the outside in (decorators, ``functools.partialmethod``)."""
    while function is not None:
        function = getattr(function, "__func__", function)
        yield function
        function = function.func if isinstance(function, partialmethod) else getattr(function, "__wrapped__", None)


def codes_of(function: Any) -> set[CodeType]:
    """Return the code of a function, and of what it wraps: any of it may be what does the work."""
    return {layer.__code__ for layer in layers_of(function) if hasattr(layer, "__code__")}


def _without_self(signature: inspect.Signature) -> list[inspect.Parameter]:
    first, *rest = signature.parameters.values()
    return [first, *rest] if first.kind in _REST else rest


def _hides(signature: inspect.Signature) -> bool:
    kinds = [parameter.kind for parameter in _without_self(signature)]
    return inspect.Parameter.VAR_POSITIONAL in kinds or all(kind in _REST for kind in kinds)


def named_signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward as its class declares it, whatever wraps it (torch.compile, hooks).

    Of a module that hides it and holds another one, it is that one's.
    """
    module = uncompiled(module)
    signature = declared_signature(type(module), "forward")
    is_hidden = all(parameter.kind in _REST for parameter in signature.parameters.values())
    inner = next(module.children(), None) if is_hidden else None
    return signature if inner is None else named_signature(inner)


def by_name(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by their names, those given by position first; ``as_given`` is the way back.

    Raises:
        TypeError: arguments that do not go with the signature.
    """
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in _BY_POSITION][: len(args)]
    if len(names) < len(args) or set(names) & set(kwargs):
        signature.bind(*args, **kwargs)
        raise TypeError(
            f"{len(args)} arguments came by position, of which {len(names)} have a name: a wrapper hides the others; "
            "functools.wraps shows them"
        )
    return dict(zip(names, args, strict=True)) | dict(kwargs)


def as_given(arguments: Mapping[str, Any], positional: int) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments: the first ``positional`` of them go by position."""
    items = list(arguments.items())
    return [value for _, value in items[:positional]], dict(items[positional:])


def defaults(signature: inspect.Signature) -> dict[str, Any]:
    """Return the value of every argument that is not given."""
    parameters = signature.parameters.items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Return a function that shows a signature to ``inspect``: pipelines look at it."""

    def shown(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    shown.__signature__ = signature  # type: ignore[attr-defined]
    return shown
