"""The opening handshake of a WebSocket (RFC 6455 §4): the request read and judged, the responses written."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

from notifications.delivery.frames import DEFLATE_WINDOW_BITS

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_WINDOW_BITS = {str(bits).encode(): bits for bits in range(8, 16)}

Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """A request that opens no WebSocket, and the HTTP response that says why."""

    def __init__(self, status: int, reason: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = list(headers)


class Request(NamedTuple):
    """A valid request to open a WebSocket."""

    path: bytes
    query: bytes
    headers: Headers
    key: bytes
    subprotocols: list[str]
    #: Whether the client takes compressed messages as the hub makes them.
    deflate: bool


def read_request(data: bytes) -> Request:
    """The request that the HTTP server passes on, one header per line, as it has parsed it.

    Raises Refused when it is no valid handshake.
    """
    request_line, *lines = data[: data.index(b"\r\n\r\n")].split(b"\r\n")
    method, target, _ = request_line.split(b" ", 2)
    headers: Headers = []
    values: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        headers.append((name, value))
        values.setdefault(name, []).append(value)
    if method != b"GET":
        raise Refused(405, "a WebSocket is opened with GET", [(b"allow", b"GET")])
    if len(values.get(b"host", ())) != 1:
        raise Refused(400, "a request has one Host header")
    if not {b"websocket"} & _tokens(values, b"upgrade") or not {b"upgrade"} & _tokens(values, b"connection"):
        raise Refused(426, "this is a WebSocket: ask for an upgrade to it", [(b"upgrade", b"websocket")])
    if values.get(b"sec-websocket-version") != [b"13"]:
        raise Refused(426, "only version 13 of the protocol is spoken here", [(b"sec-websocket-version", b"13")])
    if not target.startswith(b"/"):  # an absolute URI (§4.2.1)
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    return Request(
        path=path,
        query=query,
        headers=headers,
        key=_key(values.get(b"sec-websocket-key", [])),
        # Older clients send the header empty, which offers nothing.
        subprotocols=[
            token.strip().decode("latin-1")
            for value in values.get(b"sec-websocket-protocol", ())
            for token in value.split(b",")
            if token.strip()
        ],
        deflate=any(_is_possible(offer) for offer in _offers(values.get(b"sec-websocket-extensions", ()))),
    )


def _tokens(values: dict[bytes, list[bytes]], name: bytes) -> set[bytes]:
    return {token.strip().lower() for value in values.get(name, ()) for token in value.split(b",")}


def _key(given: list[bytes]) -> bytes:
    try:
        nonce = base64.b64decode(given[0], validate=True) if len(given) == 1 else b""
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise Refused(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    return given[0]


def _offers(values: Iterable[bytes]) -> Iterable[list[bytes]]:
    """The parameters of each offer of permessage-deflate."""
    for value in values:
        for offer in value.split(b","):
            name, *parameters = (part.strip().lower() for part in offer.split(b";"))
            if name == b"permessage-deflate":
                yield parameters


def _is_possible(parameters: list[bytes]) -> bool:
    """Whether the hub can accept an offer of permessage-deflate, and it is well-formed (RFC 7692 §7.1)."""
    seen: set[bytes] = set()
    for parameter in parameters:
        name, has_value, value = (part.strip() for part in parameter.partition(b"="))
        bits = _WINDOW_BITS.get(value.strip(b'"'))
        if name in seen:
            return False
        seen.add(name)
        if name == b"server_max_window_bits":
            if bits is None or bits < DEFLATE_WINDOW_BITS:
                return False
        elif name == b"client_max_window_bits":
            if has_value and bits is None:
                return False
        elif name not in (b"server_no_context_takeover", b"client_no_context_takeover") or has_value:
            return False
    return True


def accepted(
    request: Request, *, deflate: bool, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The response that opens the WebSocket."""
    answer = base64.b64encode(hashlib.sha1(request.key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + answer,
    ]
    if subprotocol:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("latin-1"))
    if deflate:
        # Without context takeover a compressed frame fits every receiver, and no context is kept for any.
        lines.append(
            b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
            b"client_no_context_takeover; server_max_window_bits=%d" % DEFLATE_WINDOW_BITS
        )
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def response(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An ordinary HTTP response, after which the connection is closed."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    for name, value in (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ):
        if name not in names:
            given.append((name, value))
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}".encode(), *(name + b": " + value for name, value in given)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
