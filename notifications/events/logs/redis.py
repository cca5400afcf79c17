"""The log in Redis: a stream of kept events and a position per topic, appended and announced in one Lua call."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio

from notifications.events import conf, counters, messenger
from notifications.events.event import Cursor, at_position, decode
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs.base import Appended, Draft, Page
from notifications.events.logs.batches import Batches
from notifications.events.messages import FORMAT, event_message, group_of
from notifications.events.redis_clients import async_client, sync_client, translated_errors
from notifications.events.topics import ResolvedTopic

_SCRIPTS = Path(__file__).parent
_APPEND = (_SCRIPTS / "append.lua").read_text()
_READ = (_SCRIPTS / "read.lua").read_text()


def _position_key(topic: str) -> str:
    return f"hub:position:{topic}"


def _events_key(topic: str) -> str:
    return f"hub:events:{topic}"


class RedisLog:
    """Keeps windows of events in Redis, shared by all processes that are configured with it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._batches: WeakKeyDictionary[asyncio.AbstractEventLoop, Batches] = WeakKeyDictionary()
        # Scripts are only texts with their hash; the client is given at each call.
        nowhere, nowhere_async = redis.Redis(), redis.asyncio.Redis()
        self._append_script = nowhere.register_script(_APPEND)
        self._read_script = nowhere.register_script(_READ)
        self._async_append_script: Any = nowhere_async.register_script(_APPEND)
        self._async_read_script: Any = nowhere_async.register_script(_READ)

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        announces = self._announces()
        with translated_errors():
            if len(drafts) == 1:
                answers = [self._append_script(*self._append_call(drafts[0], announces), client=sync_client())]
            else:
                pipeline = sync_client().pipeline(transaction=False)
                for draft in drafts:
                    self._append_script(*self._append_call(draft, announces), client=pipeline)
                answers = pipeline.execute()
        return self._finish(drafts, answers, announces)

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        loop = asyncio.get_running_loop()
        batches = self._batches.get(loop)
        if batches is None:
            batches = self._batches[loop] = Batches(self._append_batch)
        return await batches.add(drafts)

    async def _append_batch(self, drafts: Sequence[Draft]) -> list[Appended | Exception]:
        announces = self._announces()
        pipeline = async_client().pipeline(transaction=False)
        for draft in drafts:
            await self._async_append_script(*self._append_call(draft, announces), client=pipeline)
        with translated_errors():
            answers = await pipeline.execute(raise_on_error=False)
        return [self._outcome(draft, answer, announces) for draft, answer in zip(drafts, answers, strict=True)]

    def _outcome(self, draft: Draft, answer: Any, announces: bool) -> Appended | Exception:
        if isinstance(answer, Exception):
            return LogUnavailable(f"Redis did not take the call: {answer}")
        return self._finish([draft], [answer], announces)[0]

    def _announces(self) -> bool:
        """Whether the script can announce by itself, because the layer is pub/sub on the same Redis."""
        return messenger.redis_group_channel("") is not None

    def _append_call(self, draft: Draft, announces: bool) -> tuple[list[str], list[Any]]:
        topic, retention = draft.topic, draft.topic.retention
        channel = mirror_channel = ""
        mirror = b""
        if announces:
            channel = messenger.redis_group_channel(group_of(topic.name)) or ""
            message = messenger.mirror_message(topic, draft.event)
            if message is not None and topic.mirror_group is not None:
                mirror_channel = messenger.redis_group_channel(topic.mirror_group) or ""
                mirror = messenger.layer().serialize(message)
        keys = [
            _position_key(topic.name),
            _events_key(topic.name),
            # With the length, because topics and keys may both have colons.
            f"hub:idempotency:{len(topic.name)}:{topic.name}:{draft.idempotency_key}",
            counters.REDIS_KEY,
        ]
        arguments = [
            draft.encoded,
            retention.size or 0 if retention.kept else 0,
            retention.seconds or 0,
            conf.get("HUB_POSITION_TTL_SECONDS"),
            conf.get("HUB_IDEMPOTENCY_SECONDS") if draft.idempotency_key is not None else 0,
            secrets.token_hex(4),
            channel,
            topic.name,
            draft.exclude or "",
            FORMAT,
            mirror_channel,
            mirror,
        ]
        return keys, arguments

    def _finish(self, drafts: Sequence[Draft], answers: list[Any], announces: bool) -> list[Appended]:
        appended = []
        for draft, (offset, epoch, first) in zip(drafts, answers, strict=True):
            if first:
                appended.append(Appended(decode(first, offset=offset, epoch=epoch.decode()), repeated=True))
                continue
            event = at_position(draft.event, offset=offset, epoch=epoch.decode())
            if not announces:
                messenger.announce(draft.topic, event, event_message(event, draft.encoded, draft.exclude))
            appended.append(Appended(event))
        return appended

    def _read_call(
        self, topic: ResolvedTopic, since: Cursor | None, limit: int | None, reverse: bool
    ) -> tuple[list[str], list[Any]]:
        if reverse and since is not None and since.offset == 0:
            limit = 0  # nothing is before the first event, and Redis takes no such bound
        if reverse:
            start = "+" if since is None else f"({since.offset}-0"
        else:
            start = "-" if since is None else f"({since.offset}-0"
        return [_position_key(topic.name), _events_key(topic.name)], [
            secrets.token_hex(4),
            conf.get("HUB_POSITION_TTL_SECONDS"),
            "reverse" if reverse else "forward",
            start,
            -1 if limit is None else limit,
        ]

    def _page(self, topic: ResolvedTopic, answer: Any) -> Page:
        position = Cursor(answer[0], answer[1].decode())
        events = [
            decode(fields[1], offset=int(stream_id.partition(b"-")[0]), epoch=position.epoch)
            for stream_id, fields in answer[2]
        ]
        if topic.retention.seconds is not None:
            # The stream expires as a whole with its newest event; older ones are too old before that.
            oldest = time.time() - topic.retention.seconds
            events = [event for event in events if event.time is None or event.time.timestamp() >= oldest]
        return Page(events, position)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        call = self._read_call(topic, since, limit, reverse)
        with translated_errors():
            return self._page(topic, self._read_script(*call, client=sync_client()))

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page:
        call = self._read_call(topic, since, limit, reverse)
        with translated_errors():
            return self._page(topic, await self._async_read_script(*call, client=async_client()))

    def positions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        names = [topic.name for topic in topics]
        with translated_errors():
            pipeline = sync_client().pipeline(transaction=False)
            for name in names:
                pipeline.hmget(_position_key(name), "e", "o")
            return _cursors(names, pipeline.execute())

    async def apositions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        names = [topic.name for topic in topics]
        with translated_errors():
            pipeline = async_client().pipeline(transaction=False)
            for name in names:
                pipeline.hmget(_position_key(name), "e", "o")
            return _cursors(names, await pipeline.execute())


def _cursors(names: list[str], answers: list[Any]) -> dict[str, Cursor]:
    return {
        name: Cursor(int(offset or 0), (epoch or b"").decode())
        for name, (epoch, offset) in zip(names, answers, strict=True)
    }
