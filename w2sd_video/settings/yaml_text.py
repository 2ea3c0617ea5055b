"""YAML as configurations are written in: strict where PyYAML keeps silent."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_NODES, DEEPEST = 10**5, 20
"""Values in a file, with those that an alias repeats, and how deep they may nest: no configuration has more."""


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says.

    A key that is there twice is refused, as are texts that nest without end or, by aliases, grow without measure. A
    number may be written 1e-3, which YAML 1.1 takes for a text.

    Raises:
        ValueError: no such YAML; the message is one line.
    """
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not, for example
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with what it does not look at."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"the key {repeated!r} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _check_depth(text: str) -> None:
    """Refuse, by the events of the text and so without recursion, what nests deeper than any configuration."""
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="it nests too deep", problem_mark=event.start_mark)


def _count_nodes(node: Any, counts: dict[int, int]) -> int:
    """Return the values under a node, and refuse those that hold themselves or are more than any configuration's."""
    if id(node) not in counts:
        counts[id(node)] = MOST_NODES  # until its own are counted: it is met again where it holds itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in parts)
    if counts[id(node)] > MOST_NODES:
        raise yaml.MarkedYAMLError(problem="its aliases repeat too much", problem_mark=node.start_mark)
    return counts[id(node)]
