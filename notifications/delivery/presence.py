"""Who is subscribed to a topic, as leases: an entry that its server process stops renewing expires by itself.

A counter, or an entry that only a closing socket removes, would keep ghosts of every killed process.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from notifications.events import conf
from notifications.events.messages import group_of, presence_message
from notifications.events.redis_clients import async_client, translated_errors

if TYPE_CHECKING:
    from notifications.delivery.subscription import Subscription
    from notifications.delivery.switchboard import Switchboard

Info = dict[str, Any]


class PresenceStore(Protocol):
    """Holds leases of clients on topics. LogUnavailable is raised when it cannot be reached."""

    async def put(self, entries: Iterable[tuple[str, str, Info]]) -> None:
        """Begin or renew the leases of (topic, client, info)."""
        ...

    async def remove(self, topic: str, client: str) -> None: ...

    async def members(self, topic: str) -> dict[str, Info]:
        """The clients of a topic whose lease has not expired."""
        ...


class MemoryPresence:
    """Leases in the memory of one process."""

    def __init__(self) -> None:
        self._leases: defaultdict[str, dict[str, tuple[float, Info]]] = defaultdict(dict)

    async def put(self, entries: Iterable[tuple[str, str, Info]]) -> None:
        expires = time.monotonic() + conf.get("HUB_PRESENCE_TTL_SECONDS")
        for topic, client, info in entries:
            self._leases[topic][client] = (expires, info)

    async def remove(self, topic: str, client: str) -> None:
        leases = self._leases.get(topic)
        if leases is not None:
            leases.pop(client, None)
            if not leases:
                del self._leases[topic]

    async def members(self, topic: str) -> dict[str, Info]:
        now = time.monotonic()
        return {client: info for client, (expires, info) in self._leases.get(topic, {}).items() if expires > now}


class RedisPresence:
    """Leases in Redis: per topic a sorted set of expiry times and a hash of what is known of each client."""

    async def put(self, entries: Iterable[tuple[str, str, Info]]) -> None:
        ttl = conf.get("HUB_PRESENCE_TTL_SECONDS")
        expires = time.time() + ttl
        with translated_errors():
            pipeline = async_client().pipeline(transaction=False)
            for topic, client, info in entries:
                leases, infos = _keys(topic)
                pipeline.zadd(leases, {client: expires})
                pipeline.hset(infos, client, msgspec.json.encode(info))
                pipeline.expire(leases, 2 * ttl)
                pipeline.expire(infos, 2 * ttl)
            await pipeline.execute()

    async def remove(self, topic: str, client: str) -> None:
        with translated_errors():
            await _forget(topic, [client])

    async def members(self, topic: str) -> dict[str, Info]:
        leases, infos = _keys(topic)
        with translated_errors():
            client = async_client()
            expired = await client.zrangebyscore(leases, "-inf", time.time())
            if expired:
                await _forget(topic, expired)
            stored = await client.hgetall(infos)
        return {_text(name): msgspec.json.decode(info) for name, info in stored.items()}


async def _forget(topic: str, clients: Sequence[Any]) -> None:
    leases, infos = _keys(topic)
    pipeline = async_client().pipeline()
    pipeline.zrem(leases, *clients)
    pipeline.hdel(infos, *clients)
    await pipeline.execute()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keys(topic: str) -> tuple[str, str]:
    return f"hub:presence:{topic}", f"hub:presence-info:{topic}"


@functools.cache
def _memory_presence() -> PresenceStore:
    return MemoryPresence()


def store() -> PresenceStore:
    """The presence store of this hub."""
    return RedisPresence() if conf.get("HUB_REDIS_URL") else _memory_presence()


async def members(topic: str) -> dict[str, Info]:
    """The clients subscribed to a topic, over all server processes, by client id."""
    return await store().members(topic)


async def join(subscription: Subscription) -> None:
    """Begin the lease of a subscriber, and tell the others where the topic says so."""
    session, topic = subscription.session, subscription.topic
    if not session.switchboard.serving:
        return
    await store().put([(topic.name, session.id, subscription.client_info)])
    if topic.name not in session.subscriptions:
        await store().remove(topic.name, session.id)  # it left while the lease was being written
    elif subscription.announced:
        await _announce(subscription, "join")


async def leave(subscription: Subscription) -> None:
    """End the lease of a subscriber, and tell the others where the topic says so."""
    session, topic = subscription.session, subscription.topic
    if not session.switchboard.serving:
        return
    await store().remove(topic.name, session.id)
    if subscription.announced:
        await _announce(subscription, "leave")


async def _announce(subscription: Subscription, action: str) -> None:
    session, name = subscription.session, subscription.topic.name
    message = presence_message(name, action, session.id, subscription.client_info)
    await session.switchboard.send_to_group(group_of(name), message)


async def renew(switchboard: Switchboard) -> None:
    """Renew the leases of every session of a process."""
    if not switchboard.serving:
        return
    entries = [
        (name, session.id, subscription.client_info)
        for session in switchboard.sessions.values()
        for name, subscription in session.subscriptions.items()
        if subscription.established and subscription.present
    ]
    if entries:
        await store().put(entries)
