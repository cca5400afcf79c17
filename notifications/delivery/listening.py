"""Listening to topics from a command: a session of the process's own, written to a file such as stdout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from notifications.delivery import codes, keys
from notifications.delivery.codes import Code, CommandError
from notifications.delivery.frames import unframed
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.lines import LINES
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.events.event import Cursor
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import log_for
from notifications.events.topics import ResolvedTopic

PAGE_EVENTS = 1_000
RETRY_SECONDS = 1.0

EVERYTHING = Identity(grants=keys.EVERY_TOPIC)


class Output(Protocol):
    """A file, or a command's stdout."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


class FileTransport:
    """Writes a session's payloads to a file at once. A reader that went away ends the listening."""

    framing = staticmethod(unframed)

    def __init__(self, output: Output, on_close: Callable[[], None]) -> None:
        self._output = output
        self._on_close = on_close

    def write(self, frames: list[bytes]) -> None:
        try:
            self._output.write(b"".join(frames).decode())
            self._output.flush()
        except BrokenPipeError:
            self._on_close()

    congested = False

    def pending(self) -> int:
        return 0

    def ping(self) -> None:
        """A file has none."""

    def close(self, code: Code) -> None:
        self._on_close()


class ListeningSession(Session):
    """A session without an outgoing buffer: a file takes what it is given, so there is nobody too slow for it."""

    __slots__ = ()

    def send_frame(self, frame: bytes) -> None:
        self.transport.write([frame])


class Listener:
    """Prints the events of topics as they come, from the position that is asked for.

    `say` is told, in a sentence, what the reader of the output should know. `following` has the names of the topics
    whose events are being printed.
    """

    def __init__(self, output: Output, say: Callable[[str], None]) -> None:
        self._output = output
        self._say = say
        self._finished = asyncio.Event()
        self.following: set[str] = set()

    async def run(self, topics: list[ResolvedTopic], *, since: Cursor | None = None) -> None:
        """Listen until the output is closed. `since` without an epoch is an offset in whatever epoch there is.

        Raises LogUnavailable when the hub cannot be reached at the start; later it is waited for.
        """
        switchboard = Switchboard(serving=False)
        try:
            await switchboard.start()
            transport = FileTransport(self._output, self._finished.set)
            session = ListeningSession(switchboard, LINES, transport, EVERYTHING)
            declared = {topic.name: topic for topic in topics}
            session.state.ended = lambda name, code: self._ended(session, declared[name], code)
            session.opened()
            for topic in declared.values():
                await self._follow(session, topic, since)
            await self._finished.wait()
        finally:
            await switchboard.stop()

    async def _follow(self, session: Session, topic: ResolvedTopic, since: Cursor | None) -> None:
        """Subscribe, print what is kept after `since`, then what was held meanwhile and what comes."""
        try:
            recovery = await session.subscribe(topic.name)
        except CommandError as error:
            raise LogUnavailable(error.detail or error.code.reason) from error
        if since is not None and not topic.retention.kept:
            self._say(f"{topic.name} keeps no events; printing those to come")
        elif since is not None:
            epoch = recovery.position.epoch
            if since.epoch and since.epoch != epoch:
                self._say(f"{topic.name}: epoch {since.epoch} has ended; printing what epoch {epoch} keeps")
                since = Cursor(0, epoch)
            await self._print_kept(session, topic, since, recovery.position)
        recovery.subscription.release()
        self.following.add(topic.name)

    async def _print_kept(self, session: Session, topic: ResolvedTopic, since: Cursor, until: Cursor) -> None:
        log, position = log_for(topic.retention), since
        while position.offset < until.offset:
            page = await log.aread(topic, since=position, limit=PAGE_EVENTS)
            for event in page.events:
                offset = event.offset or 0
                if offset > until.offset:
                    return
                if offset != position.offset + 1:
                    self._say(f"{topic.name}: offsets {position.offset + 1} to {offset - 1} are no longer kept")
                session.send_frame(session.encoding.frame(event))
                position = event.cursor
            if not page.events:
                self._say(f"{topic.name}: offsets {position.offset + 1} to {until.offset} are no longer kept")
                return

    def _ended(self, session: Session, topic: ResolvedTopic, code: Code) -> None:
        self.following.discard(topic.name)
        if code is codes.UNSUBSCRIBED_INSUFFICIENT_STATE:
            self._say(f"{topic.name}: insufficient state, events were missed that its log no longer has")
        else:
            self._say(f"{topic.name}: {code.reason}")
        session.switchboard.spawn(self._again(session, topic))

    async def _again(self, session: Session, topic: ResolvedTopic) -> None:
        while session.closed_with is None:
            try:
                await self._follow(session, topic, None)
            except LogUnavailable as error:
                self._say(f"{topic.name}: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
