"""What functions of the user's do, by their source: whose they are, and whether they act by a count that they keep."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

_LIBRARIES = {"accelerate", "bitsandbytes", "diffusers", "einops", "huggingface_hub", "numpy", "optimum", "peft"}
_LIBRARIES |= {"torch", "torchao", "transformers", __name__.partition(".")[0], *sys.stdlib_module_names}
"""Packages whose functions and objects are not looked into: what they keep is made anew, or refused by its name."""
_COUNT_ON = ("append", "extend", "update")
"""Methods by which a container grows."""


def is_foreign(module: str | None) -> bool:
    """Return whether a module is of neither a library nor Python itself."""
    return (module or "").partition(".")[0] not in _LIBRARIES


def is_foreign_function(function: FunctionType) -> bool:
    """Return whether a function is of neither a library nor Python itself."""
    return is_foreign(function.__globals__.get("__name__"))


def functions_of(called: Iterable[Any]) -> list[FunctionType]:
    """Return the functions of the user's that some callables are made of: themselves, their methods, what they use."""
    functions: dict[int, FunctionType] = {}
    pending = list(called)
    while pending:
        value = pending.pop()
        if isinstance(value, FunctionType):
            if id(value) not in functions and is_foreign_function(value):
                functions[id(value)] = value
                names = set(value.__code__.co_names)
                for used in [*_contents(value.__closure__ or ()), *map(value.__globals__.get, names)]:
                    is_called = isinstance(used, (FunctionType, MethodType, partial))
                    pending += [used] if is_called else [one for one in _methods(used) if one.__name__ in names]
        elif isinstance(value, partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending.append(value.__func__)
            pending += _methods(value.__self__)
        else:
            pending += _methods(value)
    return list(functions.values())


def is_read(name: str, functions: Iterable[FunctionType]) -> bool:
    """Return whether functions read a variable but to count on; where a source is not to be had, they may.

    Args:
        name: of a number or a list, as ``state['calls']`` or ``self.calls``, whatever stands before it.
        functions: that may use it.
    """
    variable = re.split(r"[: .]+", re.sub(r"\[.*?\]", "", name))[-1]
    return any(_reads(function, variable) for function in functions)


def _reads(function: FunctionType, variable: str) -> bool:
    try:  # the code, for of a function itself it is the source of what it wraps (functools.wraps)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):  # typed in, or a part of a longer expression
        return True
    counting = [part for node in ast.walk(tree) for part in _counted_by(node, variable)]
    within = {id(node) for part in counting for node in ast.walk(part)}
    return any(id(node) not in within for node in _uses(tree, variable))


def _counted_by(node: ast.AST, variable: str) -> list[ast.AST]:
    """Return a statement that sets a variable, or the call that makes a list longer."""
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [node] if any(_mentions(target, variable) for target in targets) else []
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _COUNT_ON
    return [node.func] if is_call and _mentions(node.func.value, variable) else []  # type: ignore[attr-defined]


def _uses(tree: ast.AST, variable: str) -> Iterator[ast.AST]:
    """Yield where a variable, or an attribute of its name, is read."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and _is_named(node, variable):
            yield node


def _mentions(tree: ast.AST, variable: str) -> bool:
    return any(_is_named(node, variable) for node in ast.walk(tree))


def _is_named(node: ast.AST, variable: str) -> bool:
    return variable in (getattr(node, "id", None), getattr(node, "attr", None))


def _contents(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _methods(value: Any) -> list[Any]:
    """Return the methods of an object of the user's."""
    is_of_the_user = not isinstance(value, type) and is_foreign(type(value).__module__)
    return [item for item in vars(type(value)).values() if isinstance(item, FunctionType)] if is_of_the_user else []
