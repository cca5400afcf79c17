"""Events on their way to the sessions that get them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from notifications.delivery import codes
from notifications.delivery.frames import Encoding
from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session

logger = logging.getLogger(__name__)


class FanOut:
    """Events of one topic on their way to sessions: encoded once each, and joined for those who take that.

    Half of what a broadcast costs beside the kernel's part is memory that has to be fetched, a session after the other.
    Who is written to at once is looked at once; giving frames to all first, and then writing them, took a tenth more.
    """

    __slots__ = ("_elsewhere", "_encoded", "_events", "_left", "_rest", "live")

    def __init__(self, live: LiveTopic, events: Sequence[EncodedEvent], sessions: Iterable[Session]) -> None:
        receivers = list(sessions)  # who comes and goes meanwhile changes the topic's own
        self.live = live
        self._events = events
        self._left = len(receivers)
        self._rest = iter(receivers)
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

    def write(self, limit: int) -> int:
        """Write to the next so many sessions; returns how many are left."""
        self._left -= limit
        receivers: Iterable[Session] = islice(self._rest, limit)
        if self._elsewhere:
            receivers = [session for session in receivers if session not in self._elsewhere]
        encoding: Encoding | None = None
        frames: list[bytes] = []
        size = sent = 0
        for session in receivers:
            if session.encoding is not encoding:
                encoding = session.encoding
                frames, size = self._frames(encoding)
            transport = session.transport
            try:
                # What `Session.write()` does where the client keeps up: the call would take half as long again.
                if session.closed_with is None and not transport.congested:
                    session.allowance = size
                    transport.write(frames)
                    sent += size
                else:
                    session.write(frames, size)
            except Exception:
                logger.exception("a session could not be written to")
                with suppress(Exception):
                    session.disconnect(codes.SERVER_ERROR)
        self.live.switchboard.writer.sent_bytes += sent
        return self._left

    def write_all(self) -> None:
        """Write to all sessions that are left."""
        self.write(self._left)

    def give(self) -> list[Session]:
        """Have the sessions that are left send it with what they send in this turn; returns who has to be written."""
        begun: list[Session] = []
        for session in self._rest:
            outgoing = session.outgoing
            if not outgoing:
                begun.append(session)
            outgoing += self._frames(session.encoding)[0]
        self._left = 0
        return begun

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
