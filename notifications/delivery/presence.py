"""Who is subscribed to a topic, as leases: an entry that its server process stops renewing expires by itself.

A counter, or an entry that only a closing socket removes, would keep ghosts of every killed process.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from notifications.delivery.frames import Encoding
from notifications.delivery.presence_stores import Info, MemoryPresence, PresenceStore, RedisPresence
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.events.messages import PresenceChange, group_of, presence_changes, presence_message

if TYPE_CHECKING:
    from notifications.delivery.subscription import Subscription
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

# How long joins and leaves are collected after some were written; the first of a quiet time do not wait.
BATCH_SECONDS = 0.05
RETRY_SECONDS = 0.5
# How many may wait for a store that cannot be reached. Beyond that the leases have to do.
MAX_WAITING = 10_000
# How long a process that stops tries to take back its leases.
FLUSH_SECONDS = 2.0
# So many joins and leaves in one message.
TOLD_AT_ONCE = 100
# So many leases renewed in one round trip.
RENEWED_AT_ONCE = 500
# The clients of larger topics are counted once for all who ask, and so often.
COUNTED_AT_ONCE = 1_000
COUNT_SECONDS = 1.0


class Stats(NamedTuple):
    """How many clients are subscribed to a topic, and of how many users."""

    clients: int
    users: int


@functools.cache
def _memory_presence() -> PresenceStore:
    return MemoryPresence()


def store() -> PresenceStore:
    """The presence store of this hub."""
    return RedisPresence() if conf.get("HUB_REDIS_URL") else _memory_presence()


# Who is there.


async def members(topic: str, *, limit: int = 0) -> dict[str, Info] | None:
    """The clients subscribed to a topic, over all server processes, by client id; None when they exceed the limit.

    Without a limit there are always some, or an empty dictionary. Raises LogUnavailable.
    """
    found = await store().members(topic, limit=limit)
    if found is not None:
        for changes in _changes_of_this_loop():
            changes.apply(topic, found)
    return found


_counted: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[float, asyncio.Task[Stats]]]] = (
    WeakKeyDictionary()
)


async def stats(topic: str) -> Stats:
    """How many are subscribed to a topic; of large ones as it was within the last second. Raises LogUnavailable."""
    found = await members(topic, limit=COUNTED_AT_ONCE)
    if found is not None:
        return Stats(len(found), len({info.get("user", "") for info in found.values()}))
    loop = asyncio.get_running_loop()
    counted, now = _counted.setdefault(loop, {}), loop.time()
    for name in [name for name, (at, _) in counted.items() if at < now - COUNT_SECONDS]:
        del counted[name]
    if topic not in counted:
        counted[topic] = now, loop.create_task(_count(topic))
    return await asyncio.shield(counted[topic][1])


async def _count(topic: str) -> Stats:
    users = await store().users(topic)
    return Stats(len(users), len(set(users.values())))


# Who comes and goes.


class _Change:
    """What is to be written and told of one client of one topic."""

    __slots__ = ("info", "told")

    def __init__(self) -> None:
        #: None when it has left.
        self.info: Info | None = None
        self.told: list[tuple[str, Info]] = []

    def add(self, action: str, info: Info, *, announced: bool) -> None:
        self.info = info if action == "join" else None
        if not announced:
            return
        if action == "leave" and self.told and self.told[-1][0] == "join":
            self.told.pop()  # nobody has heard that it came
        else:
            self.told.append((action, info))

    def follow(self, earlier: _Change) -> None:
        """Be what remains of both: of an earlier one that could not be written, and of this one."""
        later, info = self.told, self.info
        self.told = earlier.told
        for action, told in later:
            self.add(action, told, announced=True)
        self.info = info


_Changes = dict[str, dict[str, _Change]]


class PresenceChanges:
    """The joins and leaves of the sessions of one switchboard, written and told together.

    However many come at once, it is one round trip to the store every `BATCH_SECONDS`, and one message per topic.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self.loop = switchboard.loop
        self._waiting: _Changes = {}
        self._writing: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None] = switchboard.loop.create_future()
        _all.add(self)

    def join(self, subscription: Subscription) -> None:
        """Begin the lease of a subscriber, and tell the others where the topic says so."""
        self._note("join", subscription)

    def leave(self, subscription: Subscription) -> None:
        """End the lease of a subscriber, and tell the others where the topic says so."""
        self._note("leave", subscription)

    def _note(self, action: str, subscription: Subscription) -> None:
        if not self._switchboard.serving:
            return
        clients = self._waiting.setdefault(subscription.topic.name, {})
        change = clients.setdefault(subscription.session.id, _Change())
        change.add(action, subscription.client_info, announced=subscription.announced)
        if self._writing is None:
            self._writing = self._switchboard.spawn(self._write_all())

    def apply(self, topic: str, members: dict[str, Info]) -> None:
        """Bring what the store has of a topic up to date with what it has not been told yet."""
        for client, change in self._waiting.get(topic, {}).items():
            if change.info is None:
                members.pop(client, None)
            else:
                members[client] = change.info

    async def flush(self) -> None:
        """Write without pauses from now on, and wait for what there is; leases that remain expire by themselves."""
        if not self._stopping.done():
            self._stopping.set_result(None)
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=FLUSH_SECONDS)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                changes, self._waiting = self._waiting, {}
                try:
                    await self._write(changes)
                    pause = BATCH_SECONDS
                except LogUnavailable as error:
                    logger.warning("joins and leaves cannot be written yet: %s", error)
                    self._take_back(changes)
                    pause = RETRY_SECONDS
                    if self._stopping.done():
                        return
                await asyncio.wait([self._stopping], timeout=pause)
        finally:
            self._writing = None

    async def _write(self, changes: _Changes) -> None:
        counts = await store().write(
            {topic: {client: change.info for client, change in clients.items()} for topic, clients in changes.items()}
        )
        most = conf.get("HUB_PRESENCE_MAX_MEMBERS")
        telling = [
            self._tell(topic, told)
            for topic, clients in changes.items()
            if not 0 < most < counts[topic] and (told := list(_told(clients)))
        ]
        for failed in await asyncio.gather(*telling, return_exceptions=True):
            if isinstance(failed, Exception):
                logger.warning("subscribers could not be told who joined and left: %s", failed)

    async def _tell(self, topic: str, told: list[PresenceChange]) -> None:
        for start in range(0, len(told), TOLD_AT_ONCE):
            message = presence_message(topic, told[start : start + TOLD_AT_ONCE])
            await self._switchboard.send_to_group(group_of(topic), message)

    def _take_back(self, changes: _Changes) -> None:
        """Let changes that could not be written wait again, before those that came since."""
        if sum(map(len, changes.values())) > MAX_WAITING:
            return
        since, self._waiting = self._waiting, changes
        for topic, clients in since.items():
            before = self._waiting.setdefault(topic, {})
            for client, change in clients.items():
                if client in before:
                    change.follow(before[client])
                before[client] = change


def _told(clients: dict[str, _Change]) -> Iterator[PresenceChange]:
    for client, change in clients.items():
        for action, info in change.told:
            yield PresenceChange(action, client, info)


_all: WeakSet[PresenceChanges] = WeakSet()


def _changes_of_this_loop() -> Iterable[PresenceChanges]:
    loop = asyncio.get_running_loop()
    return [changes for changes in _all if changes.loop is loop]


def tell(switchboard: Switchboard, message: dict[str, Any]) -> None:
    """Push the joins and leaves of a message of the layer to those who want to know."""
    live = switchboard.topics.get(message["topic"])
    if live is None:
        return
    live.hand_out()  # who left has published before
    changes = presence_changes(message)
    encoded: dict[Encoding, list[bytes]] = {}
    for session, subscription in live.live_subscriptions():
        if not subscription.join_leave:
            continue
        encoding = session.encoding
        if encoding not in encoded:
            frames = [encoding.presence_frame(message["topic"], action, info) for action, _, info in changes]
            encoded[encoding] = [frame for frame in frames if frame is not None]
        for frame in encoded[encoding]:
            session.send_frame(frame)


async def renew(switchboard: Switchboard) -> None:
    """Renew the leases of every session of a process. Raises LogUnavailable."""
    if not switchboard.serving:
        return
    leases: dict[str, dict[str, Info | None]] = {}
    size = 0
    for session in list(switchboard.sessions.values()):
        for name, subscription in session.subscriptions.items():
            if subscription.established and subscription.present:
                leases.setdefault(name, {})[session.id] = subscription.client_info
                size += 1
        if size >= RENEWED_AT_ONCE:
            await store().write(leases)
            leases, size = {}, 0
    if leases:
        await store().write(leases)
