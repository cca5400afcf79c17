"""Writes what a turn of the loop has for the sessions: once per session and turn, a thousand at a time.

Nine tenths of a broadcast's time is the kernel's send path, per write and not per byte. So the frames of a turn are
joined: eight events at once cost a session little more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import filterfalse
from typing import TYPE_CHECKING

from notifications.delivery import metrics
from notifications.delivery.audience import PART_SESSIONS

if TYPE_CHECKING:
    from notifications.delivery.fanout import FanOut
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session


class Writer:
    """The topics that have events and the sessions that have frames to be written in this turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sent_bytes = 0
        self._loop = loop
        self._topics: list[LiveTopic] = []
        self._sessions: list[Session] = []
        # What is on its way to many sessions, and takes several turns. Topics and receivers wait for its end.
        self._fan_out: FanOut | None = None
        self._scheduled = False

    def topic_later(self, live: LiveTopic) -> None:
        """Have the topic hand out the events of this turn when the turn ends."""
        self._topics.append(live)
        self._schedule()

    def session_later(self, session: Session) -> None:
        """Have the session write what it sends in this turn, once, when the turn ends."""
        self._sessions.append(session)
        self._schedule()

    def sessions_later(self, sessions: Sequence[Session]) -> None:
        """The same for many."""
        self._sessions += sessions
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write)

    def hand_out(self) -> None:
        """Give the sessions what the topics have for them in this turn."""
        if self._fan_out is not None:
            self._fan_out.write_all()
            self._fan_out = None
        topics, self._topics = self._topics, []
        for live in topics:
            live.hand_out()

    def left(self, live: LiveTopic, session: Session) -> None:
        """A session gets no more of a topic's events, nor those that are on their way."""
        if self._fan_out is not None and self._fan_out.live is live:
            self._fan_out.leave(session)

    def _write(self) -> None:
        # Still scheduled meanwhile: what handing out makes a session send belongs to this turn.
        if self._fan_out is None:
            if len(self._topics) == 1:
                self._fan_out = self._topics.pop().take_turn()
            else:
                self.hand_out()
            if self._fan_out is not None:
                self._fan_out.join(self._sessions)
        if self._fan_out is not None and not self._fan_out.write(PART_SESSIONS):
            self._fan_out = None
        self._write_sessions()
        # Counted here once, not per write: a counter of Prometheus takes a lock each time.
        metrics.sent_bytes.inc(self.sent_bytes)
        self.sent_bytes = 0
        self._scheduled = False
        if self._sessions or self._topics or self._fan_out is not None:
            self._schedule()

    def _write_sessions(self) -> None:
        """Write what sessions have to send: to some, and to none that is still to get an event before it."""
        sessions, waiting = self._sessions, []
        if self._fan_out is not None:
            waiting = list(filter(self._fan_out.awaits, sessions))
            sessions = list(filterfalse(self._fan_out.awaits, sessions))
        self._sessions = waiting + sessions[PART_SESSIONS:]
        for session in sessions[:PART_SESSIONS]:
            try:
                session.flush()
            except Exception as error:  # noqa: BLE001 - one must not stop the others
                session.broken(error)
