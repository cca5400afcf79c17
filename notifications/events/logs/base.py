"""The interface of a log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from notifications.events.event import Cursor, EncodedEvent, encode
from notifications.events.exceptions import LogUnavailable
from notifications.events.topics import ResolvedTopic


class Draft(NamedTuple):
    """An event on its way into a log.

    `exclude` is the id of a client that must not get its own event back. A `version` above 0 drops the event when
    its topic has accepted that version, or a later one, of the same `version_epoch`. Without `keep` the event is for
    those alone who are connected, also on a topic that keeps its events.
    """

    topic: ResolvedTopic
    event: EncodedEvent
    idempotency_key: str | None = None
    exclude: str | None = None
    version: int = 0
    version_epoch: str = ""
    keep: bool = True

    @property
    def encoded(self) -> str:
        return encode(self.event)


class Appended(NamedTuple):
    """An event at its position; `repeated` when its idempotency key or version was known and nothing was appended."""

    event: EncodedEvent
    repeated: bool = False


class Page(NamedTuple):
    """Events read from a log, and the position of the topic at that moment."""

    events: list[EncodedEvent]
    position: Cursor

    def continues(self, since: Cursor) -> bool:
        """Whether these are all events after `since`: same epoch, no hole, up to the topic's position."""
        if since.epoch and since.epoch != self.position.epoch:
            return False
        if not self.events:
            return since.offset == self.position.offset
        offsets = [event.offset for event in self.events]
        return offsets == list(range(since.offset + 1, (self.position.offset or 0) + 1))


class Read(NamedTuple):
    """A question to a log among others: the events of a topic after `since`, at most `limit` of them."""

    topic: ResolvedTopic
    since: Cursor
    limit: int


#: Is called with an event at its position, or with the exception because of which it has none.
Done = Callable[[Appended | Exception], None]


# The tasks that nobody awaits: a loop alone does not keep what runs on it from being collected as garbage.
_appending: set[asyncio.Task[list[Appended]]] = set()


def _outcome(ended: asyncio.Task[list[Appended]]) -> Appended | Exception:
    if ended.cancelled():
        return LogUnavailable("the event loop ends")
    error = ended.exception()
    if error is None:
        return ended.result()[0]
    return error if isinstance(error, Exception) else LogUnavailable(repr(error))


class Log(Protocol):
    """Keeps events by topic and gives them offsets 1, 2, 3 … within an epoch.

    Each operation exists for synchronous callers and, with the prefix `a`, for callers on an event loop; the
    latter never block the loop. All raise LogUnavailable when the log cannot be reached.
    """

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Append the events in order and announce each to its topic's group, as one step.

        Events on topics that keep nothing are announced with offset 0. An idempotency key that was used on the
        topic within `HUB_IDEMPOTENCY_SECONDS` appends nothing and returns the event of its first use, without
        its data. A version that is not above the topic's last one appends nothing and returns the draft's event at
        the topic's position.
        """
        ...

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]: ...

    def append_soon(self, draft: Draft, done: Done) -> None:
        """Append one event from an event loop, and call `done` there with what `aappend()` returns or raises for it.

        Nobody awaits, so a log that can does it without a task.
        """

        def ended(task: asyncio.Task[list[Appended]]) -> None:
            _appending.discard(task)
            done(_outcome(task))

        task = asyncio.get_running_loop().create_task(self.aappend([draft]))
        _appending.add(task)
        task.add_done_callback(ended)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        """Kept events in order of their offsets: those after `since`, or from the oldest.

        With `reverse` the newest first, those before `since` if it is given. `limit` bounds their number; None
        does not, and 0 asks for the position only.
        """
        ...

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page: ...

    async def aread_many(self, reads: Sequence[Read]) -> list[Page]:
        """What `aread()` returns for each, with as few questions as the log can."""
        pages = (self.aread(read.topic, since=read.since, limit=read.limit) for read in reads)
        return list(await asyncio.gather(*pages))

    def positions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        """The positions of topics by name, without reading events."""
        ...

    async def apositions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]: ...

    def remove(self, topic: ResolvedTopic) -> None:
        """Delete the kept events of a topic. Offset and epoch go on, so whoever missed some of them is told so."""
        ...

    async def aremove(self, topic: ResolvedTopic) -> None: ...

    async def aopen(self, topics: Sequence[ResolvedTopic]) -> dict[str, Cursor]:
        """The positions of kept topics by name, in one go, with an epoch begun wherever there was none.

        What `aread(topic, since=None, limit=0)` says for one topic, for the many that a process begins to serve.
        """
        return await self.apositions(topics)

    async def abegin_epoch(self, topic: ResolvedTopic, *, lost: Cursor) -> Cursor:
        """Begin a new epoch unless the topic is at the position `lost`, which it had, or beyond; returns its position.

        A log that was put back to older data would give the same offsets to other events.
        """
        return (await self.apositions([topic]))[topic.name]
