"""The keys that verify tokens: shared secrets, public keys given as text, and those that an endpoint lists (JWKS).

A key stands for the algorithms of its own family alone, so that nobody passes a public key off as a secret
(RFC 8725 §2.1); `none` is no algorithm of any.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from time import monotonic
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from django.core.signals import setting_changed
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS
from jwt.utils import base64url_decode

from notifications.delivery.codes import INTERNAL, CommandError
from notifications.events import conf

# How long one request to the endpoint may take, how often it is tried, and how long a client waits for all that.
FETCH_SECONDS = 1.0
FETCH_ATTEMPTS = 2
WAIT_SECONDS = FETCH_SECONDS * FETCH_ATTEMPTS + 0.5
# The endpoint's keys are believed for an hour, and fetched anew before it is over, while nobody waits for them.
KEPT_SECONDS = 3600.0
AHEAD_SECONDS = 3000.0
# The endpoint is asked no more often than this, whatever keys tokens name and however it answers.
PAUSE_SECONDS = 10.0
MAX_MISSING = 1000
MAX_KEPT_HEADER = 500

logger = logging.getLogger(__name__)

T = TypeVar("T")

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

_OF_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class _Hmac(HMACAlgorithm):
    """Takes secrets as they are: they were examined when they were read, which costs more than a signature does."""

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key

    def check_key_length(self, key: Any) -> None:
        """Nothing with each token: a system check tells of a short secret, once."""


class _Rsa(RSAAlgorithm):
    def check_key_length(self, key: Any) -> None:
        """Nothing with each token: a system check tells of a short key, once."""


signatures = PyJWS(algorithms=[])
for _name, _algorithm in {
    "HS256": _Hmac(HMACAlgorithm.SHA256),
    "HS384": _Hmac(HMACAlgorithm.SHA384),
    "HS512": _Hmac(HMACAlgorithm.SHA512),
    "RS256": _Rsa(RSAAlgorithm.SHA256),
    "RS384": _Rsa(RSAAlgorithm.SHA384),
    "RS512": _Rsa(RSAAlgorithm.SHA512),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384),
    "ES512": ECAlgorithm(ECAlgorithm.SHA512),
    "EdDSA": OKPAlgorithm(),
}.items():
    signatures.register_algorithm(_name, _algorithm)


class Secret(NamedTuple):
    """A shared secret, and the Unix time until which it is accepted, or None."""

    key: bytes
    until: float | None = None


class VerifyingKey(NamedTuple):
    """A public key with the algorithms that it may verify, and the name by which tokens ask for it."""

    key: PublicKey
    algorithms: tuple[str, ...]
    kid: str = ""


def secret_of(text: str) -> Secret:
    """A secret, examined. Raises ValueError for a public key, a certificate or a JWK, which anybody may know."""
    if not text:
        raise ValueError("it is empty")
    try:
        return Secret(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(text))
    except (jwt.InvalidKeyError, RecursionError) as error:
        raise ValueError("it is no secret, but looks like a public key, a certificate or a JWK") from error


def previous_secret_of(text: str) -> Secret:
    """A secret of former times, as `secret` or `secret@time`; the time is in ISO 8601, and in UTC if it names no zone.

    A secret with an @ of its own is written with one more at its end. Raises ValueError.
    """
    secret, found, until = text.rpartition("@")
    if not found:
        return secret_of(text)
    if not until:
        return secret_of(secret)
    try:
        moment = datetime.fromisoformat(until)
    except ValueError:
        # Without what stands there, and not as its cause: it may be half of a secret.
        raise ValueError("what follows its @ is no time in ISO 8601") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return Secret(secret_of(secret).key, moment.timestamp())


def _algorithms_of(key: Any) -> tuple[str, ...]:
    """The algorithms that a key may verify; none for a private key, or one of a family that is not supported."""
    if isinstance(key, RSAPublicKey):
        return "RS256", "RS384", "RS512"
    if isinstance(key, EllipticCurvePublicKey):
        return (_OF_CURVE[key.curve.name],) if key.curve.name in _OF_CURVE else ()
    return ("EdDSA",) if isinstance(key, Ed25519PublicKey) else ()


_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def public_keys_of(text: str) -> tuple[VerifyingKey, ...]:
    """The keys of a PEM text: public keys or certificates, one after the other. Raises ValueError."""
    blocks = list(_PEM.finditer(text))
    if not blocks or _PEM.sub("", text).strip():
        raise ValueError("it is not made of PEM blocks (-----BEGIN PUBLIC KEY----- …)")
    return tuple(_public_key_of(block[1], block[0].encode()) for block in blocks)


def _public_key_of(label: str, block: bytes) -> VerifyingKey:
    if "PRIVATE" in label:
        raise ValueError("it holds a private key, which the hub must not have")
    try:
        key = load_pem_x509_certificate(block).public_key() if label == "CERTIFICATE" else load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"its {label} cannot be read") from error
    algorithms = _algorithms_of(key)
    if not algorithms:
        raise ValueError("it holds a key that is neither RSA, nor of the curves P-256, P-384, P-521 or Ed25519")
    return VerifyingKey(key, algorithms)  # type: ignore[arg-type]


def checked_url(url: str) -> str:
    """The address of a JWKS endpoint as it is. Raises ValueError unless it is one of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise ValueError("it is no address that begins with https:// or http://")
    return url


class _Listed(NamedTuple):
    """What an endpoint listed, and when it was asked for it (monotonic)."""

    keys: tuple[VerifyingKey, ...]
    kids: frozenset[str]
    asked_at: float


def _listed_key(entry: Any) -> VerifyingKey | None:
    """A key of a JWKS, if it is a public one for signatures (RFC 7517 §4), or None."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(entry).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    algorithms = _algorithms_of(key)
    if "alg" in entry:
        algorithms = (entry["alg"],) if entry["alg"] in algorithms else ()
    return VerifyingKey(key, algorithms, str(entry.get("kid", ""))) if algorithms else None


class KeysNotFetched(CommandError):
    """Whether a token is good cannot be told before its keys are fetched from `endpoint`: a temporary error."""

    def __init__(self, endpoint: JwksEndpoint) -> None:
        super().__init__(INTERNAL, "the keys of this token are not known yet")
        self.endpoint = endpoint


class JwksEndpoint:
    """The public keys that an address lists (RFC 7517 §5), fetched when a token needs them. Any thread may use it."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).hostname
        headers = {"Accept": "application/json", "User-Agent": "notification-hub"}
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, headers=headers, timeout=FETCH_SECONDS)
        # A thread of its own, as a name server that is down holds it for longer than the timeout of the request.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-token-keys")
        self._lock = threading.Lock()
        self._fetching: Future[None] | None = None
        self._tried_at = -PAUSE_SECONDS
        self._listed: _Listed | None = None
        # Names of keys that were not listed, with the time at which a token first came with each.
        self._missing: dict[str, float] = {}

    def keys(self, algorithm: str, kid: str) -> list[VerifyingKey]:
        """The keys for tokens of this algorithm which name the key `kid`, or all of them where they name none.

        Raises KeysNotFetched when that is to be found out by a fetch.
        """
        now = monotonic()
        listed = self._listed
        if listed is not None and now - listed.asked_at >= KEPT_SECONDS:
            listed = None
        if listed is not None and (not kid or kid in listed.kids):
            if now - listed.asked_at >= AHEAD_SECONDS:
                self._fetch_soon()
            return [key for key in listed.keys if algorithm in key.algorithms and kid in ("", key.kid)]
        if len(self._missing) >= MAX_MISSING:
            self._missing.clear()
        first = self._missing.setdefault(kid, now)
        # Not listed when the endpoint was last asked, after the first such token, and it is too early to ask again.
        if listed is not None and first <= listed.asked_at and now - self._tried_at < PAUSE_SECONDS:
            return []
        raise KeysNotFetched(self)

    async def refresh(self) -> None:
        """Fetch the keys, or wait for the fetch that is under way; nothing if it is too early to ask again.

        Raises nothing: `keys()` tells whether the key is there now.
        """
        fetching = self._fetch_soon()
        if fetching is not None:
            # Not `wait_for`, which would cancel the fetch for which others wait as well.
            await asyncio.wait([asyncio.wrap_future(fetching)], timeout=WAIT_SECONDS)

    def _fetch_soon(self) -> Future[None] | None:
        with self._lock:
            if self._fetching is not None and not self._fetching.done():
                return self._fetching
            now = monotonic()
            if now - self._tried_at < PAUSE_SECONDS:
                return None
            self._tried_at = now
            self._fetching = self._thread.submit(self._fetch, now)
            return self._fetching

    def _fetch(self, asked_at: float) -> None:
        problem: Exception | None = None
        for _ in range(FETCH_ATTEMPTS):
            try:
                entries = self._client.fetch_data()["keys"]
                found = tuple(key for entry in entries if (key := _listed_key(entry)) is not None)
            except (jwt.PyJWTError, HTTPException, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                problem = error
            else:
                self._listed = _Listed(found, frozenset(key.kid for key in found), asked_at)
                return
        # Not the address, which may have a password in it.
        logger.warning("the keys of tokens could not be fetched from %s: %r", self._host, problem)


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: Annotated[str, msgspec.Meta(max_length=255)] = ""


_decode_header = msgspec.json.Decoder(_Header).decode


def _header_of(segment: str) -> _Header:
    return _decode_header(base64url_decode(segment))


# Tokens of one signer begin alike.
_kept_header_of = functools.lru_cache(64)(_header_of)


class KeyRing(NamedTuple):
    """All keys that verify tokens of one sort; `current` is the one secret that signs new ones."""

    current: Secret | None = None
    previous: tuple[Secret, ...] = ()
    public: tuple[VerifyingKey, ...] = ()
    endpoint: JwksEndpoint | None = None

    def payload(self, token: str) -> bytes:
        """What a token says that was signed with one of the keys.

        Raises jwt.InvalidTokenError or ValueError for one that was not, and KeysNotFetched.
        """
        segment = token.partition(".")[0]
        header = _kept_header_of(segment) if len(segment) <= MAX_KEPT_HEADER else _header_of(segment)
        for key in self._keys(header.alg, header.kid):
            try:
                return signatures.decode_complete(token, key, (header.alg,))["payload"]  # type: ignore[no-any-return]
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidSignatureError("no key has signed this")

    def _keys(self, algorithm: str, kid: str) -> Iterable[bytes | PublicKey]:
        if not algorithm.startswith("HS"):
            return self._public_keys(algorithm, kid)
        if not self.previous:
            return () if self.current is None else (self.current.key,)
        now = time.time()
        secrets = self.previous if self.current is None else (self.current, *self.previous)
        return [secret.key for secret in secrets if secret.until is None or secret.until > now]

    def _public_keys(self, algorithm: str, kid: str) -> Iterator[PublicKey]:
        for known in self.public:
            if algorithm in known.algorithms:
                yield known.key
        # Last, and only if no key at hand has signed it.
        if self.endpoint is not None:
            for known in self.endpoint.keys(algorithm, kid):
                yield known.key

    def sign(self, claims: dict[str, Any]) -> str:
        """A token that says this (HS256). Raises ValueError when there is no secret."""
        if self.current is None:
            raise ValueError("HUB_TOKEN_SECRET is not set, so no tokens can be signed")
        return signatures.encode(msgspec.json.encode(claims), self.current.key, "HS256")


def _readable(read: Callable[[str], T], texts: Any) -> tuple[T, ...]:
    """What can be read of the texts; the system checks tell of the others."""
    found = []
    for text in texts if isinstance(texts, list | tuple) else ():
        with suppress(ValueError, TypeError, AttributeError):
            found.append(read(text))
    return tuple(found)


def _setting(name: str, read: Callable[[str], T]) -> T | None:
    """What the setting holds, or None where it is empty or cannot be read."""
    return next(iter(_readable(read, [conf.get(name)] if conf.get(name) else [])), None)


@functools.cache
def connection_keys() -> KeyRing:
    """The keys of connection tokens, as the settings have them."""
    return KeyRing(
        current=_setting("HUB_TOKEN_SECRET", secret_of),
        previous=_readable(previous_secret_of, conf.get("HUB_TOKEN_PREVIOUS_SECRETS")),
        public=_setting("HUB_TOKEN_PUBLIC_KEY", public_keys_of) or (),
        endpoint=_setting("HUB_TOKEN_JWKS_URL", lambda url: JwksEndpoint(checked_url(url))),
    )


@functools.cache
def subscription_keys() -> KeyRing:
    """The keys of subscription tokens: a secret of their own, or those of connection tokens."""
    if conf.get("HUB_SUBSCRIPTION_TOKEN_SECRET"):
        return KeyRing(current=_setting("HUB_SUBSCRIPTION_TOKEN_SECRET", secret_of))
    return connection_keys()


def _forget(*, setting: str, **_: Any) -> None:
    if setting.startswith(("HUB_TOKEN_", "HUB_SUBSCRIPTION_TOKEN_")):
        connection_keys.cache_clear()
        subscription_keys.cache_clear()


setting_changed.connect(_forget, dispatch_uid="hub-token-keys")
