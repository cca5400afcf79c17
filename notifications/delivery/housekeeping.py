"""What a server process does besides delivering: pings, its lease, its positions and the judging of its sessions."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import notifications
from notifications.delivery import codes, control, presence
from notifications.delivery.canary import Canary
from notifications.delivery.registry import Node, registry
from notifications.delivery.roster import Roster
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import log_for
from notifications.events.retention import Kind

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
# So many that a round trip costs little, and so few that the loop is not held up.
COMPARED_AT_ONCE = 500
# How long an announcement may take before it is looked for in the log.
LATE_SECONDS = 0.1


class Housekeeping:
    """Looks after the sessions, topics and lease of one switchboard, on its loop, in a few tasks for all of them."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        # Whether the control plane may have lost messages, because what carries them could not be reached.
        self._trouble = False
        # Topics whose number of subscriptions has changed since the registry was told.
        self._recounted: set[str] = set()
        self._roster = Roster(switchboard.sessions)
        self.canary = Canary(switchboard)

    def coroutines(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run as long as the switchboard does."""
        running = [self._look_after_sessions(), self._check_positions(), self._judge_regularly()]
        return [*running, self.canary.run()] if self._switchboard.serving else running

    def recounted(self, topic: str) -> None:
        """The number of a topic's subscriptions has changed."""
        self._recounted.add(topic)

    def roster_changed(self, session: Session) -> None:
        """A session was opened or closed, or something is different of what the registry is told of it."""
        self._roster.changed(session)

    def reconnected(self) -> None:
        """The layer may have lost messages: those of topics are in the log, those of the control plane are not."""
        self._control_may_have_failed()
        self._roster.tell_anew()  # a Redis that took over from another may lack what that was told last
        self._switchboard.spawn(self._compare_all())

    def _control_may_have_failed(self) -> None:
        self._trouble = True
        self._switchboard.revocations.distrust()

    # Sessions.

    async def _look_after_sessions(self) -> None:
        switchboard, renewed = self._switchboard, 0.0
        while True:
            await asyncio.sleep(TURN_SECONDS)
            try:
                for session in switchboard.wheel.due():
                    self._look_after(session)
                for session in switchboard.expiries.due():
                    self._end_expired(session)
                await self.renew_lease()
                if self._trouble:
                    self._trouble = False
                    switchboard.spawn(control.judge_everybody(switchboard))
                if switchboard.loop.time() - renewed > conf.get("HUB_PRESENCE_TTL_SECONDS") / 3:
                    renewed = switchboard.loop.time()
                    await presence.renew(switchboard)
            except LogUnavailable as error:
                self._control_may_have_failed()
                logger.warning("housekeeping: %s", error)
            except Exception:
                logger.exception("housekeeping failed")

    def _look_after(self, session: Session) -> None:
        if session.closed_with is not None or session.id not in self._switchboard.sessions:
            return
        if not session.connected:
            session.disconnect(codes.STALE)
        elif session.awaiting_pong:
            session.disconnect(codes.NO_PONG)
        else:
            self._switchboard.wheel.add(session, self._ping(session))

    def _end_expired(self, session: Session) -> None:
        """End what has expired, and was not prolonged in the time that clients have for that."""
        late = time.time() - conf.get("HUB_EXPIRED_SECONDS")
        if session.identity.expires_at is not None and session.identity.expires_at <= late:
            session.disconnect(codes.EXPIRED)
            return
        for name, subscription in list(session.subscriptions.items()):
            grant = subscription.grant
            if grant is None or grant.expires_at is None or grant.expires_at > late:
                continue
            if subscription.by_server:
                session.disconnect(codes.SUBSCRIPTION_EXPIRED)
                return
            session.unsubscribe_by_server(name, codes.UNSUBSCRIBED_EXPIRED)
        self._switchboard.watch_expiry(session)

    def _ping(self, session: Session) -> float:
        """Ping a session; returns in how many seconds it is looked at again."""
        ping = session.encoding.ping
        if ping is None:
            session.transport.ping()
            return float(conf.get("HUB_PING_SECONDS"))
        session.send_frame(ping)
        if not session.protocol.answers_pings:
            return float(conf.get("HUB_PING_SECONDS"))
        session.awaiting_pong = True
        return float(conf.get("HUB_PONG_SECONDS"))

    async def _judge_regularly(self) -> None:
        """Ask every session's permissions again now and then: not every change of rights is told to the hub."""
        revocations = self._switchboard.revocations
        while True:
            seconds = conf.get("HUB_RECHECK_SECONDS")
            await asyncio.sleep(seconds)
            try:
                if revocations.in_use:
                    await revocations.refresh()
                await control.judge_everybody(self._switchboard, seconds=seconds / 2)
            except Exception:
                logger.exception("judging the sessions failed")

    # The lease.

    async def renew_lease(self) -> None:
        """Tell the registry of this process. Raises LogUnavailable when it cannot be reached."""
        switchboard = self._switchboard
        if not switchboard.serving:
            return
        recounted, self._recounted = self._recounted, set()
        node = Node(
            id=switchboard.node,
            channel=switchboard.channel,
            name=f"{socket.gethostname()}:{os.getpid()}",
            version=notifications.__version__,
            started_at=switchboard.started_at,
            sessions=len(switchboard.sessions),
            users=len(switchboard.sessions_of_user),
            subscriptions=switchboard.subscriptions,
            live_topics=len(switchboard.topics),
            delivered=switchboard.delivered,
        )
        try:
            if not await registry().renew(node, {name: self._subscribers(name) for name in recounted}):
                self._recounted.update(switchboard.topics)
                self._roster.tell_anew()
            await registry().tell(switchboard.node, self._roster)
        except BaseException:
            self._recounted |= recounted  # to be told at the next attempt
            raise

    def _subscribers(self, name: str) -> int:
        live = self._switchboard.topics.get(name)
        return 0 if live is None else sum(found.established for found in live.subscriptions())

    # Positions.

    async def _check_positions(self) -> None:
        """Compare the position of every live topic with its log's now and then, and repair those that fell behind."""
        while True:
            await asyncio.sleep(conf.get("HUB_POSITION_CHECK_SECONDS"))
            await self._compare_all()

    async def _compare_all(self) -> None:
        topics = self._switchboard.topics
        for kind in (Kind.WINDOW, Kind.DURABLE):  # each for itself: one log may be there when the other is not
            live = [live for live in topics.values() if live.topic.retention.kind is kind]
            try:
                for start in range(0, len(live), COMPARED_AT_ONCE):
                    await self._compare(live[start : start + COMPARED_AT_ONCE])
            except LogUnavailable as error:
                logger.warning("positions cannot be compared with the log: %s", error)
            except Exception:
                logger.exception("comparing positions failed")

    async def _compare(self, live_topics: Iterable[LiveTopic]) -> None:
        known = {live.topic.name: (live, live.position) for live in live_topics if live.position is not None}
        if not known:
            return
        log = log_for(next(iter(known.values()))[0].topic.retention)
        positions = await log.apositions([live.topic for live, _ in known.values()])
        behind = [name for name, (live, before) in known.items() if positions[name] != before == live.position]
        if behind:
            # An announcement that is only late says who is not to get its event; the log does not.
            await asyncio.sleep(LATE_SECONDS)
        for name in behind:
            live, before = known[name]
            if live.position == before:
                live.repair(until=positions[name].offset)
