"""Events on their way to the sessions that get them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from notifications.delivery.audience import Part
from notifications.delivery.frames import Encoding
from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session, Stream

logger = logging.getLogger(__name__)


class FanOut:
    """Events of one topic on their way to its audience: encoded once each, and joined for those who take that."""

    __slots__ = ("_elsewhere", "_encoded", "_events", "_rest", "live")

    def __init__(self, live: LiveTopic, events: Sequence[EncodedEvent]) -> None:
        self.live = live
        self._events = events
        # As it is now: who comes and goes meanwhile changes the topic's own.
        self._rest = list(live.ready.parts())
        self._encoded: dict[Encoding, tuple[list[bytes], int]] = {}
        # Receivers that are not to be written to: they have the events otherwise, or want them no more.
        self._elsewhere: set[Session] = set()

    def join(self, sessions: Iterable[Session]) -> None:
        """Have those of the sessions that get the events send them behind what they have to send already."""
        for session in sessions:
            if self.awaits(session):
                session.outgoing += self._frames(session.encoding)[0]
                self._elsewhere.add(session)

    def leave(self, session: Session) -> None:
        """A session is to get no more events of the topic."""
        self._elsewhere.add(session)

    def awaits(self, session: Session) -> bool:
        """Whether a session has to be sent the events before anything else, for all that is known."""
        return session in self.live.ready and session not in self._elsewhere

    def write(self, least: int) -> bool:
        """Write to so many sessions or some more; returns whether there are others left."""
        while self._rest and least > 0:
            part = self._rest.pop(0)
            least -= len(part.sessions)
            frames, size = self._frames(part.encoding)
            if part.streams is None:
                self._write_to_sessions(part.sessions, frames, size)
            else:
                self._write_to_streams(part, part.streams, b"".join(frames))
        return bool(self._rest)

    def write_all(self) -> None:
        """Write to all sessions that are left."""
        self.write(sum(len(part.sessions) for part in self._rest))

    def _write_to_streams(self, part: Part, streams: list[Stream], frame: bytes) -> None:
        if self._elsewhere:
            pairs = zip(part.sessions, streams, strict=True)
            streams = [stream for session, stream in pairs if session not in self._elsewhere]
        for stream in streams:
            try:
                stream.write(frame)
            except Exception as error:  # noqa: BLE001 - one must not stop the others
                part.owner(stream).broken(error)
        self.live.switchboard.writer.sent_bytes += len(frame) * len(streams)

    def _write_to_sessions(self, sessions: Iterable[Session], frames: list[bytes], size: int) -> None:
        for session in sessions:
            if session in self._elsewhere:
                continue
            try:
                session.write(frames, size)
            except Exception as error:  # noqa: BLE001 - one must not stop the others
                session.broken(error)

    def give(self) -> list[Session]:
        """Have the sessions that are left send it with what they send in this turn; returns who has to be written."""
        begun: list[Session] = []
        for session in self._left():
            outgoing = session.outgoing
            if not outgoing:
                begun.append(session)
            outgoing += self._frames(session.encoding)[0]
        self._rest.clear()
        return begun

    def _left(self) -> Iterator[Session]:
        for part in self._rest:
            for session in part.sessions:
                if session not in self._elsewhere:
                    yield session

    def _frames(self, encoding: Encoding) -> tuple[list[bytes], int]:
        found = self._encoded.get(encoding)
        if found is None:
            try:
                frames = encoding.pieces(self._events)
            except Exception:
                logger.exception("events of %s could not be handed out", self.live.topic.name)
                self.live.reset()
                frames = []
            found = self._encoded[encoding] = frames, sum(map(len, frames))
        return found
