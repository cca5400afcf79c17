"""WebSockets byte by byte: a client that builds and parses frames itself.

So it can break every rule of RFC 6455, and notices when the server breaks one.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
#: The key of the example in RFC 6455 §1.3, and the Sec-WebSocket-Accept that answers it.
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x37\xfa\x21\x3d"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length_bytes: int | None = None,
    claimed: int | None = None,
) -> bytes:
    """A frame as a client sends it, or not.

    `reserved` are the three reserved bits as a number; `length_bytes` (0, 2 or 8) how many bytes follow the short
    length; `claimed` the length that the header states, whatever follows.
    """
    length = len(payload) if claimed is None else claimed
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65_536 else 8
    short = {0: length, 2: 126, 8: 127}[length_bytes]
    head = bytes((fin << 7 | reserved << 4 | opcode, (mask is not None) << 7 | short))
    head += length.to_bytes(length_bytes, "big") if length_bytes else b""
    return head + payload if mask is None else head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload under a mask (RFC 6455 §5.3)."""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    """A close frame of a client."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def request(path: str = "/", *lines: str | bytes, without: Iterable[str] = (), line: str | None = None) -> bytes:
    """The request of a handshake: the headers that it must have, but for those in `without`, and further `lines`."""
    headers = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY.decode(),
        "Sec-WebSocket-Version": "13",
    }
    sent: list[str | bytes] = [line or f"GET {path} HTTP/1.1"]
    sent += [f"{name}: {value}" for name, value in headers.items() if name not in without]
    sent += lines
    return b"".join((part if isinstance(part, bytes) else part.encode("latin-1")) + b"\r\n" for part in [*sent, b""])


class Response(NamedTuple):
    """The answer to a handshake: status, headers in their order with lower-case names, body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for given, value in self.headers if given == name]


class Frame(NamedTuple):
    """A frame of the server."""

    opcode: int
    payload: bytes
    fin: bool = True


def read_head(data: bytes) -> tuple[int, list[tuple[str, str]]]:
    """Status and headers of a response, without the empty line that ends it."""
    status_line, *lines = data.decode("latin-1").split("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def parsed(data: bytes) -> tuple[Frame, bytes] | None:
    """The first frame of a server, and what is behind it; None while it is incomplete.

    Servers do not mask, set no reserved bit and encode lengths minimally (§5.1, §5.2).
    """
    if len(data) < 2:
        return None
    assert data[0] & 0x70 == 0, "reserved bits"
    assert data[1] & 0x80 == 0, "masked"
    length, start = data[1], 2
    if length > 125:
        start, least = (4, 126) if length == 126 else (10, 65_536)
        if len(data) < start:
            return None
        length = int.from_bytes(data[2:start], "big")
        assert length >= least, "not minimal"
    end = start + length
    return None if len(data) < end else (Frame(data[0] & 0x0F, data[start:end], bool(data[0] & 0x80)), data[end:])


class Peer:
    """A client on a real socket; every wait has an end, after which it raises TimeoutError."""

    def __init__(self, port: int, *, seconds: float = 5.0, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(seconds)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unread = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> None:
        """Send bytes, each argument in a call of its own."""
        for piece in data:
            self.socket.sendall(piece)

    def _until(self, enough: Callable[[bytes], bool]) -> None:
        while not enough(self.unread):
            more = self.socket.recv(65_536)
            if not more:
                raise EOFError(self.unread)
            self.unread += more

    def _take(self, size: int) -> bytes:
        self._until(lambda unread: len(unread) >= size)
        taken, self.unread = self.unread[:size], self.unread[size:]
        return taken

    def response(self) -> Response:
        """The answer to the handshake; raises EOFError when there is none."""
        self._until(lambda unread: b"\r\n\r\n" in unread)
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        status, headers = read_head(head)
        length = next((int(value) for name, value in headers if name == "content-length"), 0)
        return Response(status, headers, self._take(length))

    def frame(self) -> Frame:
        """The next frame."""
        self._until(lambda unread: parsed(unread) is not None)
        complete = parsed(self.unread)
        assert complete is not None
        found, self.unread = complete
        return found

    def text(self) -> str:
        """The payload of the next frame, which is text."""
        opcode, payload, fin = self.frame()
        assert (opcode, fin) == (TEXT, True), (opcode, payload)
        return payload.decode()

    def closed(self) -> int | None:
        """The code of the close frame that comes next, if it has one; the end of the connection follows it."""
        opcode, payload, _ = self.frame()
        assert opcode == CLOSE, (opcode, payload)
        assert len(payload) != 1
        payload[2:].decode()
        self.ends()
        return int.from_bytes(payload[:2], "big") if payload else None

    def ends(self) -> None:
        """Wait for the end of the connection; nothing comes before it."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            pytest.fail(f"instead of the end came {self._take(1)!r}")

    def vanish(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
