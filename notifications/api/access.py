"""Who calls: the identity of the API key that a request carries, and what it reaches."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from notifications.api.patterns import parse_patterns
from notifications.api.selectors import hash_of, login_of_hash, valid_key
from notifications.api.services import PREFIX_LENGTH, note_use
from notifications.audit.origin import Origin
from notifications.delivery import keys
from notifications.delivery.auth import Scope, address_of, header
from notifications.delivery.codes import INVALID_TOKEN, PERMISSION_DENIED, UNKNOWN_TOPIC, CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.delivery.rpc import acts_for_the_site
from notifications.events.exceptions import UnknownTopic
from notifications.events.threads import in_database_thread
from notifications.events.topics import ResolvedTopic, resolve

# Half of the second within which a revocation has to be seen; the other half is for the query.
CACHE_SECONDS = 0.5

# Valid keys only, by their hash: as many as are in use, whatever else is tried.
_known: dict[str, tuple[float, Identity]] = {}


def stored_patterns(text: str) -> tuple[str, ...] | None:
    """The patterns of a key that is stored and not revoked, or None; queries the database, and notes the use."""
    key = valid_key(hash=hash_of(text))
    if key is None:
        return None
    note_use(key=key)
    return parse_patterns(key.patterns)


def presented_key(scope: Scope) -> str | None:
    """The key in `X-API-Key`, in `Authorization: apikey …` or in the query's `api_key`; None when there is none."""
    if key := header(scope, b"x-api-key").strip():
        return key
    scheme, _, key = header(scope, b"authorization").partition(" ")
    if scheme.lower() == "apikey" and key.strip():
        return key.strip()
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("api_key", [])), None)


async def identity_of_text(text: str) -> Identity | None:
    """The identity of a key's bearer, who may do anything on the topics that it covers; None for a wrong key."""
    hash, now = hash_of(text), time.monotonic()
    expires, identity = _known.get(hash, (0.0, None))
    if identity is not None and now < expires:
        return identity
    patterns = await in_database_thread(keys.patterns_of, text)
    if patterns is None:
        _known.pop(hash, None)
        return None
    identity = Identity(grants=patterns, login=login_of_hash(hash))
    _known[hash] = (now + CACHE_SECONDS, identity)
    return identity


def origin_of(scope: Scope) -> Origin:
    """The bearer of a request's valid API key, for the audit log: by what the admin lists of the key, if it does."""
    scheme, _, rest = (presented_key(scope) or "").partition("_")
    listed = scheme == "hub" and len(rest) > PREFIX_LENGTH
    name = f"API key hub_{rest[:PREFIX_LENGTH]}_…" if listed else "API key of HUB_API_KEYS"
    return Origin(name=name, address=address_of(scope) or None)


async def identity_of_key(scope: Scope) -> Identity | None:
    """The identity that the request's API key gives, or None when it carries none.

    Raises Disconnect with 3500 for a key that is not valid.
    """
    text = presented_key(scope)
    if text is None:
        return None
    identity = await identity_of_text(text)
    if identity is None:
        raise Disconnect(INVALID_TOKEN)
    return identity


def granted_topic(identity: Identity, name: str) -> ResolvedTopic:
    """The topic called `name`. Raises CommandError 103 when the key does not cover it, 102 when there is none."""
    # The grant first: a limited key does not learn which other topics there are.
    if not identity.granted(name):
        raise CommandError(PERMISSION_DENIED, "the key's topics do not include this one")
    try:
        return resolve(name)
    except UnknownTopic as error:
        raise CommandError(UNKNOWN_TOPIC) from error


def require_every_topic(identity: Identity) -> None:
    """Raise CommandError 103 unless the key covers every topic, as what is not about one topic needs."""
    if not acts_for_the_site(identity):
        raise CommandError(PERMISSION_DENIED, "this needs a key for every topic, whose patterns include *")
