"""Deltas between payloads, in the format of Fossil (https://fossil-scm.org/home/doc/trunk/www/delta_format.wiki).

A delta makes a target out of a source that its reader has, from ranges of the source and from text of its own:
`SIZE\\n`, then `LENGTH@OFFSET,` or `LENGTH:text` as often as it takes, and `CHECKSUM;`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: A range of the target, from its first byte up to its end, and where it begins in the source.
Copy = tuple[int, int, int]

#: How many bytes of the middle have to be equal to be found, and at which distance they are looked up in the source.
BLOCK = 12
STRIDE = 4
#: How many bytes after an earlier copy a block is looked for first: repeated parts mostly keep their order.
NEAR = 512
#: How many equal bytes are no coincidence, so that no more are looked for.
LONG = 64
#: Copying fewer bytes than these takes as many as inserting them.
MIN_COPY = 8
#: Bounds of the work: blocks of the source that are looked up, and copies in the middle; what follows is inserted.
MAX_BLOCKS = 16_384
MAX_COPIES = 2_048

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
#: The numbers of one and two digits, which are most of those in a delta.
NUMBERS: tuple[bytes, ...] = tuple((high + low).encode() for high in ("", *DIGITS[1:]) for low in DIGITS)


def create_delta(source: bytes, target: bytes) -> bytes:
    """The delta that makes `target` out of `source`; longer than `target` where they have little in common.

    Where `target` is UTF-8 the delta is too: no insert begins or ends within a character.
    """
    size, done = len(target), 0
    delta = [number(size), b"\n"]
    for start, stop, offset in _copies(source, target):
        # Without the parts of characters at its ends, which are inserted whole.
        while start < stop and target[start] & 0xC0 == 0x80:
            start += 1
            offset += 1
        while start < stop < size and target[stop] & 0xC0 == 0x80:
            stop -= 1
        if stop - start < MIN_COPY:
            continue
        if start > done:
            delta += number(start - done), b":", target[done:start]
        delta += number(stop - start), b"@", number(offset), b","
        done = stop
    if done < size:
        delta += number(size - done), b":", target[done:]
    delta += number(checksum(target)), b";"
    return b"".join(delta)


def number(value: int) -> bytes:
    """A number of a delta: base 64, the most significant digit first."""
    if value < len(NUMBERS):
        return NUMBERS[value]
    return number(value >> 6) + NUMBERS[value & 63]


def checksum(data: bytes) -> int:
    """The sum of the big-endian 32-bit words of `data`, filled up with zeros, modulo 2^32."""
    words = -(-len(data) // 4)
    total: int = sum(struct.unpack(f">{words}I", data.ljust(words * 4, b"\0")))
    return total & 0xFFFFFFFF


def _copies(source: bytes, target: bytes) -> Iterator[Copy]:
    """What can be copied, in the order of the target: its beginning, ranges of its middle, its end."""
    shorter = min(len(source), len(target))
    prefix = _equal_after(source, 0, target, 0, shorter)
    suffix = _equal_before(source, len(source), target, len(target), shorter - prefix)
    end = len(target) - suffix
    yield 0, prefix, 0
    if end - prefix >= BLOCK:
        yield from _copies_between(source, target, prefix, end)
    yield end, len(target), len(source) - suffix


def _copies_between(source: bytes, target: bytes, start: int, end: int) -> Iterator[Copy]:
    """What can be copied of the middle of the target; both have the same bytes before `start`."""
    size = len(source)
    stride = max(STRIDE, size // MAX_BLOCKS)
    offsets = {source[offset : offset + BLOCK]: offset for offset in range(0, size - BLOCK + 1, stride)}
    at = copied = expected = resumed = start
    missed = count = 0
    while at <= end - BLOCK and count < MAX_COPIES:
        block = target[at : at + BLOCK]
        anywhere = offsets.get(block)
        if anywhere is None:
            # Faster and faster through what has nothing in common with the source.
            missed += 1
            at += 1 + (missed >> 6)
            continue
        offset = length = 0
        # After the last copy, or after the last long one: short ones may have been of another row that is alike.
        for near in (expected, resumed):
            found = source.find(block, near, near + NEAR)
            if found >= 0:
                equal = _equal_after(source, found, target, at, min(size - found, end - at))
                if equal > length:
                    offset, length = found, equal
            if length >= LONG or expected == resumed:
                break
        if length < LONG and anywhere != offset:
            equal = _equal_after(source, anywhere, target, at, min(size - anywhere, end - at))
            if equal > length:
                offset, length = anywhere, equal
        before = _equal_before(source, offset, target, at, min(offset, at - copied))
        yield at - before, at + length, offset - before
        count += 1
        missed = 0
        at = copied = at + length
        expected = offset + length
        if length >= LONG:
            resumed = expected


def _equal_after(left: bytes, left_at: int, right: bytes, right_at: int, limit: int) -> int:
    """How many bytes are equal from these positions on, `limit` at most; both have as many."""
    equal, step = 0, 32
    while equal < limit:
        step = min(step, limit - equal)
        ours = left[left_at : left_at + step]
        theirs = right[right_at : right_at + step]
        if ours != theirs:
            different = int.from_bytes(ours, "little") ^ int.from_bytes(theirs, "little")
            return equal + _low_zero_bytes(different)
        equal += step
        left_at += step
        right_at += step
        step *= 2
    return limit


def _equal_before(left: bytes, left_at: int, right: bytes, right_at: int, limit: int) -> int:
    """How many bytes are equal up to these positions, `limit` at most; both have as many."""
    equal, step = 0, 32
    while equal < limit:
        step = min(step, limit - equal)
        ours = left[left_at - step : left_at]
        theirs = right[right_at - step : right_at]
        if ours != theirs:
            different = int.from_bytes(ours, "big") ^ int.from_bytes(theirs, "big")
            return equal + _low_zero_bytes(different)
        equal += step
        left_at -= step
        right_at -= step
        step *= 2
    return limit


def _low_zero_bytes(value: int) -> int:
    """How many of the lowest bytes of a number are zero; it is not zero itself."""
    return ((value & -value).bit_length() - 1) // 8
