"""The passport: a signed cookie that says who a browser's Django session belongs to, for half a day.

It is given with the answer to a WebSocket's handshake, after the database was asked, and spares the next handshakes
the two queries. It is good only together with the session cookie that it names, for no longer than that session would
live unused, and only as long as nothing about its user has changed (`revocations`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from django.conf import settings
from django.core.signing import BadSignature, Signer, b64_decode, b64_encode

from notifications.delivery.identity import Identity
from notifications.delivery.revocations import CREDENTIAL_SECONDS

COOKIE_NAME = "hub_passport"
_SALT = "notifications.delivery.passport"
_CLOCK_SECONDS = 60


class _Claims(msgspec.Struct, array_like=True, frozen=True):
    user: str
    info: dict[str, Any] | None
    login: str
    auth_hash: str
    verified_at: float
    good_until: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Claims).decode


def identity_of(cookies: Mapping[str, str], *, login: str) -> Identity | None:
    """The identity that a valid passport of this login states, or None. Whether it still holds is to be asked."""
    text = cookies.get(COOKIE_NAME)
    if text is None:
        return None
    try:
        claims = _decode(b64_decode(Signer(salt=_SALT).unsign(text).encode()))
    except (BadSignature, ValueError):  # msgspec's and base64's errors are ValueErrors
        return None
    if claims.login != login or not claims.verified_at - _CLOCK_SECONDS <= time.time() <= claims.good_until:
        return None
    return Identity(
        user=claims.user,
        info=claims.info,
        login=claims.login,
        auth_hash=claims.auth_hash,
        verified_at=claims.verified_at,
    )


def set_cookie(identity: Identity) -> list[tuple[bytes, bytes]]:
    """The header that gives a browser its passport, if the database has just said who it is."""
    if identity.login_until <= time.time():  # of a token, or of a passport, which does not prolong itself
        return []
    good_until = min(identity.verified_at + CREDENTIAL_SECONDS, identity.login_until)
    claims = _Claims(identity.user, identity.info, identity.login, identity.auth_hash, identity.verified_at, good_until)
    text = Signer(salt=_SALT).sign(b64_encode(_encode(claims)).decode())
    attributes = [
        f"{COOKIE_NAME}={text}",
        f"Max-Age={max(0, round(good_until - time.time()))}",
        f"Path={settings.SESSION_COOKIE_PATH}",
        "HttpOnly",
    ]
    if settings.SESSION_COOKIE_SAMESITE:
        attributes.append(f"SameSite={settings.SESSION_COOKIE_SAMESITE}")
    if settings.SESSION_COOKIE_SECURE:
        attributes.append("Secure")
    return [(b"set-cookie", "; ".join(attributes).encode("latin-1"))]
