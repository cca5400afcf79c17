"""Deltas between payloads, applied by the decoder of the Python SDK."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notifications.delivery.fossil import MAX_COPIES, checksum, create_delta, number

steady = settings(derandomize=True, database=None, deadline=None)

# Few different bytes, so that ranges repeat, among them zeros and parts of characters.
repetitive = st.lists(
    st.sampled_from([b"\0", b"\0" * 12, b"a", b"abcdefghijkl", b"\x80\xbf", b"\xff", "é€😀".encode(), b'{"key":1},']),
    max_size=60,
).map(b"".join)
payloads = st.binary(max_size=200) | repetitive

names = st.text(st.sampled_from('aébß€漢😀\x00"\\'), max_size=20)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(names, inner, max_size=8),
    max_leaves=40,
)


def encoded(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def dashboard(at: int) -> dict[str, Any]:
    """A document of about 2 KB."""
    return {
        "at": at,
        "place": "Zürich",
        "hosts": [{"name": f"web-{host}", "requests": 1_000 + host, "status": "gut ✓"} for host in range(40)],
    }


def applied(source: bytes, delta: bytes) -> bytes:
    return bytes(apply_delta(source, delta))


@steady
@given(payloads, payloads)
@example(b"a" * 10, b"a" * 10 + b"\0" * 5)
@example(b"\0" * 5 + b"a" * 10, b"a" * 10)
def test_a_delta_makes_the_target_out_of_the_source(source: bytes, target: bytes) -> None:
    assert applied(source, create_delta(source, target)) == target


@steady
@given(repetitive, repetitive, repetitive, repetitive, repetitive)
def test_moved_and_changed_parts_are_put_together_again(
    begin: bytes, first: bytes, second: bytes, new: bytes, end: bytes
) -> None:
    source = begin + first + second + end
    target = begin + second + new + first + end

    assert applied(source, create_delta(source, target)) == target


@steady
@given(documents, documents)
def test_a_delta_between_texts_is_a_text(before: Any, after: Any) -> None:
    source, target = encoded([before, after, "same"]), encoded([after, before, "same"])

    delta = create_delta(source, target)

    assert applied(source, delta.decode().encode()) == target


@steady
@given(st.lists(st.sampled_from(["é", "è", "ĩ", "漢", "滢", "😀", "😁", "a"]), max_size=80), st.data())
def test_characters_that_differ_in_one_byte_are_inserted_as_a_whole(characters: list[str], data: st.DataObject) -> None:
    changed = [data.draw(st.sampled_from([each, "é", "ĩ", "漢", "😁"])) for each in characters]
    source, target = "".join(characters).encode(), "".join(changed).encode()

    delta = create_delta(source, target)

    assert applied(source, delta.decode().encode()) == target


@pytest.mark.parametrize(
    ("source", "target", "delta"),
    [
        (b"", b"", b"0\n0;"),
        (b"something", b"", b"0\n0;"),
        (b"", b"abcd", b"4\n4:abcd1XObD_;"),
        (b"", b"abcde", b"5\n5:abcde36ObD_;"),
        (b"the same again", b"the same again", b"E\nE@0,1mbJcb;"),
        # Two lengths of two digits, and an offset.
        (b"0" * 70 + b"1" * 70, b"0" * 70 + b"-" + b"1" * 70, b"2D\n16@0,1:-16@16,3OevIY;"),
        # é and è share their first byte, which is not copied without the second.
        ("Andréa Müller".encode(), "Andrèa Müller".encode(), "F\n6:Andrè9@6,2~F~Fz;".encode()),
        # é and ĩ share their last byte.
        ("Andréa Müller".encode(), "Andrĩa Müller".encode(), "F\n6:Andrĩ9@6,30GFFz;".encode()),
        # From its first byte to its last, wherever it is looked up.
        (b"abcdefghijklmnopqrstuvwxyz", b"-bcdefghijklmnopqrstuvwxy-", b"Q\n1:-O@1,1:-39iu2K;"),
    ],
)
def test_deltas_in_full(source: bytes, target: bytes, delta: bytes) -> None:
    assert create_delta(source, target) == delta
    assert applied(source, delta) == target


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, b"0"),
        (63, b"~"),
        (64, b"10"),
        (4095, b"~~"),
        (4096, b"100"),
        # The examples of the format's description.
        (6246, b"1Xb"),
        (2**32 - 1101438770, b"2zMM3E"),
        (2**32 - 1, b"3~~~~~"),
    ],
)
def test_numbers_are_written_in_base_64(value: int, text: bytes) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("data", "total"),
    [
        (b"", 0),
        (b"\x01", 0x01000000),
        (b"\x01\x02\x03\x04\x05", 0x06020304),
        (b"\xff\xff\xff\xff\0\0\0\x02", 1),
    ],
)
def test_the_checksum_is_the_sum_of_words(data: bytes, total: int) -> None:
    assert checksum(data) == total


def test_a_payload_that_did_not_change_takes_a_few_bytes() -> None:
    payload = encoded(dashboard(1))

    assert len(create_delta(payload, payload)) < 20


def test_a_changed_number_takes_a_few_bytes() -> None:
    before, after = dashboard(1), dashboard(1)
    after["hosts"][20]["requests"] = 123_456

    delta = create_delta(encoded(before), encoded(after))

    assert len(encoded(after)) > 2_000
    assert len(delta) < 40
    assert applied(encoded(before), delta) == encoded(after)


def test_changes_in_several_places_take_a_few_bytes_each() -> None:
    before, after = dashboard(1), dashboard(2)
    for host in (5, 15, 25, 35):
        after["hosts"][host]["requests"] = 123_456
    after["hosts"].insert(10, {"name": "neu", "requests": 1, "status": "—"})
    del after["hosts"][30]

    delta = create_delta(encoded(before), encoded(after))

    assert len(delta) < 200
    assert applied(encoded(before), delta) == encoded(after)


def test_parts_in_another_order_are_found() -> None:
    before = dashboard(1)
    after = {**before, "hosts": before["hosts"][20:] + before["hosts"][:20]}

    assert len(create_delta(encoded(before), encoded(after))) < 100


def test_one_part_of_many_that_are_alike_is_copied_from_its_own_place() -> None:
    rows = [b'{"title":"the same in every row","number":%d},' % row for row in range(200)]
    changed = [b"!" + row if index % 20 == 0 else row for index, row in enumerate(rows)]

    delta = create_delta(b"".join(rows), b"".join(changed))

    # An insert and a copy for each change, and nothing for the rows between.
    assert delta.count(b"@") == 10


def test_a_payload_with_nothing_in_common_costs_no_more_than_its_own_length_and_some_bytes() -> None:
    chance = random.Random(1)
    source, target = chance.randbytes(20_000), chance.randbytes(20_000)

    assert len(create_delta(source, target)) < len(target) + 20


@pytest.mark.parametrize("length", [12, 40])
def test_the_work_for_very_different_payloads_is_bounded(length: int) -> None:
    chance = random.Random(1)
    words = [f"{chance.randrange(16**length):0{length}x}" for _ in range(2 * MAX_COPIES)]
    source, target = "".join(words).encode(), "-".join(chance.sample(words, len(words))).encode()

    delta = create_delta(source, target)

    assert delta.count(b"@") == MAX_COPIES
    assert applied(source, delta) == target
