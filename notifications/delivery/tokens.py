"""Connection tokens: signed JWTs that tell who a client is, for those that have no Django session."""

from __future__ import annotations

import time
from typing import Any

import jwt

from notifications.delivery.codes import INVALID_TOKEN, TOKEN_EXPIRED, CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.events import conf

ALGORITHMS = ["HS256", "HS384", "HS512"]


def connection_token(user: Any, *, seconds: float = 600, info: dict[str, Any] | None = None) -> str:
    """A token with which a client connects as `user`, valid for `seconds`.

    Raises ValueError when `HUB_TOKEN_SECRET` is not set.
    """
    secret = conf.get("HUB_TOKEN_SECRET")
    if not secret:
        raise ValueError("HUB_TOKEN_SECRET is not set, so no tokens can be signed")
    claims: dict[str, Any] = {"sub": str(user.pk), "exp": int(time.time() + seconds)}
    claims["info"] = info or {"name": user.get_full_name() or user.get_username()}
    return jwt.encode(claims, secret, algorithm="HS256")


def identity_of(token: str) -> Identity:
    """The identity that a connection token gives.

    Raises Disconnect with 3500 for a token that is not valid, and CommandError 109 for one that has expired.
    """
    secret = conf.get("HUB_TOKEN_SECRET")
    if not secret:
        raise Disconnect(INVALID_TOKEN)
    try:
        claims = jwt.decode(token, secret, algorithms=ALGORITHMS, options={"verify_aud": False, "verify_iat": False})
    except jwt.ExpiredSignatureError as error:
        raise CommandError(TOKEN_EXPIRED) from error
    except jwt.InvalidTokenError as error:
        raise Disconnect(INVALID_TOKEN) from error
    info, topics = claims.get("info"), claims.get("channels") or ()
    if not isinstance(info, dict | None) or not isinstance(topics, list | tuple):
        raise Disconnect(INVALID_TOKEN)
    return Identity(
        user=str(claims.get("sub") or ""),
        info=info,
        expires_at=float(claims["exp"]) if "exp" in claims else None,
        topics=tuple(str(topic) for topic in topics),
        from_token=True,
    )
