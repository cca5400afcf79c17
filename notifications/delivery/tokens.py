"""Signed tokens (JWT): who a client is that has no Django session, and which topics somebody may subscribe to.

The claims are those of the Centrifuge protocol. Its `meta` is ignored: nothing of a token stays on the server but what
an Identity has.
"""

from __future__ import annotations

import base64
import time
from typing import Any, TypeVar

import jwt
import msgspec

from notifications.delivery.codes import INVALID_TOKEN, PERMISSION_DENIED, TOKEN_EXPIRED, CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.delivery.identity import SubscriptionGrant as SubscriptionGrant
from notifications.delivery.token_keys import KeyRing, KeysNotFetched, connection_keys, subscription_keys
from notifications.events import conf


class _Flag(msgspec.Struct, frozen=True):
    value: bool = False


class _Override(msgspec.Struct, frozen=True):
    presence: _Flag | None = None
    join_leave: _Flag | None = None
    force_push_join_leave: _Flag | None = None
    force_recovery: _Flag | None = None
    force_positioning: _Flag | None = None


class _SubscriptionOptions(msgspec.Struct, frozen=True):
    info: Any = None
    b64info: str = ""
    data: msgspec.Raw = msgspec.Raw()
    b64data: str = ""
    override: _Override | None = None


class _Claims(msgspec.Struct, frozen=True):
    """What every token says (RFC 7519 §4.1, and the claims of the Centrifuge protocol). Times are Unix times."""

    sub: str | int | None = None
    exp: float | None = None
    nbf: float | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    info: Any = None
    b64info: str = ""
    expire_at: float | None = None
    channel: str = ""

    @property
    def user(self) -> str:
        return "" if self.sub is None else str(self.sub)

    @property
    def expires_at(self) -> float | None:
        """When what the token opens expires: with the token, unless it says otherwise (0: never)."""
        if self.expire_at is None:
            return self.exp
        return self.expire_at or None


class _ConnectionClaims(_Claims, frozen=True):
    channels: tuple[str, ...] | None = None
    subs: dict[str, _SubscriptionOptions] | None = None


class _SubscriptionClaims(_Claims, frozen=True):
    override: _Override | None = None


C = TypeVar("C", bound=_Claims)

_decode_connection = msgspec.json.Decoder(_ConnectionClaims)
_decode_subscription = msgspec.json.Decoder(_SubscriptionClaims)
_OVERRIDES = _Override.__struct_fields__


def connection_token(user: Any, *, seconds: float = 600, info: Any = None) -> str:
    """A token with which a client connects as `user`, valid for `seconds`.

    Raises ValueError when `HUB_TOKEN_SECRET` is not set.
    """
    if info is None:
        info = {"name": user.get_full_name() or user.get_username()}
    return connection_keys().sign(_issued({"sub": str(user.pk), "info": info}, seconds))


def subscription_token(user_id: str | int, topic: str, *, seconds: float = 600, info: Any = None) -> str:
    """A token with which the user (or "", a visitor) subscribes to `topic`, valid for `seconds`.

    It stands in the place of the permission that the topic declares. Raises ValueError when neither
    `HUB_SUBSCRIPTION_TOKEN_SECRET` nor `HUB_TOKEN_SECRET` is set.
    """
    claims = {"sub": str(user_id), "channel": topic}
    if info is not None:
        claims["info"] = info
    return subscription_keys().sign(_issued(claims, seconds))


def _issued(claims: dict[str, Any], seconds: float) -> dict[str, Any]:
    now = time.time()
    claims |= {"iat": int(now), "exp": int(now + seconds)}
    for claim, name in (("aud", "HUB_TOKEN_AUDIENCE"), ("iss", "HUB_TOKEN_ISSUER")):
        if value := conf.get(name):
            claims[claim] = value
    return claims


def identity_of(token: str) -> Identity:
    """The identity that a connection token gives, by the keys at hand; see `identify()` for those of an endpoint.

    Raises Disconnect with 3500 for a token that is not valid, CommandError 109 for one that has expired, and
    CommandError 100, which is temporary, for one whose key has to be fetched.
    """
    try:
        claims = _verified(token, connection_keys(), _decode_connection)
        if claims.channel:
            raise jwt.InvalidTokenError("a token for a subscription is none for a connection")
        topics = claims.channels or ()
        subs = {topic: _grant_of(options) for topic, options in claims.subs.items()} if claims.subs else {}
        return Identity(
            user=claims.user,
            info=_info_of(claims),
            expires_at=claims.expires_at,
            topics=tuple(dict.fromkeys((*topics, *subs))) if subs else topics,
            from_token=True,
            subs=subs,
        )
    except jwt.ExpiredSignatureError as error:
        raise CommandError(TOKEN_EXPIRED) from error
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise Disconnect(INVALID_TOKEN) from error


async def identify(token: str) -> Identity:
    """The identity that a connection token gives. Waits only where the token's key is to be fetched.

    Raises as `identity_of()` does; CommandError 100 when the key could not be fetched.
    """
    try:
        return identity_of(token)
    except KeysNotFetched as error:
        await error.endpoint.refresh()
    return identity_of(token)


async def subscription_grant(token: str, *, topic: str, identity: Identity) -> SubscriptionGrant:
    """What a subscription token gives on `topic` to the user it is for. Waits only where its key is to be fetched.

    Raises CommandError: 103 for a token that is not valid, or for another user or topic, 109 for one that has expired,
    and 100, which is temporary, when its key could not be fetched.
    """
    try:
        return _granted(token, topic, identity)
    except KeysNotFetched as error:
        await error.endpoint.refresh()
    return _granted(token, topic, identity)


def _granted(token: str, topic: str, identity: Identity) -> SubscriptionGrant:
    try:
        claims = _verified(token, subscription_keys(), _decode_subscription)
        if not topic or claims.channel != topic or claims.user != identity.user:
            raise jwt.InvalidTokenError("the token is for another topic or user")
        return SubscriptionGrant(_info_of(claims), claims.expires_at, _overrides_of(claims.override))
    except jwt.ExpiredSignatureError as error:
        raise CommandError(TOKEN_EXPIRED) from error
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise CommandError(PERMISSION_DENIED) from error


def _verified(token: str, keys: KeyRing, decoder: msgspec.json.Decoder[C]) -> C:
    """The claims of a token that is signed, meant for the hub, and good now.

    Raises jwt.InvalidTokenError or ValueError, jwt.ExpiredSignatureError, and KeysNotFetched.
    """
    claims = decoder.decode(keys.payload(token))
    now = time.time()
    if claims.nbf is not None and claims.nbf > now:
        raise jwt.ImmatureSignatureError("the token is not valid yet")
    audience, issuer = conf.get("HUB_TOKEN_AUDIENCE"), conf.get("HUB_TOKEN_ISSUER")
    if audience and audience != claims.aud and not (isinstance(claims.aud, list) and audience in claims.aud):
        raise jwt.InvalidAudienceError("the token is for another audience")
    if issuer and issuer != claims.iss:
        raise jwt.InvalidIssuerError("the token is of another issuer")
    if (claims.exp is not None and claims.exp <= now) or (claims.expire_at and claims.expire_at <= now):
        raise jwt.ExpiredSignatureError("the token has expired")
    return claims


def _info_of(claims: _Claims | _SubscriptionOptions) -> Any:
    return msgspec.json.decode(_base64(claims.b64info)) if claims.b64info else claims.info


def _grant_of(options: _SubscriptionOptions) -> SubscriptionGrant:
    data = options.data
    if options.b64data:
        data = msgspec.Raw(_base64(options.b64data))
        msgspec.json.decode(data)
    # A copy, as it would keep the whole token otherwise.
    return SubscriptionGrant(
        info=_info_of(options),
        overrides=_overrides_of(options.override),
        data=None if bytes(data) in (b"", b"null") else data.copy(),
    )


def _overrides_of(override: _Override | None) -> dict[str, bool]:
    flags = {name: getattr(override, name, None) for name in _OVERRIDES}
    return {name: flag.value for name, flag in flags.items() if flag is not None}


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
