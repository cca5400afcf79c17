from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from django.contrib.auth.models import User
from django.core.checks import CheckMessage
from jwt.algorithms import get_default_algorithms
from pytest_django.fixtures import Settings

from notifications.delivery import token_keys
from notifications.delivery.checks import check_jwks_url, check_previous_secrets, check_public_key, check_token_secrets
from notifications.delivery.codes import (
    INTERNAL,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    CommandError,
    Disconnect,
)
from notifications.delivery.identity import Identity, SubscriptionGrant, TokenUser
from notifications.delivery.token_keys import (
    AHEAD_SECONDS,
    KEPT_SECONDS,
    PAUSE_SECONDS,
    KeysNotFetched,
    connection_keys,
)
from notifications.delivery.tokens import (
    connection_token,
    identify,
    identity_of,
    subscription_grant,
    subscription_token,
)

SECRET = "a secret that nobody knows but those who sign, and of more bytes than SHA-512 has"
FORMER = "the secret from before, which was good until it leaked, of more bytes than SHA-512 has"
RSA = rsa.generate_private_key(65_537, 2048)
PRIVATE = {
    "RS256": RSA,
    "RS384": RSA,
    "RS512": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
WEAK = rsa.generate_private_key(65_537, 1024)  # noqa: S505 - to be warned of
OTHER = {
    **dict.fromkeys(("RS256", "RS384", "RS512"), rsa.generate_private_key(65_537, 2048)),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def certificate(key: Any) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def jwk(algorithm: str, key: Any, **members: Any) -> dict[str, Any]:
    return {**get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True), **members}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str = "", **claims: Any) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode({"sub": "42", "exp": time.time() + 60, **claims}, key, algorithm=algorithm, headers=headers)


def forged(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    parts = [json.dumps(part).encode() for part in (header, {"sub": "42", "exp": time.time() + 60})]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return (signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")).decode()


def refused(text: str) -> bool:
    with pytest.raises(Disconnect) as caught:
        identity_of(text)
    return caught.value.code is INVALID_TOKEN


@pytest.fixture(autouse=True)
def _secret(settings: Settings) -> None:
    settings.HUB_TOKEN_SECRET = SECRET


# Keys and algorithms.


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_the_secret_verifies_every_algorithm_of_its_family(algorithm: str) -> None:
    assert identity_of(token(SECRET, algorithm)).user == "42"
    assert refused(token(FORMER, algorithm))


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_verifies_what_its_private_key_signed(settings: Settings, algorithm: str) -> None:
    settings.HUB_TOKEN_SECRET = ""
    settings.HUB_TOKEN_PUBLIC_KEY = pem(PRIVATE[algorithm])

    assert identity_of(token(PRIVATE[algorithm], algorithm)).user == "42"
    assert refused(token(OTHER[algorithm], algorithm))


def test_secret_and_several_public_keys_are_good_side_by_side(settings: Settings) -> None:
    keys = (OTHER["RS256"], PRIVATE["RS256"], PRIVATE["ES256"], PRIVATE["EdDSA"])
    settings.HUB_TOKEN_PUBLIC_KEY = "\n".join([*map(pem, keys), certificate(PRIVATE["ES384"])])

    tokens = {algorithm: token(PRIVATE[algorithm], algorithm) for algorithm in ("RS256", "ES256", "EdDSA", "ES384")}

    assert [identity_of(text).user for text in (token(), *tokens.values())] == ["42"] * 5
    assert refused(token(PRIVATE["ES512"], "ES512"))


def test_without_any_key_no_token_is_good(settings: Settings) -> None:
    settings.HUB_TOKEN_SECRET = ""

    assert refused(token())
    assert refused(token(PRIVATE["RS256"], "RS256"))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS1", "HS", "PS256"])
def test_an_unsigned_token_is_refused(settings: Settings, algorithm: str) -> None:
    settings.HUB_TOKEN_PUBLIC_KEY = pem(RSA)

    assert refused(forged({"alg": algorithm}, lambda signed: b""))


@pytest.mark.parametrize("secret", ["", SECRET, "the public key"])
@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_is_no_secret(settings: Settings, algorithm: str, secret: str) -> None:
    public = pem(PRIVATE[algorithm])
    settings.HUB_TOKEN_PUBLIC_KEY = public
    settings.HUB_TOKEN_SECRET = public if secret == "the public key" else secret

    for text in (public, public.strip(), public + "\n"):
        key = text.encode()
        assert refused(forged({"alg": "HS256"}, lambda signed, key=key: hmac.digest(key, signed, "sha256")))


def test_a_key_verifies_no_algorithm_of_another_family(settings: Settings) -> None:
    key = PRIVATE["ES256"]
    settings.HUB_TOKEN_PUBLIC_KEY = pem(key) + pem(PRIVATE["RS256"])

    def signature(signed: bytes) -> bytes:
        der = key.sign(signed, ec.ECDSA(hashes.SHA384()))
        return b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(der))

    assert refused(forged({"alg": "ES384"}, signature))
    assert refused(forged({"alg": "EdDSA"}, signature))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "eyJhbGciOiJIUzI1NiJ9..",
        "\ud800.a.b",
        "é" * 10,
        "e30.e30.e30",
        "W10.e30.e30",
        "x" * 9_999,
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize("header", [{"kid": 5}, {"kid": "k" * 256}, {"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}])
def test_a_header_that_is_not_understood_is_refused(header: dict[str, Any]) -> None:
    def sign(signed: bytes) -> bytes:
        return hmac.digest(SECRET.encode(), signed, "sha256")

    assert identity_of(forged({"alg": "HS256"}, sign)).user == "42"
    assert refused(forged({"alg": "HS256", **header}, sign))


def test_a_short_secret_does_not_warn_with_every_token(settings: Settings, django_user_model: type[User]) -> None:
    settings.HUB_TOKEN_SECRET = "secret"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        signed = connection_token(django_user_model(pk=7, username="carla"))
        identity = identity_of(signed)

    assert (identity.user, identity.info) == ("7", {"name": "carla"})


# Rotation.


@pytest.mark.parametrize(
    ("previous", "accepted"),
    [
        ([], False),
        (["another"], False),
        ([FORMER], True),
        (["another", FORMER], True),
        ([f"{FORMER}@2999-12-31"], True),
        ([f"{FORMER}@2999-12-31T18:00:00Z"], True),
        ([f"{FORMER}@2020-12-31T18:00:00+02:00"], False),
        ([f"{FORMER}@"], True),
        ([f"{FORMER}@soon"], False),
        ([None, FORMER], True),
        (FORMER, False),
    ],
)
def test_a_former_secret_is_accepted_until_its_time(settings: Settings, previous: Any, accepted: bool) -> None:
    settings.HUB_TOKEN_PREVIOUS_SECRETS = previous

    assert identity_of(token()).user == "42"
    if accepted:
        assert identity_of(token(FORMER)).user == "42"
    else:
        assert refused(token(FORMER))


def test_a_former_secret_may_have_an_at_sign(settings: Settings) -> None:
    secrets = [f"one@{FORMER}", f"two@{FORMER}"]
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [f"{secrets[0]}@", f"{secrets[1]}@2999-01-01"]

    assert [identity_of(token(secret)).user for secret in secrets] == ["42", "42"]


def test_a_time_without_a_zone_is_in_utc(settings: Settings) -> None:
    settings.TIME_ZONE = "Pacific/Kiritimati"  # 14 hours ahead
    until = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None)
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [f"{FORMER}@{until.isoformat()}"]

    assert identity_of(token(FORMER)).user == "42"


def test_a_former_secret_ends_while_the_process_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [f"{FORMER}@{until.isoformat()}"]
    signed = token(FORMER, exp=time.time() + 86_400)

    before = identity_of(signed).user
    monkeypatch.setattr(time, "time", until.timestamp)

    assert before == "42"
    assert refused(signed)


def test_new_tokens_are_signed_with_the_present_secret(settings: Settings, django_user_model: type[User]) -> None:
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [FORMER]
    carla = django_user_model(pk=7, username="carla")

    signed = connection_token(carla, seconds=60)
    settings.HUB_TOKEN_SECRET = ""

    assert jwt.decode(signed, SECRET, ["HS256"])["sub"] == "7"
    with pytest.raises(ValueError, match="HUB_TOKEN_SECRET is not set"):
        connection_token(carla)


# Claims.


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, {}),
        ({"sub": 42}, {}),
        ({"sub": 0}, {"user": "0"}),
        ({"sub": ""}, {"user": ""}),
        ({"sub": None}, {"user": ""}),
        ({"info": {"name": "Ana"}}, {"info": {"name": "Ana"}}),
        ({"info": "Ana"}, {"info": "Ana"}),
        ({"info": [1, None]}, {"info": [1, None]}),
        ({"b64info": base64.b64encode(b'{"name": "Ana"}').decode()}, {"info": {"name": "Ana"}}),
        ({"channels": ["a", "b"]}, {"topics": ("a", "b")}),
        ({"jti": "1", "iat": 1, "meta": {"a": 1}, "aud": "x", "iss": "y", "more": True}, {}),
    ],
)
def test_claims_make_an_identity(claims: dict[str, Any], expected: dict[str, Any]) -> None:
    expires_at = time.time() + 60

    identity = identity_of(token(**{"exp": expires_at, **claims}))

    assert identity == Identity(**{"user": "42", "expires_at": expires_at, "from_token": True, **expected})


def test_topics_come_with_options_of_their_own() -> None:
    options = {
        "info": "in a",
        "data": {"b": [1]},
        "override": {"presence": {"value": False}, "join_leave": {"value": True}, "later": {"value": True}},
    }
    encoded = {"b64info": base64.b64encode(b'"in b"').decode(), "b64data": base64.b64encode(b'{"c":1}').decode()}

    identity = identity_of(token(channels=["x", "a"], subs={"a": options, "b": encoded, "c": {}, "d": {"data": None}}))

    assert identity.topics == ("x", "a", "b", "c", "d")
    assert identity.subs == {
        "a": SubscriptionGrant("in a", None, {"presence": False, "join_leave": True}, msgspec.Raw(b'{"b":[1]}')),
        "b": SubscriptionGrant("in b", data=msgspec.Raw(b'{"c":1}')),
        "c": SubscriptionGrant(),
        "d": SubscriptionGrant(),
    }


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ["42"]},
        {"sub": True},
        {"exp": "tomorrow"},
        {"channels": "no list"},
        {"subs": ["a"]},
        {"subs": {"a": {"override": {"presence": True}}}},
        {"subs": {"a": {"b64data": "e30"}}},
        {"subs": {"a": {"b64data": base64.b64encode(b"no JSON").decode()}}},
        {"b64info": "e!30="},
        {"b64info": base64.b64encode(b"no JSON").decode()},
        {"channel": "open:1"},
    ],
)
def test_claims_that_make_no_sense_are_refused(claims: dict[str, Any]) -> None:
    assert refused(token(**claims))


@pytest.mark.parametrize(
    ("claims", "expires_in"),
    [
        ({"exp": 60}, 60),
        ({"exp": 60, "nbf": -1}, 60),
        ({"exp": 60, "expire_at": 30}, 30),
        ({"exp": 60, "expire_at": 90}, 90),
        ({"exp": None, "expire_at": 90}, 90),
        ({"exp": None}, None),
    ],
)
def test_when_a_connection_expires(claims: dict[str, float | None], expires_in: float | None) -> None:
    now = time.time()
    times = {claim: None if value is None else now + value for claim, value in claims.items()}

    expires_at = identity_of(token(**times)).expires_at

    assert expires_at == (None if expires_in is None else now + expires_in)


def test_a_connection_may_outlive_its_token_for_ever() -> None:
    assert identity_of(token(expire_at=0)).expires_at is None


@pytest.mark.parametrize("claims", [{"exp": -1}, {"exp": -1, "expire_at": 60}, {"expire_at": -1}])
def test_an_expired_token_can_be_renewed(claims: dict[str, float]) -> None:
    times = {claim: time.time() + value for claim, value in claims.items()}

    with pytest.raises(CommandError) as caught:
        identity_of(token(**times))

    assert caught.value.code is TOKEN_EXPIRED


def test_a_token_is_not_good_before_its_time_nor_expired_by_another_key() -> None:
    assert refused(token(nbf=time.time() + 60))
    assert refused(token(FORMER, exp=time.time() - 1))


@pytest.mark.parametrize(
    ("audience", "issuer", "claims", "accepted"),
    [
        ("hub", "", {"aud": "hub"}, True),
        ("hub", "", {"aud": ["shop", "hub"]}, True),
        ("hub", "", {"aud": "hubs"}, False),
        ("hub", "", {"aud": ["shop"]}, False),
        ("hub", "", {}, False),
        ("", "us", {"iss": "us"}, True),
        ("", "us", {"iss": "them"}, False),
        ("", "us", {}, False),
        ("hub", "us", {"aud": "hub", "iss": "us"}, True),
        ("hub", "us", {"aud": "hub"}, False),
    ],
)
def test_audience_and_issuer_are_compared_when_set(
    settings: Settings, audience: str, issuer: str, claims: dict[str, Any], accepted: bool
) -> None:
    settings.HUB_TOKEN_AUDIENCE, settings.HUB_TOKEN_ISSUER = audience, issuer

    if accepted:
        assert identity_of(token(**claims)).user == "42"
    else:
        assert refused(token(**claims))


async def test_the_hubs_own_tokens_have_the_audience_and_issuer(
    settings: Settings, django_user_model: type[User]
) -> None:
    settings.HUB_TOKEN_AUDIENCE, settings.HUB_TOKEN_ISSUER = "hub", "us"

    identity = identity_of(connection_token(django_user_model(pk=42), info="Ana"))
    grant = await subscription_grant(subscription_token(42, "open:1"), topic="open:1", identity=identity)

    assert (identity.user, identity.info, grant.info) == ("42", "Ana", None)


@pytest.mark.parametrize(("info", "name"), [({"name": "Ana"}, "Ana"), ("Ana", "42"), ([1], "42"), (None, "42")])
def test_the_bearer_of_any_info_has_a_name(info: Any, name: str) -> None:
    assert TokenUser(identity_of(token(info=info))).get_full_name() == name


# Subscription tokens.

ANA = Identity(user="42", from_token=True)


@pytest.mark.parametrize(
    ("claims", "grant"),
    [
        ({}, {}),
        ({"sub": 42}, {}),
        ({"info": [1]}, {"info": [1]}),
        ({"b64info": base64.b64encode(b'{"a": 1}').decode()}, {"info": {"a": 1}}),
        ({"exp": None}, {"expires_at": None}),
        ({"expire_at": 0}, {"expires_at": None}),
        ({"expire_at": 4_000_000_000}, {"expires_at": 4_000_000_000.0}),
        (
            {"override": {"force_recovery": {"value": True}, "force_positioning": {"value": False}}},
            {"overrides": {"force_recovery": True, "force_positioning": False}},
        ),
        (
            {"override": {"presence": {"value": True}, "join_leave": {}, "force_push_join_leave": {"value": True}}},
            {"overrides": {"presence": True, "join_leave": False, "force_push_join_leave": True}},
        ),
    ],
)
async def test_a_subscription_token_is_a_grant(claims: dict[str, Any], grant: dict[str, Any]) -> None:
    exp = time.time() + 60

    granted = await subscription_grant(
        token(**{"exp": exp, "channel": "open:1", **claims}), topic="open:1", identity=ANA
    )

    assert granted == SubscriptionGrant(**{"expires_at": exp, **grant})


@pytest.mark.parametrize(
    ("signed", "code"),
    [
        (lambda: token(channel="open:2"), PERMISSION_DENIED),
        (lambda: token(), PERMISSION_DENIED),
        (lambda: token(channel=["open:1"]), PERMISSION_DENIED),
        (lambda: token(channel="open:1", sub="43"), PERMISSION_DENIED),
        (lambda: token(channel="open:1", sub=None), PERMISSION_DENIED),
        (lambda: token(channel="open:1", nbf=time.time() + 60), PERMISSION_DENIED),
        (lambda: token(channel="open:1", b64info="!"), PERMISSION_DENIED),
        (lambda: token(FORMER, channel="open:1"), PERMISSION_DENIED),
        (lambda: "no token", PERMISSION_DENIED),
        (lambda: token(channel="open:1", exp=time.time() - 1), TOKEN_EXPIRED),
        (lambda: token(channel="open:1", expire_at=time.time() - 1), TOKEN_EXPIRED),
    ],
)
async def test_a_subscription_token_of_others_grants_nothing(signed: Callable[[], str], code: Any) -> None:
    with pytest.raises(CommandError) as caught:
        await subscription_grant(signed(), topic="open:1", identity=ANA)

    assert caught.value.code is code


async def test_a_visitor_subscribes_with_a_token_of_nobody() -> None:
    signed = subscription_token("", "open:1", seconds=60, info={"name": "somebody"})

    granted = await subscription_grant(signed, topic="open:1", identity=Identity())

    assert granted.info == {"name": "somebody"}
    assert granted.expires_at is not None
    assert 58 <= granted.expires_at - time.time() <= 60
    assert refused(signed)


async def test_subscription_tokens_may_have_a_secret_of_their_own(settings: Settings) -> None:
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [FORMER]
    settings.HUB_SUBSCRIPTION_TOKEN_SECRET = own = "a secret of another service for topics alone"

    granted = await subscription_grant(subscription_token("42", "open:1"), topic="open:1", identity=ANA)
    by_hand = await subscription_grant(token(own, channel="open:1", info=1), topic="open:1", identity=ANA)

    assert (granted.info, by_hand.info) == (None, 1)
    for secret in (SECRET, FORMER):
        with pytest.raises(CommandError, match="permission denied"):
            await subscription_grant(token(secret, channel="open:1"), topic="open:1", identity=ANA)
    assert refused(token(own))


# Keys of an endpoint.


class Issuer:
    """An HTTP server that lists keys, and counts how often it is asked."""

    def __init__(self) -> None:
        self.keys: list[Any] = [jwk("RS256", RSA, kid="one", use="sig", alg="RS256")]
        self.status = 200
        self.requests = 0
        self.answering = threading.Event()
        self.answering.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.answering.wait(10)
                body = json.dumps({"keys": issuer.keys}).encode()
                with suppress(ConnectionError):  # of a request that was given up
                    self.send_response(issuer.status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys?password=hidden"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.answering.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def issuer(settings: Settings) -> Iterator[Issuer]:
    issuer = Issuer()
    settings.HUB_TOKEN_JWKS_URL = issuer.url
    yield issuer
    issuer.stop()


class Clock:
    """The time of the endpoint's keys, which a test puts forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(token_keys, "monotonic", clock)
    return clock


async def outcome(text: str) -> Any:
    """The user of a token, or the code with which it is refused."""
    try:
        return (await identify(text)).user
    except (CommandError, Disconnect) as error:
        return error.code


def at_hand(text: str) -> bool:
    """Whether the key of a token is there without a fetch."""
    with suppress(KeysNotFetched):
        return bool(identity_of(text))
    return False


def listed(kid: str = "one") -> str:
    return token(RSA, "RS256", kid)


async def test_keys_are_fetched_once_for_a_storm_of_connects(issuer: Issuer) -> None:
    users = await asyncio.gather(*(outcome(listed()) for _ in range(50)))

    assert users == ["42"] * 50
    assert identity_of(listed()).user == "42"
    assert issuer.requests == 1


async def test_keys_at_hand_need_no_fetch(settings: Settings, issuer: Issuer) -> None:
    settings.HUB_TOKEN_PUBLIC_KEY = pem(PRIVATE["ES256"])

    users = [await outcome(text) for text in (token(), token(PRIVATE["ES256"], "ES256", "one"))]

    assert users == ["42", "42"]
    assert issuer.requests == 0


async def test_the_loop_goes_on_while_keys_are_fetched(issuer: Issuer) -> None:
    issuer.answering.clear()
    waiting = asyncio.create_task(outcome(listed()))
    async with asyncio.timeout(5):
        while not issuer.requests:
            await asyncio.sleep(0)
    cancelled = asyncio.create_task(outcome(listed()))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])

    issuer.answering.set()

    assert await waiting == "42"
    assert issuer.requests == 1


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_an_endpoint_lists_keys_of_every_family(issuer: Issuer, algorithm: str) -> None:
    issuer.keys = [jwk(name, key, kid=name) for name, key in PRIVATE.items()]

    assert await outcome(token(PRIVATE[algorithm], algorithm, algorithm)) == "42"
    assert await outcome(token(PRIVATE[algorithm], algorithm)) == "42"
    assert await outcome(token(OTHER[algorithm], algorithm, algorithm)) is INVALID_TOKEN
    assert issuer.requests == 1


async def test_an_endpoint_lists_what_is_no_key_for_tokens(settings: Settings, issuer: Issuer) -> None:
    settings.HUB_TOKEN_SECRET = ""
    shared = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    issuer.keys = [
        "no key",
        {"kid": "no family"},
        {"kty": "RSA", "kid": "incomplete", "n": 5},
        {"kty": "oct", "kid": "shared", "k": shared},
        {**json.loads(get_default_algorithms()["RS256"].to_jwk(RSA)), "kid": "private"},
        jwk("RS256", RSA, kid="encrypts", use="enc"),
        jwk("RS256", RSA, kid="RS512 only", alg="RS512"),
        jwk("RS256", RSA, kid="one"),
    ]

    refusals = [
        *[await outcome(listed(kid)) for kid in ("one", "RS512 only", "incomplete", "private", "encrypts")],
        await outcome(token(SECRET, "HS256", "shared")),
    ]

    assert await outcome(token(RSA, "RS512", "RS512 only")) == "42"
    # The second one is listed, for another algorithm; the next three may be listed when it is time to ask again.
    assert refusals == ["42", INVALID_TOKEN, INTERNAL, INTERNAL, INTERNAL, INVALID_TOKEN]


async def test_a_new_key_is_found_and_a_removed_one_forgotten(issuer: Issuer, clock: Clock) -> None:
    new = token(PRIVATE["ES256"], "ES256", "two")
    before = await outcome(listed())
    issuer.keys = [jwk("ES256", PRIVATE["ES256"], kid="two")]

    clock.ahead += PAUSE_SECONDS
    after = [await outcome(new), await outcome(listed())]

    assert (before, after) == ("42", ["42", INVALID_TOKEN])
    assert issuer.requests == 2


async def test_a_key_that_may_be_new_is_a_temporary_error_until_the_endpoint_is_asked_again(
    issuer: Issuer, clock: Clock
) -> None:
    new = token(PRIVATE["ES256"], "ES256", "two")
    await outcome(listed())
    issuer.keys.append(jwk("ES256", PRIVATE["ES256"], kid="two"))

    at_once = await outcome(new)
    clock.ahead += PAUSE_SECONDS

    assert (at_once, await outcome(new)) == (INTERNAL, "42")


async def test_a_key_that_is_used_before_it_is_listed_is_good_later(issuer: Issuer, clock: Clock) -> None:
    new = token(PRIVATE["ES256"], "ES256", "two")
    early = await outcome(new)
    issuer.keys.append(jwk("ES256", PRIVATE["ES256"], kid="two"))

    clock.ahead += PAUSE_SECONDS

    assert (early, await outcome(new)) == (INVALID_TOKEN, "42")


async def test_forged_names_of_keys_do_not_make_the_hub_ask_each_time(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_keys, "MAX_MISSING", 50)
    await outcome(listed())
    clock.ahead += PAUSE_SECONDS

    codes = {await outcome(token(OTHER["RS256"], "RS256", f"forged {number}")) for number in range(200)}

    assert issuer.requests == 2
    assert codes == {INVALID_TOKEN, INTERNAL}
    assert await outcome(listed()) == "42"
    endpoint = connection_keys().endpoint
    assert endpoint is not None
    assert len(endpoint._missing) <= 50


@pytest.mark.parametrize("trouble", ["status", "no JSON object", "refused"])
async def test_an_endpoint_that_is_down_is_a_temporary_error(
    settings: Settings, issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    caplog.set_level(logging.WARNING, "notifications.delivery.token_keys")
    keys = issuer.keys
    if trouble == "refused":
        issuer.stop()
    issuer.status = 500 if trouble == "status" else 200
    issuer.keys = None if trouble == "no JSON object" else keys  # type: ignore[assignment]

    codes = [await outcome(listed()) for _ in range(5)]
    with pytest.raises(CommandError) as caught:
        await subscription_grant(token(RSA, "RS256", "one", channel="a"), topic="a", identity=ANA)

    assert codes == [INTERNAL] * 5
    assert INTERNAL.temporary
    assert caught.value.code is INTERNAL
    assert issuer.requests == (0 if trouble == "refused" else 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "127.0.0.1" in caplog.text
    if trouble == "refused":
        return
    issuer.status, issuer.keys = 200, keys
    assert await outcome(listed()) is INTERNAL
    clock.ahead += PAUSE_SECONDS
    assert await outcome(listed()) == "42"


async def test_one_request_that_fails_is_made_again(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_keys, "FETCH_SECONDS", 0.2)
    issuer.answering.clear()
    waiting = asyncio.create_task(outcome(listed()))
    async with asyncio.timeout(5):
        while issuer.requests < 2:
            await asyncio.sleep(0.001)

    issuer.answering.set()

    assert await waiting == "42"


async def test_an_endpoint_that_hangs_is_waited_for_no_longer_than_its_timeouts(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_keys, "FETCH_SECONDS", 0.1)
    issuer.answering.clear()

    async with asyncio.timeout(5):
        code = await outcome(listed())

    assert code is INTERNAL
    assert issuer.requests == 2


async def test_keys_are_kept_for_an_hour(issuer: Issuer, clock: Clock) -> None:
    await outcome(listed())
    issuer.status = 500

    clock.ahead = AHEAD_SECONDS - 1
    kept = await outcome(listed())

    assert (kept, issuer.requests) == ("42", 1)
    clock.ahead = KEPT_SECONDS
    assert await outcome(listed()) is INTERNAL
    issuer.status = 200
    clock.ahead += PAUSE_SECONDS
    assert await outcome(listed()) == "42"


async def test_keys_are_fetched_anew_before_their_hour_is_over(issuer: Issuer, clock: Clock) -> None:
    await outcome(listed())
    issuer.keys.append(jwk("ES256", PRIVATE["ES256"], kid="two"))

    clock.ahead = AHEAD_SECONDS
    at_once = identity_of(listed()).user
    async with asyncio.timeout(5):
        while not at_hand(token(PRIVATE["ES256"], "ES256", "two")):
            await asyncio.sleep(0.001)
    clock.ahead += AHEAD_SECONDS - 60

    assert at_once == "42"
    assert at_hand(listed())
    assert issuer.requests == 2


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
async def test_keys_come_over_http_alone(settings: Settings, tmp_path: Any, scheme: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk("RS256", RSA, kid="one")]}))
    settings.HUB_TOKEN_JWKS_URL = f"{scheme}://localhost{file}"

    assert await outcome(listed()) is INVALID_TOKEN


async def test_no_key_and_no_token_gets_into_a_log(
    settings: Settings, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [f"{FORMER}@never"]
    issuer.status = 500
    tokens = [listed(), token(), token(FORMER), token(OTHER["RS256"], "RS256", "forged name")]

    for text in tokens:
        await outcome(text)
    messages = [check.msg + str(check.hint) for check in (*check_previous_secrets(), *check_token_secrets())]

    written = caplog.text + "".join(messages)
    assert "could not be fetched" in written
    for hidden in (*tokens, SECRET, FORMER, "never", "hidden", "forged name"):
        assert hidden not in written


# System checks.


@pytest.mark.parametrize(
    ("name", "value", "check", "id"),
    [
        ("HUB_TOKEN_SECRET", "short", check_token_secrets, "hub.W003"),
        ("HUB_TOKEN_SECRET", "x" * 31, check_token_secrets, "hub.W003"),
        ("HUB_SUBSCRIPTION_TOKEN_SECRET", "short", check_token_secrets, "hub.W003"),
        ("HUB_TOKEN_SECRET", pem(RSA), check_token_secrets, "hub.E020"),
        ("HUB_TOKEN_SECRET", 5, check_token_secrets, "hub.E020"),
        ("HUB_TOKEN_PREVIOUS_SECRETS", FORMER, check_previous_secrets, "hub.E021"),
        ("HUB_TOKEN_PREVIOUS_SECRETS", [f"{FORMER}@tomorrow"], check_previous_secrets, "hub.E021"),
        ("HUB_TOKEN_PREVIOUS_SECRETS", [SECRET, "@2030-01-01"], check_previous_secrets, "hub.E021"),
        ("HUB_TOKEN_PREVIOUS_SECRETS", [""], check_previous_secrets, "hub.E021"),
        ("HUB_TOKEN_PREVIOUS_SECRETS", [5], check_previous_secrets, "hub.E021"),
        ("HUB_TOKEN_PUBLIC_KEY", "no key", check_public_key, "hub.E022"),
        ("HUB_TOKEN_PUBLIC_KEY", pem(RSA) + "and more", check_public_key, "hub.E022"),
        ("HUB_TOKEN_PUBLIC_KEY", pem(RSA).replace("MII", "XXX"), check_public_key, "hub.E022"),
        ("HUB_TOKEN_PUBLIC_KEY", private_pem(PRIVATE["ES256"]), check_public_key, "hub.E022"),
        ("HUB_TOKEN_PUBLIC_KEY", pem(ec.generate_private_key(ec.SECP256K1())), check_public_key, "hub.E022"),
        ("HUB_TOKEN_PUBLIC_KEY", pem(WEAK), check_public_key, "hub.W005"),
        ("HUB_TOKEN_JWKS_URL", "file:///etc/keys.json", check_jwks_url, "hub.E023"),
        ("HUB_TOKEN_JWKS_URL", "file://localhost/etc/keys.json", check_jwks_url, "hub.E023"),
        ("HUB_TOKEN_JWKS_URL", "issuer.example/keys", check_jwks_url, "hub.E023"),
        ("HUB_TOKEN_JWKS_URL", "https:///keys", check_jwks_url, "hub.E023"),
        ("HUB_TOKEN_JWKS_URL", "https://issuer.example/a b", check_jwks_url, "hub.E023"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_cure(
    settings: Settings, name: str, value: Any, check: Callable[[], list[CheckMessage]], id: str
) -> None:
    setattr(settings, name, value)

    (message,) = check()

    assert message.id == id
    assert name in message.msg
    assert message.hint


@pytest.mark.parametrize("key", [RSA, PRIVATE["ES256"], PRIVATE["EdDSA"]])
def test_a_private_key_in_place_of_a_public_one_is_told_from_it(settings: Settings, key: Any) -> None:
    settings.HUB_TOKEN_PUBLIC_KEY = private_pem(key)

    (message,) = check_public_key()

    assert message.msg == "HUB_TOKEN_PUBLIC_KEY cannot be used: it holds a private key, which the hub must not have."


def test_settings_that_are_right_are_passed(settings: Settings) -> None:
    settings.HUB_SUBSCRIPTION_TOKEN_SECRET = hashlib.sha256(b"a").hexdigest()
    settings.HUB_TOKEN_PREVIOUS_SECRETS = [FORMER, f"{FORMER}@2030-12-31T18:00:00Z", "short", "a@b@"]
    settings.HUB_TOKEN_PUBLIC_KEY = f"\n{pem(RSA)}\n{certificate(PRIVATE['ES256'])}\n"
    settings.HUB_TOKEN_JWKS_URL = "https://user:password@issuer.example/.well-known/jwks.json"

    assert [*check_token_secrets(), *check_previous_secrets(), *check_public_key(), *check_jwks_url()] == []
