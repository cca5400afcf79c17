"""The registry of server processes: each renews a lease that tells its channel and its counters."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Protocol

import msgspec

from notifications.events import conf
from notifications.events.redis_clients import async_client, sync_client, translated_errors

LEASE_SECONDS = 6

_KEY = "hub:nodes"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A server process: where the control plane reaches it, and what it serves.

    `name` is its host and process id, `started_at` a Unix time. `topics` holds the number of subscriptions of its
    live topics, `delivered` the events handed to sessions since its start.
    """

    id: str
    channel: str
    name: str = ""
    version: str = ""
    started_at: float = 0.0
    sessions: int = 0
    users: int = 0
    subscriptions: int = 0
    topics: dict[str, int] = {}
    delivered: int = 0
    renewed_at: float = 0.0


class Registry(Protocol):
    """Knows the server processes whose lease is fresh. LogUnavailable is raised when it cannot be reached."""

    async def renew(self, node: Node) -> None: ...

    async def remove(self, node: str) -> None: ...

    def nodes(self) -> list[Node]: ...

    async def anodes(self) -> list[Node]: ...


def _fresh(nodes: Iterable[Node]) -> list[Node]:
    oldest = time.time() - LEASE_SECONDS
    return sorted((node for node in nodes if node.renewed_at >= oldest), key=lambda node: node.id)


class MemoryRegistry:
    """The registry of a hub that is one process."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    async def renew(self, node: Node) -> None:
        self._nodes[node.id] = msgspec.structs.replace(node, renewed_at=time.time())

    async def remove(self, node: str) -> None:
        self._nodes.pop(node, None)

    def nodes(self) -> list[Node]:
        return _fresh(list(self._nodes.values()))

    async def anodes(self) -> list[Node]:
        return self.nodes()


class RedisRegistry:
    """The registry in Redis: a hash of leases, each with the time of its renewal inside."""

    async def renew(self, node: Node) -> None:
        lease = msgspec.json.encode(msgspec.structs.replace(node, renewed_at=time.time()))
        with translated_errors():
            client = async_client()
            await client.hset(_KEY, node.id, lease)
            dead = [known.id for known in await self._all() if known.renewed_at < time.time() - 10 * LEASE_SECONDS]
            if dead:
                await client.hdel(_KEY, *dead)

    async def remove(self, node: str) -> None:
        with translated_errors():
            await async_client().hdel(_KEY, node)

    def nodes(self) -> list[Node]:
        with translated_errors():
            return _fresh(_decoded(sync_client().hvals(_KEY)))

    async def anodes(self) -> list[Node]:
        with translated_errors():
            return _fresh(await self._all())

    async def _all(self) -> list[Node]:
        return _decoded(await async_client().hvals(_KEY))


def _decoded(leases: Iterable[bytes | str]) -> list[Node]:
    return [msgspec.json.decode(lease, type=Node) for lease in leases]


@functools.cache
def _memory_registry() -> Registry:
    return MemoryRegistry()


def registry() -> Registry:
    """The registry of this hub."""
    return RedisRegistry() if conf.get("HUB_REDIS_URL") else _memory_registry()
