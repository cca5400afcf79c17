"""Requests to the ASGI applications beside Django, and their answers: JSON, and problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from notifications.delivery.auth import Receive, Scope, Send, header

Headers = tuple[tuple[bytes, bytes], ...]

_encode = msgspec.json.Encoder().encode


class Response(NamedTuple):
    """A whole HTTP answer."""

    status: int
    body: bytes
    content_type: str
    headers: Headers = ()


class Problem(Exception):
    """A request that is answered with a problem document: its HTTP status, and a sentence that says what is wrong."""

    def __init__(self, status: int, detail: str, *, headers: Headers = (), **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        document = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
        self.response = Response(status, _encode(document), "application/problem+json", headers)


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def json_response(value: Any, status: int = 200) -> Response:
    """`value` as JSON."""
    return Response(status, _encode(value), "application/json")


def allow_only(scope: Scope, *methods: str) -> None:
    """Raise Problem 405 for a request with any other method."""
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        detail = f"{scope['path']} is asked with {methods[0]}, not with {scope['method']}"
        raise Problem(405, detail, headers=((b"allow", allowed.encode()),))


def content_type(scope: Scope) -> str:
    """The media type of the body, in lower case and without parameters, or ""."""
    return header(scope, b"content-type").partition(";")[0].strip().lower()


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The request's body. Raises Problem 413 above `limit` bytes, and ClientGone when it does not end."""
    announced = header(scope, b"content-length")
    if announced.isdecimal() and int(announced[:19]) > limit:
        raise too_large(limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def too_large(limit: int) -> Problem:
    """The Problem 413 of a body above `limit` bytes."""
    return Problem(413, f"the body has more than {limit} bytes")


async def respond(scope: Scope, send: Send, response: Response) -> None:
    """Send an answer; without its body where the request is HEAD."""
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", b"%d" % len(response.body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})
