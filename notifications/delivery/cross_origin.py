"""What pages of other origins may do over HTTP: nothing unless HUB_ALLOWED_ORIGINS lists them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from notifications.delivery.auth import (
    Application,
    Receive,
    Scope,
    Send,
    cookies_of,
    header,
    refused_origin,
    session_key_of,
)
from notifications.delivery.responses import ClientGone, Headers, Problem, allow_only, respond
from notifications.events import conf

logger = logging.getLogger(__name__)

#: In HUB_ALLOWED_ORIGINS: any page may come with a token, and none because of it with cookies.
ANY = "*"

_PREFLIGHT_SECONDS = 7_200


class CrossOrigin:
    """Answers preflight requests, refuses pages of foreign origins with a 403, and lets allowed ones read answers.

    What the application raises as `Problem` is answered here.
    """

    def __init__(self, application: Application, *methods: str) -> None:
        self.application = application
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _with_headers(send, ((b"vary", b"Origin"),))
        try:
            send = _with_headers(send, self._granted(scope))
            if scope["method"] == "OPTIONS":
                await self._preflight(send)
                return
            allow_only(scope, *self.methods)
            await self.application(scope, receive, send)
        except Problem as problem:
            await respond(scope, send, problem.response)
        except ClientGone:
            return

    def _granted(self, scope: Scope) -> Headers:
        """What lets the page that asks read the answer. Raises Problem."""
        origin = header(scope, b"origin")
        if not origin:
            return ()
        refusal = refused_origin(scope)
        if refusal is None:
            return (
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-credentials", b"true"),
            )
        if ANY in conf.get("HUB_ALLOWED_ORIGINS"):
            return ((b"access-control-allow-origin", b"*"),)
        logger.warning("%s %s refused: %s", scope["method"], scope["path"], refusal)
        raise Problem(403, refusal)

    async def _preflight(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", ", ".join(self.methods).encode()),
            (b"access-control-allow-headers", b"content-type"),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_SECONDS),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: Headers) -> Send:
    async def sending(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sending


def refused_cookies(scope: Scope) -> str | None:
    """Why the session cookie of a request may not count, or None when it may, or when there is none.

    A request that does something without a form's secret may come from any page that its visitor looks at: from a
    link, an image, a script. With a GET within an origin browsers send no `Origin`, but most tell that it is one, and
    that a script asks which reads the answer: a link or an image in a message of another user is not that.
    """
    if not session_key_of(cookies_of(scope)):
        return None
    if (
        not header(scope, b"origin")
        and header(scope, b"sec-fetch-site") == "same-origin"
        and header(scope, b"sec-fetch-dest") == "empty"
    ):
        return None
    return refused_origin(scope)
