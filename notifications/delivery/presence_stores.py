"""Where presence is kept: leases of clients on topics, in the memory of one process or in Redis."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from notifications.events import conf
from notifications.events.redis_clients import translated_errors
from notifications.events.redis_connection import command, connection, raise_refusal

Info = dict[str, Any]
#: By topic and client what is known of the client, or None where its lease ends.
Leases = Mapping[str, Mapping[str, Info | None]]

# Entries that Redis hands out in one piece when all are looked through.
_SCANNED_AT_ONCE = 1_000


class PresenceStore(Protocol):
    """Holds leases of clients on topics. LogUnavailable is raised when it cannot be reached."""

    async def write(self, leases: Leases) -> dict[str, int]:
        """Begin, renew and end leases; returns how many clients each of the topics has then."""
        ...

    async def members(self, topic: str, *, limit: int = 0) -> dict[str, Info] | None:
        """The clients of a topic whose lease has not expired; None when a limit is given and they exceed it."""
        ...

    async def users(self, topic: str) -> dict[str, str]:
        """The users of those clients, by client, read in pieces that hold nobody up."""
        ...


class MemoryPresence:
    """Leases in the memory of one process."""

    def __init__(self) -> None:
        self._leases: defaultdict[str, dict[str, tuple[float, Info]]] = defaultdict(dict)

    async def write(self, leases: Leases) -> dict[str, int]:
        now = time.monotonic()
        expires = now + conf.get("HUB_PRESENCE_TTL_SECONDS")
        counts = {}
        for topic, clients in leases.items():
            held = self._leases[topic]
            for client, info in clients.items():
                if info is None:
                    held.pop(client, None)
                else:
                    held[client] = (expires, info)
            counts[topic] = sum(expires > now for expires, _ in held.values())
            if not held:
                del self._leases[topic]
        return counts

    async def members(self, topic: str, *, limit: int = 0) -> dict[str, Info] | None:
        now = time.monotonic()
        found = {client: info for client, (expires, info) in self._leases.get(topic, {}).items() if expires > now}
        return None if 0 < limit < len(found) else found

    async def users(self, topic: str) -> dict[str, str]:
        found = await self.members(topic) or {}
        return {client: info.get("user", "") for client, info in found.items()}


class _User(msgspec.Struct):
    """Of what is known of a client, the user."""

    user: str = ""


class RedisPresence:
    """Leases in Redis: per topic a sorted set of expiry times and a hash of what is known of each client."""

    async def write(self, leases: Leases) -> dict[str, int]:
        now, ttl = time.time(), conf.get("HUB_PRESENCE_TTL_SECONDS")
        commands, counted = [], []
        for topic, clients in leases.items():
            commands += _writing(topic, clients, now=now, ttl=ttl)
            counted.append(len(commands) - 1)
        replies = await _execute(commands)
        return {topic: replies[at] for topic, at in zip(leases, counted, strict=True)}

    async def members(self, topic: str, *, limit: int = 0) -> dict[str, Info] | None:
        if await _forget_expired(topic) > limit > 0:
            return None
        (stored,) = await _execute([command("HGETALL", _infos_key(topic))])
        return {client: msgspec.json.decode(info) for client, info in _pairs(stored)}

    async def users(self, topic: str) -> dict[str, str]:
        await _forget_expired(topic)
        users: dict[str, str] = {}
        cursor = b"0"
        while True:
            ((cursor, found),) = await _execute(
                [command("HSCAN", _infos_key(topic), cursor, "COUNT", _SCANNED_AT_ONCE)]
            )
            users.update({client: msgspec.json.decode(info, type=_User).user for client, info in _pairs(found)})
            if cursor == b"0":
                return users


def _writing(topic: str, clients: Mapping[str, Info | None], *, now: float, ttl: int) -> list[bytes]:
    """The commands that write the leases of a topic; the last one counts them."""
    leases, infos = _leases_key(topic), _infos_key(topic)
    scores: list[Any] = []
    fields: list[Any] = []
    for client, info in clients.items():
        if info is not None:
            scores += (now + ttl, client)
            fields += (client, msgspec.json.encode(info))
    commands = _forgetting(topic, [client for client, info in clients.items() if info is None])
    if scores:
        commands += [
            command("ZADD", leases, *scores),
            command("HSET", infos, *fields),
            command("EXPIRE", leases, 2 * ttl),
            command("EXPIRE", infos, 2 * ttl),
        ]
    return [*commands, command("ZCOUNT", leases, now, "+inf")]


def _forgetting(topic: str, clients: Iterable[str | bytes]) -> list[bytes]:
    gone = list(clients)
    if not gone:
        return []
    return [command("ZREM", _leases_key(topic), *gone), command("HDEL", _infos_key(topic), *gone)]


async def _forget_expired(topic: str) -> int:
    """Forget the clients of a topic whose lease has expired; returns how many are left."""
    leases = _leases_key(topic)
    expired, known = await _execute([command("ZRANGEBYSCORE", leases, "-inf", time.time()), command("ZCARD", leases)])
    if expired:
        await _execute(_forgetting(topic, expired))
    return int(known) - len(expired)


async def _execute(commands: Sequence[bytes]) -> list[Any]:
    """Commands in one round trip; the first that Redis refuses fails them all."""
    with translated_errors():
        replies = await connection().execute_many(commands)
        raise_refusal(replies)
        return replies


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(client.decode(), info) for client, info in zip(flat[::2], flat[1::2], strict=True)]


def _leases_key(topic: str) -> str:
    return f"hub:presence:{topic}"


def _infos_key(topic: str) -> str:
    return f"hub:presence-info:{topic}"
