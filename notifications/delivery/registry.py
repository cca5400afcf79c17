"""The registry of server processes: each renews a lease that tells its channel, its counters and its sessions."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from notifications.delivery.roster import LiveSession, Roster
from notifications.events import conf
from notifications.events.redis_clients import async_client, sync_client, translated_errors

LEASE_SECONDS = 6

_KEY = "hub:nodes"
_FORGOTTEN_SECONDS = 10 * LEASE_SECONDS
# So many that a round trip costs little, and so few that neither the loop nor Redis is held up.
_TOLD_AT_ONCE = 500


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A server process: where the control plane reaches it, and what it serves.

    `name` is its host and process id, `started_at` a Unix time. `live_topics` counts the topics that it serves,
    `delivered` the events handed to sessions since its start.
    """

    id: str
    channel: str
    name: str = ""
    version: str = ""
    started_at: float = 0.0
    sessions: int = 0
    users: int = 0
    subscriptions: int = 0
    live_topics: int = 0
    delivered: int = 0
    renewed_at: float = 0.0


class Registry(Protocol):
    """Knows the server processes whose lease is fresh. LogUnavailable is raised when it cannot be reached."""

    async def renew(self, node: Node, subscribers: Mapping[str, int]) -> bool:
        """Renew a lease, and take over how many subscribers topics have where that has changed.

        False says that what was told before is lost: tell of all topics and sessions again.
        """
        ...

    async def tell(self, node: str, roster: Roster) -> None:
        """Take over which sessions a process has, where that has changed; what fails is told at the next call."""
        ...

    async def remove(self, node: str) -> None:
        """Give a lease back."""
        ...

    def nodes(self) -> list[Node]: ...

    async def anodes(self) -> list[Node]: ...

    async def asubscribers(self) -> Mapping[str, int]:
        """How many subscribers each topic has, over all processes; topics that have none are left out."""
        ...

    def sessions(self, user: str | None = None) -> list[LiveSession]:
        """The sessions of all processes, or those of one user ("" for visitors), in no order."""
        ...


def _of(user: str | None, node: Node, entries: Iterable[LiveSession]) -> list[LiveSession]:
    """The entries of a user, or all, with the name of the process."""
    return [msgspec.structs.replace(entry, server=node.name) for entry in entries if user in (None, entry.user)]


def _fresh(nodes: Iterable[Node]) -> list[Node]:
    oldest = time.time() - LEASE_SECONDS
    return sorted((node for node in nodes if node.renewed_at >= oldest), key=lambda node: node.id)


class MemoryRegistry:
    """The registry of a hub that is one process."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._subscribers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._rosters: dict[str, Roster] = {}

    async def renew(self, node: Node, subscribers: Mapping[str, int]) -> bool:
        self._nodes[node.id] = msgspec.structs.replace(node, renewed_at=time.time())
        counted = self._subscribers[node.id]
        for topic, number in subscribers.items():
            if number:
                counted[topic] = number
            else:
                counted.pop(topic, None)
        return True

    async def tell(self, node: str, roster: Roster) -> None:
        # The sessions are in the memory of this process once already.
        self._rosters[node] = roster
        roster.take_changes()

    async def remove(self, node: str) -> None:
        self._nodes.pop(node, None)
        self._subscribers.pop(node, None)
        self._rosters.pop(node, None)

    def nodes(self) -> list[Node]:
        return _fresh(list(self._nodes.values()))

    async def anodes(self) -> list[Node]:
        return self.nodes()

    async def asubscribers(self) -> Mapping[str, int]:
        total: Counter[str] = Counter()
        for node in self.nodes():
            total.update(self._subscribers[node.id])
        return total

    def sessions(self, user: str | None = None) -> list[LiveSession]:
        rosters = [(node, self._rosters.get(node.id)) for node in self.nodes()]
        return [entry for node, roster in rosters if roster for entry in _of(user, node, roster.everybody())]


class RedisRegistry:
    """The registry in Redis: a hash of leases, each with the time of its renewal inside, and for each of them a hash of
    counts and one of sessions.
    """

    async def renew(self, node: Node, subscribers: Mapping[str, int]) -> bool:
        lease = msgspec.json.encode(msgspec.structs.replace(node, renewed_at=time.time()))
        counts, sessions = _counts_key(node.id), _sessions_key(node.id)
        with translated_errors():
            pipeline = async_client().pipeline(transaction=False)
            # Before what may make the key anew, which would then seem never to have been lost.
            pipeline.expire(counts, _FORGOTTEN_SECONDS)
            pipeline.expire(sessions, _FORGOTTEN_SECONDS)
            pipeline.hset(_KEY, node.id, lease)
            some: dict[Any, Any] = {topic: number for topic, number in subscribers.items() if number}
            if some:
                pipeline.hset(counts, mapping=some)
            if none := [topic for topic, number in subscribers.items() if not number]:
                pipeline.hdel(counts, *none)
            pipeline.expire(counts, _FORGOTTEN_SECONDS)
            counts_kept, sessions_kept, *_ = await pipeline.execute()
            dead = [known.id for known in await self._all() if known.renewed_at < time.time() - _FORGOTTEN_SECONDS]
            if dead:
                await async_client().hdel(_KEY, *dead)
        return bool(counts_kept or not node.subscriptions) and bool(sessions_kept or not node.sessions)

    async def tell(self, node: str, roster: Roster) -> None:
        changes = roster.take_changes()
        key = _sessions_key(node)
        try:
            with translated_errors():
                if changes.anew:
                    await async_client().delete(key)
                for start in range(0, len(changes.ids), _TOLD_AT_ONCE):
                    await _put(key, roster.entries(changes.ids[start : start + _TOLD_AT_ONCE]))
        except BaseException:
            roster.tell_anew()
            raise

    async def remove(self, node: str) -> None:
        with translated_errors():
            await async_client().hdel(_KEY, node)
            await async_client().delete(_counts_key(node), _sessions_key(node))

    def nodes(self) -> list[Node]:
        with translated_errors():
            return _fresh(_decoded(sync_client().hvals(_KEY)))

    async def anodes(self) -> list[Node]:
        with translated_errors():
            return _fresh(await self._all())

    async def asubscribers(self) -> Mapping[str, int]:
        total: Counter[str] = Counter()
        with translated_errors():
            for node in _fresh(await self._all()):
                counts: dict[Any, Any] = await async_client().hgetall(_counts_key(node.id))
                total.update({topic.decode(): int(number) for topic, number in counts.items()})
        return total

    def sessions(self, user: str | None = None) -> list[LiveSession]:
        found: list[LiveSession] = []
        with translated_errors():
            for node in self.nodes():
                # In pieces, which may bring an entry twice.
                told = dict(sync_client().hscan_iter(_sessions_key(node.id), count=_TOLD_AT_ONCE))
                found += _of(user, node, [msgspec.json.decode(entry, type=LiveSession) for entry in told.values()])
        return found

    async def _all(self) -> list[Node]:
        return _decoded(await async_client().hvals(_KEY))


async def _put(key: str, entries: Mapping[str, LiveSession | None]) -> None:
    """Write what is known of some sessions of a process, and take out those that are closed."""
    pipeline = async_client().pipeline(transaction=False)
    live: dict[Any, Any] = {id: msgspec.json.encode(entry) for id, entry in entries.items() if entry is not None}
    if live:
        pipeline.hset(key, mapping=live)
    if closed := [id for id, entry in entries.items() if entry is None]:
        pipeline.hdel(key, *closed)
    pipeline.expire(key, _FORGOTTEN_SECONDS)
    await pipeline.execute()


def _counts_key(node: str) -> str:
    return f"hub:subscribers:{node}"


def _sessions_key(node: str) -> str:
    return f"hub:sessions:{node}"


def _decoded(leases: Iterable[bytes | str]) -> list[Node]:
    return [msgspec.json.decode(lease, type=Node) for lease in leases]


@functools.cache
def _memory_registry() -> Registry:
    return MemoryRegistry()


def registry() -> Registry:
    """The registry of this hub."""
    return RedisRegistry() if conf.get("HUB_REDIS_URL") else _memory_registry()
