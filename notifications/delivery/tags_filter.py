"""Filters of publications by their tags, which a client sends with its subscription (`tf`).

A comparison looks at one tag; `and`, `or` and `not` combine them. A tag that is not there is not equal to anything, is
in no range and, for `in` and `nin`, is the empty text.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache

import msgspec

from notifications.delivery.protocols.schema import FilterNode

#: Tells from the tags of a publication whether it passes.
Filter = Callable[[Mapping[str, str]], bool]

MAX_DEPTH = 16
MAX_NODES = 128

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def compile_filter(node: FilterNode) -> Filter:
    """The filter that a tree of nodes describes. Raises ValueError when it is not a valid one."""
    _check_size(node)
    return _compiled(node)


def filter_key(node: FilterNode) -> bytes:
    """What is the same for equal nodes: subscriptions that share it share the verdict on a publication."""
    return msgspec.json.encode(node)


def _check_size(root: FilterNode) -> None:
    """Raise ValueError when a tree is too deep, which would exhaust the stack, or too large to be asked every time."""
    level, count = [root], 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_NODES:
            raise ValueError(f"A filter has at most {MAX_NODES} nodes.")
        level = [child for node in level for child in node.nodes]
        if not level:
            return
    raise ValueError(f"The nodes of a filter are nested at most {MAX_DEPTH} deep.")


def _compiled(node: FilterNode) -> Filter:
    if not node.op:
        return _comparison(node)
    if node.op not in ("and", "or", "not"):
        raise ValueError(f"There is no operation {node.op!r}; there are and, or, not.")
    if not node.nodes:
        raise ValueError(f"The operation {node.op} needs nodes.")
    filters = tuple(_compiled(child) for child in node.nodes)
    if node.op == "and":
        return _all(filters)
    if node.op == "or":
        return _any(filters)
    if len(filters) != 1:
        raise ValueError("The operation not has exactly one node.")
    return _not(filters[0])


def _comparison(node: FilterNode) -> Filter:
    if node.nodes:
        raise ValueError("A comparison has no nodes; an operation (op) has.")
    if node.cmp not in COMPARISONS:
        raise ValueError(f"There is no comparison {node.cmp!r}; there are {', '.join(COMPARISONS)}.")
    if not node.key:
        raise ValueError(f"The comparison {node.cmp} needs the key of a tag.")
    wanted = ARGUMENTS.get(node.cmp, "val")
    for argument in ("val", "vals"):
        given = bool(getattr(node, argument))
        if given and argument != wanted:
            raise ValueError(f"The comparison {node.cmp} takes no {argument}.")
        if not given and argument == wanted:
            raise ValueError(f"The comparison {node.cmp} needs {argument}.")
    return COMPARISONS[node.cmp](node)


def _all(filters: tuple[Filter, ...]) -> Filter:
    def passes(tags: Mapping[str, str]) -> bool:
        for each in filters:  # noqa: SIM110 - a generator for every event costs as much as the filters
            if not each(tags):
                return False
        return True

    return passes


def _any(filters: tuple[Filter, ...]) -> Filter:
    def passes(tags: Mapping[str, str]) -> bool:
        for each in filters:  # noqa: SIM110 - as above
            if each(tags):
                return True
        return False

    return passes


def _not(negated: Filter) -> Filter:
    return lambda tags: not negated(tags)


def _equal(node: FilterNode) -> Filter:
    key, val = node.key, node.val
    return lambda tags: tags.get(key) == val


def _not_equal(node: FilterNode) -> Filter:
    key, val = node.key, node.val
    return lambda tags: tags.get(key) != val


def _in(node: FilterNode) -> Filter:
    key, vals = node.key, frozenset(node.vals)
    return lambda tags: tags.get(key, "") in vals


def _not_in(node: FilterNode) -> Filter:
    key, vals = node.key, frozenset(node.vals)
    return lambda tags: tags.get(key, "") not in vals


def _exists(node: FilterNode) -> Filter:
    key = node.key
    return lambda tags: key in tags


def _not_exists(node: FilterNode) -> Filter:
    key = node.key
    return lambda tags: key not in tags


# The val of these is not empty, so that a tag that is not there and an empty one have the same verdict.


def _starts_with(node: FilterNode) -> Filter:
    key, val = node.key, node.val
    return lambda tags: tags.get(key, "").startswith(val)


def _ends_with(node: FilterNode) -> Filter:
    key, val = node.key, node.val
    return lambda tags: tags.get(key, "").endswith(val)


def _contains(node: FilterNode) -> Filter:
    key, val = node.key, node.val
    return lambda tags: val in tags.get(key, "")


def _in_range(holds: Callable[[Decimal, Decimal], bool]) -> Callable[[FilterNode], Filter]:
    """A comparison of numbers. What is not a number, in the tag or in the node, is in no range."""

    def compiled(node: FilterNode) -> Filter:
        key, bound = node.key, _number(node.val)
        if bound is None:
            return lambda tags: False

        def passes(tags: Mapping[str, str]) -> bool:
            number = _number(tags.get(key, ""))
            return number is not None and holds(number, bound)

        return passes

    return compiled


# One event is asked for by many filters, mostly about the same tag.
@lru_cache(maxsize=1024)
def _number(text: str) -> Decimal | None:
    """The decimal number that a text is: digits with or without a sign and a fraction, nothing else."""
    return Decimal(text) if NUMBER.fullmatch(text) else None


COMPARISONS: dict[str, Callable[[FilterNode], Filter]] = {
    "eq": _equal,
    "neq": _not_equal,
    "in": _in,
    "nin": _not_in,
    "ex": _exists,
    "nex": _not_exists,
    "sw": _starts_with,
    "ew": _ends_with,
    "ct": _contains,
    "gt": _in_range(operator.gt),
    "gte": _in_range(operator.ge),
    "lt": _in_range(operator.lt),
    "lte": _in_range(operator.le),
}
#: What a comparison takes, where it is not `val`.
ARGUMENTS = {"in": "vals", "nin": "vals", "ex": "", "nex": ""}
