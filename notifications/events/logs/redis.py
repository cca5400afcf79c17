"""The log in Redis: a stream of kept events and a position per topic, appended and announced in one Lua call."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from notifications.events import conf, counters, messenger
from notifications.events.event import Cursor, at_position, decode, encode_bytes
from notifications.events.logs.base import Appended, Done, Draft, Log, Page, Read
from notifications.events.messages import event_message, event_message_beginning, group_of
from notifications.events.redis_clients import KeptConnections, sync_client, translated_error, translated_errors
from notifications.events.redis_connection import RedisConnection, command, connection, raise_refusal
from notifications.events.topics import ResolvedTopic

_SCRIPTS = Path(__file__).parent
_APPEND = (_SCRIPTS / "append.lua").read_text()
_READ = (_SCRIPTS / "read.lua").read_text()
_EPOCH = (_SCRIPTS / "epoch.lua").read_text()
_RUN = (_SCRIPTS / "run.lua").read_text()
_APPEND_HASH = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()
_READ_HASH = hashlib.sha1(_READ.encode(), usedforsecurity=False).hexdigest()
_POSITIONS = "hub:position:"
_RUN_KEY = "hub:run"


# What precedes everything else on a new connection, which may be one to a Redis that was put back to older data.
_GREETING = (
    command("EVAL", _RUN, 1, _RUN_KEY, _POSITIONS, ""),
    command("SCRIPT", "LOAD", _APPEND),
    command("SCRIPT", "LOAD", _READ),
)


def _position_key(topic: str) -> str:
    return f"{_POSITIONS}{topic}"


def _events_key(topic: str) -> str:
    return f"hub:events:{topic}"


def _bulk(*words: str | bytes | int) -> bytes:
    """Words as the bulk strings of a command that is put together from parts."""
    return command(*words).partition(b"\r\n")[2]


class _AppendParts(NamedTuple):
    """What the commands that append to a topic have in common, around the event and the epoch."""

    before: bytes
    after: bytes


# Packing thirteen words for each event is what an append costs its caller most: all but two of them are the topic's.
@functools.lru_cache(maxsize=8_192)
def _append_parts(topic: str, size: int, seconds: int, position_ttl: int, group_prefix: str | None) -> _AppendParts:
    return _AppendParts(
        b"*13\r\n" + _bulk("EVALSHA", _APPEND_HASH, 3, _position_key(topic), _events_key(topic), counters.REDIS_KEY),
        _bulk(size, seconds, position_ttl, _channel(group_prefix, topic), event_message_beginning(topic)),
    )


def _channel(group_prefix: str | None, topic: str) -> str:
    return "" if group_prefix is None else group_prefix + group_of(topic)


class RedisLog(Log):
    """Keeps windows of events in Redis, shared by all processes that are configured with it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connections = KeptConnections(url, greeting=_GREETING)
        self._layer: Any = None
        self._group_prefix: str | None = None
        # A script is only a text with its hash; the client is given at each call.
        self._read_script = redis.Redis().register_script(_READ)

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        announces = self._announces()
        commands = [self._append_command(draft, announces) for draft in drafts]
        with translated_errors():
            answers = self._connections.call(commands)
            unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:
                # Redis was told to forget its scripts: these have done nothing, and may be sent again.
                again = self._connections.call(
                    [command("SCRIPT", "LOAD", _APPEND), *(commands[index] for index in unknown)]
                )
                for index, answer in zip(unknown, again[1:], strict=True):
                    answers[index] = answer
            raise_refusal(answers)
        return self._finish(drafts, answers, announces)

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        if self._announces():
            return await self._aappend(drafts, announces=True)
        # Whoever is cancelled has appended all the same, and what is appended is announced.
        return await asyncio.shield(asyncio.create_task(self._aappend(drafts, announces=False)))

    def append_soon(self, draft: Draft, done: Done) -> None:
        if not self._announces():
            super().append_soon(draft, done)
            return

        def replied(reply: Any) -> None:
            if isinstance(reply, NoScriptError):  # Redis was told to forget its scripts, and has done nothing
                Log.append_soon(self, draft, done)
            elif isinstance(reply, Exception):
                done(translated_error(reply))
            else:
                done(self._finish([draft], [reply], announces=True)[0])

        _connection().execute_soon(self._append_command(draft, announces=True), replied)

    async def _aappend(self, drafts: Sequence[Draft], *, announces: bool) -> list[Appended]:
        # One write per turn of the loop and no waiting for what is on its way: one connection keeps the order.
        commands = [self._append_command(draft, announces) for draft in drafts]
        return self._finish(drafts, await _evaluated(_APPEND, commands), announces)

    def _announces(self) -> bool:
        """Whether the script can announce by itself, because the layer is pub/sub on the same Redis."""
        layer = messenger.layer()
        if layer is not self._layer:
            self._group_prefix = messenger.redis_group_channel("")
            self._layer = layer
        return self._group_prefix is not None

    def _append_command(self, draft: Draft, announces: bool) -> bytes:
        topic, retention, group_prefix = draft.topic, draft.topic.retention, self._group_prefix if announces else None
        size = retention.size or 0 if retention.kept and draft.keep else 0
        seconds, position_ttl = retention.seconds or 0, conf.get("HUB_POSITION_TTL_SECONDS")
        encoded = encode_bytes(draft.event)
        # An epoch is as random as an id, and the end of a new id is 32 random bits that nothing else has.
        epoch = draft.event.id[-8:].encode()
        mirror = messenger.mirror_message(topic, draft.event) if announces else None
        if draft.idempotency_key is None and draft.exclude is None and not draft.version and mirror is None:
            before, after = _append_parts(topic.name, size, seconds, position_ttl, group_prefix)
            return b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (before, len(encoded), encoded, len(epoch), epoch, after)
        keys = [_position_key(topic.name), _events_key(topic.name), counters.REDIS_KEY]
        if draft.idempotency_key is not None:
            # With the length, because topics and keys may both have colons.
            keys.append(f"hub:idempotency:{len(topic.name)}:{topic.name}:{draft.idempotency_key}")
        channel, beginning = _channel(group_prefix, topic.name), event_message_beginning(topic.name, draft.exclude)
        words = [encoded, epoch, size, seconds, position_ttl, channel, beginning, conf.get("HUB_IDEMPOTENCY_SECONDS")]
        words += (
            ["", b""]
            if mirror is None
            else [f"{group_prefix}{topic.mirror_group}", messenger.layer().serialize(mirror)]
        )
        words += [draft.version, draft.version_epoch]
        return command("EVALSHA", _APPEND_HASH, len(keys), *keys, *words)

    def _finish(self, drafts: Sequence[Draft], answers: list[Any], announces: bool) -> list[Appended]:
        appended = []
        for draft, (offset, epoch, first) in zip(drafts, answers, strict=True):
            if first:
                appended.append(Appended(decode(first, offset=offset, epoch=epoch.decode()), repeated=True))
                continue
            event = at_position(draft.event, offset=offset, epoch=epoch.decode())
            if first is not None:  # its version was known
                appended.append(Appended(event, repeated=True))
                continue
            if not announces:
                messenger.announce(draft.topic, event, event_message(event, draft.encoded, draft.exclude))
            appended.append(Appended(event))
        return appended

    def _read_call(
        self, topic: ResolvedTopic, since: Cursor | None, limit: int | None, reverse: bool
    ) -> tuple[list[str], list[Any]]:
        if reverse and since is not None and since.offset == 0:
            limit = 0  # nothing is before the first event, and Redis takes no such bound
        # An offset without a time is the first or the last id that it can be, as the direction wants it.
        if reverse:
            start = "+" if since is None else str(since.offset - 1)
        else:
            start = "-" if since is None else str(since.offset + 1)
        return [_position_key(topic.name), _events_key(topic.name)], [
            secrets.token_hex(4),
            conf.get("HUB_POSITION_TTL_SECONDS"),
            "reverse" if reverse else "forward",
            start,
            -1 if limit is None else limit,
            topic.retention.seconds or 0,
        ]

    def _page(self, topic: ResolvedTopic, answer: Any) -> Page:
        position = Cursor(answer[0], answer[1].decode())
        events = [
            decode(fields[1], offset=int(stream_id.partition(b"-")[0]), epoch=position.epoch)
            for stream_id, fields in answer[2]
        ]
        return Page(events, position)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        call = self._read_call(topic, since, limit, reverse)
        with translated_errors():
            return self._page(topic, self._read_script(*call, client=sync_client()))

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page:
        answers = await _evaluated(_READ, [self._read_command(topic, since, limit, reverse)])
        return self._page(topic, answers[0])

    def _read_command(self, topic: ResolvedTopic, since: Cursor | None, limit: int | None, reverse: bool) -> bytes:
        keys, arguments = self._read_call(topic, since, limit, reverse)
        return command("EVALSHA", _READ_HASH, len(keys), *keys, *arguments)

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
            answers = await _connection().execute_many(
                [command("HMGET", _position_key(name), "e", "o") for name in names]
            )
            raise_refusal(answers)
        return _cursors(names, answers)

    def remove(self, topic: ResolvedTopic) -> None:
        with translated_errors():
            sync_client().delete(_events_key(topic.name))

    async def aremove(self, topic: ResolvedTopic) -> None:
        with translated_errors():
            raise_refusal(await _connection().execute_many([command("DEL", _events_key(topic.name))]))

    async def aread_many(self, reads: Sequence[Read]) -> list[Page]:
        commands = [self._read_command(read.topic, read.since, read.limit, reverse=False) for read in reads]
        answers = await _evaluated(_READ, commands)
        return [self._page(read.topic, answer) for read, answer in zip(reads, answers, strict=True)]

    async def abegin_epoch(self, topic: ResolvedTopic, *, lost: Cursor) -> Cursor:
        keys = (_position_key(topic.name), lost.epoch, lost.offset, secrets.token_hex(4))
        ((offset, epoch),) = await _evaluated(_EPOCH, [command("EVAL", _EPOCH, 1, *keys)])
        return Cursor(offset, epoch.decode())

    def begin_epochs(self) -> int:
        """Begin a new epoch of every topic that has a position; returns how many there are."""
        with translated_errors():
            begun: Any = sync_client().eval(_RUN, 1, _RUN_KEY, _POSITIONS, "always")
        return int(begun)

    async def aopen(self, topics: Sequence[ResolvedTopic]) -> dict[str, Cursor]:
        answers = await _evaluated(_READ, [self._read_command(topic, None, 0, False) for topic in topics])
        return {
            topic.name: Cursor(offset, epoch.decode())
            for topic, (offset, epoch, _) in zip(topics, answers, strict=True)
        }


def _connection() -> RedisConnection:
    """The connection of the running loop, on which Redis knows the scripts from the first command on."""
    found = connection()
    found.greeting = _GREETING
    return found


async def _evaluated(script: str, commands: Sequence[bytes]) -> list[Any]:
    """The replies to EVALSHA commands of a script. Raises LogUnavailable."""
    with translated_errors():
        answers = await _connection().execute_many(commands)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # Redis was told to forget its scripts: these have done nothing, and may be sent again.
            again = await _connection().execute_many(
                [command("SCRIPT", "LOAD", script), *(commands[index] for index in unknown)]
            )
            for index, answer in zip(unknown, again[1:], strict=True):
                answers[index] = answer
        raise_refusal(answers)
    return answers


def _cursors(names: list[str], answers: list[Any]) -> dict[str, Cursor]:
    return {
        name: Cursor(int(offset or 0), (epoch or b"").decode())
        for name, (epoch, offset) in zip(names, answers, strict=True)
    }
