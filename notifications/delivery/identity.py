"""Who a session belongs to, and what they may do."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.utils.crypto import constant_time_compare

from notifications.events.threads import in_database_thread
from notifications.events.topics import ResolvedTopic, registry, resolve


class Identity(msgspec.Struct, frozen=True):
    """Who stands behind a connection, without the Django user, which may change while the socket is open.

    `user` is the user's id or "" for a visitor; `info` is what others may know; `login` names the Django session
    (a hash of its key) that a logout ends, and `auth_hash` is what a new password changes; `expires_at` is a Unix
    time or None; `topics` are those to which a token subscribes its bearer; `grants` are patterns of topics (with *
    and ?) that an API key may receive.
    """

    user: str = ""
    info: dict[str, Any] | None = None
    login: str = ""
    expires_at: float | None = None
    topics: tuple[str, ...] = ()
    from_token: bool = False
    auth_hash: str = ""
    grants: tuple[str, ...] = ()

    def granted(self, topic: str) -> bool:
        """Whether a grant covers the topic."""
        return any(fnmatchcase(topic, pattern) for pattern in self.grants)


ANONYMOUS = Identity()


class TokenUser:
    """The bearer of a token whose subject is no user of this site: signed in, and without any rights."""

    is_authenticated = True
    is_anonymous = False
    is_active = True
    is_staff = False
    is_superuser = False

    def __init__(self, identity: Identity) -> None:
        self.pk = self.id = identity.user
        self._name = str((identity.info or {}).get("name") or identity.user)

    def get_username(self) -> str:
        return self._name

    def get_full_name(self) -> str:
        return self._name

    def has_perm(self, permission: str, obj: Any = None) -> bool:
        return False


def load_user(identity: Identity) -> Any | None:
    """The Django user of an identity as it is now, for permission checks; queries the database.

    A visitor is AnonymousUser. None means that there is no such user any more, or an inactive one.
    """
    if not identity.user:
        return AnonymousUser()
    users = get_user_model()
    try:
        user = users._default_manager.filter(pk=identity.user).first()
    except (ValueError, TypeError):  # a token's subject that cannot be a key
        user = None
    if user is None:
        return TokenUser(identity) if identity.from_token else None
    return user if user.is_active else None


def _allows(identity: Identity, topic: ResolvedTopic, action: str) -> bool:
    if action != "publish" and identity.granted(topic.name):
        return True
    user = load_user(identity)
    return user is not None and _user_may(identity, user, topic, action)


def _user_may(identity: Identity, user: Any, topic: ResolvedTopic, action: str) -> bool:
    if action == "subscribe" and topic.name in identity.topics:  # its token says so
        return True
    return topic.allows(action, user)


def _judge(identity: Identity, topics: list[ResolvedTopic]) -> list[str] | None:
    user = load_user(identity)
    if user is None:
        return None
    if identity.auth_hash and not constant_time_compare(identity.auth_hash, user.get_session_auth_hash()):
        return None
    return [
        topic.name
        for topic in topics
        if not identity.granted(topic.name) and not _user_may(identity, user, topic, "subscribe")
    ]


async def judge(identity: Identity, topics: list[ResolvedTopic]) -> list[str] | None:
    """Which of these topics the identity may no longer receive; None when it may not even be connected."""
    return await in_database_thread(_judge, identity, topics)


async def allows(identity: Identity, topic: ResolvedTopic, action: str) -> bool:
    """Whether the topic's declaration lets this identity do `action` now."""
    return await in_database_thread(_allows, identity, topic, action)


def _server_subscriptions(identity: Identity) -> list[str] | None:
    user = load_user(identity)
    if user is None:
        return None
    names = dict.fromkeys(identity.topics)
    for declaration in registry.declarations:
        for name in declaration.server_subscriptions(user):
            if resolve(name).allows("subscribe", user):
                names[name] = None
    return list(names)


async def server_subscriptions(identity: Identity) -> list[str] | None:
    """The topics to which the server subscribes this identity; None when it may not connect at all."""
    return await in_database_thread(_server_subscriptions, identity)
