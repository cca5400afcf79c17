"""Who a session belongs to, and what they may do."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare

from notifications.events.threads import in_database_thread
from notifications.events.topics import ResolvedTopic, registry, resolve

if TYPE_CHECKING:
    from notifications.delivery.revocations import Revocations

logger = logging.getLogger(__name__)


class SubscriptionGrant(msgspec.Struct, frozen=True):
    """What a token, or the server, gives one subscriber on a topic.

    `info` is JSON that others may know of the subscriber there; `expires_at` is a Unix time or None; `overrides` are
    options of the topic that hold otherwise for this subscription; `data` is JSON text for the subscriber, or None.
    """

    info: Any = None
    expires_at: float | None = None
    overrides: Mapping[str, bool] = {}
    data: msgspec.Raw | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who stands behind a connection, without the Django user, which may change while the socket is open.

    `user` is the user's id or "" for a visitor; `info` is JSON that others may know; `login` names the Django session
    (a hash of its key) that a logout ends, and `auth_hash` is what a new password changes; `verified_at` is the Unix
    time at which the database said all this, 0 for the bearer of a token, and `login_until` the Unix time at which the
    Django session ends if nobody uses it, 0 where the database was not asked; `expires_at` is a Unix time or None;
    `topics` are those to which a token subscribes its bearer, and `subs` what it gives on some of them; `grants` are
    patterns of topics (with * and ?) that an API key may receive.
    """

    user: str = ""
    info: Any = None
    login: str = ""
    verified_at: float = 0.0
    login_until: float = 0.0
    expires_at: float | None = None
    topics: tuple[str, ...] = ()
    from_token: bool = False
    auth_hash: str = ""
    grants: tuple[str, ...] = ()
    subs: Mapping[str, SubscriptionGrant] = {}

    def granted(self, topic: str) -> bool:
        """Whether a grant covers the topic."""
        return any(fnmatchcase(topic, pattern) for pattern in self.grants)


ANONYMOUS = Identity()


class IdentifiedUser:
    """A signed-in user of whom no more is known than who they are."""

    is_authenticated = True
    is_anonymous = False

    def __init__(self, identity: Identity) -> None:
        self.pk = self.id = identity.user
        info = identity.info if isinstance(identity.info, dict) else {}
        self._name = str(info.get("name") or identity.user)

    def get_username(self) -> str:
        return self._name

    def get_full_name(self) -> str:
        return self._name


class TokenUser(IdentifiedUser):
    """The bearer of a token whose subject is no user of this site: signed in, and without any rights."""

    is_active = True
    is_staff = False
    is_superuser = False

    def has_perm(self, permission: str, obj: Any = None) -> bool:
        return False


def auth_hash_of(user: Any) -> str:
    """What a new password of the user changes: a hash of what Django compares, which is for its sessions alone."""
    return hashlib.sha256(user.get_session_auth_hash().encode()).hexdigest()[:32]


def load_users(identities: Sequence[Identity]) -> list[Any | None]:
    """The Django users of identities as they are now, for permission checks; queries the database once.

    A visitor is AnonymousUser. None means that there is no such user any more, or an inactive one.
    """
    users = get_user_model()
    keys: dict[str, Any] = {}
    for subject in {identity.user for identity in identities}:
        # A token's subject may be anything, and names a user only when it is the key as the hub writes it.
        with suppress(ValidationError, ValueError, TypeError):
            key = users._meta.pk.to_python(subject)
            if subject and str(key) == subject:
                keys[subject] = key
    found = users._default_manager.in_bulk(keys.values()) if keys else {}
    return [_loaded(identity, found.get(keys.get(identity.user))) for identity in identities]


def _loaded(identity: Identity, user: Any | None) -> Any | None:
    if not identity.user:
        return AnonymousUser()
    if user is None:
        return TokenUser(identity) if identity.from_token else None
    return user if user.is_active else None


def load_user(identity: Identity) -> Any | None:
    """The Django user of one identity, see `load_users()`."""
    return load_users([identity])[0]


def _bare_user(identity: Identity) -> Any:
    return IdentifiedUser(identity) if identity.user else AnonymousUser()


def _allows(identity: Identity, topic: ResolvedTopic, action: str) -> bool:
    user = load_user(identity)
    return user is not None and _user_may(identity, user, topic, action)


def _user_may(identity: Identity, user: Any, topic: ResolvedTopic, action: str) -> bool:
    if action == "subscribe" and topic.name in identity.topics:  # its token says so
        return True
    return topic.allows(action, user)


class Verdict(NamedTuple):
    """What a session may no longer do: be connected at all, or receive some of its topics."""

    connected: bool
    forbidden: list[str]


def _judge(judged: Sequence[tuple[Identity, list[ResolvedTopic]]]) -> list[Verdict]:
    users = load_users([identity for identity, _ in judged])
    return [_verdict(identity, user, topics) for (identity, topics), user in zip(judged, users, strict=True)]


def _verdict(identity: Identity, user: Any | None, topics: list[ResolvedTopic]) -> Verdict:
    if user is None:
        return Verdict(False, [])
    if identity.auth_hash and not constant_time_compare(identity.auth_hash, auth_hash_of(user)):
        return Verdict(False, [])
    try:
        forbidden = [
            topic.name
            for topic in topics
            if not identity.granted(topic.name) and not _user_may(identity, user, topic, "subscribe")
        ]
    except Exception:
        # Who cannot be judged is not let through: a new connection is judged anew.
        logger.exception("a session could not be judged again")
        return Verdict(False, [])
    return Verdict(True, forbidden)


async def judge(judged: Sequence[tuple[Identity, list[ResolvedTopic]]]) -> list[Verdict]:
    """Which of their topics identities may no longer receive, asked of the database for all together.

    Raises what the database raises.
    """
    return await in_database_thread(_judge, judged)


def has_ended(identity: Identity, *, revocations: Revocations) -> bool:
    """Whether the identity is of a Django session that was ended, by a logout say. Nobody looks that up later on."""
    # What is opened with an API key has a name of this sort as well, and the key may be good again.
    return bool(identity.user and identity.login) and revocations.ended(identity.login)


def allows_at_hand(identity: Identity, topic: ResolvedTopic, action: str, *, revocations: Revocations) -> bool | None:
    """Whether the topic's declaration lets this identity do `action`; None when the database has to be asked."""
    if has_ended(identity, revocations=revocations):
        return False
    if action != "publish" and identity.granted(topic.name):
        return True
    if topic.declaration.asks_only_identity and revocations.unchanged(identity):
        return _user_may(identity, _bare_user(identity), topic, action)
    return None


async def allows(identity: Identity, topic: ResolvedTopic, action: str, *, revocations: Revocations) -> bool:
    """Whether the topic's declaration lets this identity do `action` now."""
    allowed = allows_at_hand(identity, topic, action, revocations=revocations)
    return await in_database_thread(_allows, identity, topic, action) if allowed is None else allowed


def _server_subscriptions(identity: Identity, user: Any) -> list[str]:
    names = dict.fromkeys(identity.topics)
    for declaration in registry.subscribing:
        for name in declaration.server_subscriptions(user):
            if resolve(name).allows("subscribe", user):
                names[name] = None
    return list(names)


def _server_subscriptions_of_user(identity: Identity) -> list[str] | None:
    user = load_user(identity)
    return None if user is None else _server_subscriptions(identity, user)


async def server_subscriptions(identity: Identity, *, revocations: Revocations) -> list[str] | None:
    """The topics to which the server subscribes this identity; None when it may not connect at all."""
    if has_ended(identity, revocations=revocations):
        return None
    if all(declaration.asks_only_identity for declaration in registry.subscribing) and revocations.unchanged(identity):
        return _server_subscriptions(identity, _bare_user(identity))
    return await in_database_thread(_server_subscriptions_of_user, identity)
