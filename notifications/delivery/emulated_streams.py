"""`/connection/sse` and `/connection/http_stream`: sessions of the Centrifuge protocol on a streamed answer.

The request that opens a session has its first commands, `connect` above all; see `emulation.py` for those after it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import NamedTuple
from urllib.parse import parse_qs

from notifications.delivery import passport
from notifications.delivery.auth import Receive, Scope, Send, client_of, cookies_of, identity_of_cookies
from notifications.delivery.cross_origin import refused_cookies
from notifications.delivery.frames import Framing
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.base import WireProtocol
from notifications.delivery.protocols.centrifuge import EMULATED, EMULATED_PROTOBUF
from notifications.delivery.responses import Problem, content_type, read_body, too_large
from notifications.delivery.session import Session
from notifications.delivery.switchboard import current_switchboard
from notifications.delivery.transports import AsgiStreamTransport, until_disconnected
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable

logger = logging.getLogger(__name__)

OCTETS = "application/octet-stream"

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def sse_event(payload: bytes) -> bytes:
    """JSON as one Server-Sent Event."""
    return b"data: " + payload + b"\n\n"


def ascii_line(payload: bytes) -> bytes:
    """JSON as one line, in ASCII: the JavaScript SDK decodes each piece that it reads from the network by itself, and
    a character whose bytes come in two pieces would be lost.
    """
    if not payload.isascii():  # outside of strings JSON has no other characters
        payload = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], payload.decode()).encode()
    return payload + b"\n"


def delimited(payload: bytes) -> bytes:
    """A binary message, which has its length before it already."""
    return payload


class StreamKind(NamedTuple):
    """What is spoken on a stream, and how; `prelude` is sent first.

    The framing is a function of the module, so that all sessions with it share their frames.
    """

    protocol: WireProtocol
    framing: Framing
    content_type: bytes
    prelude: bytes = b""


# The empty line makes proxies that wait for a body's first bytes hand it on.
SSE = StreamKind(EMULATED, sse_event, b"text/event-stream; charset=utf-8", b"\r\n")
JSON_LINES = StreamKind(EMULATED, ascii_line, b"application/json")
MESSAGES = StreamKind(EMULATED_PROTOBUF, delimited, OCTETS.encode())


async def sse(scope: Scope, receive: Receive, send: Send) -> None:
    """`/connection/sse?cf_connect=…`: for `EventSource`; a POST has the commands in its body. Raises Problem."""
    limit = conf.get("HUB_MAX_MESSAGE_BYTES")
    if scope["method"] == "POST":
        body = await read_body(scope, receive, limit=limit)
    else:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        body = query.get("cf_connect", [""])[0].encode()
        if len(body) > limit:
            raise too_large(limit)
    await _stream(scope, receive, send, SSE, body)


async def http_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """`/connection/http_stream`: for `fetch()`. Raises Problem."""
    kind = MESSAGES if content_type(scope) == OCTETS else JSON_LINES
    limit = conf.get("HUB_MAX_MESSAGE_BYTES")
    await _stream(scope, receive, send, kind, await read_body(scope, receive, limit=limit))


async def _stream(scope: Scope, receive: Receive, send: Send, kind: StreamKind, body: bytes) -> None:
    """Have a session for as long as the answer is streamed. Raises Problem before it begins."""
    commands = body if kind.protocol.binary else _text(body)
    try:
        switchboard = await current_switchboard()
        identity = await _identity(scope)
    except LogUnavailable as error:
        raise Problem(503, str(error)) from error
    refusal = switchboard.refusal()
    if refusal is not None:
        raise Problem(refusal.status, refusal.reason, headers=refusal.headers)
    receiving = asyncio.create_task(until_disconnected(receive))
    transport = AsgiStreamTransport(scope, send, receiving, kind.framing)
    session = Session(switchboard, kind.protocol, transport, identity, **client_of(scope))
    try:
        # From here on without waiting, so that a process that stops closes this session with the others.
        transport.begin([(b"content-type", kind.content_type), *passport.set_cookie(identity)], kind.prelude)
        session.opened()
        session.feed(commands)
        await asyncio.wait([receiving])
    finally:
        receiving.cancel()
        session.closed()


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Problem(400, f"the commands are not UTF-8: {error}") from error


async def _identity(scope: Scope) -> Identity:
    refusal = refused_cookies(scope)
    if refusal is not None:
        logger.warning("%s %s refused: %s", scope["method"], scope["path"], refusal)
        raise Problem(403, refusal)
    return await identity_of_cookies(cookies_of(scope))
