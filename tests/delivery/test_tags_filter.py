"""Filters of publications by their tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notifications.delivery.protocols.schema import FilterNode
from notifications.delivery.tags_filter import MAX_DEPTH, MAX_NODES, compile_filter, filter_key

PAID = FilterNode(key="status", cmp="eq", val="paid")
LARGE = FilterNode(key="total", cmp="gte", val="100")


def leaf(cmp: str, val: str = "", vals: list[str] | None = None) -> FilterNode:
    return FilterNode(key="tag", cmp=cmp, val=val, vals=vals or [])


def both(*nodes: FilterNode) -> FilterNode:
    return FilterNode(op="and", nodes=[*nodes])


def either(*nodes: FilterNode) -> FilterNode:
    return FilterNode(op="or", nodes=[*nodes])


def negated(*nodes: FilterNode) -> FilterNode:
    return FilterNode(op="not", nodes=[*nodes])


def nested(depth: int) -> FilterNode:
    node = PAID
    for _ in range(depth - 1):
        node = both(node)
    return node


@pytest.mark.parametrize(
    ("node", "value", "passes"),
    [
        (leaf("eq", "a"), "a", True),
        (leaf("eq", "a"), "A", False),
        (leaf("eq", "a"), None, False),
        (leaf("eq", "1"), "1.0", False),
        (leaf("neq", "a"), "b", True),
        (leaf("neq", "a"), "a", False),
        (leaf("neq", "a"), None, True),
        (leaf("in", vals=["a", "b"]), "b", True),
        (leaf("in", vals=["a", "b"]), "c", False),
        (leaf("in", vals=["ab"]), "a", False),
        (leaf("in", vals=["a", "b"]), None, False),
        (leaf("in", vals=["a", ""]), None, True),
        (leaf("nin", vals=["a", "b"]), "b", False),
        (leaf("nin", vals=["a", "b"]), "c", True),
        (leaf("nin", vals=["a", "b"]), None, True),
        (leaf("nin", vals=["a", ""]), None, False),
        (leaf("ex"), "", True),
        (leaf("ex"), None, False),
        (leaf("nex"), "", False),
        (leaf("nex"), None, True),
        (leaf("sw", "ab"), "abc", True),
        (leaf("sw", "bc"), "abc", False),
        (leaf("sw", "ab"), None, False),
        (leaf("ew", "bc"), "abc", True),
        (leaf("ew", "ab"), "abc", False),
        (leaf("ew", "bc"), None, False),
        (leaf("ct", "b"), "abc", True),
        (leaf("ct", "ac"), "abc", False),
        (leaf("ct", "b"), None, False),
        (leaf("gt", "9"), "10", True),
        (leaf("gt", "9"), "9", False),
        (leaf("gt", "9"), "9.0000000000000000001", True),
        (leaf("gt", "-1"), "-0.5", True),
        (leaf("gt", "9007199254740992"), "9007199254740993", True),
        (leaf("gte", "9"), "9.00", True),
        (leaf("gte", "9"), "+09", True),
        (leaf("gte", "9"), "8.99", False),
        (leaf("lt", "10"), "9", True),
        (leaf("lt", "10"), "10", False),
        (leaf("lte", "0.3"), "0.30", True),
        (leaf("lte", "0.3"), "0.31", False),
        # Neither more nor less than anything.
        *((leaf(cmp, "1"), value, False) for cmp in ("gt", "gte", "lt", "lte") for value in (None, "", "ten")),
        *(
            (leaf("gte", "0"), text, False)
            for text in ("1e3", "inf", "nan", " 1", "1\n", "1_0", ".5", "1.", "+", "\u0661")
        ),
        *((leaf("lte", "0"), text, False) for text in ("-inf", "-", "-.5", "--1")),
        (leaf("gt", "ten"), "11", False),
        (leaf("lte", "ten"), "11", False),
    ],
)
def test_a_comparison_looks_at_one_tag(node: FilterNode, value: str | None, passes: bool) -> None:
    tags = {"other": "a"} if value is None else {"other": "a", "tag": value}

    assert compile_filter(node)(tags) is passes


@pytest.mark.parametrize(
    ("node", "tags", "passes"),
    [
        (both(PAID, LARGE), {"status": "paid", "total": "100"}, True),
        (both(PAID, LARGE), {"status": "paid", "total": "99"}, False),
        (both(PAID, LARGE), {"total": "100"}, False),
        (both(PAID), {"status": "paid"}, True),
        (either(PAID, LARGE), {"status": "open", "total": "100"}, True),
        (either(PAID, LARGE), {"status": "paid"}, True),
        (either(PAID, LARGE), {"status": "open", "total": "99"}, False),
        (either(PAID, LARGE), {}, False),
        (negated(PAID), {"status": "paid"}, False),
        (negated(PAID), {}, True),
        (negated(negated(PAID)), {"status": "paid"}, True),
        (negated(LARGE), {"total": "many"}, True),
        (both(either(PAID, LARGE), negated(both(PAID, LARGE))), {"status": "paid", "total": "5"}, True),
        (both(either(PAID, LARGE), negated(both(PAID, LARGE))), {"status": "paid", "total": "500"}, False),
    ],
)
def test_operations_combine_comparisons(node: FilterNode, tags: dict[str, str], passes: bool) -> None:
    assert compile_filter(node)(tags) is passes


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (FilterNode(op="xor", nodes=[PAID]), "There is no operation 'xor'; there are and, or, not."),
        (FilterNode(op="and"), "The operation and needs nodes."),
        (FilterNode(op="or"), "The operation or needs nodes."),
        (FilterNode(op="not"), "The operation not needs nodes."),
        (negated(PAID, LARGE), "The operation not has exactly one node."),
        (FilterNode(), "There is no comparison ''; there are eq, neq, in,"),
        (FilterNode(key="tag", cmp="like", val="a"), "There is no comparison 'like'; there are eq, neq, in,"),
        (FilterNode(cmp="eq", val="a"), "The comparison eq needs the key of a tag."),
        (FilterNode(cmp="ex"), "The comparison ex needs the key of a tag."),
        (leaf("in"), "The comparison in needs vals."),
        (leaf("nin", val="a"), "The comparison nin takes no val."),
        (leaf("eq"), "The comparison eq needs val."),
        (leaf("sw"), "The comparison sw needs val."),
        (leaf("gt", "1", ["1"]), "The comparison gt takes no vals."),
        (leaf("ex", "a"), "The comparison ex takes no val."),
        (leaf("nex", vals=["a"]), "The comparison nex takes no vals."),
        (FilterNode(key="tag", cmp="eq", val="a", nodes=[PAID]), "A comparison has no nodes; an operation (op) has."),
        (either(PAID, both(negated(leaf("in")))), "The comparison in needs vals."),
        (nested(MAX_DEPTH + 1), "The nodes of a filter are nested at most 16 deep."),
        (nested(500), "The nodes of a filter are nested at most 16 deep."),
        (either(*[PAID] * MAX_NODES), "A filter has at most 128 nodes."),
        (both(*[either(*[PAID] * 20)] * 7), "A filter has at most 128 nodes."),
    ],
)
def test_a_node_that_is_not_valid_is_refused_with_a_sentence(node: FilterNode, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        compile_filter(node)


@pytest.mark.parametrize("node", [nested(MAX_DEPTH), either(*[PAID] * (MAX_NODES - 1))])
def test_a_filter_may_be_as_large_as_the_limits(node: FilterNode) -> None:
    assert compile_filter(node)({"status": "paid"})


def test_filters_that_say_the_same_share_their_key() -> None:
    terse = msgspec.json.decode(b'{"key":"tag","cmp":"in","vals":["a","b"]}', type=FilterNode)
    wordy = msgspec.json.decode(
        b'{"vals":["a","b"],"nodes":[],"op":"","val":"","cmp":"in","key":"tag"}', type=FilterNode
    )

    assert filter_key(terse) == filter_key(wordy)
    assert filter_key(terse) != filter_key(leaf("in", vals=["a", "c"]))
    assert filter_key(negated(terse)) != filter_key(terse)


# Compared with the rules as they are written down, followed from node to node.

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
RELATIONS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "gt": lambda tag, val: tag > val,
    "gte": lambda tag, val: tag >= val,
    "lt": lambda tag, val: tag < val,
    "lte": lambda tag, val: tag <= val,
}


def passes(node: FilterNode, tags: Mapping[str, str]) -> bool:
    match node.op:
        case "and":
            return all(passes(child, tags) for child in node.nodes)
        case "or":
            return any(passes(child, tags) for child in node.nodes)
        case "not":
            return not passes(node.nodes[0], tags)
    there, tag = node.key in tags, tags.get(node.key, "")
    match node.cmp:
        case "eq":
            return there and tag == node.val
        case "neq":
            return not there or tag != node.val
        case "in":
            return tag in node.vals
        case "nin":
            return tag not in node.vals
        case "ex":
            return there
        case "nex":
            return not there
        case "sw":
            return there and tag[: len(node.val)] == node.val
        case "ew":
            return there and tag[-len(node.val) :] == node.val
        case "ct":
            return there and tag.find(node.val) != -1
    numbers = there and NUMBER.fullmatch(tag) and NUMBER.fullmatch(node.val)
    return bool(numbers) and RELATIONS[node.cmp](Decimal(tag), Decimal(node.val))


keys = st.sampled_from("abc")
texts = st.sampled_from(["x", "y", "xy", "yx", "0", "1", "1.0", "-1", "10", "2.5", "1e1", "é"])
values = texts | st.just("")
leaves = (
    st.builds(
        FilterNode,
        key=keys,
        cmp=st.sampled_from(["eq", "neq", "sw", "ew", "ct", "gt", "gte", "lt", "lte"]),
        val=texts,
    )
    | st.builds(FilterNode, key=keys, cmp=st.sampled_from(["in", "nin"]), vals=st.lists(values, min_size=1, max_size=3))
    | st.builds(FilterNode, key=keys, cmp=st.sampled_from(["ex", "nex"]))
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.builds(FilterNode, op=st.sampled_from(["and", "or"]), nodes=st.lists(inner, min_size=1, max_size=4))
        | st.builds(FilterNode, op=st.just("not"), nodes=st.lists(inner, min_size=1, max_size=1))
    ),
    max_leaves=12,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(trees.filter(lambda tree: filter_key(tree).count(b'"op"') < MAX_DEPTH), st.dictionaries(keys, values))
def test_a_compiled_filter_judges_as_the_rules_do(node: FilterNode, tags: dict[str, str]) -> None:
    assert compile_filter(node)(tags) is passes(node, tags)
