"""Connection tokens: signed JWTs that tell who a client is, for those that have no Django session."""

from __future__ import annotations

import functools
import time
from typing import Any

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS

from notifications.delivery.codes import INVALID_TOKEN, TOKEN_EXPIRED, CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.events import conf

ALGORITHMS = ["HS256", "HS384", "HS512"]


class _Claims(msgspec.Struct, frozen=True):
    """What a token says (RFC 7519 §4.1, and the claims of the Centrifuge protocol). Times are Unix times."""

    sub: str | int | None = None
    exp: float | None = None
    nbf: float | None = None
    info: dict[str, Any] | None = None
    channels: tuple[str, ...] | None = None


class _KeptKeys(HMACAlgorithm):
    """An algorithm of the library that examines each secret once, not with every token: half of the cost of one."""

    prepare_key = functools.lru_cache(HMACAlgorithm.prepare_key)
    check_key_length = functools.lru_cache(HMACAlgorithm.check_key_length)


_signatures = PyJWS(algorithms=[])
for _name, _hash in (("HS256", HMACAlgorithm.SHA256), ("HS384", HMACAlgorithm.SHA384), ("HS512", HMACAlgorithm.SHA512)):
    _signatures.register_algorithm(_name, _KeptKeys(_hash))
_decode_claims = msgspec.json.Decoder(_Claims).decode


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
        claims = _decode_claims(_signatures.decode_complete(token, secret, ALGORITHMS)["payload"])
    except (jwt.InvalidTokenError, msgspec.DecodeError, RecursionError) as error:
        raise Disconnect(INVALID_TOKEN) from error
    now = time.time()
    if claims.nbf is not None and claims.nbf > now:
        raise Disconnect(INVALID_TOKEN)
    if claims.exp is not None and claims.exp <= now:
        raise CommandError(TOKEN_EXPIRED)
    return Identity(
        user=str(claims.sub or ""),
        info=claims.info,
        expires_at=claims.exp,
        topics=claims.channels or (),
        from_token=True,
    )
