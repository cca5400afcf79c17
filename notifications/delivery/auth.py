"""Who opens a connection: the Django session's user, once the origin is known to be ours."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypedDict
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.http.cookie import parse_cookie
from django.utils.crypto import constant_time_compare

from notifications.audit.origin import client_address
from notifications.delivery import passport
from notifications.delivery.identity import ANONYMOUS, Identity, auth_hash_of
from notifications.delivery.roster import short_agent
from notifications.delivery.switchboard import current_switchboard
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.events.threads import in_database_thread
from notifications.events.topics import sender_of

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str:
    """The value of a request header, or ""."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


def address_of(scope: Scope) -> str:
    """The IP address of the client, or "" if it is not known; behind proxies see `HUB_TRUSTED_PROXIES`."""
    peer = scope.get("client")
    return client_address(peer[0] if peer else None, header(scope, b"x-forwarded-for")) or ""


class Client(TypedDict):
    """What a session is told of who opened its connection."""

    address: str
    agent: str


def client_of(scope: Scope) -> Client:
    """The client of a connection: its address, and what it calls itself."""
    return {"address": address_of(scope), "agent": short_agent(header(scope, b"user-agent"))}


def login_of(session_key: str) -> str:
    """The name of a Django session in the hub: a hash, so that its key is in no message and no memory."""
    return hashlib.sha256(session_key.encode()).hexdigest()[:32]


def cookies_of(scope: Scope) -> dict[str, str]:
    """The cookies of a connection."""
    return parse_cookie(header(scope, b"cookie"))


def session_key_of(cookies: Mapping[str, str]) -> str:
    """The key of the Django session in the cookies, or ""."""
    return cookies.get(settings.SESSION_COOKIE_NAME, "")


def _load_identity(session_key: str) -> Identity:
    session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    if session.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return ANONYMOUS
    verified_at = time.time()
    users = get_user_model()
    try:
        user = users._default_manager.get(pk=users._meta.pk.to_python(session[SESSION_KEY]))
    except (KeyError, ValueError, users.DoesNotExist):
        return ANONYMOUS
    stored, current = session.get(HASH_SESSION_KEY), user.get_session_auth_hash()
    if not user.is_active or not stored or not constant_time_compare(stored, current):
        return ANONYMOUS
    return Identity(
        user=str(user.pk),
        info=sender_of(user).info,
        login=login_of(session_key),
        auth_hash=auth_hash_of(user),
        verified_at=verified_at,
        login_until=verified_at + session.get_expiry_age(),
    )


async def identity_of_cookies(cookies: Mapping[str, str]) -> Identity:
    """The identity of the signed-in user whose session cookie is among the cookies, or ANONYMOUS.

    The database is not asked when a signed cookie says who that is, and nothing of the user has changed since.
    """
    key = session_key_of(cookies)
    if not key:
        return ANONYMOUS
    login = login_of(key)
    revocations = (await current_switchboard()).revocations
    if revocations.ended(login):
        return ANONYMOUS
    signed = passport.identity_of(cookies, login=login)
    if signed is not None and revocations.unchanged(signed):
        return signed
    identity = await in_database_thread(_load_identity, key)
    # It may have been ended while the database was being asked.
    return ANONYMOUS if revocations.ended(login) else identity


def refused_origin(scope: Scope) -> str | None:
    """Why the connection's origin may not use cookies here, or None when it may.

    A browser sends `Origin` with every WebSocket, whatever page opened it, and the cookies too: without this
    check any page could read what its visitor may read (RFC 6455 §10.2).
    """
    origin, host = header(scope, b"origin"), header(scope, b"host")
    if not origin:
        return f"no Origin header; clients that use cookies must send one, such as http://{host}"
    parsed = urlsplit(origin)
    if parsed.netloc == host and parsed.scheme in ("http", "https"):
        return None
    if origin.rstrip("/") in conf.get("HUB_ALLOWED_ORIGINS"):
        return None
    return f"origin {origin} is not {host}; add it to HUB_ALLOWED_ORIGINS if its pages may use this hub"


class IdentityMiddleware:
    """Puts the connection's `Identity` into the scope, and refuses cookies from foreign origins with a 403.

    Takes the place of Channels' AuthMiddlewareStack, which asks the database on the one thread that all
    synchronous code of the process shares.
    """

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = ANONYMOUS
        cookies = cookies_of(scope)
        if session_key_of(cookies):
            refusal = refused_origin(scope)
            if refusal is not None:
                logger.warning("WebSocket %s refused: %s", scope["path"], refusal)
                await refuse(scope, send, 403, refusal)
                return
            try:
                identity = await identity_of_cookies(cookies)
            except LogUnavailable as error:
                await refuse(scope, send, 503, str(error))
                return
        await self.application({**scope, "identity": identity}, receive, send)


async def refuse(
    scope: Scope, send: Send, status: int, reason: str, *, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer a WebSocket handshake with an HTTP status, where the server can, and a plain text that says why."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 4000 + status, "reason": reason[:120]})
        return
    body = reason.encode()
    described = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    answer = {"type": "websocket.http.response.start", "status": status, "headers": [*described, *headers]}
    await send(answer)
    await send({"type": "websocket.http.response.body", "body": body})
