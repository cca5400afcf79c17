"""Reads of logs that many share: when thousands come back at once, a topic's log is read once for all of them."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from notifications.events import conf
from notifications.events.event import Cursor, EncodedEvent
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import Page, Read, log_for
from notifications.events.retention import Kind

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic

KEPT_SECONDS = 2.0
# A page with more than so much data is for those alone who wait for it.
KEPT_BYTES = 1_048_576
# Topics in one question to a log.
ASKED_AT_ONCE = 500

T = TypeVar("T")


class MissedEvents(list[EncodedEvent]):
    """The events that one subscriber missed, out of a page that others have as well."""

    __slots__ = ("_made",)

    def __init__(self, events: Iterable[EncodedEvent] = (), made: dict[object, dict[int, Any]] | None = None) -> None:
        super().__init__(events)
        self._made = {} if made is None else made

    def each(self, made_by: object, make: Callable[[EncodedEvent], T]) -> list[T]:
        """What `make` makes of each event, made once for all subscribers; `made_by` names what it depends on."""
        made = self._made.setdefault(made_by, {})
        # Everybody misses the newest, and some of them the older ones as well.
        missing = list(takewhile(lambda event: event.offset not in made, self))
        for event in reversed(missing):
            made[event.offset or 0] = make(event)
        return [made[event.offset or 0] for event in self]


class SharedPage:
    """The kept events of a topic after the offset `start`, up to its `position`."""

    __slots__ = ("_made", "_unbroken", "complete", "events", "limit", "position", "start")

    def __init__(self, page: Page, *, start: int, limit: int) -> None:
        self.events = page.events
        self.position = page.position
        self.start = start
        self.limit = limit
        #: False when more were appended meanwhile than are read at once, so that it may not reach its position.
        self.complete = page.position.offset - start <= limit
        # All that was published after this offset is here.
        self._unbroken = page.position.offset
        for event in reversed(page.events):
            if event.offset != self._unbroken:
                break
            self._unbroken -= 1
        self._made: dict[object, dict[int, Any]] = {}

    def serves(self, offset: int, reached: Cursor) -> bool:
        """Whether all that was kept after `offset` is here, for a subscription that holds what follows `reached`."""
        if self.position.epoch != reached.epoch or self.position.offset < reached.offset:
            return False
        if self.position.offset - offset > self.limit:
            return True  # too much for anybody
        return self.complete and self.start <= offset

    def after(self, since: Cursor) -> MissedEvents | None:
        """All events after a cursor, or None when they are not here without a hole."""
        if since.epoch not in ("", self.position.epoch) or not self._unbroken <= since.offset <= self.position.offset:
            return None
        missed = self.position.offset - since.offset
        return MissedEvents(self.events[len(self.events) - missed :], self._made)

    def newest(self) -> MissedEvents | None:
        """The topic's newest event alone, or None when it is not kept any more."""
        if not self.events or self.events[-1].offset != self.position.offset:
            return None
        return MissedEvents(self.events[-1:], self._made)


class RecentEvents:
    """The newest events of one live topic, for those who recover at about the same time.

    Who asks while a read is on its way joins it; what it has is kept for a moment for those who come after.
    """

    __slots__ = ("_head", "_kept", "_live", "_reading", "_wanted")

    def __init__(self, live: LiveTopic) -> None:
        self._live = live
        self._kept: SharedPage | None = None
        # Where the log was when it was read last.
        self._head = Cursor()
        self._reading: asyncio.Future[SharedPage] | None = None
        self._wanted: int | None = None

    async def after(self, offset: int) -> SharedPage:
        """A page that `serves()` a subscription of the topic which has `offset`, and holds what arrives from now on.

        A topic that has begun a new epoch meanwhile has outdated the subscription; the page is then of no use.
        Raises LogUnavailable, to everybody who waits for the same read.
        """
        live, reached = self._live, self._live.position or Cursor()
        page, reads = self._kept, 0
        if page is not None and offset > page.position.offset:
            page = None  # what a client knows of another process is news here, or made up: the log is asked once
        while page is None or not page.serves(offset, reached):
            if page is not None and reads > 0 and live.position is not None and live.position.epoch != reached.epoch:
                break
            if page is not None and reads > 1 and page.position.offset < reached.offset:
                live.repair()  # a log that is behind what it gave before: subscribers are told of it
                break
            page = await self._read(offset)
            reads += 1
        return page

    async def _read(self, offset: int) -> SharedPage:
        """The page of the read that is on its way, or of the next one, which reaches back to `offset`."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_future()
            performing = self._live.switchboard.spawn(self._perform(self._reading))
            performing.add_done_callback(functools.partial(_never_begun, self._reading))
        self._wanted = offset if self._wanted is None else min(self._wanted, offset)
        return await asyncio.shield(self._reading)

    async def _perform(self, reading: asyncio.Future[SharedPage]) -> None:
        live, limit, before = self._live, conf.get("HUB_MAX_HISTORY"), self._live.position or Cursor()
        start = self._start(before, limit)
        try:
            read = Read(live.topic, Cursor(start, before.epoch), limit)
            page = SharedPage(await live.switchboard.reads.read(read), start=start, limit=limit)
        except BaseException as error:
            self._reading = self._wanted = None
            told = error if isinstance(error, LogUnavailable) else LogUnavailable(f"the log was not read: {error!r}")
            reading.set_exception(told)
            reading.exception()  # those who wait may have gone meanwhile
            if not isinstance(error, LogUnavailable):
                raise
            return
        # Who joined it and is not served by it asks again, before the next one begins.
        self._reading = self._wanted = None
        if page.position.epoch != before.epoch and live.position == before:
            live.reset(page.position)
        self._keep(page)
        reading.set_result(page)

    def _start(self, position: Cursor, limit: int) -> int:
        """From where the next read begins, so that it serves all who wait, and most of those who will."""
        wanted, head, kept = self._wanted or 0, position.offset, self._kept
        if self._head.epoch == position.epoch:
            head = max(head, self._head.offset)
        if kept is not None and kept.position.epoch == position.epoch:
            # The second within a moment: who reaches back further than the first is not the last of that kind.
            wanted = 0 if wanted < kept.start else kept.start
        return max(wanted, head - limit)

    def _keep(self, page: SharedPage) -> None:
        self._head, self._kept = page.position, None
        if sum(len(bytes(event.data)) for event in page.events) <= KEPT_BYTES:
            self._kept = page
            asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, page)

    def _forget(self, page: SharedPage) -> None:
        if self._kept is page:
            self._kept = None


def _never_begun(reading: asyncio.Future[SharedPage], performing: asyncio.Task[None]) -> None:
    """Tell those who wait for a read that was cancelled before its first step."""
    if not reading.done():
        reading.set_exception(LogUnavailable("the process stops"))
        reading.exception()  # they may have gone meanwhile


class ReadRounds:
    """Reads the logs of many topics, one round after the other: while one is on its way, the next one fills."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._spawn = spawn
        self._asked: defaultdict[Kind, list[tuple[Read, asyncio.Future[Page]]]] = defaultdict(list)
        self._running: set[Kind] = set()

    async def read(self, read: Read) -> Page:
        """A page of a topic's log. Raises LogUnavailable."""
        kind = read.topic.retention.kind
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._asked[kind].append((read, answer))
        if kind not in self._running:
            self._running.add(kind)
            self._spawn(self._run(kind))
        return await answer

    async def _run(self, kind: Kind) -> None:
        asked = self._asked[kind]
        try:
            while asked:
                round_, asked[:ASKED_AT_ONCE] = asked[:ASKED_AT_ONCE], []
                await self._perform(round_)
        finally:
            self._running.discard(kind)

    async def _perform(self, asked: list[tuple[Read, asyncio.Future[Page]]]) -> None:
        log = log_for(asked[0][0].topic.retention)
        try:
            pages = await log.aread_many([read for read, _ in asked])
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and raises it
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), page in zip(asked, pages, strict=True):
            if not answer.done():
                answer.set_result(page)
