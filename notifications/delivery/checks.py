"""System checks of the keys of tokens: a mistake stops the start and names its cure, never the key."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from django.core.checks import CheckMessage, Error, Warning, register

from notifications.delivery.token_keys import checked_url, previous_secret_of, public_keys_of, secret_of
from notifications.events import conf

# What RFC 7518 asks for: as many bytes as the hash of HS256 has (§3.2), and this many bits of RSA (§3.3).
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048

_CURE = f"Use a random text of at least {MIN_SECRET_BYTES} bytes (RFC 7518 §3.2), as `openssl rand -base64 32` prints."


@register("hub")
def check_token_secrets(**_: Any) -> list[CheckMessage]:
    """A short secret can be guessed, and whoever has it is everybody; a public key is no secret at all."""
    messages: list[CheckMessage] = []
    for name in ("HUB_TOKEN_SECRET", "HUB_SUBSCRIPTION_TOKEN_SECRET"):
        if not (text := conf.get(name)):
            continue
        try:
            length = len(secret_of(text).key)
        except (ValueError, TypeError) as error:
            hint = f"{_CURE} A public key goes to HUB_TOKEN_PUBLIC_KEY."
            messages.append(Error(f"{name} cannot be used: {error}.", hint=hint, id="hub.E020"))
            continue
        if length < MIN_SECRET_BYTES:
            messages.append(
                Warning(
                    f"{name} has {length} bytes: tokens signed with it can be forged by guessing.",
                    hint=_CURE,
                    id="hub.W003",
                )
            )
    return messages


@register("hub")
def check_previous_secrets(**_: Any) -> list[CheckMessage]:
    """Former secrets are a list, and the times until which they are accepted can be read."""
    hint = (
        "Write each as secret, or as secret@2030-12-31T18:00:00Z to accept it until then, with commas between them; "
        "one that has an @ of its own takes another @ at its end."
    )
    texts = conf.get("HUB_TOKEN_PREVIOUS_SECRETS")
    if not isinstance(texts, list | tuple):
        return [Error("HUB_TOKEN_PREVIOUS_SECRETS must be a list of texts.", hint=hint, id="hub.E021")]
    messages: list[CheckMessage] = []
    for number, text in enumerate(texts, start=1):
        try:
            previous_secret_of(text)
        except (ValueError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, ValueError) else "it is no text"
            messages.append(
                Error(
                    f"HUB_TOKEN_PREVIOUS_SECRETS: number {number} cannot be used: {reason}.", hint=hint, id="hub.E021"
                )
            )
    return messages


@register("hub")
def check_public_key(**_: Any) -> list[CheckMessage]:
    """The public keys can be read, and are of the families that tokens are verified with."""
    if not (text := conf.get("HUB_TOKEN_PUBLIC_KEY")):
        return []
    try:
        keys = public_keys_of(text)
    except (ValueError, TypeError) as error:
        return [
            Error(
                f"HUB_TOKEN_PUBLIC_KEY cannot be used: {error}.",
                hint="Give the text of the file that `openssl pkey -in private.pem -pubout` prints, with its first and "
                r"last line; in an environment variable, line breaks may be written as \n.",
                id="hub.E022",
            )
        ]
    return [
        Warning(
            f"HUB_TOKEN_PUBLIC_KEY has an RSA key of {found.key.key_size} bits: tokens of its signer can be forged.",
            hint=f"Use a key of at least {MIN_RSA_BITS} bits (RFC 7518 §3.3).",
            id="hub.W005",
        )
        for found in keys
        if isinstance(found.key, RSAPublicKey) and found.key.key_size < MIN_RSA_BITS
    ]


@register("hub")
def check_jwks_url(**_: Any) -> list[CheckMessage]:
    """Keys are fetched over HTTP alone: from a file, say, whoever can write it would be everybody."""
    url = conf.get("HUB_TOKEN_JWKS_URL")
    try:
        checked_url(url or "https://unset")
    except (ValueError, TypeError, AttributeError) as error:
        return [
            Error(
                f"HUB_TOKEN_JWKS_URL cannot be used: {error}.",
                hint="Give the address at which the issuer of the tokens lists its keys, such as "
                "https://issuer.example/.well-known/jwks.json.",
                id="hub.E023",
            )
        ]
    return []
