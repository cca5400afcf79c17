"""The log in the memory of one process."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from notifications.events import conf, counters, messenger
from notifications.events.event import Cursor, EncodedEvent, at_position
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs.base import Appended, Done, Draft, Log, Page
from notifications.events.messages import event_message
from notifications.events.retention import Retention
from notifications.events.topics import ResolvedTopic


class _Stream:
    """The kept events of one topic."""

    __slots__ = ("epoch", "events", "offset", "retention", "touched", "version", "version_epoch")

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.epoch = secrets.token_hex(4)
        self.offset = 0
        # With when they were appended: what a clock says that is set meanwhile is not how old they are.
        self.events: deque[tuple[float, EncodedEvent]] = deque()
        self.touched = time.monotonic()
        self.version = 0
        self.version_epoch = ""


class MemoryLog(Log):
    """Keeps windows of events in memory; thread-safe, and lost with the process, which its new epochs tell."""

    def __init__(self) -> None:
        # Held while announcing, so that messages enter the layer in the order of their offsets.
        self._lock = threading.RLock()
        self._streams: dict[str, _Stream] = {}
        self._idempotent: dict[tuple[str, str], tuple[float, EncodedEvent]] = {}
        self._swept = time.monotonic()

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        return [self._append(draft) for draft in drafts]

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        return self.append(drafts)

    def append_soon(self, draft: Draft, done: Done) -> None:
        try:
            outcome: Appended | Exception = self._append(draft)
        except LogUnavailable as error:  # of a channel layer that is not in memory
            outcome = error
        done(outcome)

    def _append(self, draft: Draft) -> Appended:
        topic, now = draft.topic, time.monotonic()
        with self._lock:
            self._sweep(now)
            known = self._known(draft, now)
            if known is not None:
                return Appended(known, repeated=True)
            event = draft.event
            if topic.retention.kept and draft.keep:
                stream = self._stream(topic)
                if draft.version:
                    if draft.version <= stream.version and draft.version_epoch == stream.version_epoch:
                        return Appended(at_position(event, offset=stream.offset, epoch=stream.epoch), repeated=True)
                    stream.version, stream.version_epoch = draft.version, draft.version_epoch
                stream.offset += 1
                stream.touched = now
                event = at_position(event, offset=stream.offset, epoch=stream.epoch)
                stream.events.append((now, event))
                self._trim(stream, now)
            else:
                event = at_position(event, offset=0, epoch="")
            if draft.idempotency_key is not None:
                expires = now + conf.get("HUB_IDEMPOTENCY_SECONDS")
                self._idempotent[topic.name, draft.idempotency_key] = (expires, event)
            counters.add("published")
            messenger.announce(topic, event, event_message(event, draft.encoded, draft.exclude))
        return Appended(event)

    def _known(self, draft: Draft, now: float) -> EncodedEvent | None:
        if draft.idempotency_key is None:
            return None
        expires, event = self._idempotent.get((draft.topic.name, draft.idempotency_key), (0.0, None))
        return event if expires > now else None

    def _stream(self, topic: ResolvedTopic) -> _Stream:
        stream = self._streams.get(topic.name)
        if stream is None:
            stream = self._streams[topic.name] = _Stream(topic.retention)
        return stream

    def _trim(self, stream: _Stream, now: float) -> None:
        size, seconds = stream.retention.size, stream.retention.seconds
        while stream.events and (
            (size is not None and len(stream.events) > size)
            or (seconds is not None and now - stream.events[0][0] > seconds)
        ):
            stream.events.popleft()

    def _sweep(self, now: float) -> None:
        """Forget events, topics and idempotency keys that are past their time, once a minute."""
        if now - self._swept < 60:
            return
        self._swept = now
        self._idempotent = {key: entry for key, entry in self._idempotent.items() if entry[0] > now}
        unused = now - conf.get("HUB_POSITION_TTL_SECONDS")
        self._streams = {name: stream for name, stream in self._streams.items() if stream.touched > unused}
        for stream in self._streams.values():
            self._trim(stream, now)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        with self._lock:
            now = time.monotonic()
            self._sweep(now)
            stream = self._stream(topic)
            self._trim(stream, now)
            position = Cursor(stream.offset, stream.epoch)
            events = [event for _, event in stream.events]
        if reverse:
            events = [event for event in reversed(events) if since is None or (event.offset or 0) < since.offset]
        elif since is not None:
            events = [event for event in events if (event.offset or 0) > since.offset]
        return Page(events if limit is None else events[:limit], position)

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page:
        return self.read(topic, since=since, limit=limit, reverse=reverse)

    async def apositions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        return self.positions(topics)

    def positions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        with self._lock:
            streams = {topic.name: self._stream(topic) for topic in topics}
            return {name: Cursor(stream.offset, stream.epoch) for name, stream in streams.items()}

    def remove(self, topic: ResolvedTopic) -> None:
        with self._lock:
            self._stream(topic).events.clear()

    async def aremove(self, topic: ResolvedTopic) -> None:
        self.remove(topic)
