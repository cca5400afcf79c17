"""WebSocket messages out of bytes: the receiving half of RFC 6455, without input or output of its own."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the platform has no compiled part of the library
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
#: Not an opcode of the protocol: what was received breaks it, and the connection must be failed (§7.1.7).
FAIL = -1

_FIN, _RESERVED1, _RESERVED, _MASKED = 0x80, 0x40, 0x70, 0x80
_CONTROL_LIMIT = 125
_EMPTY = b""
# What the sender of a compressed message left out (RFC 7692 §7.2.2).
_DEFLATE_TAIL = b"\x00\x00\xff\xff"


class Received(NamedTuple):
    """Something that a client sent.

    `payload` is str for TEXT, bytes for BINARY, PING and PONG, and (code, reason) for CLOSE and FAIL; the code is
    1005 for a close frame without one.
    """

    opcode: int
    payload: Any


def may_be_sent(code: int) -> bool:
    """Whether a close code may stand in a close frame (§7.4, and the registry that it founds)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


class MessageParser:
    """Turns the bytes of one client into messages.

    A message of more than `max_size` bytes, summed over its fragments and decompressed, fails the connection with
    1009 as soon as its size is known. After a CLOSE or FAIL nothing more is read.
    """

    __slots__ = ("_buffer", "_compressed", "_finished", "_fragments", "_opcode", "_size", "inflates", "max_size")

    def __init__(self, *, max_size: int) -> None:
        self.max_size = max_size
        #: Whether permessage-deflate was agreed on, without context takeover (RFC 7692).
        self.inflates = False
        self._buffer: bytes | bytearray = _EMPTY
        self._fragments: list[bytes] | None = None
        self._opcode = CONTINUATION
        self._compressed = False
        self._size = 0
        self._finished = False

    def feed(self, data: bytes) -> list[Received]:
        """The messages that `data` completes, in order."""
        if self._finished:
            return []
        if self._buffer:
            # Only what is incomplete is copied, and grows in place: a frame in many pieces costs no more than its size.
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        else:
            self._buffer = data
        received: list[Received] = []
        position, size = 0, len(self._buffer)
        while position < size and not self._finished:
            after = self._frame(self._buffer, position, received)
            if after == position:
                break
            position = after
        self._buffer = _EMPTY if self._finished or position == size else self._buffer[position:]
        return received

    def hold(self, data: bytes) -> None:
        """Keep bytes that came too early, for the next `feed()`."""
        self._buffer = bytes(self._buffer) + data

    @property
    def held(self) -> int:
        """Bytes of what is incomplete."""
        return len(self._buffer)

    def _frame(self, data: bytes | bytearray, start: int, received: list[Received]) -> int:
        """Read the frame that begins at `start`; returns where the next begins, or `start` when it is incomplete."""
        available = len(data) - start
        if available < 2:
            return start
        first, second = data[start], data[start + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if (failure := self._refused(first, second)) is not None:
            return self._fail(received, start, 1002, failure)
        header = 6
        if length > _CONTROL_LIMIT:
            header, least = (8, 126) if length == 126 else (14, 65_536)
            if available < header - 4:
                return start
            length = int.from_bytes(data[start + 2 : start + header - 4], "big")
            if not least <= length < 1 << 63:
                return self._fail(received, start, 1002, "the length is not encoded as it must be")  # §5.2
        if opcode < CLOSE and (self._size if opcode == CONTINUATION else 0) + length > self.max_size:
            return self._fail(received, start, 1009, "message too big")
        if available < header + length:
            return start
        end = start + header + length
        payload = apply_mask(data[start + header : end], data[start + header - 4 : start + header])
        if opcode >= CLOSE:
            self._control(opcode, payload, received)
        else:
            self._data(first, opcode, payload, received)
        return end

    def _refused(self, first: int, second: int) -> str | None:
        """Why a frame that begins with these two bytes breaks the protocol, or None."""
        opcode, reserved = first & 0x0F, first & _RESERVED
        if reserved and not (reserved == _RESERVED1 and self.inflates and opcode in (TEXT, BINARY)):
            return "reserved bits are set"  # §5.2
        if not second & _MASKED:
            return "frames of a client are masked"  # §5.1
        if BINARY < opcode < CLOSE or opcode > PONG:
            return "unknown opcode"  # §5.2
        if opcode >= CLOSE:
            whole = first & _FIN and second & 0x7F <= _CONTROL_LIMIT
            return None if whole else "control frames are short and whole"  # §5.5
        if (opcode == CONTINUATION) is (self._fragments is None):
            return "a fragment is out of place"  # §5.4
        return None

    def _fail(self, received: list[Received], start: int, code: int, reason: str) -> int:
        received.append(Received(FAIL, (code, reason)))
        self._finished = True
        return start

    def _control(self, opcode: int, payload: bytes, received: list[Received]) -> None:
        if opcode != CLOSE:
            received.append(Received(opcode, payload))
            return
        self._finished = True
        if not payload:
            received.append(Received(CLOSE, (1005, "")))
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) < 2 or not may_be_sent(code):
            received.append(Received(FAIL, (1002, "invalid close code")))
            return
        try:
            received.append(Received(CLOSE, (code, payload[2:].decode())))
        except UnicodeDecodeError:
            received.append(Received(FAIL, (1007, "the reason is not UTF-8")))  # §8.1

    def _data(self, first: int, opcode: int, payload: bytes, received: list[Received]) -> None:
        if opcode != CONTINUATION:
            self._opcode, self._compressed = opcode, bool(first & _RESERVED1)
            if not first & _FIN:
                self._fragments, self._size = [payload], len(payload)
                return
        else:
            assert self._fragments is not None
            if payload:  # empty ones never reach the limit, and would pile up
                self._fragments.append(payload)
                self._size += len(payload)
            if not first & _FIN:
                return
            payload, self._fragments = b"".join(self._fragments), None
        self._message(payload, received)

    def _message(self, payload: bytes, received: list[Received]) -> None:
        if self._compressed:
            inflated = self._inflated(payload)
            if isinstance(inflated, tuple):
                self._fail(received, 0, *inflated)
                return
            payload = inflated
        if self._opcode == BINARY:
            received.append(Received(BINARY, payload))
            return
        try:
            received.append(Received(TEXT, payload.decode()))
        except UnicodeDecodeError:
            self._fail(received, 0, 1007, "text is UTF-8")  # §8.1

    def _inflated(self, payload: bytes) -> bytes | tuple[int, str]:
        """The message that was compressed, or why there is none. A new context each time: nothing is kept for it."""
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than may be, so that a small frame cannot blow up to any size before it is refused.
            inflated = inflating.decompress(payload + _DEFLATE_TAIL, self.max_size + 1)
        except zlib.error:
            return 1007, "the message is not compressed as agreed"
        return (1009, "message too big") if len(inflated) > self.max_size else inflated
